"""Sandboxes started ahead of the calls that use them: the pool of `container`.

A sandbox of the pool is started for nobody: it carries no name of a call or tenant, its runner has said hello
and waits. It serves exactly one call and is destroyed. Who gets which, and what is started when, `pool_policy.py`
decides; here is what it takes to carry that out: starting in the background, watching what is ready for signs of
death, giving away exactly once, and leaving nothing behind.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, assert_never

from callgate_server.execution.greeting import greeting
from callgate_server.execution.pool_policy import Bounds, Drop, Full, Give, PoolPolicy, Start
from callgate_server.execution.sandbox import AnonymousStarts, ExitReport, Health, Sandbox, SandboxRequest, Shape
from callgate_server.model.answer import SandboxInfo
from callgate_server.model.call import Deadline
from callgate_server.model.errors import CallError, Reason

# How long a start may take when no call waits for it any more, its greeting included.
START_S: Final = 30.0
# Rounds of the event loop after which an end that had reached this process has been seen by the watcher.
_ROUNDS: Final = 3

Greet = Callable[[Sandbox], Awaitable[bytes]]
Report = Callable[[str, BaseException], None]
Warn = Callable[[Shape, CallError], None]


@dataclass(frozen=True, slots=True)
class Figures:
    """What an operator sees of the pool. `warm` and `waited` count calls: served at once, or after waiting."""

    ready: Mapping[str, int]
    starting: int
    held: int
    waiting: int
    warm: int
    waited: int
    failed_starts: int
    died: int


class WarmPool:
    """Implements `SandboxBackend` on a backend that starts sandboxes for nobody. An async context manager."""

    def __init__(
        self,
        backend: AnonymousStarts,
        bounds: Bounds,
        shapes: Iterable[Shape],
        report: Report,
        warn: Warn,
        *,
        greet: Greet = greeting,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._policy = PoolPolicy(bounds, shapes)
        self._report = report
        self._warn = warn
        self._greet = greet
        self._clock = clock
        self._tasks = asyncio.TaskGroup()
        self._starting: set[asyncio.Task[None]] = set()
        self._ready: dict[int, _Ready] = {}
        self._places: dict[str, asyncio.Future[_Ready]] = {}
        self._numbers = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._warm = self._waited = self._failed_starts = self._died = 0

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._act()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give up what is being started, destroy what is ready, refuse who waits. What calls hold is theirs."""
        self._closed = True
        self._policy.close()
        if self._timer is not None:
            self._timer.cancel()
        for place in self._places.values():
            if not place.done():
                place.set_exception(CallError(Reason.DRAINING, "The gateway is shutting down."))
        for task in self._starting:
            task.cancel()
        self._act()
        await self._tasks.__aexit__(None, None, None)

    def figures(self) -> Figures:
        ready: Counter[str] = Counter()
        for shape, count in self._policy.ready().items():
            # Two shapes may share a name.
            ready[str(shape)] += count
        return Figures(
            ready=ready,
            starting=self._policy.starting,
            held=self._policy.held,
            waiting=self._policy.waiting,
            warm=self._warm,
            waited=self._waited,
            failed_starts=self._failed_starts,
            died=self._died,
        )

    async def open(self, request: SandboxRequest) -> Sandbox:
        """Give the call a sandbox that nobody had before: at once, or when its turn comes.

        Raises:
            CallError: `overloaded` (too many wait), `deadline_exceeded` (its turn did not come in time),
                `draining`, and what the backend raises for the start of a sandbox.
        """
        call = request.call_id
        if request.deadline.remaining_s(self._clock()) == 0:
            raise _too_late()
        self._arrive(request)
        try:
            sandbox = await self._claim(call, request.deadline)
        except BaseException:
            self._policy.leave(call)
            self._policy.ended(call)
            self._act()
            raise
        return _Claimed(sandbox, lambda: self._end(call))

    async def reap(self) -> int:
        return await self._backend.reap()

    async def health(self) -> Mapping[str, Health]:
        return await self._backend.health()

    async def close(self) -> None:
        await self._backend.close()

    def _arrive(self, request: SandboxRequest) -> None:
        if self._closed:
            raise CallError(Reason.DRAINING, "The gateway is shutting down.")
        try:
            deadline_s = request.deadline.monotonic_s
            self._policy.arrive(request.call_id, request.tenant, request.shape, deadline_s, self._clock())
        except Full as full:
            raise CallError(
                Reason.OVERLOADED,
                "Too many calls wait for a sandbox; try again later.",
                retry_after_ms=round(full.retry_after_s * 1000),
            ) from None
        except ValueError:
            raise CallError(Reason.SANDBOX_UNAVAILABLE, "A sandbox of this call exists already.") from None

    async def _claim(self, call: str, deadline: Deadline) -> "_Ready":
        """Wait for a sandbox that is alive at the moment it is taken."""
        place = self._expect(call)
        if place.done():
            self._warm += 1
        else:
            self._waited += 1
        while True:
            ready = await self._turn(call, place, deadline)
            try:
                alive = await ready.take()
            except BaseException:
                self._discard(ready)
                raise
            if alive:
                return ready
            self._bury(ready)
            self._policy.refused(call, deadline.monotonic_s)
            place = self._expect(call)

    def _expect(self, call: str) -> "asyncio.Future[_Ready]":
        place: asyncio.Future[_Ready] = asyncio.get_running_loop().create_future()
        self._places[call] = place
        self._act()
        return place

    async def _turn(self, call: str, place: "asyncio.Future[_Ready]", deadline: Deadline) -> "_Ready":
        try:
            async with asyncio.timeout(deadline.remaining_s(self._clock())):
                return await asyncio.shield(place)
        except BaseException as error:
            # What was given in the very moment in which nobody waited any more goes to nobody else.
            if not place.cancel() and not place.cancelled() and place.exception() is None:
                self._discard(place.result())
            if isinstance(error, TimeoutError):
                raise _too_late(round(self._policy.retry_after_s() * 1000)) from None
            raise
        finally:
            self._places.pop(call, None)

    def _end(self, call: str) -> None:
        self._policy.ended(call)
        self._act()

    def _act(self) -> None:
        """Carry out what the policy orders now, and look again when it wants to be asked."""
        # One reading for both: what falls due between two would be seen by neither.
        now = self._clock()
        for order in self._policy.orders(now):
            match order:
                case Give(call, number):
                    self._places[call].set_result(self._ready.pop(number))
                case Start(shape):
                    self._starting.add(self._spawn(self._start(shape)))
                case Drop(number):
                    self._discard(self._ready.pop(number))
                case _:
                    assert_never(order)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        again = self._policy.look_again_at(now)
        if not self._closed and again < float("inf"):
            delay_s = max(0.0, again - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._act)

    async def _start(self, shape: Shape) -> None:
        task = asyncio.current_task()
        try:
            ready = await self._start_one(shape)
        except CallError as error:
            self._fail(shape, error)
        except Exception as error:  # a defect here must end neither the pool nor the gateway
            self._report("pool", error)
            self._fail(shape, CallError(Reason.SANDBOX_UNAVAILABLE, "No sandbox could be started; try again."))
        else:
            self._keep(shape, ready)
        finally:
            if task is not None:
                self._starting.discard(task)
        self._act()

    def _keep(self, shape: Shape, ready: "_Ready") -> None:
        self._numbers += 1
        number = self._numbers
        self._ready[number] = ready
        ready.watch(self._spawn(self._watch(shape, number, ready)))
        self._policy.started(shape, number)

    async def _start_one(self, shape: Shape) -> "_Ready":
        """Start one sandbox and wait for its greeting.

        Raises:
            CallError: as the backend's `start`; `sandbox_unavailable` where no greeting came.
        """
        deadline = Deadline(self._clock() + START_S)
        sandbox = await self._backend.start(shape, deadline)
        try:
            async with asyncio.timeout(deadline.remaining_s(self._clock())):
                return _Ready(sandbox, await self._greet(sandbox))
        except (TimeoutError, ConnectionError, ValueError) as error:
            self._discard(_Ready(sandbox, b""))
            raise CallError(
                Reason.SANDBOX_UNAVAILABLE, "The sandbox did not become ready, and nothing ran; try again."
            ) from error
        except BaseException:
            self._discard(_Ready(sandbox, b""))
            raise

    def _fail(self, shape: Shape, error: CallError) -> None:
        self._failed_starts += 1
        call = self._policy.failed(shape, self._clock())
        if call is None:
            self._warn(shape, error)
        else:
            self._places[call].set_exception(error)

    async def _watch(self, shape: Shape, number: int, ready: "_Ready") -> None:
        """Wait for what should not come: the end of a sandbox, or words, before it has a call."""
        try:
            await ready.sandbox.receive()
        except Exception as error:  # whatever it was, this one is not to be given away
            if not isinstance(error, ConnectionError):
                self._report("pool", error)
        if self._ready.pop(number, None) is not None:
            self._policy.died(shape, number)
            self._bury(ready)
            self._act()

    def _bury(self, ready: "_Ready") -> None:
        self._died += 1
        self._discard(ready)

    def _discard(self, ready: "_Ready") -> None:
        self._spawn(self._destroy(ready))

    async def _destroy(self, ready: "_Ready") -> None:
        try:
            await ready.destroy()
        except Exception as error:  # it should not; and if it does, the pool goes on
            self._report("pool", error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        return self._tasks.create_task(work)


class _Ready:
    """A started sandbox that waits: what it said so far, and who listens whether it still lives."""

    def __init__(self, sandbox: Sandbox, hello: bytes) -> None:
        self.sandbox = sandbox
        self.hello = hello
        self._watcher: asyncio.Task[None] | None = None

    def watch(self, watcher: "asyncio.Task[None]") -> None:
        self._watcher = watcher

    async def take(self) -> bool:
        """Stop watching; returns whether the sandbox was alive until now."""
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)
        return await self._unwatch()

    async def destroy(self) -> None:
        await self._unwatch()
        await self.sandbox.destroy()

    async def _unwatch(self) -> bool:
        watcher = self._watcher
        if watcher is None:
            return True
        watcher.cancel()
        await asyncio.wait({watcher})
        # Not kept: it knows this one, and a circle would wait for a collector.
        self._watcher = None
        return watcher.cancelled()


class _Claimed:
    """A sandbox that has its call: the same one, whose greeting is heard again, and whose end is told."""

    def __init__(self, ready: _Ready, ended: Callable[[], None]) -> None:
        self._sandbox = ready.sandbox
        self._hello = ready.hello
        self._ended = ended
        self._destroyed = False

    @property
    def id(self) -> str:
        return self._sandbox.id

    @property
    def info(self) -> SandboxInfo:
        return self._sandbox.info

    @property
    def alive(self) -> bool:
        return self._sandbox.alive

    async def send(self, data: bytes) -> None:
        await self._sandbox.send(data)

    async def receive(self) -> bytes:
        if self._hello:
            hello, self._hello = self._hello, b""
            return hello
        return await self._sandbox.receive()

    async def wait_exit(self, timeout_s: float) -> ExitReport:
        return await self._sandbox.wait_exit(timeout_s)

    async def kill(self) -> None:
        await self._sandbox.kill()

    async def destroy(self) -> None:
        try:
            await self._sandbox.destroy()
        finally:
            if not self._destroyed:
                self._destroyed = True
                self._ended()


def _too_late(retry_after_ms: int | None = None) -> CallError:
    return CallError(
        Reason.DEADLINE_EXCEEDED,
        "The deadline passed before there was a sandbox for the call; allow more time, or try again later.",
        retry_after_ms=retry_after_ms,
    )
