"""Secrets from a real OpenBao: what works, and what each way of failing looks like."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from callgate_server.backends.openbao import AppRole, OpenBao, TokenFile
from callgate_server.backends.openbao_dev import DevServer
from callgate_server.backends.private_files import replace_private
from callgate_server.model.call import Deadline
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.manifest import SecretRef
from callgate_server.secrets.broker import REFUSED, Broker, Lease
from support.openbao import ConfiguredServer
from support.postgres import Postgres
from support.toxic import ToxicProxy

KEY = "kv/data/acme/webhooks"
VALUE = b"whsec-4f1c2d9a7b"
CREATION = (
    "CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}';",
    'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{{name}}";',
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    with DevServer.start(tmp_path_factory.mktemp("openbao"), search_path="") as server:
        server.operator.enable_kv()
        server.operator.write(KEY, {"key": VALUE.decode(), "second": "another-value-1"})
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as postgres:
        postgres.query("CREATE TABLE orders (id int); INSERT INTO orders VALUES (7)")
        yield postgres


@pytest.fixture(scope="module")
def database(server: DevServer, postgres: Postgres) -> Postgres:
    server.operator.create_database_role(
        "reader",
        host=postgres.host,
        port=postgres.port,
        user=postgres.user,
        password=postgres.password,
        creation=CREATION,
    )
    return postgres


@pytest.fixture
async def store(server: DevServer, tmp_path: Path) -> AsyncIterator[OpenBao]:
    async with opened(server.address, server.operator.create_approle(tmp_path)) as store:
        yield store


@pytest.fixture
def sealable(tmp_path: Path) -> Iterator[ConfiguredServer]:
    with ConfiguredServer(tmp_path) as server:
        yield server


@asynccontextmanager
async def opened(address: str, auth: AppRole | TokenFile, *, timeout_s: float = 2.0) -> AsyncIterator[OpenBao]:
    """A store whose background work runs, as in the application."""
    store = OpenBao(address, auth, timeout_s=timeout_s)
    try:
        async with asyncio.TaskGroup() as tasks:
            background = tasks.create_task(store.run())
            yield store
            background.cancel()
    finally:
        await store.close()


def value(lease: Lease, name: str = "key") -> bytes:
    return lease.values[name].reveal()


async def refusal(store: OpenBao, path: str = KEY, *, timeout_s: float = 10) -> CallError:
    with pytest.raises(CallError) as raised:
        await store.read(path, timeout_s=timeout_s)
    return raised.value


async def answers(store: OpenBao, *, within_s: float = 20) -> bytes:
    """What the store says as soon as it says anything."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                return value(await store.read(KEY, timeout_s=5))
            except CallError:
                await asyncio.sleep(0.1)


def roles(database: Postgres) -> set[str]:
    return set(database.query("SELECT rolname FROM pg_roles").splitlines())


async def gone(database: Postgres, is_gone: Callable[[set[str]], bool], *, within_s: float = 40) -> None:
    async with asyncio.timeout(within_s):
        while not is_gone(roles(database)):  # noqa: ASYNC110 - PostgreSQL tells nobody when a role goes
            await asyncio.sleep(0.2)


async def test_an_approle_reads_a_kv_secret_without_a_lease(store: OpenBao) -> None:
    lease = await store.read(KEY, timeout_s=5)
    assert (value(lease), value(lease, "second"), lease.lease_id) == (VALUE, b"another-value-1", None)


async def test_a_token_from_a_file_reads_a_kv_secret(server: DevServer, tmp_path: Path) -> None:
    token = tmp_path / "token"
    replace_private(token, server.root_token.reveal() + b"\n")
    async with opened(server.address, TokenFile(token)) as store:
        assert value(await store.read(KEY, timeout_s=5)) == VALUE


async def test_forbidden_absent_deleted_and_malformed_paths_are_refused_in_the_same_words(
    store: OpenBao, server: DevServer
) -> None:
    server.operator.write("kv/data/acme/gone", {"key": "was-here-once"})
    server.operator.request("delete", "kv/data/acme/gone")
    paths = ("sys/mounts", "kv/data/acme/never", "kv/data/acme/gone", "kv/data/../../sys/mounts", "cubbyhole")
    errors = [await refusal(store, path) for path in paths]
    assert {(error.reason, error.message) for error in errors} == {(Reason.SECRET_REFUSED, REFUSED)}


async def test_a_forbidden_path_costs_no_new_login(store: OpenBao, server: DevServer) -> None:
    await store.read(KEY, timeout_s=5)
    before = len(server.operator.request("get", "auth/token/accessors?list=true")["data"]["keys"])
    for _ in range(5):
        await refusal(store, "sys/mounts")
    assert len(server.operator.request("get", "auth/token/accessors?list=true")["data"]["keys"]) == before


async def test_a_database_credential_works_until_its_lease_is_revoked(store: OpenBao, database: Postgres) -> None:
    lease = await store.read("database/creds/reader", timeout_s=10)
    assert lease.lease_id is not None
    assert lease.ttl_s == 3600
    user, password = value(lease, "username").decode(), value(lease, "password").decode()
    assert database.query("SELECT id FROM orders", user=user, password=password) == "7"

    await store.revoke(lease.lease_id, timeout_s=10)

    with pytest.raises(PermissionError):
        database.query("SELECT 1", user=user, password=password)
    assert user not in roles(database)


async def test_the_broker_takes_name_and_password_from_one_credential_and_gives_it_back(
    store: OpenBao, database: Postgres
) -> None:
    refs = [
        SecretRef.model_validate({"name": name, "from": f"database/creds/reader#{field}", "deliver": "file"})
        for name, field in (("db_user", "username"), ("db_password", "password"))
    ]
    journal: list[str] = []

    async def note(kind: str, body: object) -> None:
        journal.append(kind)

    leases = await Broker(store).lease(refs, "acme", deadline=Deadline(time.monotonic() + 30), journal=note)
    user, password = (secret.value.reveal().decode() for secret in leases.delivered)
    assert database.query("SELECT id FROM orders", user=user, password=password) == "7"
    assert journal == ["secret_leased"]

    await leases.revoke()

    assert user not in roles(database)


async def test_a_lease_whose_revocation_failed_is_revoked_when_the_store_is_back(
    server: DevServer, database: Postgres, tmp_path: Path
) -> None:
    with ToxicProxy(int(server.address.rpartition(":")[2])) as proxy:
        auth = server.operator.create_approle(tmp_path)
        async with opened(proxy.address, auth, timeout_s=1) as store:
            lease = await store.read("database/creds/reader", timeout_s=10)
            assert lease.lease_id is not None
            proxy.latency_s = 10
            with pytest.raises(CallError) as raised:
                await store.revoke(lease.lease_id, timeout_s=0.2)
            assert raised.value.reason is Reason.SECRETS_UNAVAILABLE
            proxy.latency_s = 0
            await gone(database, lambda names: value(lease, "username").decode() not in names)


async def test_a_credential_that_comes_too_late_for_its_call_is_revoked(
    server: DevServer, database: Postgres, tmp_path: Path
) -> None:
    before = roles(database)
    with ToxicProxy(int(server.address.rpartition(":")[2])) as proxy:
        auth = server.operator.create_approle(tmp_path)
        async with opened(proxy.address, auth, timeout_s=20) as store:
            await store.health()
            proxy.latency_s = 6
            error = await refusal(store, "database/creds/reader", timeout_s=3)
            assert error.reason is Reason.SECRETS_UNAVAILABLE
            assert roles(database) > before
            proxy.latency_s = 0
            await gone(database, lambda names: names == before)


async def test_a_sealed_store_is_unavailable_and_serves_again_when_unsealed(
    sealable: ConfiguredServer, tmp_path: Path
) -> None:
    async with seeded(sealable, tmp_path) as store:
        sealable.seal()
        error = await refusal(store)
        assert error.reason is Reason.SECRETS_UNAVAILABLE
        assert "sealed" in error.message
        assert not (await store.health())["secret_store"].ok
        sealable.unseal()
        assert await answers(store) == VALUE


async def test_a_store_that_is_down_is_unavailable_at_once_and_serves_again_when_up(
    sealable: ConfiguredServer, tmp_path: Path
) -> None:
    async with seeded(sealable, tmp_path) as store:
        sealable.stop()
        error = await refusal(store)
        assert error.reason is Reason.SECRETS_UNAVAILABLE
        assert "reached" in error.message
        sealable.start()
        assert "sealed" in (await refusal(store)).message
        sealable.unseal()
        assert await answers(store) == VALUE


async def test_a_store_that_takes_a_minute_is_given_up_on_after_two_seconds(server: DevServer, tmp_path: Path) -> None:
    with ToxicProxy(int(server.address.rpartition(":")[2])) as proxy:
        async with opened(proxy.address, server.operator.create_approle(tmp_path)) as store:
            assert value(await store.read(KEY, timeout_s=5)) == VALUE
            proxy.latency_s = 60
            started_s = time.monotonic()
            errors = await asyncio.gather(*(refusal(store, timeout_s=30) for _ in range(20)))
            assert time.monotonic() - started_s < 30
            assert {error.reason for error in errors} == {Reason.SECRETS_UNAVAILABLE}
            assert not (await store.health())["secret_store"].ok
            proxy.latency_s = 0
            assert await answers(store) == VALUE


async def test_a_read_never_takes_longer_than_its_call_has(server: DevServer, tmp_path: Path) -> None:
    with ToxicProxy(int(server.address.rpartition(":")[2])) as proxy:
        async with opened(proxy.address, server.operator.create_approle(tmp_path), timeout_s=30) as store:
            await store.health()
            proxy.latency_s = 15
            started_s = time.monotonic()
            assert (await refusal(store, timeout_s=0.3)).reason is Reason.SECRETS_UNAVAILABLE
            assert time.monotonic() - started_s < 10
            proxy.latency_s = 0


async def test_a_revoked_token_is_replaced_by_a_new_login(store: OpenBao, server: DevServer) -> None:
    await store.read(KEY, timeout_s=5)
    server.operator.request("post", "auth/token/revoke-accessor", {"accessor": newest_accessor(server)})
    assert value(await store.read(KEY, timeout_s=5)) == VALUE


async def test_an_expired_token_without_a_successor_is_unavailable_not_refused(
    server: DevServer, tmp_path: Path
) -> None:
    issued = server.operator.request("post", "auth/token/create", {"ttl": "1h", "policies": ["root"]})["auth"]
    token = tmp_path / "token"
    replace_private(token, issued["client_token"].encode())
    async with opened(server.address, TokenFile(token)) as store:
        assert value(await store.read(KEY, timeout_s=5)) == VALUE
        server.operator.request("post", "auth/token/revoke", {"token": issued["client_token"]})
        error = await refusal(store)
        assert error.reason is Reason.SECRETS_UNAVAILABLE
        assert "credential" in error.message
        replace_private(token, server.root_token.reveal())
        assert await answers(store) == VALUE


async def test_a_wrong_secret_id_is_unavailable_and_named_as_our_own_credential(
    server: DevServer, tmp_path: Path
) -> None:
    auth = server.operator.create_approle(tmp_path)
    replace_private(auth.secret_id_file, b"00000000-0000-0000-0000-000000000000")
    async with opened(server.address, auth) as store:
        error = await refusal(store)
        assert error.reason is Reason.SECRETS_UNAVAILABLE
        assert "credential" in error.message


async def test_a_broken_audit_device_fails_reads_while_the_store_calls_itself_healthy(tmp_path: Path) -> None:
    with ConfiguredServer(tmp_path, audited=True) as server:
        async with seeded(server, tmp_path) as store:
            assert (await store.health())["secret_store"].ok
            server.break_audit()
            error = await refusal(store)
            assert error.reason is Reason.SECRETS_UNAVAILABLE
            assert "audit" in error.message
            assert server.operator.request("get", "sys/health")["sealed"] is False
            assert not (await store.health())["secret_store"].ok


async def test_a_token_is_renewed_before_it_expires(server: DevServer, tmp_path: Path) -> None:
    # A secret id that serves for one login only: what still reads after the first lifetime has been renewed.
    ttl_s = 6
    auth = server.operator.create_approle(
        tmp_path, name="short", token_ttl_s=ttl_s, token_max_ttl_s=120, secret_id_uses=1
    )
    async with opened(server.address, auth) as store:
        until_s = time.monotonic() + 3 * ttl_s
        while time.monotonic() < until_s:
            assert value(await store.read(KEY, timeout_s=5)) == VALUE
            await asyncio.sleep(0.1)


async def test_a_token_at_the_end_of_its_longest_life_is_replaced_in_time(server: DevServer, tmp_path: Path) -> None:
    auth = server.operator.create_approle(tmp_path, name="brief", token_ttl_s=2, token_max_ttl_s=3)
    async with opened(server.address, auth) as store:
        until_s = time.monotonic() + 6
        while time.monotonic() < until_s:
            assert value(await store.read(KEY, timeout_s=5)) == VALUE
            await asyncio.sleep(0.1)


async def test_closing_gives_the_login_token_back(server: DevServer, tmp_path: Path) -> None:
    auth = server.operator.create_approle(tmp_path)
    store = OpenBao(server.address, auth)
    await store.read(KEY, timeout_s=5)
    accessor = newest_accessor(server)
    await store.close()
    listed = server.operator.request("get", "auth/token/accessors?list=true")["data"]["keys"]
    assert accessor not in listed


async def test_the_approle_of_dev_can_do_nothing_but_read_and_revoke(server: DevServer, tmp_path: Path) -> None:
    store = OpenBao(server.address, server.operator.create_approle(tmp_path))
    try:
        for path in ("sys/policies/acl/callgate", "kv/metadata/acme/webhooks", "auth/approle/role/callgate"):
            assert (await refusal(store, path)).reason is Reason.SECRET_REFUSED
    finally:
        await store.close()


@asynccontextmanager
async def seeded(server: ConfiguredServer, directory: Path) -> AsyncIterator[OpenBao]:
    server.operator.enable_kv()
    server.operator.write(KEY, {"key": VALUE.decode()})
    async with opened(server.address, server.operator.create_approle(directory)) as store:
        assert value(await store.read(KEY, timeout_s=5)) == VALUE
        yield store


def newest_accessor(server: DevServer) -> str:
    """The accessor of the newest token of the gateway's role."""
    accessors = server.operator.request("get", "auth/token/accessors?list=true")["data"]["keys"]
    tokens = [
        server.operator.request("post", "auth/token/lookup-accessor", {"accessor": accessor})["data"]
        for accessor in accessors
    ]
    logins = [token for token in tokens if token["path"] == "auth/approle/login"]
    return str(max(logins, key=lambda token: token["issue_time"])["accessor"])


async def test_debug_logs_hold_no_secret_and_no_credential(
    server: DevServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    auth = server.operator.create_approle(tmp_path)
    async with opened(server.address, auth) as store:
        assert value(await store.read(KEY, timeout_s=5)) == VALUE
        await refusal(store, "sys/mounts")
    assert "/v1/kv/data/acme/webhooks" in caplog.text  # the client library does log at this level
    for hidden in (VALUE.decode(), auth.role_id_file.read_text(), auth.secret_id_file.read_text(), "X-Vault-Token"):
        assert hidden not in caplog.text
