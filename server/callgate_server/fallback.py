"""What a call is answered with whose tool could not do it: another tool's result, a constant, or the last good one.

It decides when there is a fallback at all (ADR 9) and gets it. The answer stays that of the call's own run but for
`state`, `result` and `error`, and says in `fallback` what became of that. A fallback that cannot be had
changes nothing: the failure stands as it was.
"""

import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from callgate_server.admission.authorize import Policy, refuse_unless_still_allowed
from callgate_server.admission.validate import Schemas, check_arguments
from callgate_server.endurance import Endurance
from callgate_server.execution.breakers import Breakers, report
from callgate_server.execution.running import Running, contained
from callgate_server.ledger.store import Completion, Ledger
from callgate_server.limits import Limits
from callgate_server.model.answer import Answer, Failure, Substitute, from_stored, to_document
from callgate_server.model.call import CallRequest
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.manifest import Fallback
from callgate_server.model.strict_json import Json, encode
from callgate_server.observe.watch import Watch
from callgate_server.ticket import Admitted, Ticket

# What the tool could not help. What it says of the arguments (`tool_failed`, `invalid_result`), what the caller did and
# what policy decided are answers, and a fallback would hide them.
FALLS_BACK: Final = frozenset(
    {
        Reason.CIRCUIT_OPEN,
        Reason.SANDBOX_UNAVAILABLE,
        Reason.SECRETS_UNAVAILABLE,
        Reason.SANDBOX_LOST,
        Reason.TOOL_UNAVAILABLE,
        Reason.TIMED_OUT,
        Reason.OUT_OF_MEMORY,
    }
)


def may_fall_back(tool: Tool, reason: Reason, *, started: bool) -> bool:
    """Tell whether a failure may be answered by the tool's fallback.

    Not where an unsafe tool was started: its effect may have happened, and a success of something else would hide that.
    """
    hides = started and tool.manifest.effect == "unsafe"
    return tool.manifest.fallback is not None and reason in FALLS_BACK and not hides


@dataclass(frozen=True, slots=True)
class Fallbacks:
    """Makes a call's attempts, and falls back where they fail and the manifest says how."""

    endurance: Endurance
    catalog: Catalog
    schemas: Schemas
    policy: Policy
    ledger: Ledger
    watch: Watch
    limits: Limits
    breakers: Breakers

    async def make(self, running: Running, call: Admitted, cleanup: AsyncExitStack) -> Answer:
        """Return the call's answer: its own tool's, or its fallback.

        Raises:
            CallError: as `Endurance.make`, where there is no fallback.
        """
        try:
            if call.ticket.stopped is not None:
                raise call.ticket.stopped
            answer = await self.endurance.make(running, call, cleanup)
        except CallError as failure:
            error = Failure(failure.reason, failure.message, failure.retry_after_ms)
            instead = await self.instead(running, call, call.nothing_ran(), error, started=False)
            if instead is None:
                raise
            return instead
        if answer.error is None:
            return answer
        return await self.instead(running, call, answer, answer.error, started=True) or answer

    async def instead(
        self, running: Running, call: Admitted, answer: Answer, error: Failure, *, started: bool
    ) -> Answer | None:
        """Return `answer` with the fallback's result, or None where there is none or it could not be had."""
        fallback = call.tool.manifest.fallback
        if (
            fallback is None
            or running.cancelled.is_set()
            or not may_fall_back(call.tool, error.reason, started=started)
        ):
            return None
        try:
            found = await self._find(running, call, fallback, error)
        except CallError:
            return None  # what the call came to by itself is told, whatever its fallback met
        if found is None or self.schemas.output_violations(call.tool, found[0]):
            return None
        result, substitute = found
        self.watch.fell_back(call.tool.name, substitute.kind, error.reason)
        return replace(answer, state=State.SUCCEEDED, result=result, error=None, fallback=substitute)

    async def _find(
        self, running: Running, call: Admitted, fallback: Fallback, error: Failure
    ) -> tuple[Json, Substitute] | None:
        if fallback.constant is not None:
            return fallback.constant, Substitute("constant", error)
        if fallback.last_good_s is not None:
            return await self._last_good(call, timedelta(seconds=fallback.last_good_s), error)
        other = self.catalog.tools[fallback.tool or ""]
        answer = await _Stand(self, running, call, other).answer()
        if answer is None or answer.state is not State.SUCCEEDED:
            return None
        return answer.result, Substitute("tool", error, other.name, answer.call_id)

    async def _last_good(self, call: Admitted, within: timedelta, error: Failure) -> tuple[Json, Substitute] | None:
        now = datetime.now(UTC)
        own = await self.ledger.get(call.ticket.id)
        good = None if own is None else await self.ledger.last_good(own, now - within)
        if good is None or good.answer_json is None or good.finished_at is None:
            return None
        age_s = round(max(0.0, (now - good.finished_at).total_seconds()), 3)
        return from_stored(good.answer_json)["result"], Substitute("last_good", error, good.tool, good.call_id, age_s)


@dataclass(frozen=True, slots=True)
class _Stand:
    """The call of another tool in the place of a failed one: a call of its own in all but its caller and its place."""

    fallbacks: Fallbacks
    running: Running
    call: Admitted
    tool: Tool

    async def answer(self) -> Answer | None:
        """Admit, claim, run and record it. None where it was refused or never started.

        Raises:
            CallError: `audit_unavailable`.
        """
        ticket = self._ticket()
        # Its output is not the first tool's, whose followers do not see it; its cancelling is that of the first.
        inner = Running(ticket.id)
        inner.cancelled = self.running.cancelled
        with ExitStack() as place:
            admitted = await self._claimed(ticket, place)
            if admitted is None:
                return None
            async with AsyncExitStack() as cleanup:
                return await self._recorded(inner, admitted, cleanup)

    async def _claimed(self, ticket: Ticket, place: ExitStack) -> Admitted | None:
        """Ask all that any call asks, and claim. The slot is the first call's, which waits for this one."""
        parts, digest = self.fallbacks, self.fallbacks.ledger.digest
        try:
            admitted = self._admit(ticket)
            ticket.passage = place.enter_context(parts.breakers.tool(ticket.caller.tenant, self.tool))
            charges = place.enter_context(parts.limits.place(admitted))
        except CallError as refusal:
            await parts.ledger.refuse(ticket.refusal(refusal, digest))
            return None
        await parts.ledger.claim(admitted.intent(digest, charges))
        return admitted

    async def _recorded(self, inner: Running, admitted: Admitted, cleanup: AsyncExitStack) -> Answer | None:
        parts, ticket = self.fallbacks, admitted.ticket
        try:
            await self._link(ticket)
            answer = await contained(parts.endurance.make(inner, admitted, cleanup))
        except CallError as failure:
            late = failure.reason is Reason.DEADLINE_EXCEEDED
            await self._end(admitted, failure.reason, failure.message, State.TIMED_OUT if late else State.FAILED)
            return None
        except Exception:
            # The claim must not stay open. What it was is told by who runs the first call.
            await self._end(admitted, Reason.INTERNAL, "Unexpected error.", admitted.state_after_a_defect)
            raise
        report(ticket.passage, self.tool, answer)
        completion = admitted.completion(answer, encode(to_document(answer)))
        await parts.ledger.complete(parts.limits.ended(admitted, completion, answer.usage))
        parts.watch.finished(self.tool.name, answer.state, answer.usage, ticket.phases.ms)
        return answer

    async def _link(self, ticket: Ticket) -> None:
        """Note in the record of each of both calls which the other is."""
        note, first = self.fallbacks.ledger.note, self.call
        await note(first.ticket.id, "fallback_started", {"tool": self.tool.name, "call": ticket.id})
        await note(ticket.id, "fallback_of", {"tool": first.tool.name, "call": first.ticket.id})

    async def _end(self, admitted: Admitted, reason: Reason, message: str, state: State) -> None:
        ticket, parts = admitted.ticket, self.fallbacks
        end = Completion(ticket.id, state, reason, message, None, ticket.sandbox)
        await parts.ledger.complete(parts.limits.ended(admitted, end, ticket.used))
        parts.watch.refused(self.tool.name, reason, ticket.phases.ms)

    def _ticket(self) -> Ticket:
        first = self.call.ticket
        # No task: the caller is narrowed to it already.
        request = CallRequest(self.tool.name, self.call.arguments_json, first.request.transport)
        return Ticket(first.caller, request, tool=self.tool)

    def _admit(self, ticket: Ticket) -> Admitted:
        parts = self.fallbacks
        parts.limits.admit(ticket)
        seen, document = partial(parts.policy.could_allow, ticket.caller, self.tool), self.call.arguments_json
        ticket.arguments, arguments_json = check_arguments(parts.schemas, self.tool, document, may_see=seen)
        ticket.verdict = verdict = parts.policy.decide(ticket.caller, self.tool, ticket.arguments)
        # Nobody is asked to approve what stands in for something else.
        refuse_unless_still_allowed(verdict, None)
        parts.limits.confine(ticket)
        # The first call's deadline, and no more than this tool may take.
        deadline = replace(
            self.call.deadline,
            monotonic_s=min(self.call.deadline.monotonic_s, time.monotonic() + self.tool.manifest.limits.wall_s),
        )
        return Admitted(ticket, self.tool, verdict, arguments_json, parts.ledger.digest(arguments_json), deadline)
