"""Leases what a manifest names, hands it out sealed, and gives it back whatever happens.

The store is a backend. One path is read once a call, however many of its fields a manifest names, so that a
user name and its password come from the same dynamic credential. What could not be redacted without mangling
ordinary output, because it is short or a common word, is not leased at all. What is for the gate becomes a
`Credential` and never a secret that is delivered.
"""

import asyncio
import re
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from callgate_server.model.call import Deadline
from callgate_server.model.egress import Credential
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.manifest import SecretRef
from callgate_server.model.run import DeliveredSecret
from callgate_server.model.sealed import Sealed
from callgate_server.model.strict_json import Json

# What every refusal of a store says, whether the path is forbidden, absent or deleted, or the field is missing.
REFUSED: Final = "the secret store does not give it; ask the operator whether it exists and may be read."
MIN_SECRET_BYTES: Final = 8
MAX_SECRET_BYTES: Final = 64 * 1024
_MIN_DISTINCT_BYTES: Final = 4
_REVOKE_TIMEOUT_S: Final = 2.0
# What a header carries unchanged: nothing that ends it, and no space at its ends.
_HEADER_VALUE: Final = re.compile(rb"[!-~]([ -~]{0,8190}[!-~])?")
_USER_AND_PASSWORD: Final = re.compile(rb"[^\x00-\x1f\x7f:]+:[^\x00-\x1f\x7f]+")
_COMMON_WORDS: Final = frozenset(
    b"administrator|changeme|changeit|database|disabled|example.com|function|localhost|password|password1|passw0rd|"
    b"postgres|postgresql|production|qwertyuiop|readonly|readwrite|redacted|security|superuser|undefined|username|"
    b"12345678|123456789|1234567890".split(b"|")
)


@dataclass(frozen=True, slots=True)
class Lease:
    """What one read gave. `lease_id` is None for static secrets, which need no revocation."""

    values: Mapping[str, Sealed]
    lease_id: str | None
    ttl_s: float | None


class SecretStore(Protocol):
    async def read(self, path: str, *, timeout_s: float) -> Lease:
        """Read a path.

        Raises:
            CallError: `secrets_unavailable` (down, sealed, slow, broken), `secret_refused` with the message
                `REFUSED` (forbidden, absent).
        """

    async def revoke(self, lease_id: str, *, timeout_s: float) -> None:
        """Revoke a lease. A store that fails to keeps trying.

        Raises:
            CallError: `secrets_unavailable`.
        """


# Writes an event of the call into the record: its kind and its body.
Journal = Callable[[str, Mapping[str, Json]], Awaitable[None]]


class Leases:
    """The secrets of one call, for as long as it runs."""

    def __init__(self, store: SecretStore | None, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._open: list[str] = []
        self._values: dict[str, Sealed] = {}
        self._delivered: list[DeliveredSecret] = []
        self._credentials: dict[str, Credential] = {}

    @property
    def delivered(self) -> tuple[DeliveredSecret, ...]:
        """What goes into the sandbox."""
        return tuple(self._delivered)

    @property
    def credentials(self) -> Mapping[str, Credential]:
        """What the gate adds to requests, by the name that rules give it. Never in the sandbox."""
        return self._credentials

    @property
    def values(self) -> Mapping[str, Sealed]:
        """Every value by the name that the manifest gives it, for the redactor."""
        return self._values

    @property
    def lease_ids(self) -> tuple[str, ...]:
        """What is still to be revoked."""
        return tuple(self._open)

    def opened(self, lease_id: str) -> None:
        self._open.append(lease_id)

    def add(self, ref: SecretRef, value: Sealed) -> None:
        """Take a value, for the sandbox or for the gate.

        Raises:
            CallError: `secret_refused`: no header can carry it.
        """
        self._values[ref.name] = value
        if ref.deliver == "egress":
            self._credentials[ref.name] = _credential(ref, value)
        else:
            self._delivered.append(DeliveredSecret(ref.name, ref.deliver, value))

    async def revoke(self) -> None:
        """Give everything back. Never raises `CallError`: a store that fails to revoke keeps trying by itself."""
        store, leases, self._open = self._store, self._open, []
        if store is not None:
            await asyncio.gather(*(_revoke(store, lease_id, self._journal) for lease_id in leases))


class Broker:
    """Leases from one store. Without a store, a tool that wants secrets cannot run."""

    def __init__(self, store: SecretStore | None, *, now: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._now = now

    async def lease(self, wanted: Iterable[SecretRef], tenant: str, *, deadline: Deadline, journal: Journal) -> Leases:
        """Lease every secret in `wanted` for `tenant`. All or none: on failure what was leased is revoked.

        A lease id is journalled before its secret can be used, so that a restarted gateway can revoke it.

        Raises:
            CallError: `secrets_unavailable`, `secret_refused`, `deadline_exceeded`, or what `journal` raised.
        """
        leases = Leases(self._store, journal)
        refs = tuple(wanted)
        if not refs:
            return leases
        if self._store is None:
            # Refused, not unavailable: the same call comes no further later, and no store has failed.
            message = "The tool needs secrets, and this gateway's operator has configured no secret store; ask for one."
            raise CallError(Reason.SECRET_REFUSED, message)
        try:
            await self._read(self._store, refs, tenant, deadline, journal, leases)
        except BaseException:
            await leases.revoke()
            raise
        return leases

    async def _read(
        self,
        store: SecretStore,
        refs: tuple[SecretRef, ...],
        tenant: str,
        deadline: Deadline,
        journal: Journal,
        leases: Leases,
    ) -> None:
        by_path: dict[str, Lease] = {}
        for ref in refs:
            path = ref.path(tenant)
            if path not in by_path:
                by_path[path] = lease = await self._read_path(store, ref.name, path, deadline)
                if lease.lease_id is not None:
                    leases.opened(lease.lease_id)
                    await journal("secret_leased", {"secret": ref.name, "lease_id": lease.lease_id})
            leases.add(ref, _acceptable(ref.name, by_path[path].values.get(ref.field)))

    async def _read_path(self, store: SecretStore, name: str, path: str, deadline: Deadline) -> Lease:
        remaining_s = deadline.remaining_s(self._now())
        if remaining_s <= 0:
            raise CallError(Reason.DEADLINE_EXCEEDED, "The deadline passed while secrets were being leased.")
        try:
            return await store.read(path, timeout_s=remaining_s)
        except CallError as error:
            raise CallError(
                error.reason, f"Secret `{name}`: {error.message}", retry_after_ms=error.retry_after_ms
            ) from error


def _acceptable(name: str, value: Sealed | None) -> Sealed:
    """Return the value if it can be kept out of what the tool gives back.

    Raises:
        CallError: `secret_refused`.
    """
    if value is None:
        raise CallError(Reason.SECRET_REFUSED, f"Secret `{name}`: {REFUSED}")
    content = value.reveal().strip()
    if len(content) < MIN_SECRET_BYTES or len(value.reveal()) > MAX_SECRET_BYTES:
        raise CallError(
            Reason.SECRET_REFUSED,
            f"Secret `{name}` must have {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes; store a longer or shorter one.",
        )
    if content.lower() in _COMMON_WORDS or len(set(content)) < _MIN_DISTINCT_BYTES:
        raise CallError(
            Reason.SECRET_REFUSED,
            f"Secret `{name}` is a common word or one character repeated, which output is full of; store a random one.",
        )
    return value


def _credential(ref: SecretRef, value: Sealed) -> Credential:
    """Return the value as its header carries it.

    Raises:
        CallError: `secret_refused`.
    """
    if ref.header is None or ref.prefix is None:
        raise ValueError("a secret for egress has a header and a prefix")
    if ref.encode == "basic":
        if not _USER_AND_PASSWORD.fullmatch(value.reveal()):
            raise CallError(
                Reason.SECRET_REFUSED,
                f"Secret `{ref.name}` is for basic authentication, and is not like user:password; store it so.",
            )
        value = Sealed(b64encode(value.reveal()))
    if not _HEADER_VALUE.fullmatch(value.reveal()):
        raise CallError(
            Reason.SECRET_REFUSED,
            f"Secret `{ref.name}` is nothing that a header carries: at most 8 KiB of printable ASCII, no line break.",
        )
    return Credential(ref.name, ref.header, ref.prefix, value)


async def _revoke(store: SecretStore, lease_id: str, journal: Journal) -> None:
    try:
        await store.revoke(lease_id, timeout_s=_REVOKE_TIMEOUT_S)
        await journal("secret_revoked", {"lease_id": lease_id})
    except CallError:
        return  # the store tries again by itself and reports it; what is not in the record is revoked once more
