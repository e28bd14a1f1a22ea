"""Lanes on a backend that behaves: it greets, takes an order, and serves sessions as the test tells it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from callgate_runner import wire
from callgate_server.execution.lane_board import LaneRules
from callgate_server.execution.lanes import REFUSED_EXIT_CODE, Lanes
from callgate_server.execution.sandbox import (
    CellMount,
    Confinement,
    ExitReport,
    LaneTerms,
    Sandbox,
    SandboxRequest,
    Shape,
)
from callgate_server.model.answer import SandboxInfo
from callgate_server.model.call import Deadline
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.identifiers import new_call_id
from callgate_server.model.manifest import Limits, Run
from support.stages import exit_frame

HELLO = wire.encode_document(wire.HELLO, {"wire": 1})
SEAL = wire.encode(wire.SEAL, bytes(32))
BYE = wire.encode(wire.BYE, b"")
REGULAR = SEAL + exit_frame() + BYE
TERMS = LaneTerms("sha256:1", Run(command=("/bin/true",)), ())


class FakeLane:
    """Says hello, then hello again for an order, then what the test makes it say."""

    info = SandboxInfo("fake", "fake", "fork")

    def __init__(self, number: int, *, takes_orders: bool = True, exit_code: int = 0, opened: bytes = HELLO) -> None:
        self.id = f"lane-{number}"
        self.alive = True
        self.killed = self.destroyed = False
        self.sent: list[bytes] = []
        self._takes_orders = takes_orders
        self._exit_code = exit_code
        self._opened = opened
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self.say(HELLO)

    def say(self, data: bytes) -> None:
        self._said.put_nowait(data)

    def end(self) -> None:
        self.alive = False
        self.say(b"")

    async def send(self, data: bytes) -> None:
        self.sent.append(data)
        if data[0] == wire.LANE:
            if self._takes_orders:
                self.say(self._opened)
            else:
                self.end()

    async def receive(self) -> bytes:
        return await self._said.get()

    async def wait_exit(self, timeout_s: float) -> ExitReport:
        return ExitReport(self._exit_code, oom_killed=False, evidence="as told")

    async def kill(self) -> None:
        self.killed = True
        self.end()

    async def destroy(self) -> None:
        self.destroyed = True


@dataclass
class FakeBackend:
    lanes: list[FakeLane] = field(default_factory=list)
    requests: list[SandboxRequest] = field(default_factory=list)
    make: Callable[[int], FakeLane] = FakeLane
    error: CallError | None = None
    gate: asyncio.Event | None = None

    async def open(self, request: SandboxRequest) -> FakeLane:
        self.requests.append(request)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.lanes.append(self.make(len(self.lanes)))
        return self.lanes[-1]

    def confinement(self, shape: Shape) -> Confinement:
        return Confinement((CellMount("/tmp", "size=1", execute=True, writable=True),), {"x86_64": bytes(8)})

    async def reap(self) -> int:
        return 0

    async def close(self) -> None:
        return

    @property
    def left(self) -> list[str]:
        return [lane.id for lane in self.lanes if not lane.destroyed]


def request(*, deadline_s: float = 5, tenant: str = "acme", terms: LaneTerms = TERMS) -> SandboxRequest:
    deadline, at = Deadline(time.monotonic() + deadline_s), datetime.now(UTC) + timedelta(seconds=deadline_s)
    return SandboxRequest(new_call_id(), tenant, "a.b", "sha256:2", None, Limits(), deadline, at, terms)


@asynccontextmanager
async def lanes_on(backend: FakeBackend, **rules: int) -> AsyncIterator[Lanes]:
    defects: list[BaseException] = []
    async with Lanes(
        backend, LaneRules(**{"per_key": 1, **rules}), lambda _where, error: defects.append(error)
    ) as lanes:
        yield lanes
    assert defects == []
    assert backend.left == []


async def serve(backend: FakeBackend, session: Sandbox, said: bytes = REGULAR, *, again: bool = True) -> None:
    """Play one call: the lane says `said` and, if it goes on, hello again."""
    lane = next(one for one in backend.lanes if one.id == session.id)
    assert await session.receive() == HELLO
    await session.send(b"the call")
    lane.say(said + (HELLO if again else b""))
    if not again:
        lane.end()
    while await session.receive():
        pass
    await session.destroy()


async def test_a_lane_is_opened_with_its_order_and_serves_calls_one_after_another() -> None:
    backend = FakeBackend()
    async with lanes_on(backend) as lanes:
        for _ in range(3):
            await serve(backend, await lanes.open(request()))
    (lane,) = backend.lanes
    assert [data[0] for data in lane.sent] == [wire.LANE, *b"ttt"]


async def test_a_lane_has_a_name_of_its_own_and_not_a_calls() -> None:
    backend = FakeBackend()
    async with lanes_on(backend) as lanes:
        asked = request()
        await serve(backend, await lanes.open(asked))
        (started,) = backend.requests
        assert started.call_id != asked.call_id
        assert (started.tenant, started.tool, started.lane) == ("acme", "a.b", TERMS)


@pytest.mark.parametrize(
    "said",
    [
        SEAL + exit_frame(cause="timed_out", code=None, signal=9) + BYE,
        SEAL + exit_frame(code=None, signal=11) + BYE,
        SEAL + exit_frame(oom_kills=2) + BYE,
        SEAL + exit_frame(cause="cancelled", code=None, signal=9) + BYE,
        SEAL + wire.encode(wire.STDOUT, b"x"),
    ],
    ids=["deadline", "signal", "memory", "cancelled", "no farewell"],
)
async def test_a_lane_ends_at_the_first_irregularity(said: bytes) -> None:
    backend = FakeBackend()
    async with lanes_on(backend) as lanes:
        session = await lanes.open(request())
        lane = backend.lanes[0]
        lane.say(said)
        await session.receive()
        await session.receive()
        await session.destroy()
        assert lane.destroyed
        await serve(backend, await lanes.open(request()))
        assert len(backend.lanes) == 2


async def test_a_lane_that_says_no_hello_after_a_call_ends_and_no_call_meets_it() -> None:
    backend = FakeBackend()
    async with lanes_on(backend) as lanes:
        await serve(backend, await lanes.open(request()), again=False)
        assert backend.left == []
        await serve(backend, await lanes.open(request()))


async def test_a_killed_session_ends_its_lane() -> None:
    backend = FakeBackend()
    async with lanes_on(backend) as lanes:
        session = await lanes.open(request())
        await session.kill()
        await session.destroy()
        assert backend.lanes[0].killed
        assert backend.left == []


async def test_a_session_that_was_begun_and_not_ended_ends_its_lane() -> None:
    """A secret may have been sent: the cell that has it must not serve another call."""
    backend = FakeBackend()
    async with lanes_on(backend) as lanes:
        session = await lanes.open(request())
        await session.send(b"a secret")
        await session.destroy()
        assert backend.left == []


async def test_an_idle_lane_that_died_is_not_given_away() -> None:
    backend = FakeBackend()
    async with lanes_on(backend) as lanes:
        await serve(backend, await lanes.open(request()))
        backend.lanes[0].end()
        session = await lanes.open(request())
        assert session.id == "lane-1"
        await serve(backend, session)


async def test_a_lane_is_replaced_after_its_calls() -> None:
    backend = FakeBackend()
    async with lanes_on(backend, calls=2) as lanes:
        for _ in range(5):
            await serve(backend, await lanes.open(request()))
        assert len(backend.lanes) == 3


@pytest.mark.parametrize(
    "other",
    [request(tenant="rival"), request(terms=replace(TERMS, tool_digest="sha256:9"))],
    ids=["another tenant", "another tool"],
)
async def test_others_get_lanes_of_their_own(other: SandboxRequest) -> None:
    backend = FakeBackend()
    async with lanes_on(backend) as lanes:
        await serve(backend, await lanes.open(request()))
        fresh = replace(other, deadline=Deadline(time.monotonic() + 5))
        session = await lanes.open(fresh)
        assert session.id == "lane-1"
        await serve(backend, session)


async def test_one_call_at_a_time_and_the_next_by_deadline() -> None:
    backend = FakeBackend()
    async with lanes_on(backend) as lanes:
        first = await lanes.open(request())
        served: list[str] = []

        async def call(name: str, deadline_s: float) -> None:
            session = await lanes.open(request(deadline_s=deadline_s))
            served.append(name)
            await serve(backend, session)

        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(call("late", 4))
            group.create_task(call("soon", 3))
            await asyncio.sleep(0)
            await serve(backend, first)
        assert served == ["soon", "late"]
        assert len(backend.lanes) == 1


async def test_a_burst_is_served_in_full_and_what_is_too_much_is_refused_at_once() -> None:
    backend = FakeBackend()
    async with lanes_on(backend, per_key=2, waiting=40) as lanes:

        async def call() -> str:
            try:
                session = await lanes.open(request())
            except CallError as error:
                return f"{error.reason.value}, again in {error.retry_after_ms} ms"
            await serve(backend, session)
            return "served"

        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(*(call() for _ in range(50)))
        assert outcomes.count("served") >= 20
        assert set(outcomes) == {"served", "overloaded, again in 500 ms"}
        assert len(backend.lanes) == 2


async def test_a_call_waits_no_longer_than_its_deadline() -> None:
    backend = FakeBackend(gate=asyncio.Event())
    async with lanes_on(backend) as lanes:
        with pytest.raises(CallError) as refused:
            await lanes.open(request(deadline_s=0.05))
        assert refused.value.reason is Reason.DEADLINE_EXCEEDED
        assert backend.gate is not None
        backend.gate.set()
        # What was started for it serves the next.
        await serve(backend, await lanes.open(request()))
        assert len(backend.lanes) == 1


async def test_who_stops_waiting_takes_nothing_along() -> None:
    backend = FakeBackend()
    async with lanes_on(backend) as lanes:
        first = await lanes.open(request())
        second = asyncio.ensure_future(lanes.open(request()))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await serve(backend, first)
        await serve(backend, await lanes.open(request()))
        assert len(backend.lanes) == 1


async def test_a_lane_given_in_the_moment_of_a_cancellation_comes_back() -> None:
    backend = FakeBackend()
    async with lanes_on(backend) as lanes:
        await serve(backend, await lanes.open(request()))
        waiting = asyncio.ensure_future(lanes.open(request()))
        # It has its lane by now, and has not been told yet.
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        if not waiting.cancelled():
            await waiting.result().destroy()
        await serve(backend, await lanes.open(request()))
        assert len(backend.lanes) == 1


async def test_a_lane_that_is_free_in_the_moment_of_a_cancellation_is_not_lost() -> None:
    backend = FakeBackend()
    async with lanes_on(backend) as lanes:
        first = await lanes.open(request())
        waiting = asyncio.ensure_future(lanes.open(request()))
        await asyncio.sleep(0)
        # From here to the end of the first call nothing waits: the cancelled one has not left yet.
        waiting.cancel()
        await serve(backend, first)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await serve(backend, await lanes.open(request()))
        assert len(backend.lanes) == 1


async def test_a_start_that_fails_in_the_moment_of_a_cancellation_harms_nobody() -> None:
    backend = FakeBackend(error=CallError(Reason.IMAGE_MISSING, "no image"), gate=asyncio.Event())
    async with lanes_on(backend) as lanes:
        waiting = asyncio.ensure_future(lanes.open(request()))
        for _ in range(3):
            await asyncio.sleep(0)
        assert backend.requests
        assert backend.gate is not None
        backend.gate.set()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        backend.error = None
        await serve(backend, await lanes.open(request()))


async def test_what_the_backend_refuses_the_call_is_told() -> None:
    backend = FakeBackend(error=CallError(Reason.IMAGE_MISSING, "no image"))
    async with lanes_on(backend) as lanes:
        with pytest.raises(CallError) as refused:
            await lanes.open(request())
        assert refused.value.reason is Reason.IMAGE_MISSING
        backend.error = None
        await serve(backend, await lanes.open(request()))


async def test_where_the_host_refuses_namespaces_calls_are_refused_and_health_says_so() -> None:
    backend = FakeBackend(make=lambda n: FakeLane(n, takes_orders=False, exit_code=REFUSED_EXIT_CODE))
    async with lanes_on(backend) as lanes:
        assert (await lanes.health())["lanes"].ok
        with pytest.raises(CallError) as refused:
            await lanes.open(request())
        assert refused.value.reason is Reason.RUNTIME_MISSING
        assert "namespaces" in refused.value.message
        assert not (await lanes.health())["lanes"].ok
        backend.make = FakeLane
        await serve(backend, await lanes.open(request()))
        assert (await lanes.health())["lanes"].ok


async def test_another_end_of_a_start_is_no_verdict_on_the_host() -> None:
    backend = FakeBackend(make=lambda n: FakeLane(n, takes_orders=False, exit_code=70))
    async with lanes_on(backend) as lanes:
        with pytest.raises(CallError) as refused:
            await lanes.open(request())
        assert refused.value.reason is Reason.SANDBOX_UNAVAILABLE
        assert (await lanes.health())["lanes"].ok


async def test_an_operator_sees_states_claims_and_why_lanes_ended() -> None:
    now = [0.0]
    backend = FakeBackend(gate=asyncio.Event())
    assert backend.gate is not None

    def asked(tenant: str = "acme") -> SandboxRequest:
        return replace(request(tenant=tenant), deadline=Deadline(1000))

    def ended() -> dict[str, int]:
        return {cause: count for cause, count in lanes.figures().ended.items() if count}

    rules = LaneRules(calls=3, idle_s=10, lanes=1, per_key=1, start_s=1000)
    async with Lanes(backend, rules, lambda *_: None, clock=lambda: now[0]) as lanes:
        first = asyncio.ensure_future(lanes.open(asked()))
        await asyncio.sleep(0.01)
        figures = lanes.figures()
        assert (figures.starting, figures.waiting, figures.between, figures.busy) == (1, 1, 0, 0)
        backend.gate.set()
        session = await first
        assert (lanes.figures().busy, lanes.figures().idle, lanes.figures().waiting) == (1, 0, 0)
        await serve(backend, session)
        assert (lanes.figures().busy, lanes.figures().idle) == (0, 1)
        await serve(backend, await lanes.open(asked()))
        assert (lanes.figures().ready, lanes.figures().waited) == (1, 1)
        assert ended() == {}
        await serve(backend, await lanes.open(asked()), again=False)
        assert ended() == {"worn": 1}
        await serve(backend, await lanes.open(asked()), SEAL + exit_frame(signal=9) + BYE, again=False)
        assert ended() == {"worn": 1, "irregular": 1}
        await serve(backend, await lanes.open(asked()))
        backend.lanes[-1].end()
        await serve(backend, await lanes.open(asked()))
        assert ended() == {"worn": 1, "irregular": 1, "died": 1}
        await serve(backend, await lanes.open(asked("rival")))
        assert ended() == {"worn": 1, "irregular": 1, "died": 1, "room": 1}
        now[0] = 11
        await lanes.tend()
        await asyncio.sleep(0.01)
        assert ended() == {"worn": 1, "irregular": 1, "died": 1, "room": 1, "idle": 1}
        backend.error = CallError(Reason.IMAGE_MISSING, "no image")
        with pytest.raises(CallError):
            await lanes.open(asked())
        assert lanes.figures().failed_starts == 1
        backend.error = None
        await serve(backend, await lanes.open(asked()))
    assert ended()["stopped"] == 1
    assert lanes.figures().idle == 0
    assert backend.left == []


async def test_idle_lanes_end_after_a_while() -> None:
    now = [0.0]
    backend = FakeBackend()
    async with Lanes(backend, LaneRules(idle_s=10), lambda *_: None, clock=lambda: now[0]) as lanes:
        await serve(backend, await lanes.open(replace(request(), deadline=Deadline(5))))
        now[0] = 9
        await lanes.tend()
        assert len(lanes) == 1
        now[0] = 11
        await lanes.tend()
        await asyncio.sleep(0)
        assert backend.left == []
        assert len(lanes) == 0


async def test_a_stranger_makes_room_for_who_is_waiting() -> None:
    backend = FakeBackend()
    async with lanes_on(backend, lanes=1) as lanes:
        await serve(backend, await lanes.open(request(tenant="rival")))
        session = await lanes.open(request())
        assert backend.lanes[0].destroyed
        await serve(backend, session)


async def test_when_the_gateway_stops_nobody_is_taken_and_what_comes_back_ends() -> None:
    backend = FakeBackend()
    async with Lanes(backend, LaneRules(), lambda *_: None) as lanes:
        last = await lanes.open(request())
    assert backend.left == ["lane-0"]
    await serve(backend, last)
    assert backend.left == []
    with pytest.raises(CallError) as refused:
        await lanes.open(request())
    assert refused.value.reason is Reason.DRAINING


class StuckLane(FakeLane):
    """Hangs where it is told to: before its first hello, or while one asks how it ended."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(number, takes_orders=False)
        self._where = where
        self.reached = asyncio.Event()

    async def receive(self) -> bytes:
        if self._where == "hello":
            await self._hang()
        return await super().receive()

    async def wait_exit(self, timeout_s: float) -> ExitReport:
        if self._where == "exit":
            await self._hang()
        return await super().wait_exit(timeout_s)

    async def destroy(self) -> None:
        self.reached.set()
        await asyncio.sleep(0.01)
        await super().destroy()

    async def _hang(self) -> None:
        self.reached.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("where", ["hello", "exit", "end"])
async def test_when_the_gateway_stops_a_lane_that_is_being_started_is_given_up_and_leaves_nothing(where: str) -> None:
    lane = StuckLane(0, where)
    backend = FakeBackend(make=lambda _: lane)
    async with asyncio.timeout(5), lanes_on(backend, start_s=60) as lanes:
        waiting = asyncio.ensure_future(lanes.open(request()))
        await lane.reached.wait()
        waiting.cancel()
    assert lane.destroyed
    await asyncio.wait({waiting})


async def test_when_the_gateway_stops_nobody_waits_for_an_engine_that_starts_a_lane() -> None:
    backend = FakeBackend(gate=asyncio.Event())
    async with asyncio.timeout(5), lanes_on(backend) as lanes:
        waiting = asyncio.ensure_future(lanes.open(request()))
        for _ in range(3):
            await asyncio.sleep(0)
        assert backend.requests
        waiting.cancel()
    await asyncio.wait({waiting})


@pytest.mark.parametrize("cold", ["threads", None])
async def test_the_operator_is_told_when_a_lane_opens_whose_imports_are_not_warm(
    cold: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    opened = wire.encode_document(wire.HELLO, {"wire": 1} | ({"cold": cold} if cold else {}))
    backend = FakeBackend(make=lambda number: FakeLane(number, opened=opened))
    async with lanes_on(backend) as lanes:
        session = await lanes.open(request())
        assert await session.receive() == opened
        await session.destroy()
    said = [record.getMessage() for record in caplog.records]
    assert said == (["every call of a.b imports its tool anew; the imports leave: threads"] if cold else [])
