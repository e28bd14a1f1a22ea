import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from callgate_server.execution.breaker import BreakerRules, State
from callgate_server.execution.breakers import Breakers
from callgate_server.execution.guarded_starts import GuardedStarts, StoppedByHand
from callgate_server.execution.sandbox import Confinement, ExitReport, Health, Shape
from callgate_server.model.call import Deadline
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.manifest import Limits
from support.probe import request_for
from support.stages import ScriptedSandbox

RULES = BreakerRules(window=4, min_calls=2, failure_rate=0.5, open_s=5, probes=1)
SHAPE = Shape.of("sha256:1", None, Limits())


class Dying(ScriptedSandbox):
    """Its wire ends at once; of its end the engine says `report`."""

    report = ExitReport(None, oom_killed=False, evidence="unknown")

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__([], [], None)
        self.broken = broken

    async def receive(self) -> bytes:
        if self.broken:
            raise ConnectionResetError
        return b""

    async def wait_exit(self, timeout_s: float) -> ExitReport:
        return self.report


class Engine:
    def __init__(self) -> None:
        self.error: CallError | None = None
        self.sandbox: Any = None
        self.asked: list[str] = []
        self.hangs = False

    async def _start(self, what: str) -> Any:
        self.asked.append(what)
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return self.sandbox or ScriptedSandbox([], [], None)

    async def open(self, request: object) -> Any:
        return await self._start("open")

    async def start(self, shape: Shape, deadline: Deadline) -> Any:
        return await self._start("start")

    def confinement(self, shape: Shape) -> Confinement:
        return Confinement((), {})

    async def reap(self) -> int:
        self.asked.append("reap")
        return 3

    async def health(self) -> dict[str, Health]:
        return {"engine": Health(ok=self.error is None, detail="")}

    async def close(self) -> None:
        self.asked.append("close")

    def reconnect(self) -> None:
        self.asked.append("reconnect")


class Desk:
    def __init__(self) -> None:
        self.now = 0.0
        self.engine = Engine()
        self.breakers = Breakers({"engine": RULES}, lambda _: None, clock=lambda: self.now)
        self.starts = GuardedStarts(self.engine, self.breakers)

    @property
    def state(self) -> State:
        return self.breakers.list()["engine"].state

    @property
    def counted(self) -> tuple[int, int]:
        view = self.breakers.list()["engine"]
        return view.calls, view.failures

    def open(self) -> Awaitable[Any]:
        return self.starts.open(request_for("sha256:1"))

    def start(self) -> Awaitable[Any]:
        return self.starts.start(SHAPE, Deadline(time.monotonic() + 5))

    async def refused(self, ask: Callable[[], Awaitable[Any]] | None = None) -> Reason:
        with pytest.raises(CallError) as refused:
            await (ask or self.open)()
        return refused.value.reason

    async def fail(self) -> None:
        self.engine.error = CallError(Reason.SANDBOX_UNAVAILABLE, "no")
        await self.refused()
        await self.refused(self.start)
        assert self.state is State.OPEN
        self.engine.asked.clear()


async def test_an_engine_that_starts_nothing_is_left_alone_by_calls_and_by_who_starts_ahead_of_them():
    desk = Desk()
    await desk.fail()
    assert await desk.refused() is Reason.CIRCUIT_OPEN
    assert await desk.refused(desk.start) is Reason.CIRCUIT_OPEN
    assert desk.engine.asked == []


@pytest.mark.parametrize("reason", [Reason.IMAGE_MISSING, Reason.RUNTIME_MISSING, Reason.DEADLINE_EXCEEDED])
async def test_what_is_not_the_engines_own_failure_does_not_count(reason):
    desk = Desk()
    desk.engine.error = CallError(reason, "no")
    for _ in range(5):
        assert await desk.refused() is reason
    assert desk.counted == (0, 0)


async def test_a_probe_goes_over_new_connections_and_a_good_one_closes_it():
    desk = Desk()
    await desk.fail()
    desk.now, desk.engine.error = 5, None
    await desk.open()
    await desk.open()
    assert desk.engine.asked == ["reconnect", "open", "open"]
    assert desk.state is State.CLOSED


async def test_a_probe_that_is_given_up_lets_the_next_one_try():
    desk = Desk()
    await desk.fail()
    desk.now, desk.engine.error, desk.engine.hangs = 5, None, True
    probe = asyncio.ensure_future(desk.open())
    await asyncio.sleep(0)
    assert await desk.refused() is Reason.CIRCUIT_OPEN
    probe.cancel()
    await asyncio.wait([probe])
    desk.engine.hangs = False
    await desk.open()
    assert desk.state is State.CLOSED


async def test_an_open_breaker_keeps_nobody_from_clearing_up_and_looking():
    desk = Desk()
    await desk.fail()
    assert await desk.starts.reap() == 3
    assert not (await desk.starts.health())["engine"].ok
    assert desk.starts.confinement(SHAPE) == Confinement((), {})
    await desk.starts.close()
    assert desk.engine.asked == ["reap", "close"]


@pytest.mark.parametrize("broken", [True, False])
async def test_a_sandbox_that_is_lost_with_its_engine_counts_once(broken):
    desk = Desk()
    for _ in range(2):
        await desk.open()
    desk.engine.sandbox = Dying(broken=broken)
    sandbox = await desk.open()
    try:
        assert await sandbox.receive() == b""
    except ConnectionError:
        assert broken
    for _ in range(2):
        assert (await sandbox.wait_exit(1)).exit_code is None
    assert desk.counted == (4, 1)


@pytest.mark.parametrize("how", ["it exited", "it was killed by us", "its wire is whole"])
async def test_a_sandbox_that_ends_otherwise_says_nothing_of_the_engine(how):
    desk = Desk()
    desk.engine.sandbox = dying = Dying()
    sandbox = await desk.open()
    if how == "it exited":
        dying.report = ExitReport(137, oom_killed=True, evidence="exited")
    if how == "it was killed by us":
        await sandbox.kill()
    if how != "its wire is whole":
        await sandbox.receive()
    await sandbox.wait_exit(1)
    assert desk.counted == (1, 0)


async def test_a_sandbox_is_what_the_engine_gave():
    desk = Desk()
    desk.engine.sandbox = given = ScriptedSandbox([], [], None, number=7)
    sandbox = await desk.start()
    assert (sandbox.id, sandbox.info, sandbox.alive) == (given.id, given.info, True)
    assert await sandbox.receive()
    await sandbox.send(b"")
    await sandbox.destroy()
    assert given._journal == ["destroy"]


async def test_an_operators_hand_stops_calls_before_they_get_what_is_ready():
    desk = Desk()
    door = StoppedByHand(desk.starts, desk.breakers)
    desk.breakers.open("engine")
    with pytest.raises(CallError, match="operator"):
        await door.open(request_for("sha256:1"))
    assert desk.engine.asked == []
    desk.breakers.close("engine")
    await door.open(request_for("sha256:1"))
    assert await door.reap() == 3
    assert set(await door.health()) == {"engine"}
    await door.close()
