"""How `OpenBao` takes answers that a real store does not give on demand; the real store is in tests/integration."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from callgate_server.backends.openbao import AppRole, OpenBao, TokenFile
from callgate_server.backends.private_files import replace_private
from callgate_server.model.errors import CallError, Reason
from callgate_server.secrets.broker import REFUSED, Lease

TOKEN = "s.unit-test-token"
# How many requests the gateway has under way at most.
THREADS = 8
Answer = tuple[int, Any]


class Store:
    """An HTTP server that answers paths from a table and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer | Callable[[], Answer]] = {
            "auth/token/lookup-self": (200, {"data": {"ttl": 0, "renewable": False}}),
            "auth/approle/login": (200, login(3600)),
            "auth/token/revoke-self": (204, None),
        }
        self.asked: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.connections = 0
        # What becomes of a connection that is opened ahead of need.
        self.keeps_connections = True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                store.connections += 1

            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = self.path.removeprefix("/v1/")
                store.asked.append(path)
                store.headers.append(dict(self.headers))
                answer = store.answers.get(path, (404, {"errors": []}))
                status, body = answer() if callable(answer) else answer
                content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                if status in (301, 307):
                    self.send_header("Location", f"{store.address}/v1/elsewhere")
                # Who asked may have given up.
                with contextlib.suppress(ConnectionError):
                    self.end_headers()
                    self.wfile.write(content)

            def do_HEAD(self) -> None:
                if not store.keeps_connections:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(200)
                self.end_headers()

            do_GET = do_POST = do_PUT = _answer  # noqa: N815 - the names that http.server looks for

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def login(lifetime_s: int, token: str = TOKEN) -> dict[str, Any]:
    return {"auth": {"client_token": token, "lease_duration": lifetime_s, "renewable": True}}


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    yield store
    store.close()


@pytest.fixture
def token_file(tmp_path: Path) -> TokenFile:
    replace_private(tmp_path / "token", f"{TOKEN}\n".encode())
    return TokenFile(tmp_path / "token")


@pytest.fixture
def approle(tmp_path: Path) -> AppRole:
    replace_private(tmp_path / "role_id", b"role-1234")
    replace_private(tmp_path / "secret_id", b"secret-5678")
    return AppRole(tmp_path / "role_id", tmp_path / "secret_id")


async def read(store: Store, auth: TokenFile | AppRole, path: str = "kv/data/a") -> Lease:
    openbao = OpenBao(store.address, auth)
    try:
        return await openbao.read(path, timeout_s=10)
    finally:
        await openbao.close()


async def refusal(store: Store, auth: TokenFile | AppRole, path: str = "kv/data/a") -> CallError:
    with pytest.raises(CallError) as raised:
        await read(store, auth, path)
    return raised.value


def shown(lease: Lease) -> dict[str, bytes]:
    return {name: value.reveal() for name, value in lease.values.items()}


async def test_the_values_of_kv_version_2_stand_beside_their_metadata(store: Store, token_file: TokenFile) -> None:
    store.answers["kv/data/a"] = (200, {"lease_id": "", "data": {"data": {"key": "v"}, "metadata": {"version": 3}}})
    lease = await read(store, token_file)
    assert (shown(lease), lease.lease_id, lease.ttl_s) == ({"key": b"v"}, None, None)


async def test_fields_called_data_and_metadata_are_ordinary_values_elsewhere(
    store: Store, token_file: TokenFile
) -> None:
    store.answers["kv/a"] = (200, {"data": {"data": "v", "metadata": "w"}})
    assert shown(await read(store, token_file, "kv/a")) == {"data": b"v", "metadata": b"w"}


async def test_a_dynamic_credential_has_its_lease(store: Store, token_file: TokenFile) -> None:
    store.answers["database/creds/r"] = (
        200,
        {"lease_id": "database/creds/r/1", "lease_duration": 60, "data": {"username": "u"}},
    )
    lease = await read(store, token_file, "database/creds/r")
    assert (shown(lease), lease.lease_id, lease.ttl_s) == ({"username": b"u"}, "database/creds/r/1", 60)


async def test_only_text_is_a_value(store: Store, token_file: TokenFile) -> None:
    store.answers["kv/a"] = (200, {"data": {"n": 12345678, "t": True, "o": {"x": "y"}, "none": None, "s": "yes"}})
    assert shown(await read(store, token_file, "kv/a")) == {"s": b"yes"}


@pytest.mark.parametrize("data", [None, [], "text", {"data": None, "metadata": {"version": 1}}])
async def test_an_answer_without_values_gives_none(store: Store, token_file: TokenFile, data: object) -> None:
    store.answers["kv/a"] = (200, {"data": data})
    assert shown(await read(store, token_file, "kv/a")) == {}


@pytest.mark.parametrize("status", [400, 403, 404])
async def test_what_the_store_refuses_is_refused_in_the_same_words(
    store: Store, token_file: TokenFile, status: int
) -> None:
    store.answers["kv/data/a"] = (status, {"errors": ["permission denied on kv/data/a for acme"]})
    error = await refusal(store, token_file)
    assert (error.reason, error.message) == (Reason.SECRET_REFUSED, REFUSED)


@pytest.mark.parametrize(
    "answer",
    [
        (429, {"errors": []}),
        (500, {"errors": ["x"]}),
        (502, b"<html>"),
        (503, None),
        (418, None),
        (200, b"{"),
        (200, []),
    ],
)
async def test_what_is_no_answer_means_unavailable(store: Store, token_file: TokenFile, answer: Answer) -> None:
    store.answers["kv/data/a"] = answer
    assert (await refusal(store, token_file)).reason is Reason.SECRETS_UNAVAILABLE


@pytest.mark.parametrize("status", [301, 307])
async def test_a_redirect_is_not_followed(store: Store, token_file: TokenFile, status: int) -> None:
    store.answers["kv/data/a"] = (status, None)
    store.answers["elsewhere"] = (200, {"data": {"key": "from-elsewhere"}})
    error = await refusal(store, token_file)
    assert error.reason is Reason.SECRETS_UNAVAILABLE
    assert "elsewhere" not in store.asked


@pytest.mark.parametrize(
    "path", ["kv/../sys/raw", "kv//a", "/kv/a", "kv/a?list=true", "kv/a#b", "kv/%2e", "kv/{tenant}", ""]
)
async def test_a_path_with_anything_but_names_never_reaches_the_store(
    store: Store, token_file: TokenFile, path: str
) -> None:
    assert (await refusal(store, token_file, path)).reason is Reason.SECRET_REFUSED
    assert store.asked == []


async def test_proxies_and_netrc_of_the_environment_are_ignored(
    store: Store, token_file: TokenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    store.answers["kv/a"] = (200, {"data": {"key": "v"}})
    assert shown(await read(store, token_file, "kv/a")) == {"key": b"v"}
    assert all("Authorization" not in headers for headers in store.headers)


async def test_the_namespace_is_sent(store: Store, token_file: TokenFile) -> None:
    openbao = OpenBao(store.address, token_file, namespace="team-a")
    await openbao.health()
    await openbao.close()
    assert store.headers[0]["X-Vault-Namespace"] == "team-a"


@pytest.mark.parametrize("content", [None, "", "   \n", "two\nlines", "h\xe4sslich"])
async def test_a_credential_file_that_holds_none_is_our_own_fault_and_its_name_is_for_the_log_alone(
    store: Store, tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if content is not None:
        replace_private(tmp_path / "token", content.encode())
    error = await refusal(store, TokenFile(tmp_path / "token"))
    assert error.reason is Reason.SECRETS_UNAVAILABLE
    assert "credential" in error.message
    assert str(tmp_path) not in error.message
    assert str(tmp_path / "token") in caplog.text
    assert content is None or not content.strip() or content not in caplog.text
    assert store.asked == []


async def test_a_fault_of_a_credential_file_is_logged_once_and_not_at_every_login(
    store: Store, token_file: TokenFile, caplog: pytest.LogCaptureFixture
) -> None:
    openbao = OpenBao(store.address, token_file)
    for _ in range(3):
        token_file.path.chmod(0o644)
        assert not (await openbao.health())["secret_store"].ok
    assert caplog.text.count(f"chmod 600 {token_file.path}") == 1
    await openbao.close()


async def test_a_credential_file_that_others_can_read_is_not_used(store: Store, token_file: TokenFile) -> None:
    token_file.path.chmod(0o644)
    assert "others" in (await refusal(store, token_file)).message
    assert store.asked == []


@pytest.mark.parametrize("body", [{}, {"auth": None}, {"auth": {"client_token": 5}}, {"auth": {"client_token": "t"}}])
async def test_a_login_that_is_not_understood_means_unavailable(store: Store, approle: AppRole, body: object) -> None:
    store.answers["auth/approle/login"] = (200, body)
    assert (await refusal(store, approle)).reason is Reason.SECRETS_UNAVAILABLE


async def test_many_calls_share_one_login_and_its_failure(store: Store, approle: AppRole) -> None:
    store.answers["kv/a"] = (200, {"data": {"key": "v"}})
    openbao = OpenBao(store.address, approle)
    await asyncio.gather(*(openbao.read("kv/a", timeout_s=10) for _ in range(20)))
    await openbao.close()
    assert store.asked.count("auth/approle/login") == 1

    store.answers["auth/approle/login"] = (503, None)
    openbao = OpenBao(store.address, approle)
    failures = await asyncio.gather(*(openbao.read("kv/a", timeout_s=10) for _ in range(20)), return_exceptions=True)
    await openbao.close()
    assert {failure.reason for failure in failures if isinstance(failure, CallError)} == {Reason.SECRETS_UNAVAILABLE}
    assert store.asked.count("auth/approle/login") == 2


async def test_a_dead_token_is_replaced_once_and_the_read_repeated(store: Store, approle: AppRole) -> None:
    logins = iter([(200, login(3600, "s.first")), (200, login(3600, "s.second"))])
    store.answers["auth/approle/login"] = lambda: next(logins)

    def if_second() -> Answer:
        second = store.headers[-1]["X-Vault-Token"] == "s.second"
        return (200, {"data": {"key": "v", "ttl": 0}}) if second else (403, {"errors": ["permission denied"]})

    store.answers["kv/a"] = store.answers["auth/token/lookup-self"] = if_second
    assert shown(await read(store, approle, "kv/a"))["key"] == b"v"
    assert store.asked.count("auth/approle/login") == 2


async def test_a_read_that_stays_forbidden_after_a_new_login_is_refused(store: Store, approle: AppRole) -> None:
    store.answers["kv/data/a"] = store.answers["auth/token/lookup-self"] = (403, {"errors": ["permission denied"]})
    assert (await refusal(store, approle)).reason is Reason.SECRET_REFUSED
    assert store.asked.count("kv/data/a") == 2


async def test_a_token_is_renewed_with_jitter_between_three_and_two_thirds_of_its_life(
    store: Store, approle: AppRole
) -> None:
    for jitter, expected_s in ((0.0, 1000 + 2000), (1.0, 1000 + 1800)):
        store.answers["auth/approle/login"] = (200, login(3000))
        openbao = OpenBao(store.address, approle, now=lambda: 1000.0, jitter=lambda jitter=jitter: jitter)
        await openbao.health()
        assert openbao._token is not None
        assert openbao._token.renew_s == pytest.approx(expected_s)
        await openbao.close()


async def test_a_failed_revocation_is_reported_when_it_keeps_failing_and_forgotten_when_it_works(
    store: Store, token_file: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callgate_server.backends.openbao._REVOKE_EVERY_S", 0.01)
    attempts = asyncio.Queue[int]()
    loop = asyncio.get_running_loop()
    works = False

    def revoke() -> Answer:
        loop.call_soon_threadsafe(attempts.put_nowait, 1)
        return (204, None) if works else (500, {"errors": ["database is down"]})

    store.answers["sys/leases/revoke"] = revoke
    openbao = OpenBao(store.address, token_file)
    with pytest.raises(CallError) as raised:
        await openbao.revoke("database/creds/r/1", timeout_s=5)
    assert raised.value.reason is Reason.SECRETS_UNAVAILABLE
    assert (await openbao.health())["secret_leases"].ok

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        background = tasks.create_task(openbao.run())
        for _ in range(5):
            await attempts.get()
        report = (await openbao.health())["secret_leases"]
        assert not report.ok
        assert "database" not in report.detail
        works = True
        while openbao._unrevoked:  # noqa: ASYNC110 - seen by its end alone
            await asyncio.sleep(0.01)
        background.cancel()
    assert (await openbao.health())["secret_leases"].ok
    await openbao.close()


async def given_up(openbao: OpenBao, store: Store) -> threading.Event:
    """Give up a read whose lease the store gives when the returned event is set."""
    released = threading.Event()

    def when_released() -> Answer:
        released.wait(timeout=10)
        return (200, {"lease_id": "database/creds/r/1", "lease_duration": 60, "data": {"username": "u"}})

    store.answers["database/creds/r"] = when_released
    store.answers["sys/leases/revoke"] = (204, None)
    reading = asyncio.ensure_future(openbao.read("database/creds/r", timeout_s=10))
    async with asyncio.timeout(10):
        while "database/creds/r" not in store.asked:  # noqa: ASYNC110 - seen by its end alone
            await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.wait({reading})
    return released


async def test_a_lease_whose_own_database_is_away_keeps_no_other_from_its_revocation(
    store: Store, token_file: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callgate_server.backends.openbao._REVOKE_EVERY_S", 0.01)
    attempts = 0

    def revoke() -> Answer:
        nonlocal attempts
        attempts += 1
        return (204, None) if attempts == 4 else (500, {"errors": ["database is down"]})

    store.answers["sys/leases/revoke"] = revoke
    openbao = OpenBao(store.address, token_file)
    away, other = "database/creds/away/1", "database/creds/other/1"
    for lease_id in (away, other):
        with pytest.raises(CallError):
            await openbao.revoke(lease_id, timeout_s=5)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        background = tasks.create_task(openbao.run())
        while attempts < 6:  # noqa: ASYNC110 - seen by its number alone
            await asyncio.sleep(0.01)
        background.cancel()
    assert list(openbao._unrevoked) == [away]
    await openbao.close()


@pytest.mark.parametrize("when", ["before the end", "at the end"])
async def test_a_lease_that_came_too_late_is_revoked_before_the_end(
    store: Store, token_file: TokenFile, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    openbao = OpenBao(store.address, token_file, timeout_s=10)
    released = await given_up(openbao, store)
    if when == "before the end":
        released.set()
        async with asyncio.timeout(10):
            while not openbao._unrevoked:  # noqa: ASYNC110 - seen by its end alone
                await asyncio.sleep(0.01)
    closing = asyncio.ensure_future(openbao.close())
    await asyncio.sleep(0.05)
    released.set()
    async with asyncio.timeout(10):
        await closing
    assert store.asked.count("sys/leases/revoke") == 1
    assert caplog.records == []


@pytest.mark.parametrize("way", ["refuses", "hangs"])
async def test_what_could_not_be_revoked_by_the_end_is_said_and_keeps_nobody(
    store: Store, approle: AppRole, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    openbao = OpenBao(store.address, approle, timeout_s=1)
    over = threading.Event()

    def revoke() -> Answer:
        if way == "hangs":
            over.wait(timeout=10)
        return (500, {"errors": ["database is down"]})

    store.answers["sys/leases/revoke"] = revoke
    for number in range(2):
        with pytest.raises(CallError):
            await openbao.revoke(f"database/creds/r/{number}", timeout_s=5)
    async with asyncio.timeout(10):
        await openbao.close()
    over.set()
    assert [record.getMessage() for record in caplog.records] == [
        "leases that are not revoked, and end by themselves or with the token that got them: 2"
    ]
    # Its own token is given back all the same.
    assert store.asked[-1] == "auth/token/revoke-self"


async def test_all_connections_are_opened_after_the_login_and_no_burst_opens_more(
    store: Store, approle: AppRole
) -> None:
    at_once = threading.Barrier(THREADS, timeout=10)

    def when_all_have_asked() -> Answer:
        at_once.wait()
        return (200, {"data": {"key": "v"}})

    store.answers["kv/a"] = when_all_have_asked
    # The gateway renews when it has done all that follows a login.
    store.answers["auth/approle/login"] = (200, login(1))
    store.answers["auth/token/renew-self"] = (200, login(3600))
    openbao = OpenBao(store.address, approle, timeout_s=10)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        background = tasks.create_task(openbao.run())
        while "auth/token/renew-self" not in store.asked:  # noqa: ASYNC110 - seen by its end alone
            await asyncio.sleep(0.01)
        opened = store.connections
        for _ in range(2):
            await asyncio.gather(*(openbao.read("kv/a", timeout_s=10) for _ in range(THREADS)))
        background.cancel()
    await openbao.close()
    assert opened == store.connections == THREADS


async def test_a_store_that_takes_no_connection_ahead_of_need_is_used_as_any_other(
    store: Store, approle: AppRole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callgate_server.backends.openbao._RETRY_S", 0.01)
    store.keeps_connections = False
    store.answers["auth/approle/login"] = (200, login(1))
    store.answers["auth/token/renew-self"] = (200, login(1))
    store.answers["kv/a"] = (200, {"data": {"key": "v"}})
    openbao = OpenBao(store.address, approle)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        background = tasks.create_task(openbao.run())
        while store.asked.count("auth/token/renew-self") < 2:  # noqa: ASYNC110 - seen by its end alone
            await asyncio.sleep(0.01)
        assert shown(await openbao.read("kv/a", timeout_s=10)) == {"key": b"v"}
        background.cancel()
    await openbao.close()


async def test_messages_and_tracebacks_hold_neither_token_nor_path(store: Store, token_file: TokenFile) -> None:
    for status in (403, 500):
        store.answers["kv/data/tenant-x/a"] = (status, {"errors": [f"boom {TOKEN} tenant-x"]})
        error = await refusal(store, token_file, "kv/data/tenant-x/a")
        chain: BaseException | None = error
        while chain is not None:
            assert TOKEN not in repr(chain)
            assert "tenant-x" not in str(chain)
            chain = chain.__cause__


async def test_health_never_raises(token_file: TokenFile) -> None:
    openbao = OpenBao("http://127.0.0.1:1", token_file)
    health = await openbao.health()
    await openbao.close()
    assert not health["secret_store"].ok
    assert health["secret_leases"].ok


@pytest.mark.parametrize(("status", "particular"), [(500, True), (502, False), (503, False)])
async def test_an_error_of_its_own_says_only_that_it_cannot_give_just_this(
    store: Store, token_file: TokenFile, status: int, particular: bool
) -> None:
    store.answers["database/creds/r"] = (status, {"errors": ["x"]})
    refused = await refusal(store, token_file, "database/creds/r")
    assert (refused.reason, refused.particular) == (Reason.SECRETS_UNAVAILABLE, particular)
