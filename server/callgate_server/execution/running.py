"""Calls in progress. A call belongs to the gateway: the client that asked for it only waits, and may leave.

Each call is one task of one task group. It publishes events (accepted, output, answer or error); any number of
waiters may follow them from the start. What a call publishes is bounded by its output caps, and the number of its
events too: each costs a hundred bytes of memory, and a tool may write single bytes.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, Self, TypeVar

from callgate_server.execution.cancellation import Cancellation
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State

_T = TypeVar("_T")
# After so many events of a call, its output is gathered into pieces of this size, or of what comes in this time.
PROMPT_EVENTS: Final = 1024
PIECE_CHARACTERS: Final = 512
LONGEST_GATHERING_S: Final = 0.25
# What ends a task or the process, and is nobody's fault.
_ENDS: Final = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A call is claimed and recorded; from here on it can be asked for by this id.

    It is this call's own, or that of the call in progress which this one repeats and waits for.
    """

    seq: int
    call_id: str


@dataclass(frozen=True, slots=True)
class OutputChunk:
    """The next cleaned text of one output stream."""

    seq: int
    stream: Literal["stdout", "stderr"]
    text: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """The call waits: for its turn (`admitted`), or for an approval by `group` (`awaiting_approval`)."""

    seq: int
    call_id: str
    state: State
    group: str | None
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Answered:
    """The end: the answer in its public JSON shape."""

    seq: int
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a call whose tool never started."""

    seq: int
    error: CallError


Event = Accepted | Waiting | OutputChunk | Answered | Failed


class Running:
    """One call in progress, or just ended.

    `first_seq` is above every event that an earlier life of the gateway published of this call.
    """

    def __init__(self, call_id: str, first_seq: int = 0, *, owner: Caller | None = None) -> None:
        self.call_id = call_id
        self.owner = owner
        self._first_seq = first_seq
        # Set when somebody decided about its approval: what, is in the record.
        self.decided = asyncio.Event()
        # Set when it shall wait on without this gateway, which is shutting down.
        self.suspended = asyncio.Event()
        # What a client may ask for: another call's id where this one only waits for that.
        self.claimed_id = call_id
        self.cancelled = Cancellation()
        # Whether it is cancelled because the gateway goes, and nobody asked for that.
        self.interrupted = False
        # Set when everything of the call is cleaned up, a little after its answer.
        self.finished = asyncio.Event()
        self._events: list[Event] = []
        # Output that is not published yet, by stream, in the order in which their texts began.
        self._gathered: dict[Literal["stdout", "stderr"], str] = {}
        self._published_s = 0.0
        self._changed = asyncio.Event()
        # Whether it waits, or has waited, for somebody's approval.
        self._asked = False

    def accept(self, claimed_id: str | None = None) -> None:
        """Say that the call is claimed, or that it waits for `claimed_id`, which is the same call."""
        self.claimed_id = claimed_id or self.call_id
        self._publish(Accepted(self._next_seq, self.claimed_id))

    def wait_for(self, state: State, group: str | None, expires_at: datetime) -> None:
        """Say that the call waits, and for what."""
        self._asked = self._asked or state is State.AWAITING_APPROVAL
        self._publish(Waiting(self._next_seq, self.call_id, state, group, expires_at))

    def output(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        if not text:
            return
        self._gathered[stream] = self._gathered.get(stream, "") + text
        enough = len(self._events) < PROMPT_EVENTS or sum(map(len, self._gathered.values())) >= PIECE_CHARACTERS
        if enough or time.monotonic() - self._published_s >= LONGEST_GATHERING_S:
            self._publish_gathered()

    def answer(self, document: Mapping[str, Any]) -> None:
        self._publish_gathered()
        self._publish(Answered(self._next_seq, document))

    def fail(self, error: CallError) -> None:
        self._publish_gathered()
        self._publish(Failed(self._next_seq, error))

    def _publish_gathered(self) -> None:
        gathered, self._gathered = self._gathered, {}
        self._published_s = time.monotonic()
        for stream, text in gathered.items():
            self._publish(OutputChunk(self._next_seq, stream, text))

    @property
    def _next_seq(self) -> int:
        return self._first_seq + len(self._events)

    @property
    def ended(self) -> bool:
        return bool(self._events) and isinstance(self._events[-1], Answered | Failed)

    def cancel(self) -> None:
        """Ask for the end of the call. What ran until then is kept in the answer."""
        self.cancelled.set()

    def interrupt(self) -> None:
        """End the call because the gateway goes."""
        self.interrupted = not self.cancelled.is_set()
        self.cancel()

    async def started(self, *, leaving_cancels: bool = False) -> None:
        """Wait until the call is accepted, or already answered.

        Cancelling the waiter cuts nothing in half: the call goes on, or is asked to end if `leaving_cancels`.

        Raises:
            CallError: it was refused.
        """
        try:
            while not self._events:
                await self._changed.wait()
        except asyncio.CancelledError:
            if leaving_cancels:
                self.cancel()
            raise
        first = self._events[0]
        if isinstance(first, Failed):
            raise first.error

    async def settled(self) -> None:
        """Wait until the call has ended, or waits for somebody's approval, which no caller should wait for."""
        while not self.ended and not self._asked:
            await self._changed.wait()

    async def wait(self) -> Mapping[str, Any]:
        """Wait for the answer. Cancelling the waiter leaves the call alone.

        Raises:
            CallError: the tool never started.
        """
        while not self._events or not isinstance(end := self._events[-1], Answered | Failed):
            await self._changed.wait()
        if isinstance(end, Failed):
            raise end.error
        return end.document

    async def events(self, after: int = -1) -> AsyncIterator[Event]:
        """Yield events with `seq` greater than `after`, from the first to the end of the call."""
        position = max(0, after + 1 - self._first_seq)
        while True:
            while position < len(self._events):
                yield self._events[position]
                position += 1
            if self.ended:
                return
            await self._changed.wait()

    def _publish(self, event: Event) -> None:
        if self.ended:
            return
        self._events.append(event)
        self._changed.set()
        self._changed = asyncio.Event()


class RunningCalls:
    """The registry and the task group of all calls in progress. An async context manager owned by the app."""

    def __init__(self, report: Callable[[str, BaseException], None]) -> None:
        self._report = report
        self._by_id: dict[str, Running] = {}
        self._tasks = asyncio.TaskGroup()
        self.draining = False

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        # Whatever brings the end, the calls come to theirs: `drain` has asked them to.
        await self._tasks.__aexit__(None, None, None)

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, call_id: str) -> Running | None:
        return self._by_id.get(call_id)

    def of(self, tenant: str, agent: str = "") -> list[Running]:
        """The calls of an agent, or without one of a whole tenant."""
        return [
            running
            for running in self._by_id.values()
            if running.owner is not None and running.owner.tenant == tenant and agent in ("", running.owner.agent)
        ]

    def spawn(
        self,
        call_id: str,
        carry: Callable[[Running], Awaitable[None]],
        first_seq: int = 0,
        *,
        owner: Caller | None = None,
    ) -> Running:
        """Start `carry` as a task of its own that outlives the handler which asked for it.

        Raises:
            CallError: `draining`.
        """
        if self.draining:
            raise CallError(Reason.DRAINING, "The gateway is shutting down; ask another one.", retry_after_ms=2000)
        running = Running(call_id, first_seq, owner=owner)
        self._by_id[call_id] = running
        self._tasks.create_task(self._guard(running, carry), name=f"call-{call_id}")
        return running

    async def carried_out(self, call_id: str, work: Awaitable[_T]) -> _T:
        """Return what `work` for a call returns. It goes on to its end even if whoever asked for it stops waiting.

        Then nobody is told of a refusal, and a defect is reported.
        """
        asked: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._tasks.create_task(self._carry_out(call_id, work, asked), name=f"for-{call_id}")
        return await asked

    async def drain(self, grace_s: float, settle_s: float) -> int:
        """Admit nothing more, let calls finish for `grace_s`, interrupt the rest; return how many that were.

        What waits is suspended at once: the record has it, and the next life of the gateway goes on with it.
        """
        self.draining = True
        for running in self._by_id.values():
            running.suspended.set()
        await self._idle(grace_s)
        late = list(self._by_id.values())
        for running in late:
            running.interrupt()
        await self._idle(settle_s)
        return len(late)

    async def _idle(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while self._by_id:
                    await next(iter(self._by_id.values())).finished.wait()
        except TimeoutError:
            pass

    async def _carry_out(self, call_id: str, work: Awaitable[_T], asked: "asyncio.Future[_T]") -> None:
        try:
            result = await contained(work)
        except Exception as error:  # it is the asker's, and must not end the other calls
            if not asked.cancelled():
                asked.set_exception(error)
            elif not isinstance(error, CallError):
                self._report(call_id, error)
        else:
            if not asked.cancelled():
                asked.set_result(result)

    async def _guard(self, running: Running, carry: Callable[[Running], Awaitable[None]]) -> None:
        try:
            await carry(running)
        except _ENDS:
            raise
        except BaseException as error:  # the last border: an engine's panic must not end the other calls
            self._report(running.call_id, error)
        finally:
            if not running.ended:
                running.fail(internal(running.call_id))
            del self._by_id[running.call_id]
            running.finished.set()


async def contained(work: Awaitable[_T]) -> _T:
    """Await `work`. What an engine throws past `Exception` (a panic of compiled code) comes out as a defect like any.

    Raises:
        RuntimeError: it was such a panic.
    """
    try:
        return await work
    except (Exception, *_ENDS):
        raise
    except BaseException as panic:
        raise RuntimeError("compiled code panicked") from panic


def internal(call_id: str) -> CallError:
    """What a caller learns of an unexpected error: the call id, to quote to the operator, and nothing else."""
    return CallError(Reason.INTERNAL, f"Unexpected error; quote call {call_id} to the operator.", call_id=call_id)
