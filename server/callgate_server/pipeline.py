"""The way of a call, from a credential and a request to a recorded answer. Read it aloud:

authenticate → asks too much? → stopped? → validate → authorise → grant → duplicate? → breaker → limits → claim + intent
→ (approval? → turn → breaker →) lease secrets → acquire sandbox → run under deadline → check, redact, sanitise →
outcome → answer.

It fixes the order and nothing else: every decision is a stage's, every effect a backend's. Authorise comes before the
grant (an agent wrote that, and nobody without a permit has it checked) and the look at an idempotency key (a revoked
caller must not read old answers), that before limits and breaker (a stored answer costs nothing), and the intent is
durable before the first side effect. Giving back the secrets and destroying the sandbox happen whatever comes, and no
answer waits for them.
"""

from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from callgate_server.admission.authenticate import Authentication
from callgate_server.admission.authorize import Policy, refuse_unless_allowed, refuse_unless_still_allowed
from callgate_server.admission.limits import Concurrency, DeadlineRule
from callgate_server.admission.validate import Schemas, check_arguments, find_tool
from callgate_server.duplicates import Duplicates
from callgate_server.endings import Endings
from callgate_server.execution.breakers import ENGINE, SECRETS, Breakers, Passage, report
from callgate_server.execution.running import Running, RunningCalls, contained, internal
from callgate_server.fallback import Fallbacks, may_fall_back
from callgate_server.kept import KeptCalls, kept_now, request_of
from callgate_server.ledger.store import Keeping, Ledger, Parcel, StoredCall
from callgate_server.ledger.turns import Turns
from callgate_server.limits import Limits
from callgate_server.model.call import Caller, CallRequest, OnDisconnect
from callgate_server.model.catalog import Catalog
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.ticket import Admitted, Redrive, Ticket, utc_now


@dataclass(frozen=True, slots=True)
class Pipeline:
    authentication: Authentication
    catalog: Catalog
    schemas: Schemas
    policy: Policy
    concurrency: Concurrency
    limits: Limits
    deadlines: DeadlineRule
    ledger: Ledger
    attempts: Fallbacks
    breakers: Breakers
    running: RunningCalls
    duplicates: Duplicates
    kept: KeptCalls
    endings: Endings
    turns: Turns = field(default_factory=Turns)

    async def start(self, token: str | None, request: CallRequest) -> Running:
        """Take one call as far as its claim and return it: running by itself, waiting, or already answered.

        Raises:
            CallError: the call is refused. The refusal is recorded, except that of an unknown caller, which
                is only counted: who has no credential must not be able to fill the record.
        """
        return await self._started(Ticket(await self.authentication.identify(token), request), asked=True)

    async def start_for(self, caller: Caller, request: CallRequest) -> Running:
        """Take one call that the gateway makes for a caller as far as its claim.

        Raises:
            CallError: the call is refused; the refusal is recorded.
        """
        return await self._started(Ticket(caller, request))

    async def redrive(self, dead: StoredCall, caller: Caller, by: str) -> Running:
        """Make a new call of a dead letter for this caller, as policy and its tool are now.

        Raises:
            CallError: it is refused, and stays a dead letter.
        """
        parcel = await self.ledger.parcel(dead.call_id)
        if parcel is None:
            raise CallError(Reason.NOT_POSSIBLE, "The arguments of this call are not kept; only its caller has them.")
        ticket = Ticket(caller, request_of(dead, parcel), redrive=Redrive(dead.call_id, by, parcel.known_as))
        return await self._started(ticket, asked=by == caller.name)

    async def resume(self) -> int:
        """Go on with the calls that waited when an earlier life of the gateway ended; return how many that are."""
        return await self.kept.resume(self.running, self._readmit, self._run)

    async def _started(self, ticket: Ticket, *, asked: bool = False) -> Running:
        """Take a call as far as its claim. `asked`: by its own caller, who may have asked too much."""
        try:
            with ticket.phases.measure("admission"):
                if asked:
                    self.limits.listen(ticket)
                call = self._admit(ticket)
            running = self.running.spawn(ticket.id, partial(self._carry, call=call), owner=ticket.caller)
        except CallError as refusal:
            raise await self.endings.refuse(ticket, refusal) from None
        await running.started(leaving_cancels=ticket.request.on_disconnect is OnDisconnect.CANCEL)
        return running

    def _admit(self, ticket: Ticket) -> Admitted:
        """Validate, authorise, and confine to the task's grant."""
        self.limits.admit(ticket)
        ticket.tool = tool = find_tool(self.catalog, ticket.request.tool)
        seen, document = partial(self.policy.could_allow, ticket.caller, tool), ticket.request.arguments_json
        ticket.arguments, arguments_json = check_arguments(self.schemas, tool, document, may_see=seen)
        ticket.verdict = verdict = self.policy.decide(ticket.caller, tool, ticket.arguments)
        refuse_unless_allowed(verdict)
        self.limits.confine(ticket)
        deadline = self.deadlines.deadline(ticket.received_s, ticket.request.deadline_ms, tool.manifest.limits.wall_s)
        known_as = ticket.redrive.known_as if ticket.redrive else None
        digest = self.ledger.digest(arguments_json)
        return Admitted(ticket, tool, verdict, arguments_json, digest, deadline, known_as=known_as)

    async def _readmit(self, kept: StoredCall, parcel: Parcel) -> Admitted:
        """Judge a call again whose turn has come, and move it to `running`.

        Raises:
            CallError: policy or a breaker is against it now, its tool is another, or it cannot be recorded.
        """
        ticket = Ticket(kept.caller, request_of(kept, parcel), kept.call_id, kept.received_at, counted_from=utc_now())
        call = replace(self._admit(ticket), known_as=parcel.known_as, attempt=kept.attempt or 1)
        refuse_unless_still_allowed(call.verdict, kept.approval)
        if kept.approval is not None and call.tool.digest != parcel.tool_digest:
            raise CallError(
                Reason.APPROVAL_VOID, "The tool is another than the one that was approved; make a new call."
            )
        # What a call that somebody waits for is told, one that waits by itself can wait for.
        self.breakers.refuse_while_open(ENGINE)
        if call.tool.manifest.secrets:
            self.breakers.refuse_while_open(SECRETS)
        with ExitStack() as place:
            call.ticket.passage = place.enter_context(self._passage(call))
            await self.ledger.begin(call.beginning())
            place.pop_all()  # from here on `_run` sees to it
        return call

    async def _carry(self, running: Running, *, call: Admitted) -> None:
        """Carry an admitted call to its end: a run, the answer of the call that holds its key, or a refusal."""
        try:
            with ExitStack() as place:
                keeping = self.kept.keeping(call) if call.is_kept else None
                holder = await self._claim(call, keeping, place)
                if holder is None:
                    running.accept()
                    if keeping is None:
                        return await self._run(running, call)
                    return await self.kept.carry(running, kept_now(call, keeping), self._readmit, self._run)
            running.answer(await self.duplicates.answer(running, call, holder))
            self.limits.came_to_nothing(call.ticket.caller)
        except CallError as refusal:
            running.fail(await self.endings.refuse(call.ticket, refusal))

    async def _claim(self, call: Admitted, keeping: Keeping | None, place: ExitStack) -> StoredCall | None:
        """Take a place and claim the call, or return the call that holds its key."""
        with call.ticket.phases.measure("ledger"):
            async with self.turns.of(call.key):
                holder = await self.duplicates.holder(call)
                if holder is None:
                    caller = call.ticket.caller
                    room = self.concurrency.slot(caller) if keeping is None else self.kept.queue.place(caller)
                    place.enter_context(room)
                    call.ticket.passage = place.enter_context(self._passage(call))
                    if keeping is not None:
                        call.ticket.passage.give_up()  # asked for again when its turn has come
                    charges = place.enter_context(self.limits.place(call))
                    holder = await self.ledger.claim(call.intent(self.ledger.digest, charges), keeping)
                return holder

    def _passage(self, call: Admitted) -> Passage:
        """Ask the tool's breaker. A call that has a fallback goes on to that where the breaker refuses.

        Raises:
            CallError: `circuit_open`.
        """
        try:
            return self.breakers.tool(call.ticket.caller.tenant, call.tool)
        except CallError as stopped:
            if not may_fall_back(call.tool, stopped.reason, started=False):
                raise
            call.ticket.stopped = stopped
            return Passage()

    async def _run(self, running: Running, call: Admitted) -> None:
        """Run a claimed call. Nothing is raised from here on: every end is recorded, then published."""
        async with AsyncExitStack() as cleanup:
            cleanup.enter_context(call.ticket.passage)
            try:
                answer = await contained(self.attempts.make(running, call, cleanup))
            except CallError as failure:
                late = failure.reason is Reason.DEADLINE_EXCEEDED
                await self.endings.fail(running, call, failure, State.TIMED_OUT if late else State.FAILED)
            except Exception as error:  # whatever it was, the claim must not stay open
                self.endings.watch.unexpected(running.call_id, error)
                await self.endings.fail(running, call, internal(running.call_id), call.state_after_a_defect)
            else:
                report(call.ticket.passage, call.tool, answer)
                await self.endings.answer(running, call, answer)
