"""Calls that the gateway carries on by itself: from their claim to the moment when they may run.

Such a call was asked for with `asynchronous`, or needs an approval. It waits in the record, with its arguments sealed,
and as a task that holds none of them: for somebody's decision, then for its turn. A restart changes nothing about that.
What waited is judged once more before it runs, by `Readmit`, since policy or the tool may be others by then.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Protocol

from callgate_server.admission.queue import Queue
from callgate_server.execution.running import Running, RunningCalls, contained, internal
from callgate_server.ledger.store import Completion, Keeping, Ledger, Parcel, StoredCall
from callgate_server.model.answer import Answer, Decision, Failure, SandboxInfo, to_document
from callgate_server.model.call import CallRequest
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import IN_FLIGHT, State
from callgate_server.model.spending import Charge
from callgate_server.model.strict_json import encode
from callgate_server.observe.watch import Watch
from callgate_server.result.conclude import new_nonce
from callgate_server.ticket import Admitted

# How many numbers an event of the record leaves for the events of a call's life: more than its output has bytes.
_SEQ_SHIFT: Final = 24
# Refusals that pass, and how long to wait before asking again.
_NOT_NOW: Final = frozenset({Reason.AUDIT_UNAVAILABLE, Reason.OVERLOADED, Reason.RATE_LIMITED, Reason.CIRCUIT_OPEN})
_AGAIN_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call may wait, in seconds: for its turn, and for an approval."""

    turn_s: float
    approval_s: float


# Judges a call again whose turn has come, and moves it to `running`.
Readmit = Callable[[StoredCall, Parcel], Awaitable[Admitted]]
# Runs a call to its recorded end.
Run = Callable[[Running, Admitted], Awaitable[None]]


class Reservations(Protocol):
    """What calls have reserved of budgets."""

    def owed(self, kept: StoredCall) -> AbstractContextManager[None]:
        """Hold what a call has reserved in an earlier life."""

    def unused(self, kept: StoredCall) -> tuple[Charge, ...]:
        """What a call gives back, should it end now."""


class _Over(Exception):  # no error: it is how the waiting ended
    """The call's waiting is over without its turn: in which state, with which failure."""

    def __init__(self, state: State, failure: Failure) -> None:
        super().__init__(failure.message)
        self.state = state
        self.failure = failure


class _Suspended(Exception):  # no error: the call waits on in the next life of the gateway
    """The gateway is shutting down."""


@dataclass(frozen=True, slots=True)
class KeptCalls:
    """Those calls. `queue` bounds how many there are."""

    ledger: Ledger
    queue: Queue
    patience: Patience
    watch: Watch
    limits: Reservations

    def keeping(self, call: Admitted) -> Keeping:
        """How a call that was just admitted is to be kept."""
        wait_s = self.patience.turn_s if call.approval is None else self.patience.approval_s
        redrive = call.ticket.redrive
        return Keeping(
            call.parcel(self.ledger.digest),
            call.ticket.request.priority,
            datetime.now(UTC) + timedelta(seconds=wait_s),
            call.approval,
            redrives=redrive.call_id if redrive else None,
            redriven_by=redrive.by if redrive else "",
        )

    async def carry(self, running: Running, kept: StoredCall, readmit: Readmit, run: Run) -> None:
        """Carry a kept call, whose place is taken, to its end, or to the end of this life of the gateway.

        Nothing is raised: what goes wrong while it waits is told to who follows it, and is in the record.
        """
        try:
            await contained(self._carried(running, kept, readmit, run))
        except _Suspended:
            running.fail(CallError(Reason.DRAINING, "The gateway is shutting down; the call waits on in its record."))
        except _Over as over:
            await self._end(running, kept, over)
        except CallError as failure:
            running.fail(failure)
        except Exception as error:  # whatever it was, the call must not wait for ever
            self.watch.unexpected(running.call_id, error)
            await self._end(running, kept, _Over(State.FAILED, _unexpected(kept)))

    async def _carried(self, running: Running, kept: StoredCall, readmit: Readmit, run: Run) -> None:
        await self._approved(running, kept)
        until = datetime.now(UTC) + timedelta(seconds=self.patience.turn_s)
        running.wait_for(State.ADMITTED, None, until)
        while True:
            async with AsyncExitStack() as turn:
                await self._turn(running, kept, turn, until)
                call = await self._begun(kept, readmit)
                if call is not None:
                    return await run(running, call)
            # Its turn is another's meanwhile: what cannot run now must not keep those waiting that can.
            await self._until(running, asyncio.sleep(_AGAIN_S), until)

    async def resume(self, calls: RunningCalls, readmit: Readmit, run: Run) -> int:
        """Go on with what waited when an earlier life of the gateway ended; return how many calls that are."""
        waiting = await self.ledger.waiting()
        for kept in waiting:
            carry = partial(self._resumed, kept=kept, readmit=readmit, run=run)
            calls.spawn(kept.call_id, carry, _first_seq(kept), owner=kept.caller)
        return len(waiting)

    async def _resumed(self, running: Running, *, kept: StoredCall, readmit: Readmit, run: Run) -> None:
        with self.queue.place(kept.caller, owed=True), self.limits.owed(kept):
            running.accept()
            await self.carry(running, kept, readmit, run)

    async def _approved(self, running: Running, kept: StoredCall) -> None:
        if kept.state is not State.AWAITING_APPROVAL:
            return
        expires_at = kept.expires_at or datetime.now(UTC)
        running.wait_for(State.AWAITING_APPROVAL, kept.approval, expires_at)
        in_time = True
        try:
            await _unless_over(running, running.decided.wait(), expires_at)
        except TimeoutError:
            in_time = False
        decided = await self._looked_up(running, kept)
        if not in_time and decided is not None and decided.state is State.AWAITING_APPROVAL:
            message = f"Nobody of {kept.approval} approved the call by {expires_at:%Y-%m-%d %H:%M} UTC."
            raise _Over(State.DENIED, Failure(Reason.APPROVAL_EXPIRED, message))
        if decided is None or decided.state is not State.ADMITTED:
            message = decided.message if decided else "The approval was denied."
            raise CallError(Reason.APPROVAL_DENIED, message, call_id=kept.call_id)

    async def _looked_up(self, running: Running, kept: StoredCall) -> StoredCall | None:
        """Look the call up, and again where the record cannot be read for a while."""
        while True:
            try:
                return await self.ledger.get(kept.call_id)
            except CallError:
                await _unless_over(running, asyncio.sleep(_AGAIN_S), datetime.max.replace(tzinfo=UTC))

    async def _turn(self, running: Running, kept: StoredCall, turn: AsyncExitStack, until: datetime) -> None:
        place = self.queue.turn(kept.caller.tenant, kept.priority or 0)
        await self._until(running, turn.enter_async_context(place), until)

    async def _until(self, running: Running, work: Coroutine[Any, Any, object], until: datetime) -> None:
        try:
            await _unless_over(running, work, until)
        except TimeoutError:
            failure = Failure(Reason.DEADLINE_EXCEEDED, "The call could not begin in time; the gateway is busy.")
            raise _Over(State.TIMED_OUT, failure) from None

    async def _begun(self, kept: StoredCall, readmit: Readmit) -> Admitted | None:
        """Let the call begin; None where that is not possible for a while, and not the call's fault."""
        try:
            return await readmit(kept, await self._parcel(kept))
        except CallError as refusal:
            if refusal.reason in _NOT_NOW:
                return None
            raise _Over(State.DENIED, Failure(refusal.reason, refusal.message)) from refusal

    async def _parcel(self, kept: StoredCall) -> Parcel:
        parcel = await self.ledger.parcel(kept.call_id)
        if parcel is None:
            raise CallError(Reason.NOT_POSSIBLE, "What the call needs is not kept any more.")
        return parcel

    async def _end(self, running: Running, kept: StoredCall, over: _Over) -> None:
        """Record that the call will not run, and say so; unless somebody has ended it meanwhile."""
        charges: tuple[Charge, ...] = ()
        with contextlib.suppress(CallError):  # what cannot be read now may be written all the same
            now = await self.ledger.get(kept.call_id)
            if now is not None and now.state not in IN_FLIGHT:
                reason = now.reason or Reason.NOT_POSSIBLE
                return running.fail(CallError(reason, now.message, call_id=kept.call_id))
            charges = self.limits.unused(now or kept)
        document = _cancelled(kept, over.failure) if over.state is State.CANCELLED else None
        answer_json = None if document is None else encode(document)
        failure = over.failure
        try:
            await self.ledger.complete(
                Completion(kept.call_id, over.state, failure.reason, failure.message, answer_json, charges=charges)
            )
        except CallError as unrecorded:
            return running.fail(unrecorded)
        if document is None:
            return running.fail(CallError(failure.reason, failure.message, call_id=kept.call_id))
        return running.answer(document)


def request_of(kept: StoredCall, parcel: Parcel) -> CallRequest:
    """Return the request that a kept call was made with, as far as it still counts."""
    return CallRequest(
        kept.tool,
        parcel.arguments_json,
        "kept",
        parcel.deadline_ms,
        asynchronous=True,
        priority=kept.priority or 0,
        purpose=parcel.purpose,
    )


def kept_now(call: Admitted, keeping: Keeping) -> StoredCall:
    """Return a call that was just claimed as the record has it."""
    ticket = call.ticket
    return StoredCall(
        call_id=ticket.id,
        caller=ticket.caller,
        tool=call.tool.name,
        version=call.tool.manifest.version,
        state=State.ADMITTED if keeping.approval is None else State.AWAITING_APPROVAL,
        arguments_digest=call.arguments_digest,
        reason=None,
        message="",
        policies=call.verdict.policies,
        received_at=ticket.received_at,
        finished_at=None,
        answer_json=None,
        effect=call.tool.manifest.effect,
        kept=True,
        priority=keeping.priority,
        attempt=1,
        approval=keeping.approval,
        expires_at=keeping.expires_at,
    )


async def _unless_over(running: Running, work: Coroutine[Any, Any, object], until: datetime) -> None:
    """Await `work`, unless the call is cancelled or suspended first.

    Raises:
        TimeoutError: it is `until`.
    """
    working = asyncio.ensure_future(work)
    watching = [asyncio.ensure_future(event.wait()) for event in (running.cancelled, running.suspended)]
    left_s = max(0.0, (until - datetime.now(UTC)).total_seconds())
    try:
        await asyncio.wait((working, *watching), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
            return
        if running.cancelled.is_set():
            raise _Over(State.CANCELLED, Failure(Reason.CANCELLED, "The call was cancelled while it waited."))
        if running.suspended.is_set():
            raise _Suspended
        raise TimeoutError
    finally:
        for task in (working, *watching):
            task.cancel()
        await asyncio.gather(working, *watching, return_exceptions=True)


def _cancelled(kept: StoredCall, failure: Failure) -> dict[str, Any]:
    decision, nowhere = Decision("", kept.policies), SandboxInfo("", "", "")
    answer = Answer(kept.call_id, kept.tool, kept.version, State.CANCELLED, decision, nowhere)
    return to_document(replace(answer, error=failure, nonce=new_nonce()))


def _unexpected(kept: StoredCall) -> Failure:
    return Failure(Reason.INTERNAL, internal(kept.call_id).message)


def _first_seq(kept: StoredCall) -> int:
    return kept.changed_seq << _SEQ_SHIFT
