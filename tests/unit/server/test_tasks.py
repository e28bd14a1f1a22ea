import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from callgate_server.admission.authenticate import Authentication
from callgate_server.admission.budgets import Budgets
from callgate_server.admission.grants import MAX_BYTES
from callgate_server.admission.stops import StopList
from callgate_server.admission.tasks import LiveTasks, TaskCredentials
from callgate_server.backends import api_keys
from callgate_server.backends.api_keys import ApiKeys
from callgate_server.backends.json_schema import grantable
from callgate_server.backends.sqlite.audit import events
from callgate_server.backends.sqlite.files import load_or_create_key
from callgate_server.backends.sqlite.ledger import SqliteLedger
from callgate_server.backends.sqlite.register import SqliteRegister
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Catalog
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.spending import Budget
from callgate_server.model.task import Stop, new_task_id
from callgate_server.tasks import MAX_LIFETIME_S, Tasks, TaskWish
from support.stages import Tokens, tool

WISH = TaskWish("tidy up", {"text.echo": {"required": ["text"]}}, 60.0, Budget(calls=3, cost=2_500_000))


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 28, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


class World:
    def __init__(self, path, most=3) -> None:
        self.path, self.clock = path / "ledger.db", Clock()
        self.key, self.keys = load_or_create_key(path / "key"), ApiKeys(path / "no-keys.json")
        self.open(most)

    def open(self, most=3) -> None:
        self.ledger = SqliteLedger.open(self.path, self.key, now=self.clock)
        self.live, self.stops, self.budgets = LiveTasks(self.clock, self.keys.roles_left), StopList(), Budgets()
        self.authentication = Authentication(self.keys, Tokens(), TaskCredentials(self.live, self.ledger.digest))
        self.tasks = Tasks(
            self.authentication,
            Catalog.of(tool(), tool(tool="text.diff")),
            self.ledger.register,
            self.live,
            self.stops,
            self.budgets,
            grantable,
            self.ledger.digest,
            most,
            lambda _caller: None,
            self.clock,
        )

    async def made(self, token="agent", **changes):
        document, credential = await self.tasks.create(token, replace(WISH, **changes))
        return document, credential.reveal().decode()

    async def who(self, token) -> Caller:
        return await self.authentication.identify(token)


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    yield world
    await world.ledger.close()


async def reason(awaitable):
    with pytest.raises(CallError) as refused:
        await awaitable
    return refused.value.reason


async def test_a_task_is_made_and_its_credential_is_the_agents_within_it(world):
    document, credential = await world.made()
    assert credential.startswith("cgt_")
    assert len(credential) > 40
    assert document == {
        "task_id": document["task_id"],
        "name": "tidy up",
        "agent": "bot",
        "grant": {"tools": {"text.echo": {"required": ["text"]}}},
        "budget": {"calls": 3, "cpu_s": None, "egress_bytes": None, "cost": 2.5},
        "spent": {"calls": 0, "cpu_s": 0.0, "egress_bytes": 0, "cost": 0.0},
        "created_at": "2026-11-28T00:00:00+00:00",
        "expires_at": "2026-11-28T00:01:00+00:00",
        "ended_at": None,
    }
    assert await world.who(credential) == Caller("acme", "bot", ("developer",), document["task_id"])
    assert await world.tasks.show("agent", document["task_id"]) == document
    assert await world.tasks.list("agent", 10) == [document]


async def test_a_task_ends_with_the_key_that_made_it_over_a_restart_too(world, tmp_path):
    file = tmp_path / "keys.json"
    known = {"tenant": "acme", "agent": "bot", "purpose": "production", "now": world.clock.now}
    leaked, other = (api_keys.create(file, roles=("developer",), **known) for _ in range(2))
    world.keys = ApiKeys(file, now=world.clock)
    await world.ledger.close()
    world.open()
    made = [await world.made(new.key.reveal().decode()) for new in (leaked, other)]
    [(document, credential), (_, untouched)] = made
    assert (await world.who(credential)).task == document["task_id"]
    api_keys.revoke(file, leaked.id)
    assert await reason(world.who(credential)) is Reason.UNAUTHENTICATED
    assert (await world.who(untouched)).roles == ("developer",)
    await world.ledger.close()
    world.open()
    assert await world.tasks.load() == ()
    assert await reason(world.who(credential)) is Reason.UNAUTHENTICATED
    assert (await world.who(untouched)).roles == ("developer",)


async def test_the_credential_is_nowhere_in_the_file(world):
    _, credential = await world.made()
    await world.ledger.close()
    assert credential.encode() not in world.path.read_bytes()
    assert credential.removeprefix("cgt_").encode() not in world.path.read_bytes()


async def test_a_tasks_credential_makes_no_tasks_and_sees_no_other(world):
    mine, credential = await world.made()
    other, _ = await world.made()
    assert await reason(world.tasks.create(credential, WISH)) is Reason.OUTSIDE_GRANT
    assert await world.tasks.list(credential, 10) == [mine]
    assert await world.tasks.show(credential, mine["task_id"]) == mine
    assert await reason(world.tasks.end(credential, other["task_id"])) is Reason.UNKNOWN_TASK


async def test_another_agents_task_answers_like_none(world):
    document, _ = await world.made()
    for task_id in (document["task_id"], new_task_id(), "x"):
        assert await reason(world.tasks.show("other", task_id)) is Reason.UNKNOWN_TASK
        assert await reason(world.tasks.end("other", task_id)) is Reason.UNKNOWN_TASK
    assert await world.tasks.list("other", 10) == []


async def test_after_its_end_the_credential_is_worthless_and_ending_again_changes_nothing(world):
    document, credential = await world.made()
    ended = await world.tasks.end("agent", document["task_id"])
    assert ended["ended_at"] is not None
    world.clock.now += timedelta(seconds=1)
    assert await world.tasks.end("agent", document["task_id"]) == ended
    assert await reason(world.who(credential)) is Reason.UNAUTHENTICATED


async def test_an_end_holds_also_where_whoever_asked_for_it_leaves(world):
    document, credential = await world.made()
    asking = asyncio.create_task(world.tasks.end("agent", document["task_id"]))
    while len(world.live):
        await asyncio.sleep(0)
        assert not asking.done()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await reason(world.who(credential)) is Reason.UNAUTHENTICATED
    await world.ledger.probe()
    assert (await world.tasks.show("agent", document["task_id"]))["ended_at"] is not None


async def test_an_end_that_cannot_be_written_holds_until_the_restart_and_says_so(world, monkeypatch):
    document, credential = await world.made()

    async def full(*_):
        raise CallError(Reason.AUDIT_UNAVAILABLE, "The disk is full.")

    with monkeypatch.context() as disk:
        disk.setattr(SqliteRegister, "end_task", full)
        assert await reason(world.tasks.end("agent", document["task_id"])) is Reason.AUDIT_UNAVAILABLE
    assert await reason(world.who(credential)) is Reason.UNAUTHENTICATED
    assert (await world.tasks.show("agent", document["task_id"]))["ended_at"] is None
    assert (await world.tasks.end("agent", document["task_id"]))["ended_at"] is not None


async def test_a_task_whose_maker_leaves_before_it_has_the_credential_is_ended(world):
    making = asyncio.create_task(world.tasks.create("agent", WISH))
    while not len(world.live):
        await asyncio.sleep(0)
        assert not making.done()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert len(world.live) == 0
    [document] = await world.tasks.list("agent", 10)
    assert document["ended_at"] is not None
    assert [event.kind for event in events(world.path, after=1)] == ["task_created", "task_ended"]


async def test_what_is_over_is_written_down_and_counts_no_longer(world):
    document, credential = await world.made()
    world.clock.now += timedelta(seconds=61)
    assert await reason(world.who(credential)) is Reason.UNAUTHENTICATED
    await world.tasks.expire()
    assert (await world.tasks.show("agent", document["task_id"]))["ended_at"] is not None
    assert len(world.live) == 0
    assert [event.kind for event in events(world.path, after=1)] == ["task_created", "task_ended"]


async def test_an_agent_has_only_so_many_that_are_not_over(world):
    for _ in range(3):
        document, _ = await world.made()
    assert await reason(world.tasks.create("agent", WISH)) is Reason.OVERLOADED
    await world.made("other")
    await world.tasks.end("agent", document["task_id"])
    await world.made()


async def test_tasks_outlive_the_gateway(world):
    alive, credential = await world.made()
    over, worthless = await world.made()
    await world.tasks.end("agent", over["task_id"])
    await world.ledger.close()
    world.open()
    assert await world.tasks.load() == ()
    assert (await world.who(credential)).task == alive["task_id"]
    assert await reason(world.who(worthless)) is Reason.UNAUTHENTICATED
    with pytest.raises(CallError) as ended:
        world.live.narrowed(Caller("acme", "bot"), over["task_id"])
    assert ended.value.reason is Reason.TASK_ENDED


async def test_a_grant_that_cannot_be_used_any_more_leaves_its_credential_worthless(world):
    document, credential = await world.made()
    await world.ledger.close()
    world.open()

    def refuses(_schema):
        raise ValueError("no longer")

    world.tasks = replace(world.tasks, compiled=refuses)
    assert await world.tasks.load() == (document["task_id"],)
    assert await reason(world.who(credential)) is Reason.UNAUTHENTICATED


async def test_a_stored_grant_that_no_task_may_have_any_more_never_comes_to_the_engine(world):
    document, credential = await world.made()
    task = world.live.of(await world.who(credential)).task
    costly = replace(task, task_id=new_task_id(), grant={"text.echo": {"not": {"pattern": "(?:a{0,99}b){20}"}}})
    await world.ledger.register.create_task(costly, "digest")
    await world.ledger.close()
    world.open()
    compiled = []
    world.tasks = replace(world.tasks, compiled=lambda schema: compiled.append(schema) or grantable(schema))
    assert await world.tasks.load() == (costly.task_id,)
    assert compiled == [{"required": ["text"]}]
    assert (await world.who(credential)).task == document["task_id"]


async def test_making_a_task_takes_from_the_agents_rate_as_a_call_does(world):
    hasty = CallError(Reason.RATE_LIMITED, "Wait.", retry_after_ms=5)
    asked = []

    def hasten(caller):
        asked.append(caller)
        if len(asked) > 2:
            raise hasty

    world.tasks = replace(world.tasks, hasten=hasten)
    for _ in range(2):
        document, _ = await world.made()
        await world.tasks.end("agent", document["task_id"])
    assert await reason(world.tasks.create("agent", replace(WISH, name=""))) is Reason.INVALID_REQUEST
    assert (
        await reason(world.tasks.create("agent", replace(WISH, grant={"text.echo": {"not": {}}})))
        is Reason.INVALID_REQUEST
    )
    assert asked == [Caller("acme", "bot", ("developer",))] * 2
    with pytest.raises(CallError) as refused:
        await world.tasks.create("agent", WISH)
    assert refused.value is hasty
    assert len(await world.tasks.list("agent", 10)) == 2
    assert len(world.live) == 0


async def test_who_is_stopped_makes_no_tasks(world):
    world.stops.put(Stop("acme", "bot", "", "root", world.clock.now))
    assert await reason(world.tasks.create("agent", WISH)) is Reason.STOPPED


async def test_what_cannot_be_written_is_no_task(world):
    world.path.chmod(0o644)
    assert await reason(world.tasks.create("agent", WISH)) is Reason.AUDIT_UNAVAILABLE
    world.path.chmod(0o600)
    assert len(world.live) == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": ""}, Reason.INVALID_REQUEST),
        ({"name": "a\nb"}, Reason.INVALID_REQUEST),
        ({"name": "x" * 201}, Reason.INVALID_REQUEST),
        ({"grant": {}}, Reason.INVALID_REQUEST),
        ({"grant": {"no.tool": {}}}, Reason.UNKNOWN_TOOL),
        ({"grant": {f"a.t{number}": {} for number in range(65)}}, Reason.INVALID_REQUEST),
        ({"grant": {"text.echo": {"description": "x" * MAX_BYTES}}}, Reason.INVALID_REQUEST),
        ({"grant": {"text.echo": {"requierd": ["text"]}}}, Reason.INVALID_REQUEST),
        ({"grant": {"text.echo": {"not": {}}}}, Reason.INVALID_REQUEST),
        ({"grant": {"text.echo": {"$ref": "file:///etc/passwd"}}}, Reason.INVALID_REQUEST),
        ({"lifetime_s": 0}, Reason.INVALID_REQUEST),
        ({"lifetime_s": float("nan")}, Reason.INVALID_REQUEST),
        ({"lifetime_s": MAX_LIFETIME_S + 1}, Reason.INVALID_REQUEST),
    ],
)
async def test_what_is_no_task_is_refused_and_nothing_is_kept(world, changes, expected):
    assert await reason(world.tasks.create("agent", replace(WISH, **changes))) is expected
    assert await world.tasks.list("agent", 10) == []
