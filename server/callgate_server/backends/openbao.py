"""OpenBao or Vault as the secret store, through hvac in threads of its own.

It decides how the gateway logs in, how long an answer may take and what each failure means. Which secret a call
gets is the broker's business, and what the gateway may read is the store's own policy.

A token is renewed at two thirds of its life, with jitter; when that no longer helps, the gateway logs in again. A
forbidden read may mean an expired token: only if the token is indeed dead is there a new login and a second try,
so that a forbidden path costs the store one lookup and not one login. A lease whose revocation failed, or whose
answer came too late for anybody, is revoked in the background until it succeeds, and once more at the end: nobody has
recorded the latter kind, so that no later start would find it.

Connections to the store are kept, and each thread may come to need one. They are opened after the first login, so that
as a rule the gateway holds then what it holds for good; one that cannot be opened, or breaks, comes when it is needed.
"""

import asyncio
import contextlib
import logging
import math
import random
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, assert_never

import hvac.exceptions as vault  # type: ignore[import-untyped]  # hvac ships no types
import requests
from hvac.adapters import RawAdapter  # type: ignore[import-untyped]
from requests.adapters import HTTPAdapter

from callgate_server.backends.private_files import read_private
from callgate_server.backends.threads import full_pool
from callgate_server.execution.sandbox import Health
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.sealed import Sealed
from callgate_server.secrets.broker import REFUSED, Lease

_T = TypeVar("_T")
_Method = Literal["get", "post", "put"]
_PATH: Final = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)+")
_THREADS: Final = 8
# One for each thread, and room for those that others use while all these are being opened: see `_connect`.
_MAX_CONNECTIONS: Final = 2 * _THREADS
_RENEW_AT: Final = 2 / 3
_RENEW_JITTER: Final = 0.1
_RETRY_S: Final = 1.0
_REVOKE_EVERY_S: Final = 5.0
_REVOKE_FAILURES_REPORTED: Final = 3
# Leases end by themselves; what is forgotten beyond this only lives until then.
_MAX_UNREVOKED: Final = 10_000
_MAX_CREDENTIAL_BYTES: Final = 64 * 1024
_LOOKUP_SELF: Final = "auth/token/lookup-self"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A file that holds a token. It is read again at every login, so that an agent may replace the token."""

    path: Path


@dataclass(frozen=True, slots=True)
class AppRole:
    """An AppRole by the files that hold its role id and its secret id."""

    role_id_file: Path
    secret_id_file: Path
    mount: str = "approle"


@dataclass(frozen=True, slots=True)
class _Token:
    """A token of ours: `renew_s` and `expires_s` are monotonic, `lifetime_s` is what the login granted."""

    value: Sealed
    lifetime_s: float
    renew_s: float
    expires_s: float
    renewable: bool


class _CredentialError(ConnectionError):
    """The gateway's own credential cannot be used. `fault` names its file, and is for the log and for no caller."""

    def __init__(self, text: str, fault: str) -> None:
        super().__init__(text)
        self.fault = fault


class OpenBao:
    """Implements `SecretStore`. Run `run()` in the application's task group; `close()` at the end.

    Inside, failures are built-in exceptions: `PermissionError` (forbidden), `LookupError` (no such secret) and
    `ConnectionError` (no answer, or none that helps; its text says which and is fit for a caller).
    """

    def __init__(
        self,
        address: str,
        auth: TokenFile | AppRole,
        *,
        ca_file: Path | None = None,
        namespace: str | None = None,
        timeout_s: float = 2.0,
        now: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`timeout_s` bounds each request to the store; `jitter` gives numbers in [0, 1)."""
        self._address = address
        self._auth = auth
        self._namespace = namespace
        self._timeout_s = timeout_s
        self._now = now
        self._jitter = jitter
        self._session = _session(ca_file)
        self._pool = full_pool(_THREADS, "openbao")
        self._token: _Token | None = None
        self._login = asyncio.Lock()
        self._login_failure: tuple[float, ConnectionError] = (-math.inf, ConnectionError())
        # What is wrong with a file of ours, as it was logged last.
        self._fault = ""
        # Lease ids still to be revoked, oldest first, with how often it failed.
        self._unrevoked: dict[str, int] = {}
        # Requests that nobody waits for any more, and that may still bring a lease.
        self._given_up: set[Future[Any]] = set()

    async def read(self, path: str, *, timeout_s: float) -> Lease:
        """Read a path of a KV engine, or of any engine that gives leased credentials to a GET.

        Raises:
            CallError: `secrets_unavailable` or `secret_refused`.
        """
        try:
            if not _PATH.fullmatch(path):
                raise LookupError
            async with asyncio.timeout(timeout_s):
                return _lease(await self._authorised("get", path))
        except (PermissionError, LookupError):
            raise CallError(Reason.SECRET_REFUSED, REFUSED) from None
        except (ConnectionError, TimeoutError) as error:
            raise _unavailable(error) from None

    async def revoke(self, lease_id: str, *, timeout_s: float) -> None:
        """Revoke a lease. If that fails, or is cancelled, `run()` goes on trying.

        Raises:
            CallError: `secrets_unavailable`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._revoke(lease_id)
        except (OSError, LookupError) as error:
            self._remember(lease_id)
            raise _unavailable(error) from None
        except asyncio.CancelledError:
            self._remember(lease_id)
            raise

    async def health(self) -> Mapping[str, Health]:
        """Never raises. `sys/health` is not asked: it says all is well while a broken audit device fails every read.

        Looking up our own token is a read like any other: it needs an unsealed store, a working audit device
        and a valid token.
        """
        try:
            await self._authorised("get", _LOOKUP_SELF)
            store = Health(ok=True, detail="reads work")
        except (OSError, LookupError) as error:
            store = Health(ok=False, detail=_unavailable(error).message)
        stuck = sum(failures >= _REVOKE_FAILURES_REPORTED for failures in list(self._unrevoked.values()))
        leases = Health(ok=True, detail="all ended leases are revoked")
        if stuck:
            leases = Health(
                ok=False,
                detail=f"{stuck} leases could not be revoked yet; may the gateway update sys/leases/revoke?",
            )
        return {"secret_store": store, "secret_leases": leases}

    async def run(self) -> None:
        """Log in, connect, keep the token alive and revoke what is left over, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_token(), name="openbao-token")
            tasks.create_task(self._keep_revoking(), name="openbao-revoke")

    async def close(self) -> None:
        """Revoke what is left over, give our own token back (its leases end with it) and release the threads."""
        try:
            await self._revoke_last()
            token, self._token = self._token, None
            if token is not None and isinstance(self._auth, AppRole):
                await self._send("post", "auth/token/revoke-self", token)
        except (OSError, LookupError):
            pass  # it expires by itself
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._session.close()

    async def _revoke_last(self) -> None:
        """Wait for what was given up, as long as that can take, and try all leases that are left once more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * self._timeout_s):
                await asyncio.gather(*map(asyncio.wrap_future, list(self._given_up)), return_exceptions=True)
                await self._revoke_left_over()
        if self._unrevoked:
            _log.warning(
                "leases that are not revoked, and end by themselves or with the token that got them: %d",
                len(self._unrevoked),
            )

    async def _keep_token(self) -> None:
        connected = False
        while True:
            try:
                token = await self._valid_token()
                if not connected:
                    # Tried once: what it does not open is opened when it is needed.
                    connected = True
                    await self._in_thread(self._connect)
                # A token that never expires is looked at now and then: a read may have replaced it.
                await asyncio.sleep(min(max(token.renew_s - self._now(), _RETRY_S / 10), 60))
                if self._token is token and self._now() >= token.renew_s:
                    await self._renew(token)
            except ConnectionError:
                await asyncio.sleep(_RETRY_S * (1 + self._jitter()))

    async def _renew(self, token: _Token) -> None:
        """Renew, or log in again where renewing is refused or gives less than half of the first lifetime."""
        renewed = None
        if token.renewable:
            try:
                renewed = self._granted(await self._send("post", "auth/token/renew-self", token))
            except (PermissionError, LookupError):
                renewed = None
        if self._token is not token:
            return
        if renewed is None or renewed.lifetime_s < token.lifetime_s / 2:
            await self._log_in(token)
        else:
            self._token = renewed

    async def _keep_revoking(self) -> None:
        while True:
            await asyncio.sleep(_REVOKE_EVERY_S * (1 + self._jitter()))
            await self._revoke_left_over()

    async def _revoke_left_over(self) -> None:
        for lease_id, failures in list(self._unrevoked.items()):
            try:
                await self._revoke(lease_id)
            except (OSError, LookupError) as error:
                # To the end: one whose own database is away is not tried before the others again.
                self._unrevoked.pop(lease_id, None)
                self._unrevoked[lease_id] = failures + 1
                if isinstance(error, ConnectionError):
                    break  # the others would probably fare the same
            else:
                self._unrevoked.pop(lease_id, None)

    async def _revoke(self, lease_id: str) -> None:
        # Synchronous, so that the credential is dead when the store says so. A lease that is gone is no error.
        await self._authorised("put", "sys/leases/revoke", {"lease_id": lease_id, "sync": True})

    def _remember(self, lease_id: str) -> None:
        if len(self._unrevoked) >= _MAX_UNREVOKED:
            self._unrevoked.pop(next(iter(self._unrevoked)), None)
        self._unrevoked.setdefault(lease_id, 1)

    async def _authorised(self, method: _Method, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        token = await self._valid_token()
        try:
            return await self._send(method, path, token, body)
        except PermissionError:
            if await self._is_alive(token):
                raise
        token = await self._log_in(token)
        return await self._send(method, path, token, body)

    async def _is_alive(self, token: _Token) -> bool:
        try:
            await self._send("get", _LOOKUP_SELF, token)
        except PermissionError:
            return False
        return True

    async def _valid_token(self) -> _Token:
        token = self._token
        if token is not None and self._now() < token.expires_s:
            return token
        return await self._log_in(token)

    async def _log_in(self, stale: _Token | None) -> _Token:
        """Replace `stale`. Those who wait for the same login share its outcome, a failure too."""
        asked_s = self._now()
        async with self._login:
            if self._token is not None and self._token is not stale:
                return self._token
            failed_s, failure = self._login_failure
            if failed_s >= asked_s:
                raise ConnectionError(*failure.args)
            try:
                self._token = await self._in_thread(self._authenticate)
            except ConnectionError as error:
                self._login_failure = (self._now(), error)
                self._log_fault(error)
                raise
            self._fault = ""
            return self._token

    def _log_fault(self, error: ConnectionError) -> None:
        """Say what is wrong with a file of ours, once and not at every login."""
        if isinstance(error, _CredentialError) and error.fault != self._fault:
            self._fault = error.fault
            _log.error("the gateway cannot log in to the secret store: %s", error.fault)

    def _authenticate(self) -> _Token:
        """Log in; runs in a thread.

        Raises:
            ConnectionError: with a text that says whether the store or our own credential is at fault.
        """
        try:
            match self._auth:
                case TokenFile(path):
                    return self._adopted(Sealed(_credential(path).encode()))
                case AppRole(role_id_file, secret_id_file, mount):
                    body = {"role_id": _credential(role_id_file), "secret_id": _credential(secret_id_file)}
                    return self._granted(self._exchange("post", f"auth/{mount}/login", None, body))
                case _:
                    assert_never(self._auth)
        except (PermissionError, LookupError):
            raise ConnectionError("it does not accept the gateway's own credential") from None

    def _adopted(self, value: Sealed) -> _Token:
        """A token that somebody else issued, with what is left of its life (0 means that it never ends)."""
        candidate = self._issued(value, math.inf, renewable=False)
        data = self._exchange("get", _LOOKUP_SELF, candidate).get("data")
        if not isinstance(data, dict) or not isinstance(data.get("ttl"), int):
            raise ConnectionError("its answer is not understood")
        return self._issued(value, data["ttl"] or math.inf, renewable=data.get("renewable") is True)

    def _granted(self, document: dict[str, Any]) -> _Token:
        match document.get("auth"):
            case {"client_token": str(value), "lease_duration": int(lifetime_s), "renewable": bool(renewable)}:
                return self._issued(Sealed(value.encode()), lifetime_s or math.inf, renewable=renewable)
            case _:
                raise ConnectionError("its answer is not understood")

    def _issued(self, value: Sealed, lifetime_s: float, *, renewable: bool) -> _Token:
        now_s = self._now()
        renew_after_s = lifetime_s * _RENEW_AT * (1 - _RENEW_JITTER * self._jitter())
        return _Token(value, lifetime_s, now_s + renew_after_s, now_s + lifetime_s, renewable)

    async def _send(
        self, method: _Method, path: str, token: _Token, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        return await self._in_thread(partial(self._exchange, method, path, token, body))

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        """Run `work` in our pool for at most the store's timeout.

        The thread of a request that is given up on goes on until its socket times out; a lease that still comes
        back is revoked.
        """
        job = self._pool.submit(work)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.wrap_future(job)
        except TimeoutError:
            self._give_up(job)
            raise ConnectionError(f"no answer within {self._timeout_s:g} s") from None
        except asyncio.CancelledError:
            self._give_up(job)
            raise

    def _give_up(self, job: Future[Any]) -> None:
        self._given_up.add(job)
        job.add_done_callback(self._give_back)

    def _give_back(self, job: Future[Any]) -> None:
        self._given_up.discard(job)
        if job.cancelled() or job.exception() is not None:
            return
        document = job.result()
        if isinstance(document, dict) and document.get("lease_id"):
            self._remember(document["lease_id"])

    def _connect(self) -> None:
        """Open a connection for each thread; runs in one of them.

        A connection is free again when its answer has been read: until then, the next request opens another. Any
        answer will do, and this one costs the store no entry in its audit log.
        """
        adapter = self._adapter(None)
        with contextlib.ExitStack() as until_read:
            try:
                asked = [
                    until_read.enter_context(
                        adapter.request("head", "/v1/sys/health", stream=True, raise_exception=False)
                    )
                    for _ in range(_THREADS)
                ]
                for answer in asked:
                    answer.content  # noqa: B018  # reads it
            except (vault.VaultError, requests.RequestException, ValueError) as error:
                raise _classified(error) from None

    def _exchange(
        self, method: _Method, path: str, token: _Token | None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """One request and its answer; runs in a thread.

        The exceptions of the libraries end here, without a trace: they carry the request, and with it the token.
        """
        try:
            response = self._adapter(token).request(method, f"/v1/{path}", json=body)
            if response.status_code not in (200, 204):
                raise ConnectionError("it sends the gateway elsewhere; configure the address of the active node")
            document = response.json() if response.content else {}
        except (vault.VaultError, requests.RequestException, ValueError) as error:
            raise _classified(error) from None
        if not isinstance(document, dict):
            raise ConnectionError("its answer is not understood")
        return document

    def _adapter(self, token: _Token | None) -> RawAdapter:
        return RawAdapter(
            base_uri=self._address,
            token=None if token is None else token.value.reveal().decode(),
            timeout=self._timeout_s,
            allow_redirects=False,
            session=self._session,
            namespace=self._namespace,
        )


class _AnsweredError(ConnectionError):
    """The store answers, and cannot give just this: a database behind it is away, or its audit device is broken."""


def _classified(error: Exception) -> OSError | LookupError:
    """What a failure of the libraries means. A status of 500 is what a broken audit device gives for every read."""
    match error:
        case vault.Forbidden() | vault.Unauthorized():
            return PermissionError()
        case vault.InvalidPath() | vault.InvalidRequest():
            return LookupError()
        case vault.VaultDown():
            return ConnectionError("it is sealed or standing by")
        case vault.InternalServerError():
            return _AnsweredError("it answers with an error of its own; see its log, and its audit devices")
        case vault.VaultError():
            return ConnectionError("it answers with an error of its own; see its log, and its audit devices")
        case requests.JSONDecodeError():
            return ConnectionError("its answer is not understood")
        case requests.Timeout():
            return ConnectionError("no answer in time")
        case requests.exceptions.SSLError():
            return ConnectionError("its certificate is not trusted")
        case requests.RequestException():
            return ConnectionError("it cannot be reached")
        case _:
            return ConnectionError("its answer is not understood")


def _unavailable(error: Exception) -> CallError:
    match error:
        case PermissionError() | LookupError():
            detail = "it refuses a request that the gateway needs"
        case ConnectionError():
            detail = str(error)
        case _:
            detail = "no answer in time"
    return CallError(
        Reason.SECRETS_UNAVAILABLE,
        f"The secret store is not available: {detail}.",
        retry_after_ms=1000,
        particular=isinstance(error, _AnsweredError),
    )


def _lease(document: dict[str, Any]) -> Lease:
    """Read an answer. A KV engine of version 2 puts the values one level deeper, beside their metadata."""
    lease_id, data = document.get("lease_id") or None, document.get("data")
    if lease_id is None and isinstance(data, dict):
        metadata = data.get("metadata")
        if isinstance(metadata, dict) and "version" in metadata:
            data = data.get("data")
    if not isinstance(data, dict):
        data = {}
    values = {
        name: Sealed(value.encode("utf-8", "surrogatepass")) for name, value in data.items() if isinstance(value, str)
    }
    return Lease(values, lease_id, document.get("lease_duration") if lease_id else None)


def _credential(path: Path) -> str:
    try:
        content = read_private(path, _MAX_CREDENTIAL_BYTES)[0]
    except (OSError, ValueError) as error:
        text = "a file with the gateway's own credential cannot be read, or others could read it"
        raise _CredentialError(text, str(error)) from None
    text = content.decode("ascii", "replace").strip()
    if not text or not text.isascii() or not text.isprintable():
        raise _CredentialError("a file with the gateway's own credential holds none", f"{path} holds no credential")
    return text


def _session(ca_file: Path | None) -> requests.Session:
    session = requests.Session()
    # Neither a proxy nor a netrc of the environment comes between the gateway and its secrets.
    session.trust_env = False
    session.verify = True if ca_file is None else str(ca_file)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_connections=1, pool_maxsize=_MAX_CONNECTIONS))
    return session
