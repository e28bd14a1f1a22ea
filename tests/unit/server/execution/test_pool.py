import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from callgate_runner import wire
from callgate_server.execution.pool import WarmPool
from callgate_server.execution.pool_policy import Bounds
from callgate_server.execution.sandbox import ExitReport, Health, Sandbox, SandboxRequest, Shape
from callgate_server.model.answer import SandboxInfo
from callgate_server.model.call import Deadline
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.identifiers import new_call_id
from callgate_server.model.manifest import Limits

HELLO = wire.encode_document(wire.HELLO, {"wire": 1})
IMAGE = "sha256:" + "a" * 64
SHAPE = Shape.of(IMAGE, None, Limits())


class FakeSandbox:
    """Greets, then says what the test makes it say; the end of its wire comes with its death."""

    info = SandboxInfo("fake", "fake", "container")

    def __init__(self, number: int, greeting: bytes | None) -> None:
        self.id = f"sandbox-{number}"
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self.listeners = 0
        self.dead = False
        self.destroyed = 0
        self.destroying: asyncio.Event | None = None
        if greeting is not None:
            self._said.put_nowait(greeting)

    @property
    def alive(self) -> bool:
        return not self.dead

    def say(self, data: bytes) -> None:
        self._said.put_nowait(data)

    def die(self) -> None:
        self.dead = True
        self.say(b"")

    async def send(self, data: bytes) -> None:
        if self.dead:
            raise ConnectionResetError

    async def receive(self) -> bytes:
        assert self.listeners == 0, "two tasks listen to one wire"
        self.listeners += 1
        try:
            return await self._said.get()
        finally:
            self.listeners -= 1

    async def wait_exit(self, timeout_s: float) -> ExitReport:
        return ExitReport(137, oom_killed=False, evidence="exit code 137")

    async def kill(self) -> None:
        self.die()

    async def destroy(self) -> None:
        self.destroyed += 1
        if self.destroying is not None:
            await self.destroying.wait()


@dataclass
class FakeEngine:
    """Starts sandboxes; `gate` holds starts back, `errors` are raised by the next ones."""

    gate: asyncio.Event | None = None
    greeting: bytes | None = HELLO
    errors: list[Exception] = field(default_factory=list)
    made: list[FakeSandbox] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    starting: int = 0
    most_starting: int = 0
    given_up: int = 0

    async def start(self, shape: Shape, deadline: Deadline) -> Sandbox:
        self.shapes.append(shape)
        self.starting += 1
        self.most_starting = max(self.most_starting, self.starting)
        try:
            await (self.gate.wait() if self.gate else asyncio.sleep(0))
            if self.errors:
                raise self.errors.pop(0)
            self.made.append(FakeSandbox(len(self.made), self.greeting))
            return self.made[-1]
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        finally:
            self.starting -= 1

    async def reap(self) -> int:
        return 7

    async def health(self) -> Mapping[str, Health]:
        return {"engine": Health(ok=True, detail="answers")}

    async def close(self) -> None:
        return

    @property
    def alive(self) -> list[FakeSandbox]:
        return [sandbox for sandbox in self.made if not sandbox.destroyed]


def bounds(**changes: float) -> Bounds:
    values: dict[str, float] = {
        "sandboxes": 32, "waiting": 64, "starts": 4, "refills": 2, "per_shape": 4, "spare": 0, "memory_mb": 65536,
        "cpus": 64, "idle_s": 60,
    }  # fmt: skip
    return Bounds(**(values | changes))  # type: ignore[arg-type]


def request(*, seconds: float = 60, **changes: Any) -> SandboxRequest:
    values: dict[str, Any] = {
        "call_id": new_call_id(), "tenant": "acme", "tool": "text.echo", "image_digest": IMAGE, "runtime": None,
        "limits": Limits(), "deadline": Deadline(time.monotonic() + seconds), "deadline_at": datetime.now(UTC),
    }  # fmt: skip
    return SandboxRequest(**(values | changes))


class Reports(list[BaseException]):
    def __call__(self, _: str, error: BaseException) -> None:
        self.append(error)


class Warnings(list[CallError]):
    def __call__(self, shape: Shape, error: CallError) -> None:
        assert shape == SHAPE
        self.append(error)


@asynccontextmanager
async def pool(engine: FakeEngine, reports: Reports | None = None, **changes: float) -> AsyncIterator[WarmPool]:
    """A pool; at its end nothing of it may be left."""
    defects, warnings = Reports(), Warnings()
    report = reports if reports is not None else defects
    async with WarmPool(engine, bounds(**changes), [SHAPE], report, warnings) as made:
        yield made
    assert engine.starting == 0
    assert defects == []


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the pool's own state: there is no event to wait for
            await asyncio.sleep(0.001)


async def warm(one: WarmPool, count: int) -> None:
    await until(lambda: sum(one.figures().ready.values()) == count)


# --- giving ----------------------------------------------------------------------------------------------------


async def test_what_is_ready_is_given_without_a_start() -> None:
    engine = FakeEngine()
    async with pool(engine, spare=1) as one:
        await warm(one, 1)
        engine.gate = asyncio.Event()
        sandbox = await one.open(request())
        assert sandbox.id == "sandbox-0"
        assert one.figures().warm == 1
        await sandbox.destroy()


async def test_the_greeting_is_heard_once_more_and_then_the_wire_itself() -> None:
    engine = FakeEngine()
    async with pool(engine, spare=1) as one:
        await warm(one, 1)
        sandbox = await one.open(request())
        engine.made[0].say(b"and now?")
        assert [await sandbox.receive(), await sandbox.receive()] == [HELLO, b"and now?"]
        await sandbox.destroy()


async def test_what_is_started_carries_nothing_of_a_call() -> None:
    engine = FakeEngine()
    async with pool(engine) as one:
        sandbox = await one.open(request(limits=Limits(wall_s=7, output_kb=1, result_kb=2)))
        await sandbox.destroy()
    # What only the runner counts does not make another shape.
    assert set(engine.shapes) == {SHAPE}


async def test_fifty_claimers_and_four_warm_ones_each_is_given_once_and_used_once() -> None:
    engine = FakeEngine()
    async with pool(engine, spare=4, waiting=50) as one:
        await warm(one, 4)

        async def call() -> str:
            sandbox = await one.open(request())
            await asyncio.sleep(0)
            await sandbox.destroy()
            return sandbox.id

        async with asyncio.TaskGroup() as calls:
            used = [calls.create_task(call()) for _ in range(50)]
        ids = [task.result() for task in used]
        assert len(set(ids)) == 50
        figures = one.figures()
        assert (figures.held, figures.waiting, figures.warm + figures.waited) == (0, 0, 50)
        assert figures.warm >= 4
    assert all(sandbox.destroyed == 1 for sandbox in engine.made)


async def test_a_call_is_not_given_two() -> None:
    engine = FakeEngine()
    async with pool(engine) as one:
        asked = request()
        sandbox = await one.open(asked)
        with pytest.raises(CallError) as refused:
            await one.open(asked)
        assert refused.value.reason is Reason.SANDBOX_UNAVAILABLE
        await sandbox.destroy()


# --- the dead ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_words", [b"", b"\x05\x00\x00\x00\x01x"])
async def test_what_dies_or_speaks_while_it_waits_is_destroyed_and_replaced(last_words: bytes) -> None:
    engine = FakeEngine()
    async with pool(engine, spare=1) as one:
        await warm(one, 1)
        engine.made[0].say(last_words)
        await until(lambda: engine.made[0].destroyed and len(engine.made) == 2)
        await warm(one, 1)
        assert one.figures().died == 1
        sandbox = await one.open(request())
        assert sandbox.id == "sandbox-1"
        await sandbox.destroy()


async def test_what_is_dead_at_the_claim_is_not_given_and_the_next_is() -> None:
    engine = FakeEngine()
    async with pool(engine, spare=3) as one:
        await warm(one, 3)
        # No time for the watchers between the deaths and the claim.
        for sandbox in engine.made[:2]:
            sandbox.die()
        given = await one.open(request())
        assert given.id == "sandbox-2"
        await until(lambda: all(sandbox.destroyed for sandbox in engine.made[:2]))
        await given.destroy()


async def test_a_call_survives_that_all_that_is_ready_is_dead() -> None:
    engine = FakeEngine()
    async with pool(engine, spare=2) as one:
        await warm(one, 2)
        for sandbox in engine.made:
            sandbox.die()
        given = await one.open(request())
        assert given.id not in ("sandbox-0", "sandbox-1")
        await given.destroy()


@pytest.mark.parametrize("greeting", [b"", HELLO + b"\x05", b"\xff\xff\xff\xff\xff", wire.encode(wire.STDOUT, b"x")])
async def test_what_does_not_greet_properly_is_not_given_to_anybody(greeting: bytes) -> None:
    engine = FakeEngine(greeting=greeting)
    async with pool(engine) as one:
        with pytest.raises(CallError) as refused:
            await one.open(request())
        assert refused.value.reason is Reason.SANDBOX_UNAVAILABLE
        await until(lambda: engine.made[0].destroyed)
        assert one.figures().failed_starts == 1


# --- waiting -----------------------------------------------------------------------------------------------------


async def test_who_waits_is_served_in_the_order_of_deadlines() -> None:
    engine = FakeEngine(gate=asyncio.Event())
    order: list[str] = []
    async with pool(engine, starts=1) as one:

        async def call(name: str, seconds: float) -> None:
            sandbox = await one.open(request(seconds=seconds))
            order.append(name)
            await sandbox.destroy()

        async with asyncio.TaskGroup() as calls:
            for name, seconds in (("third", 50.0), ("first", 30.0), ("second", 40.0)):
                calls.create_task(call(name, seconds))
            await until(lambda: one.figures().waiting == 3)
            assert engine.gate is not None
            engine.gate.set()
    assert order == ["first", "second", "third"]


async def test_beyond_what_may_wait_a_call_is_told_to_come_back() -> None:
    engine = FakeEngine(gate=asyncio.Event())
    async with pool(engine, waiting=2) as one:
        waiting = [asyncio.ensure_future(one.open(request())) for _ in range(2)]
        await until(lambda: one.figures().waiting == 2)
        with pytest.raises(CallError) as refused:
            await one.open(request())
        assert refused.value.reason is Reason.OVERLOADED
        assert (refused.value.retry_after_ms or 0) >= 500
        assert engine.gate is not None
        engine.gate.set()
        for sandbox in await asyncio.gather(*waiting):
            await sandbox.destroy()


async def test_nobody_waits_past_the_deadline_and_the_place_is_free_again() -> None:
    engine = FakeEngine(gate=asyncio.Event())
    async with pool(engine, waiting=1) as one:
        for _ in range(2):
            with pytest.raises(CallError) as refused:
                await one.open(request(seconds=0.5))
            assert refused.value.reason is Reason.DEADLINE_EXCEEDED
            assert refused.value.retry_after_ms
        assert one.figures().waiting == 0


async def test_a_call_whose_time_is_up_starts_nothing() -> None:
    engine = FakeEngine()
    async with pool(engine) as one:
        with pytest.raises(CallError) as refused:
            await one.open(request(seconds=-1))
        assert refused.value.reason is Reason.DEADLINE_EXCEEDED
    assert engine.made == []


async def test_a_cancelled_call_leaves_its_place_to_the_next() -> None:
    engine = FakeEngine(gate=asyncio.Event())
    async with pool(engine, starts=1, per_shape=0) as one:
        first = asyncio.ensure_future(one.open(request(seconds=1)))
        second = asyncio.ensure_future(one.open(request(seconds=50)))
        await until(lambda: one.figures().waiting == 2)
        first.cancel()
        await until(lambda: one.figures().waiting == 1)
        assert engine.gate is not None
        engine.gate.set()
        sandbox = await second
        assert sandbox.id == "sandbox-0"
        await sandbox.destroy()


async def test_a_call_cancelled_in_the_moment_it_is_given_one_loses_nothing() -> None:
    engine = FakeEngine()
    async with pool(engine, spare=1, per_shape=1) as one:
        for rounds in range(8):
            await warm(one, 1)
            opening = asyncio.ensure_future(one.open(request()))
            for _ in range(rounds):
                await asyncio.sleep(0)
            opening.cancel()
            (result,) = await asyncio.gather(opening, return_exceptions=True)
            if not isinstance(result, BaseException):
                await result.destroy()
        assert one.figures().held == 0
        await warm(one, 1)
    # Everything ever made is gone: given, given back in pieces, or dropped at the end.
    assert engine.alive == []


# --- starting ----------------------------------------------------------------------------------------------------


async def test_starts_are_bounded_and_those_ahead_of_calls_more_tightly() -> None:
    engine = FakeEngine(gate=asyncio.Event())
    async with pool(engine, spare=4, refills=2, starts=3) as one:
        await until(lambda: engine.starting == 2)
        calls = [asyncio.ensure_future(one.open(request())) for _ in range(10)]
        await until(lambda: engine.starting == 3)
        assert engine.gate is not None
        engine.gate.set()
        for sandbox in await asyncio.gather(*calls):
            await sandbox.destroy()
        await warm(one, 4)
    assert engine.most_starting == 3


async def test_a_used_one_is_replaced_while_its_call_still_runs() -> None:
    engine = FakeEngine()
    async with pool(engine, spare=2) as one:
        await warm(one, 2)
        sandbox = await one.open(request())
        await until(lambda: len(engine.made) == 3)
        await warm(one, 2)
        await sandbox.destroy()


async def test_a_sandbox_is_counted_until_it_is_really_gone() -> None:
    engine = FakeEngine()
    async with pool(engine, sandboxes=1) as one:
        first = await one.open(request())
        engine.made[0].destroying = asyncio.Event()
        ending = asyncio.ensure_future(first.destroy())
        second = asyncio.ensure_future(one.open(request()))
        await until(lambda: one.figures().waiting == 1)
        assert one.figures().held == 1
        engine.made[0].destroying.set()
        await ending
        await (await second).destroy()


async def test_destroying_twice_frees_one_place_only() -> None:
    engine = FakeEngine()
    async with pool(engine, sandboxes=2) as one:
        first, second = await one.open(request()), await one.open(request())
        await first.destroy()
        await first.destroy()
        assert one.figures().held == 1
        await second.destroy()


async def test_a_start_that_fails_is_told_to_the_call_that_waits_and_to_no_other() -> None:
    engine = FakeEngine(errors=[CallError(Reason.IMAGE_MISSING, "The image is missing.")])
    async with pool(engine, starts=1) as one:
        results = await asyncio.gather(
            one.open(request(seconds=30)), one.open(request(seconds=40)), return_exceptions=True
        )
        assert isinstance(results[0], CallError)
        assert results[0].reason is Reason.IMAGE_MISSING
        assert not isinstance(results[1], BaseException)
        await results[1].destroy()


async def test_a_defect_of_a_start_is_reported_and_ends_nothing_else() -> None:
    engine, reports = FakeEngine(errors=[ZeroDivisionError()]), Reports()
    async with pool(engine, reports) as one:
        with pytest.raises(CallError) as refused:
            await one.open(request())
        assert refused.value.reason is Reason.SANDBOX_UNAVAILABLE
        await (await one.open(request())).destroy()
    assert [type(error) for error in reports] == [ZeroDivisionError]


async def test_starting_ahead_goes_on_after_a_failure_by_itself_and_warns() -> None:
    engine = FakeEngine(errors=[CallError(Reason.SANDBOX_UNAVAILABLE, "The engine is away.")])
    warnings = Warnings()
    async with WarmPool(engine, bounds(spare=1), [SHAPE], Reports(), warnings) as one:
        await warm(one, 1)
        assert one.figures().failed_starts == 1
    assert [error.message for error in warnings] == ["The engine is away."]


async def test_unused_ones_go_when_the_demand_is_forgotten() -> None:
    engine = FakeEngine()
    async with pool(engine, idle_s=2) as one:
        await (await one.open(request())).destroy()
        await warm(one, 1)
        await until(lambda: engine.alive == [])
        assert one.figures().ready == {str(SHAPE): 0}


async def test_shapes_of_one_name_are_counted_together() -> None:
    other = replace(SHAPE, pids=SHAPE.pids + 1)
    assert str(other) == str(SHAPE)
    async with WarmPool(FakeEngine(), bounds(spare=1), [SHAPE, other], Reports(), Warnings()) as one:
        await warm(one, 2)
        assert one.figures().ready == {str(SHAPE): 2}


async def test_what_falls_due_between_two_looks_at_the_clock_is_not_forgotten() -> None:
    engine, readings = FakeEngine(), [1000.0]
    clock = lambda: readings.pop(0) if len(readings) > 1 else readings[0]  # noqa: E731  # the last one stays
    async with WarmPool(engine, bounds(idle_s=0.2), [SHAPE], Reports(), Warnings(), clock=clock) as one:
        await (await one.open(request(deadline=Deadline(2000)))).destroy()
        readings[:] = [1000.9]
        await warm(one, 1)
        # The demand of second 1000 is forgotten at 1001.2.
        readings[:] = [1001.1999, 1001.2001]
        await until(lambda: engine.alive == [])


# --- the end -----------------------------------------------------------------------------------------------------


async def test_the_end_destroys_what_is_ready_and_gives_up_what_is_starting() -> None:
    engine = FakeEngine()
    async with pool(engine, spare=2, per_shape=4) as one:
        await warm(one, 2)
        engine.gate = asyncio.Event()
        sandbox = await one.open(request())
        await until(lambda: engine.starting == 1)
    assert engine.given_up == 1
    # What a call holds is the call's to end.
    assert [left.id for left in engine.alive] == [sandbox.id]
    await sandbox.destroy()


async def test_the_end_refuses_who_waits_and_who_comes() -> None:
    engine = FakeEngine(gate=asyncio.Event())
    async with pool(engine) as one:
        waiting = asyncio.ensure_future(one.open(request()))
        await until(lambda: one.figures().waiting == 1)
    for refused in (waiting, one.open(request())):
        with pytest.raises(CallError) as error:
            await refused
        assert error.value.reason is Reason.DRAINING


async def test_what_the_backend_knows_is_the_backends_to_tell() -> None:
    async with pool(FakeEngine()) as one:
        assert await one.reap() == 7
        assert (await one.health())["engine"].ok
        await one.close()
