"""The engine's circuit breaker on a real engine that dies, hangs and comes back. The engine is the test's own."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from callgate_server.backends.docker.backend import DockerBackend
from callgate_server.backends.docker.options import DockerOptions
from callgate_server.execution.breaker import BreakerRules, State, View
from callgate_server.execution.breakers import Breakers, Change
from callgate_server.execution.guarded_starts import GuardedStarts
from callgate_server.execution.pool import WarmPool
from callgate_server.execution.pool_policy import Bounds
from callgate_server.execution.sandbox import Sandbox, Shape
from callgate_server.model.call import Deadline
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.manifest import Limits
from support.engine import PrivateEngine, tolerating_unclosed_sockets
from support.probe import Probe, request_for
from support.probe_image import probe_image

# Nothing that the engine is asked may take longer than a few of these together.
BOUND_S = 20
RULES = BreakerRules(window=10, min_calls=3, failure_rate=0.5, open_s=5, probes=2)


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivateEngine]:
    with PrivateEngine() as made:
        made.load_image(probe_image())
        yield made


@pytest.fixture(autouse=True)
def healthy(engine: PrivateEngine) -> Iterator[None]:
    with tolerating_unclosed_sockets():
        yield
        if not engine.alive:
            engine.start()
        engine.thaw()


class Counted(DockerBackend):
    """Counts how often it is asked to start something, and to use new connections."""

    starts = reconnections = 0

    async def _start(self, *given: Any) -> Any:
        self.starts += 1
        return await super()._start(*given)

    def reconnect(self) -> None:
        self.reconnections += 1
        super().reconnect()


class Desk:
    def __init__(self, engine: PrivateEngine, rules: BreakerRules) -> None:
        self.engine = engine
        self.image = probe_image()
        self.changes: list[Change] = []
        options = DockerOptions(
            instance=f"test-{uuid.uuid4().hex[:12]}", boot_id="this", socket_url=engine.url, opening_threads=4,
            ending_threads=2, look_s=2, create_s=2, attach_s=2, start_s=5, end_s=2, ping_s=2,
        )  # fmt: skip
        self.backend = Counted(options)
        self.breakers = Breakers({"engine": rules}, self.changes.append)
        self.starts = GuardedStarts(self.backend, self.breakers)

    @property
    def view(self) -> View:
        return self.breakers.list()["engine"]

    async def open(self) -> Sandbox:
        async with asyncio.timeout(BOUND_S):
            return await self.starts.open(request_for(self.image))

    async def refused(self) -> Reason:
        with pytest.raises(CallError) as refused:
            await self.open()
        return refused.value.reason

    async def refused_unasked(self) -> None:
        starts = self.backend.starts
        assert await self.refused() is Reason.CIRCUIT_OPEN
        assert self.backend.starts == starts

    async def recovers(self) -> None:
        """Calls come again and again until one of them, a probe, finds the engine back."""
        async with asyncio.timeout(BOUND_S):
            while self.view.state is not State.CLOSED:
                try:
                    sandbox = await self.open()
                except CallError:
                    await asyncio.sleep(0.1)
                else:
                    assert await Probe(sandbox).run("answer('up')") == "up"
                    await sandbox.destroy()

    async def cleaned(self) -> None:
        empty = 0
        async with asyncio.timeout(BOUND_S):
            while empty < 10:
                await self.starts.reap()
                empty = 0 if self.engine.containers() else empty + 1
                await asyncio.sleep(0.1)


@pytest.fixture
async def desk(engine: PrivateEngine, request: pytest.FixtureRequest) -> AsyncIterator[Desk]:
    """A test may choose other rules."""
    made = Desk(engine, getattr(request, "param", RULES))
    yield made
    await made.starts.close()


async def test_an_engine_that_dies_in_mid_call_counts_once_for_that_call(engine: PrivateEngine, desk: Desk) -> None:
    sandbox = await desk.open()
    assert await Probe(sandbox).run("answer('up')") == "up"
    assert (desk.view.calls, desk.view.failures) == (1, 0)
    engine.kill()
    async with asyncio.timeout(BOUND_S):
        try:
            while await sandbox.receive():
                pass
        except ConnectionError:
            pass
        await sandbox.wait_exit(2)
        await sandbox.wait_exit(2)
    assert (desk.view.calls, desk.view.failures) == (2, 1)
    assert await desk.refused() is Reason.SANDBOX_UNAVAILABLE
    assert desk.view.state is State.OPEN
    await desk.refused_unasked()
    # Clearing up goes on as soon as the engine is back, whatever the breaker says.
    await sandbox.destroy()
    engine.start()
    await desk.cleaned()
    await desk.recovers()
    assert desk.backend.reconnections >= 1


async def test_a_hung_engine_is_left_alone_and_a_probe_finds_it_back(engine: PrivateEngine, desk: Desk) -> None:
    sandbox = await desk.open()
    await sandbox.destroy()
    tasks = len(asyncio.all_tasks())
    engine.freeze()
    reasons = await asyncio.gather(*(desk.refused() for _ in range(6)))
    assert set(reasons) <= {Reason.SANDBOX_UNAVAILABLE, Reason.CIRCUIT_OPEN}
    assert desk.view.state is State.OPEN
    for _ in range(5):
        await desk.refused_unasked()
    # A probe on an engine that still hangs opens it again, while everybody else is still refused unasked.
    async with asyncio.timeout(BOUND_S):
        while desk.view.state is State.OPEN:
            await asyncio.sleep(0.1)
            probe = asyncio.create_task(desk.refused())
            await asyncio.sleep(0)
    assert await probe is Reason.SANDBOX_UNAVAILABLE
    assert [change.after for change in desk.changes] == [State.OPEN, State.HALF_OPEN, State.OPEN]
    assert len(asyncio.all_tasks()) == tasks
    reconnections = desk.backend.reconnections
    engine.thaw()
    await desk.recovers()
    assert desk.backend.reconnections > reconnections
    assert [change.after for change in desk.changes[-2:]] == [State.HALF_OPEN, State.CLOSED]
    await desk.cleaned()


@pytest.mark.parametrize("desk", [replace(RULES, open_s=10)], ids=["open for long"], indirect=True)
async def test_the_pool_does_not_hammer_an_engine_that_hangs_and_fills_again_by_itself(
    engine: PrivateEngine, desk: Desk
) -> None:
    shape = Shape.of(desk.image, None, Limits())
    bounds = Bounds(
        sandboxes=8, waiting=8, starts=4, refills=1, per_shape=2, spare=1, memory_mb=4096, cpus=16, idle_s=60
    )

    async def greet(sandbox: Sandbox) -> bytes:
        assert await Probe(sandbox).run("answer('hello')") == "hello"
        return b""

    def report(_: str, error: BaseException) -> None:
        raise error

    async with WarmPool(desk.starts, bounds, [shape], report, lambda *_: None, greet=greet) as pool:
        await _filled(pool)
        engine.freeze()
        while desk.view.state is State.CLOSED:
            # They find nothing ready but the first, and wait for starts that end in time.
            await asyncio.gather(*(_call(pool, desk.image) for _ in range(4)))
        starts = desk.backend.starts
        with pytest.raises(CallError) as refused:
            while True:
                await pool.open(request_for(desk.image))
        assert refused.value.reason is Reason.CIRCUIT_OPEN
        left_s = desk.view.retry_after_s
        assert left_s is not None
        await asyncio.sleep(left_s / 2)
        assert desk.backend.starts == starts, "what is started ahead asks for leave too"
        engine.thaw()
        # Nobody calls: what is started ahead is the probe.
        await _filled(pool, within_s=2 * BOUND_S)
        assert desk.view.state is not State.OPEN
    await desk.cleaned()


async def _filled(pool: WarmPool, within_s: float = BOUND_S) -> None:
    async with asyncio.timeout(within_s):
        while not sum(pool.figures().ready.values()):  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.05)


async def _call(pool: WarmPool, image: str) -> None:
    """One call on a hung engine: what it gets is destroyed, if it gets anything."""
    try:
        sandbox = await pool.open(request_for(image, deadline_s=BOUND_S))
    except CallError:
        return
    await sandbox.destroy()


async def test_a_call_that_has_little_time_says_nothing_of_the_engine(engine: PrivateEngine, desk: Desk) -> None:
    await (await desk.open()).destroy()
    engine.freeze()
    for _ in range(4):
        with pytest.raises(CallError) as refused:
            await desk.starts.start(Shape.of(desk.image, None, Limits()), Deadline(time.monotonic() + 0.2))
        assert refused.value.reason is Reason.DEADLINE_EXCEEDED
    assert (desk.view.calls, desk.view.state) == (1, State.CLOSED)
    engine.thaw()
    await desk.cleaned()
