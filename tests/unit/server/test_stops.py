import pytest

from callgate_server.admission.authenticate import Authentication
from callgate_server.admission.authorize import Administration
from callgate_server.admission.stops import StopList
from callgate_server.backends.sqlite.audit import events
from callgate_server.backends.sqlite.files import load_or_create_key
from callgate_server.backends.sqlite.ledger import SqliteLedger
from callgate_server.execution.running import Running, RunningCalls
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.verdict import Ruling
from callgate_server.stops import Stops
from support.stages import Rulings, Tokens

BOT, OTHER = Caller("acme", "bot"), Caller("rival", "bot")


def unexpected(call_id: str, error: BaseException) -> None:
    raise AssertionError(call_id) from error


class World:
    def __init__(self, folder) -> None:
        self.path = folder / "ledger.db"
        self.key = load_or_create_key(folder / "key")
        self.policy = Rulings([])
        self.running = RunningCalls(unexpected)
        self.open()

    def open(self) -> None:
        self.ledger = SqliteLedger.open(self.path, self.key)
        self.stopped = StopList()
        self.stops = Stops(
            Authentication(Tokens()),
            Administration(self.policy, self.ledger.remark),
            self.ledger.register,
            self.stopped,
            self.running,
        )

    def spawn(self, call_id: str, owner: Caller) -> Running:
        async def carry(running: Running) -> None:
            running.accept()
            await running.cancelled.wait()
            running.answer({})

        return self.running.spawn(call_id, carry, owner=owner)

    def kinds(self) -> list[str]:
        return [event.kind for event in events(self.path, after=1)]


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path)
    async with world.running:
        yield world
        await world.running.drain(0, 5)
    await world.ledger.close()


async def reason(awaitable):
    with pytest.raises(CallError) as refused:
        await awaitable
    return refused.value.reason


def is_stopped(world: World, caller: Caller) -> bool:
    try:
        world.stopped.refuse(caller)
    except CallError:
        return True
    return False


@pytest.mark.parametrize("agent", ["bot", ""])
async def test_a_stop_refuses_and_cancels_what_is_of_it_and_nothing_else(world, agent):
    mine, second, others = world.spawn("a", BOT), world.spawn("b", BOT), world.spawn("c", OTHER)
    document, cancelled = await world.stops.stop("agent", agent, "it loops")
    assert (document["agent"], document["reason"], document["by"], cancelled) == (agent, "it loops", "bot", 2)
    await mine.wait()
    await second.wait()
    assert not others.cancelled.is_set()
    assert is_stopped(world, BOT)
    assert not is_stopped(world, OTHER)
    assert await world.stops.list("agent") == [document]
    assert await world.stops.list("other") == []


async def test_it_survives_the_gateway_and_ends_when_it_is_taken_back(world):
    await world.stops.stop("agent", "bot", "")
    await world.ledger.close()
    world.open()
    assert not is_stopped(world, BOT)
    await world.stops.load()
    assert is_stopped(world, BOT)
    await world.stops.resume("agent", "bot")
    assert not is_stopped(world, BOT)
    assert await reason(world.stops.resume("agent", "bot")) is Reason.NOT_POSSIBLE
    assert world.kinds() == ["stopped", "resumed"]


async def test_who_stopped_its_whole_tenant_can_resume_it(world):
    await world.stops.stop("agent", "", "")
    assert is_stopped(world, BOT)
    await world.stops.resume("agent", "")
    assert not is_stopped(world, BOT)


async def test_an_administrator_reaches_no_other_tenant(world):
    await world.stops.stop("other", "bot", "")
    assert await reason(world.stops.resume("agent", "bot")) is Reason.NOT_POSSIBLE
    assert is_stopped(world, OTHER)
    assert not is_stopped(world, BOT)


async def test_who_is_no_administrator_stops_and_resumes_nothing_and_that_is_recorded(world):
    await world.stops.stop("agent", "bot", "")
    world.policy.ruling = Ruling.DENY
    for asked in (world.stops.stop("agent", "x", ""), world.stops.resume("agent", "bot"), world.stops.list("agent")):
        assert await reason(asked) is Reason.POLICY_DENIED
    assert await reason(world.stops.stop("stranger", "x", "")) is Reason.UNAUTHENTICATED
    assert is_stopped(world, BOT)
    assert world.kinds() == ["stopped"] + ["administration_refused"] * 3


async def test_a_stop_that_cannot_be_written_holds_until_the_restart_and_says_so(world):
    running = world.spawn("a", BOT)
    world.path.chmod(0o644)
    assert await reason(world.stops.stop("agent", "bot", "")) is Reason.AUDIT_UNAVAILABLE
    assert is_stopped(world, BOT)
    assert running.cancelled.is_set()
    assert await reason(world.stops.resume("agent", "bot")) is Reason.AUDIT_UNAVAILABLE
    assert is_stopped(world, BOT)
    world.path.chmod(0o600)
    await world.stops.resume("agent", "bot")
    assert not is_stopped(world, BOT)


@pytest.mark.parametrize(("agent", "why"), [("Bot", ""), ("a/b", ""), ("bot", "x" * 201), ("bot", "a\nb")])
async def test_what_names_nobody_stops_nobody(world, agent, why):
    assert await reason(world.stops.stop("agent", agent, why)) is Reason.INVALID_REQUEST
    assert await world.stops.list("agent") == []
