import asyncio
import time
from base64 import b64decode
from collections.abc import Mapping
from typing import Literal

import pytest

from callgate_server.model.call import Deadline
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.manifest import SecretRef
from callgate_server.model.sealed import Sealed
from callgate_server.model.strict_json import Json
from callgate_server.secrets.broker import MAX_SECRET_BYTES, REFUSED, Broker, Lease

SOON = Deadline(time.monotonic() + 3600)
GOOD = "whsec-4f1c2d9a7b"


class MemoryStore:
    """A store that behaves: leases of `dynamic/…` are open until revoked, everything else is static."""

    def __init__(self, secrets: Mapping[str, Mapping[str, str]]) -> None:
        self._secrets = secrets
        self.reads: list[str] = []
        self.open: set[str] = set()
        self.timeouts_s: list[float] = []
        self.revocations_fail = False

    async def read(self, path: str, *, timeout_s: float) -> Lease:
        self.reads.append(path)
        self.timeouts_s.append(timeout_s)
        if path not in self._secrets:
            raise CallError(Reason.SECRET_REFUSED, REFUSED)
        values = {field: Sealed(value.encode()) for field, value in self._secrets[path].items()}
        if not path.startswith("dynamic/"):
            return Lease(values, None, None)
        lease_id = f"{path}/{len(self.reads)}"
        self.open.add(lease_id)
        return Lease(values, lease_id, 60)

    async def revoke(self, lease_id: str, *, timeout_s: float) -> None:
        if self.revocations_fail:
            raise CallError(Reason.SECRETS_UNAVAILABLE, "down")
        self.open.remove(lease_id)


class Journal:
    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, Json]]] = []

    async def __call__(self, kind: str, body: Mapping[str, Json]) -> None:
        self.events.append((kind, body))


def ref(name: str, source: str, deliver: Literal["file", "stdin"] = "file") -> SecretRef:
    return SecretRef.model_validate({"name": name, "from": source, "deliver": deliver})


def for_the_gate(name: str, source: str, **more: str) -> SecretRef:
    return SecretRef.model_validate({"name": name, "from": source, "deliver": "egress", **more})


async def refused(store: MemoryStore, *refs: SecretRef) -> CallError:
    with pytest.raises(CallError) as raised:
        await Broker(store).lease(refs, "acme", deadline=SOON, journal=Journal())
    return raised.value


async def test_what_a_manifest_names_is_delivered_under_its_name_for_the_callers_tenant() -> None:
    store = MemoryStore({"kv/data/acme/hooks": {"key": GOOD}, "kv/data/other/hooks": {"key": "not-for-acme"}})
    leases = await Broker(store).lease(
        [ref("signing", "kv/data/{tenant}/hooks#key", "stdin")], "acme", deadline=SOON, journal=Journal()
    )
    (secret,) = leases.delivered
    assert (secret.name, secret.deliver, secret.value.reveal()) == ("signing", "stdin", GOOD.encode())
    assert list(leases.values) == ["signing"]
    assert leases.lease_ids == ()


async def test_one_path_is_read_once_however_many_fields_are_wanted() -> None:
    store = MemoryStore({"dynamic/db": {"username": "v-token-reader", "password": "A1a-xyzzyxyzzy"}})
    journal = Journal()
    refs = [ref("db_user", "dynamic/db#username"), ref("db_password", "dynamic/db#password")]
    leases = await Broker(store).lease(refs, "acme", deadline=SOON, journal=journal)
    assert store.reads == ["dynamic/db"]
    assert journal.events == [("secret_leased", {"secret": "db_user", "lease_id": "dynamic/db/1"})]
    assert leases.lease_ids == ("dynamic/db/1",)


async def test_leases_are_given_back_once() -> None:
    store = MemoryStore({"dynamic/db": {"password": GOOD}})
    leases = await Broker(store).lease([ref("p", "dynamic/db#password")], "acme", deadline=SOON, journal=Journal())
    assert store.open == {"dynamic/db/1"}
    await leases.revoke()
    await leases.revoke()
    assert store.open == set()


async def test_a_store_that_cannot_revoke_does_not_fail_the_call() -> None:
    store = MemoryStore({"dynamic/db": {"password": GOOD}})
    leases = await Broker(store).lease([ref("p", "dynamic/db#password")], "acme", deadline=SOON, journal=Journal())
    store.revocations_fail = True
    await leases.revoke()
    assert store.open == {"dynamic/db/1"}


async def test_when_one_secret_is_refused_those_already_leased_are_given_back() -> None:
    store = MemoryStore({"dynamic/db": {"password": GOOD}})
    error = await refused(store, ref("p", "dynamic/db#password"), ref("missing", "kv/data/nope#key"))
    assert (error.reason, error.message) == (Reason.SECRET_REFUSED, f"Secret `missing`: {REFUSED}")
    assert store.open == set()


async def test_a_missing_field_is_refused_in_the_words_of_a_missing_path() -> None:
    store = MemoryStore({"kv/data/here": {"key": GOOD}})
    absent = await refused(store, ref("s", "kv/data/nope#key"))
    fieldless = await refused(store, ref("s", "kv/data/here#other"))
    assert (absent.reason, absent.message) == (fieldless.reason, fieldless.message)


async def test_a_lease_that_cannot_be_journalled_is_given_back() -> None:
    store = MemoryStore({"dynamic/db": {"password": GOOD}})

    async def broken(kind: str, body: Mapping[str, Json]) -> None:
        raise CallError(Reason.AUDIT_UNAVAILABLE, "no record")

    with pytest.raises(CallError) as raised:
        await Broker(store).lease([ref("p", "dynamic/db#password")], "acme", deadline=SOON, journal=broken)
    assert raised.value.reason is Reason.AUDIT_UNAVAILABLE
    assert store.open == set()


async def test_a_call_cancelled_while_leasing_gives_back_what_it_has() -> None:
    store = MemoryStore({"dynamic/db": {"password": GOOD}})
    journalling = asyncio.Event()

    async def stuck(kind: str, body: Mapping[str, Json]) -> None:
        journalling.set()
        if kind == "secret_leased":
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(
            Broker(store).lease([ref("p", "dynamic/db#password")], "acme", deadline=SOON, journal=stuck)
        )
        await journalling.wait()
        assert store.open == {"dynamic/db/1"}
        call.cancel()
    assert store.open == set()


async def test_a_revoked_lease_is_journalled_and_one_that_could_not_be_revoked_is_not() -> None:
    for fails, expected in ((False, ["secret_leased", "secret_revoked"]), (True, ["secret_leased"])):
        journal: list[str] = []

        async def note(kind: str, body: Mapping[str, Json], journal: list[str] = journal) -> None:
            assert body["lease_id"] == "dynamic/db/1"
            journal.append(kind)

        store = MemoryStore({"dynamic/db": {"password": GOOD}})
        leases = await Broker(store).lease([ref("p", "dynamic/db#password")], "acme", deadline=SOON, journal=note)
        store.revocations_fail = fails
        await leases.revoke()
        assert journal == expected


@pytest.mark.parametrize(
    "value",
    ["", "short", "  short  \n", "password", "PassWord", "aaaaaaaaaaaa", "abababababab", "x" * (MAX_SECRET_BYTES + 1)],
)
async def test_a_secret_that_could_not_be_redacted_without_harm_is_refused_by_name(value: str) -> None:
    store = MemoryStore({"dynamic/db": {"password": value}})
    error = await refused(store, ref("pin", "dynamic/db#password"))
    assert error.reason is Reason.SECRET_REFUSED
    assert "`pin`" in error.message
    assert not value or len(value.strip()) < 8 or value not in error.message
    assert store.open == set()


@pytest.mark.parametrize("value", ["8 bytes!", "pässwörd", "line one\nline two\n", "ab1!" * (MAX_SECRET_BYTES // 4)])
async def test_a_secret_within_the_limits_is_leased_as_it_is(value: str) -> None:
    store = MemoryStore({"kv/data/a": {"key": value}})
    leases = await Broker(store).lease([ref("s", "kv/data/a#key")], "acme", deadline=SOON, journal=Journal())
    assert leases.delivered[0].value.reveal() == value.encode()


async def test_without_a_store_a_tool_that_wants_secrets_is_refused_and_others_run() -> None:
    broker = Broker(None)
    with pytest.raises(CallError, match="operator has configured no secret store") as raised:
        await broker.lease([ref("s", "kv/data/a#key")], "acme", deadline=SOON, journal=Journal())
    assert (raised.value.reason, raised.value.spec.retryable) == (Reason.SECRET_REFUSED, False)
    leases = await broker.lease([], "acme", deadline=SOON, journal=Journal())
    assert (leases.delivered, leases.lease_ids) == ((), ())
    await leases.revoke()


async def test_a_tool_without_secrets_asks_the_store_nothing() -> None:
    store = MemoryStore({})
    await Broker(store).lease([], "acme", deadline=SOON, journal=Journal())
    assert store.reads == []


async def test_the_store_has_no_longer_than_the_call() -> None:
    store = MemoryStore({"kv/data/a": {"key": GOOD}})
    broker = Broker(store, now=lambda: 10.0)
    await broker.lease([ref("s", "kv/data/a#key")], "acme", deadline=Deadline(11.5), journal=Journal())
    assert store.timeouts_s == [1.5]
    with pytest.raises(CallError) as raised:
        await broker.lease([ref("s", "kv/data/a#key")], "acme", deadline=Deadline(10.0), journal=Journal())
    assert raised.value.reason is Reason.DEADLINE_EXCEEDED


async def test_nothing_of_a_lease_shows_its_value() -> None:
    store = MemoryStore({"kv/data/a": {"key": GOOD}})
    leases = await Broker(store).lease([ref("s", "kv/data/a#key")], "acme", deadline=SOON, journal=Journal())
    assert GOOD not in repr(leases.delivered) + repr(leases.values) + repr(vars(leases))


async def test_a_secret_for_the_gate_is_never_delivered_and_still_kept_out_of_what_comes_back() -> None:
    store = MemoryStore({"kv/data/a": {"key": GOOD, "other": "another-" + GOOD}})
    refs = [for_the_gate("api", "kv/data/a#key"), ref("own", "kv/data/a#other")]
    leases = await Broker(store).lease(refs, "acme", deadline=SOON, journal=Journal())
    assert [secret.name for secret in leases.delivered] == ["own"]
    (credential,) = leases.credentials.values()
    assert (credential.name, credential.header, credential.prefix) == ("api", "Authorization", "Bearer ")
    assert credential.value.reveal() == GOOD.encode()
    assert sorted(leases.values) == ["api", "own"]
    assert store.reads == ["kv/data/a"]
    assert GOOD not in repr(leases.credentials)


async def test_a_secret_for_the_gate_is_leased_and_given_back_like_any_other() -> None:
    store = MemoryStore({"dynamic/api": {"token": GOOD}})
    journal = Journal()
    leases = await Broker(store).lease(
        [for_the_gate("api", "dynamic/api#token")], "acme", deadline=SOON, journal=journal
    )
    await leases.revoke()
    assert store.open == set()
    assert [kind for kind, _ in journal.events] == ["secret_leased", "secret_revoked"]


async def test_basic_authentication_is_made_of_user_and_password() -> None:
    store = MemoryStore({"kv/data/a": {"login": "bot:" + GOOD}})
    leases = await Broker(store).lease(
        [for_the_gate("login", "kv/data/a#login", encode="basic")], "acme", deadline=SOON, journal=Journal()
    )
    credential = leases.credentials["login"]
    assert credential.prefix == "Basic "
    assert b64decode(credential.value.reveal()) == f"bot:{GOOD}".encode()
    assert leases.values["login"].reveal() == f"bot:{GOOD}".encode()


@pytest.mark.parametrize(
    "value", [GOOD + "\n", "\t" + GOOD, GOOD + "\r\nX: y", "pässwörd-12", GOOD + "\0", "a1b2" * 2049]
)
async def test_a_value_that_no_header_carries_is_refused_by_name(value: str) -> None:
    store = MemoryStore({"dynamic/api": {"token": value}})
    error = await refused(store, for_the_gate("api", "dynamic/api#token"))
    assert error.reason is Reason.SECRET_REFUSED
    assert "`api`" in error.message
    assert GOOD not in error.message
    assert store.open == set()


@pytest.mark.parametrize("value", [GOOD, ":" + GOOD, "bot:", "bot:pass\nword-12", "bot:" + "a1b2" * 2048])
async def test_what_is_not_user_and_password_is_refused_by_name(value: str) -> None:
    store = MemoryStore({"kv/data/a": {"login": value}})
    error = await refused(store, for_the_gate("login", "kv/data/a#login", encode="basic"))
    assert (error.reason, "`login`" in error.message) == (Reason.SECRET_REFUSED, True)
