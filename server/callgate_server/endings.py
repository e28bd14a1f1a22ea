"""How a call ends in the record, for who follows it, and for who watches: with an answer, without one, or refused.

What cannot be recorded is not told: who asked then learns that instead.
"""

import asyncio
from dataclasses import dataclass

from callgate_server.execution.running import Running
from callgate_server.ledger.store import Completion, Ledger
from callgate_server.limits import Limits
from callgate_server.model.answer import Answer, to_document
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.strict_json import encode
from callgate_server.observe.watch import Watch
from callgate_server.ticket import Admitted, Ticket


@dataclass(frozen=True, slots=True)
class Endings:
    ledger: Ledger
    limits: Limits
    watch: Watch

    async def answer(self, running: Running, call: Admitted, answer: Answer) -> None:
        """End a call whose tool was started, or that has a fallback's answer.

        A kept call that only the end of this gateway interrupts has not ended: its row stays as a crash would leave it,
        and the next life does with it what it does after one.
        """
        if running.interrupted and call.is_kept and answer.state is State.CANCELLED:
            message = "The gateway was stopped while the call ran; what becomes of it is in its record."
            running.fail(CallError(Reason.DRAINING, message, call_id=running.call_id))
            return
        document = to_document(answer)
        try:
            with call.ticket.phases.measure("record"):
                await self.ledger.complete(
                    self.limits.ended(call, call.completion(answer, encode(document)), answer.usage)
                )
        except CallError as unrecorded:
            unrecorded.call_id = running.call_id
            running.fail(unrecorded)
            return
        running.answer(document)
        # Whoever waits for the answer goes first, and what is counted and logged of it does not keep them.
        await asyncio.sleep(0)
        self.watch.finished(call.tool.name, answer.state, answer.usage, call.ticket.phases.ms)

    async def fail(self, running: Running, call: Admitted, failure: CallError, state: State) -> None:
        """End a claimed call that has no answer. What its earlier attempts used counts all the same."""
        failure.call_id = running.call_id
        try:
            end = Completion(running.call_id, state, failure.reason, failure.message, None, call.ticket.sandbox)
            with call.ticket.phases.measure("record"):
                await self.ledger.complete(self.limits.ended(call, end, call.ticket.used))
        except CallError as unrecorded:
            unrecorded.call_id = running.call_id
            failure = unrecorded
        self.watch.refused(call.tool.name, failure.reason, call.ticket.phases.ms)
        running.fail(failure)

    async def refuse(self, ticket: Ticket, refusal: CallError) -> CallError:
        """Record a refusal and return what to tell the caller: the refusal, or that it could not be recorded.

        Where an agent has had too many, it is recorded in a sum.
        """
        try:
            if not self.limits.came_to_nothing(ticket.caller, refusal):
                return refusal
            refusal.call_id = ticket.id
            with ticket.phases.measure("record"):
                await self.ledger.refuse(ticket.refusal(refusal, self.ledger.digest))
        except CallError as unrecorded:
            unrecorded.call_id = ticket.id
            refusal = unrecorded
        finally:
            # Its client may have left: what was to be recorded still is, and so it counts.
            self.watch.refused(ticket.tool_name, refusal.reason, ticket.phases.ms)
        return refusal
