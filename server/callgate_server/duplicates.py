"""What a call gets whose idempotency key is held: the stored answer, or that of the call in progress, once it ended.

Which of these a key means is `ledger/claims.py`; here it is looked up, waited for and recorded. A duplicate starts
nothing. It waits beside the call it repeats and ends with it, so that its own deadline bounds the waiting and
nothing else, and its cancelling cancels nothing.
"""

import asyncio
import time
from dataclasses import dataclass

from callgate_server.admission.limits import Concurrency
from callgate_server.execution.running import Running, RunningCalls
from callgate_server.ledger.claims import in_flight, may_run_again, replayable
from callgate_server.ledger.store import Ledger, StoredCall
from callgate_server.model.errors import CallError
from callgate_server.model.lifecycle import State
from callgate_server.model.strict_json import Json
from callgate_server.ticket import Admitted


@dataclass(frozen=True, slots=True)
class Duplicates:
    """`waiting` counts who waits: a duplicate takes no place among the running, and still not any number may wait."""

    ledger: Ledger
    running: RunningCalls
    waiting: Concurrency

    async def holder(self, call: Admitted) -> StoredCall | None:
        """Return the earlier call that holds this call's key and does not give it up.

        Raises:
            CallError: `audit_unavailable`.
        """
        key = call.ticket.request.idempotency_key
        if key is None:
            return None
        stored = await self.ledger.find(call.ticket.caller, call.tool.name, key)
        if stored is not None and may_run_again(stored.state, stored.arguments_digest, call.arguments_digest):
            return None
        return stored

    async def answer(self, running: Running, call: Admitted, holder: StoredCall) -> dict[str, Json]:
        """Return the answer of the call that holds this call's key, flagged `replayed`.

        Raises:
            CallError: `idempotency_conflict`, `effect_unknown`, `call_in_flight` (the deadline passed while waiting),
                `overloaded` (too many wait), `audit_unavailable`, or what the call in progress was refused for.
        """
        if in_flight(holder, call.arguments_digest):
            holder = await self._ended(running, call, holder)
        document = replayable(holder, call.arguments_digest)
        await self.ledger.replayed(holder, call.ticket.id, call.ticket.caller, call.ticket.received_at)
        return document

    async def _ended(self, running: Running, call: Admitted, holder: StoredCall) -> StoredCall:
        """Return the holder as it is when it has ended, or when the time to wait for it is over."""
        first = self.running.get(holder.call_id)
        if first is not None:
            with self.waiting.slot(call.ticket.caller):
                running.accept(first.call_id)
                if holder.state is State.AWAITING_APPROVAL and holder.expires_at is not None:
                    # Nobody should wait for that; who asked is told what to ask for instead.
                    running.wait_for(holder.state, holder.approval, holder.expires_at)
                await _wait(first, call.deadline.remaining_s(time.monotonic()))
        return await self.ledger.get(holder.call_id) or holder


async def _wait(first: Running, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await first.wait()
    except TimeoutError:
        return
    except CallError as failure:
        # A copy: the pipeline puts this call's own id into it.
        raise CallError(failure.reason, failure.message, retry_after_ms=failure.retry_after_ms) from failure
