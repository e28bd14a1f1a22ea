"""Lanes: hardened containers that serve one call at a time, each call in a fresh sandbox inside. Isolation `fork`.

What happens next is decided by `lane_board.py`, how a session ends by `lane_session.py`; this carries it out on a
backend. A lane is idle only when its next inner sandbox is closed and waiting, so that a call which gets one waits
for nothing more. Everything that did not go as it should ends the lane, never just the session.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, Self, assert_never, get_args

from callgate_server.execution.framing import encode_lane
from callgate_server.execution.lane_board import End, Give, LaneBoard, LaneKey, LaneRules, Phase, Slot, Start, Waiter
from callgate_server.execution.lane_session import Lane, LaneSession
from callgate_server.execution.sandbox import Health, LaneBackend, LaneTerms, Sandbox, SandboxRequest
from callgate_server.model.call import Deadline
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.identifiers import new_call_id

# How the runner says that the host does not let it make namespaces or mounts (`frames.json`).
REFUSED_EXIT_CODE: Final = 72
_EXIT_WAIT_S: Final = 2.0
# How long the next inner sandbox may take after a call.
_READY_S: Final = 5.0
_RETRY_AFTER_MS: Final = 500
_REFUSED: Final = (
    "This host does not let a lane make namespaces, so that isolation `fork` is not available. "
    "Run `callgated doctor`, or choose isolation `container` for the tool."
)

# Why a lane ended: it had had its calls, idled for too long, was in another's way, had a call that did not end in
# order, died while idle, or the gateway stopped.
Cause = Literal["worn", "idle", "room", "irregular", "died", "stopped"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Figures:
    """What an operator sees of lanes: by state, and counted since the start.

    `between` is short after a call, `waiting` and the claims are calls: `ready` got a lane at once, `waited` later.
    """

    idle: int
    busy: int
    between: int
    starting: int
    ending: int
    waiting: int
    ready: int
    waited: int
    failed_starts: int
    ended: Mapping[str, int]


class _Call:
    """A call that waits: what it needs, and where its session is put."""

    def __init__(self, request: SandboxRequest) -> None:
        self.request = request
        self.session: asyncio.Future[LaneSession] = asyncio.get_running_loop().create_future()


class Lanes:
    """Implements `SandboxBackend` for isolation `fork`. An async context manager: at its end all lanes end."""

    def __init__(
        self,
        backend: LaneBackend,
        rules: LaneRules,
        report: Callable[[str, BaseException], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._rules = rules
        self._report = report
        self._clock = clock
        self._board = LaneBoard(rules)
        self._lanes: dict[Slot, Lane] = {}
        self._waiting: dict[Waiter, _Call] = {}
        self._tasks = asyncio.TaskGroup()
        self._starting: dict[Slot, asyncio.Task[None]] = {}
        self._closing = False
        self._refused = False
        self._ready = self._waited = self._failed_starts = 0
        self._ended: Counter[str] = Counter(dict.fromkeys(get_args(Cause), 0))

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Give up what is being started, end what is idle. What calls hold is theirs."""
        self._closing = True
        for start in self._starting.values():
            start.cancel()
        for slot in self._board.slots:
            if slot.phase is Phase.IDLE:
                self._let_go(slot, "stopped")
        await self._tasks.__aexit__(None, None, None)

    def __len__(self) -> int:
        return len(self._lanes)

    def figures(self) -> Figures:
        slots = self._board.slots
        phases = Counter(slot.phase for slot in slots)
        starting = sum(1 for slot in slots if slot.phase is Phase.COMING and slot not in self._lanes)
        return Figures(
            idle=phases[Phase.IDLE],
            busy=phases[Phase.BUSY],
            between=phases[Phase.COMING] - starting,
            starting=starting,
            ending=phases[Phase.ENDING],
            waiting=self._board.waiting,
            ready=self._ready,
            waited=self._waited,
            failed_starts=self._failed_starts,
            ended=dict(self._ended),
        )

    async def open(self, request: SandboxRequest) -> Sandbox:
        """Give the call its turn on a lane of its own key, idle or new.

        Raises:
            CallError: `overloaded` when too many wait, `deadline_exceeded`, `runtime_missing` where the host refuses
                the namespaces, and what the backend raises for a start.
        """
        waiter = Waiter(_key(request), request.limits.memory_mb, request.deadline.monotonic_s)
        call = _Call(request)
        self._join(waiter, call)
        try:
            self._act()
            at_once = call.session.done()
            async with asyncio.timeout(request.deadline.remaining_s(self._clock())):
                session = await call.session
            self._ready += at_once
            self._waited += not at_once
            return session
        except TimeoutError:
            await self._decline(call)
            raise CallError(
                Reason.DEADLINE_EXCEEDED, "The deadline passed while the call waited for a lane; allow more time."
            ) from None
        except BaseException:
            await self._decline(call)
            raise
        finally:
            self._board.leave(waiter)
            self._waiting.pop(waiter, None)

    async def reap(self) -> int:
        return await self._backend.reap()

    async def health(self) -> Mapping[str, Health]:
        """Whether lanes can be made, as far as it has been tried. Never raises."""
        detail = _REFUSED if self._refused else f"{len(self._lanes)} open"
        return {"lanes": Health(ok=not self._refused, detail=detail)}

    async def close(self) -> None:
        await self._backend.close()

    async def tend(self) -> None:
        """End lanes that idle for too long or have died, and see whether that helps anybody."""
        for slot in self._board.expired(self._clock()):
            self._let_go(slot, "idle")
        self._act()

    def _join(self, waiter: Waiter, call: _Call) -> None:
        if self._closing:
            raise CallError(Reason.DRAINING, "The gateway is shutting down; ask another one.", retry_after_ms=2000)
        try:
            self._board.join(waiter)
        except OverflowError:
            raise CallError(
                Reason.OVERLOADED,
                "Too many calls wait for a lane of isolation `fork`; try again later.",
                retry_after_ms=_RETRY_AFTER_MS,
            ) from None
        self._waiting[waiter] = call

    async def _decline(self, call: _Call) -> None:
        """Give back what came in the moment in which the call gave up."""
        if call.session.cancel() or call.session.cancelled() or call.session.exception() is not None:
            return
        await call.session.result().destroy()

    def _act(self) -> None:
        """Do what the board says, until it has nothing more to say."""
        self._bury_the_dead()
        self._dismiss_the_gone()
        while (action := self._board.next_action()) is not None:
            match action:
                case Give(slot, waiter):
                    self._waiting[waiter].session.set_result(LaneSession(self._lanes[slot], self._take_back))
                case Start(slot, waiter):
                    self._starting[slot] = self._spawn(self._start(slot, self._waiting[waiter].request))
                case End(slot):
                    self._let_go(slot, "room")
                case _:
                    assert_never(action)

    def _bury_the_dead(self) -> None:
        for slot in self._board.slots:
            if slot.phase is Phase.IDLE and not self._lanes[slot].sandbox.alive:
                self._let_go(slot, "died")

    def _dismiss_the_gone(self) -> None:
        """Let nobody wait who has given up: a cancelled call learns of it a moment before it leaves by itself."""
        for waiter, call in self._waiting.items():
            if call.session.done():
                self._board.leave(waiter)

    async def _start(self, slot: Slot, request: SandboxRequest) -> None:
        """Start a lane. When it fails, the call that waits most urgently for such a one is told."""
        try:
            lane = await self._started(slot, request)
        except CallError as error:
            self._not_started(slot, error)
        except Exception as error:  # a defect here must not leave a call waiting until its deadline
            self._report("lanes", error)
            self._not_started(slot, CallError(Reason.SANDBOX_UNAVAILABLE, "A lane could not be started."))
        else:
            self._refused = False
            self._lanes[slot] = lane
            self._board.idle(slot, self._clock())
            if self._closing:
                return await self._end(slot, "stopped")
        finally:
            self._starting.pop(slot, None)
        self._act()
        return None

    async def _started(self, slot: Slot, request: SandboxRequest) -> Lane:
        until = self._clock() + self._rules.start_s
        own = replace(
            request,
            call_id=new_call_id(),
            deadline=Deadline(until),
            deadline_at=datetime.now(UTC) + timedelta(seconds=self._rules.start_s),
        )
        lane = Lane(await self._backend.open(own), slot)
        try:
            await self._order(lane, own, until)
        except BaseException:
            # From here on it is not given up: the end of a lane is not cut short.
            self._starting.pop(slot, None)
            await lane.sandbox.destroy()
            raise
        if lane.cold is not None:
            _log.warning("every call of %s imports its tool anew; the imports leave: %s", request.tool, lane.cold)
        return lane

    async def _order(self, lane: Lane, own: SandboxRequest, until: float) -> None:
        """Have a container that was started become a lane."""
        try:
            async with asyncio.timeout(until - self._clock()):
                await lane.ready()
                lane.pending = b""
                order = self._backend.confinement(own.shape)
                run = _terms(own).run
                await lane.sandbox.send(encode_lane(run, own.limits, order, self._rules.idle_s + 60))
                await lane.ready()
        except (TimeoutError, ConnectionError, ValueError) as error:
            raise await self._why_not(lane) from error

    async def _why_not(self, lane: Lane) -> CallError:
        report = await lane.sandbox.wait_exit(_EXIT_WAIT_S)
        _log.warning("a lane did not open: %s", report.evidence)
        if report.exit_code == REFUSED_EXIT_CODE:
            self._refused = True
            return CallError(Reason.RUNTIME_MISSING, _REFUSED)
        return CallError(Reason.SANDBOX_UNAVAILABLE, "A lane did not become ready, and nothing ran; try again.")

    def _not_started(self, slot: Slot, error: CallError) -> None:
        self._failed_starts += 1
        self._board.gone(slot)
        self._dismiss_the_gone()
        waiter = self._board.first(slot.key)
        if waiter is not None:
            self._board.leave(waiter)
            self._waiting[waiter].session.set_exception(error)

    async def _take_back(self, session: LaneSession) -> None:
        """The end of a session: the lane is idle again when it says so, or it ends."""
        lane, slot = session.lane, session.lane.slot
        if session.unused and not self._closing:
            self._board.idle(slot, self._clock())
            return self._act()
        unfit = self._unfit(session)
        try:
            if unfit is None:
                self._board.between(slot)
                async with asyncio.timeout(_READY_S):
                    await lane.ready()
                self._board.idle(slot, self._clock())
        except (TimeoutError, ConnectionError, ValueError):
            unfit = "irregular"
        except BaseException:
            self._let_go(slot, "irregular")
            raise
        if unfit is None:
            return self._act()
        return await self._end(slot, unfit)

    def _unfit(self, session: LaneSession) -> Cause | None:
        """Why the lane of a session may serve no other."""
        if not session.regular:
            return "irregular"
        if self._closing:
            return "stopped"
        return "worn" if self._board.worn(session.lane.slot) else None

    def _let_go(self, slot: Slot, cause: Cause) -> None:
        """End a lane in the background. From now on nobody is given it."""
        self._board.ending(slot)
        self._spawn(self._end(slot, cause))

    async def _end(self, slot: Slot, cause: Cause) -> None:
        self._board.ending(slot)
        self._ended[cause] += 1
        lane = self._lanes.pop(slot)
        try:
            await lane.sandbox.destroy()
        finally:
            self._board.gone(slot)
        if not self._closing:
            self._act()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        return self._tasks.create_task(work)


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def _key(request: SandboxRequest) -> LaneKey:
    return LaneKey(request.tenant, request.image_digest, request.runtime, request.limits, _terms(request))


def _terms(request: SandboxRequest) -> LaneTerms:
    if request.lane is None:
        raise ValueError("a call that needs no lane")
    return request.lane
