"""The way of a call, from a credential and a request to a recorded answer. Read it aloud:

authenticate → validate → authorise → duplicate? → limits → claim + intent → lease secrets → acquire sandbox
→ run under deadline → check, redact, sanitise → outcome → answer.

It fixes the order and nothing else: every decision is a stage's, every effect a backend's. Authorise comes
before the look at an idempotency key (a revoked caller must not read old answers), that before limits (a stored
answer costs nothing), and the intent is durable before the first side effect. Giving back the secrets and
destroying the sandbox happen whatever comes, and the answer does not wait for them.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from functools import partial

from callgate_server.admission.authenticate import Authentication
from callgate_server.admission.authorize import Policy, refuse_unless_allowed
from callgate_server.admission.limits import Concurrency, DeadlineRule
from callgate_server.admission.validate import Schemas, check_arguments, find_tool
from callgate_server.duplicates import Duplicates
from callgate_server.execution.egress import EgressGate
from callgate_server.execution.reach import reach
from callgate_server.execution.running import Running, RunningCalls, contained, internal
from callgate_server.execution.sandbox import Sandbox, SandboxBackend
from callgate_server.execution.supervise import supervise, unless_cancelled
from callgate_server.ledger.store import Completion, Ledger, StoredCall
from callgate_server.ledger.turns import Turns
from callgate_server.model.answer import Answer, to_document
from callgate_server.model.call import CallRequest
from callgate_server.model.catalog import Catalog
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.run import RunOutcome
from callgate_server.model.strict_json import Json, encode
from callgate_server.observe.watch import Watch
from callgate_server.result.conclude import conclude
from callgate_server.result.live import LiveViews
from callgate_server.result.redact import Redactor
from callgate_server.secrets.broker import Broker
from callgate_server.ticket import Admitted, Ticket


@dataclass(frozen=True, slots=True)
class Pipeline:
    authentication: Authentication
    catalog: Catalog
    schemas: Schemas
    policy: Policy
    concurrency: Concurrency
    deadlines: DeadlineRule
    ledger: Ledger
    broker: Broker
    sandboxes: SandboxBackend
    running: RunningCalls
    duplicates: Duplicates
    watch: Watch
    turns: Turns = field(default_factory=Turns)
    egress: EgressGate | None = None

    async def start(self, token: str | None, request: CallRequest) -> Running:
        """Take one call as far as its claim and return it, running by itself or already answered.

        Raises:
            CallError: the call is refused. The refusal is recorded, except that of an unknown caller, which
                is only counted: who has no credential must not be able to fill the record.
        """
        caller = await self.authentication.identify(token)
        ticket = Ticket(caller, request)
        try:
            with ticket.phases.measure("admission"):
                call = self._admit(ticket)
            running = self.running.spawn(ticket.id, partial(self._carry, call=call))
        except CallError as refusal:
            raise await self._refused(ticket, refusal) from None
        await running.started()
        return running

    def _admit(self, ticket: Ticket) -> Admitted:
        """Validate and authorise."""
        ticket.tool = tool = find_tool(self.catalog, ticket.request.tool)
        ticket.arguments, arguments_json = check_arguments(self.schemas, tool, ticket.request.arguments_json)
        ticket.verdict = verdict = self.policy.decide(ticket.caller, tool, ticket.arguments)
        refuse_unless_allowed(verdict)
        deadline = self.deadlines.deadline(ticket.received_s, ticket.request.deadline_ms, tool.manifest.limits.wall_s)
        return Admitted(ticket, tool, verdict, arguments_json, self.ledger.digest(arguments_json), deadline)

    async def _carry(self, running: Running, *, call: Admitted) -> None:
        """Carry an admitted call to its end: a run, the answer of the call that holds its key, or a refusal."""
        try:
            with ExitStack() as place:
                holder = await self._claim(call, place)
                if holder is None:
                    running.accept()
                    return await self._run(running, call)
            running.answer(await self.duplicates.answer(running, call, holder))
        except CallError as refusal:
            running.fail(await self._refused(call.ticket, refusal))

    async def _claim(self, call: Admitted, place: ExitStack) -> StoredCall | None:
        """Take a place and claim the call, or return the call that holds its key."""
        with call.ticket.phases.measure("ledger"):
            async with self.turns.of(call.key):
                holder = await self.duplicates.holder(call)
                if holder is None:
                    place.enter_context(self.concurrency.slot(call.ticket.caller))
                    holder = await self.ledger.claim(call.intent(self.ledger.digest))
                return holder

    async def _run(self, running: Running, call: Admitted) -> None:
        """Run a claimed call. Nothing is raised from here on: every end is recorded, then published."""
        async with AsyncExitStack() as cleanup:
            try:
                answer = await contained(self._execute(running, call, cleanup))
            except CallError as failure:
                late = failure.reason is Reason.DEADLINE_EXCEEDED
                await self._fail(running, call, failure, State.TIMED_OUT if late else State.FAILED)
            except Exception as error:  # whatever it was, the claim must not stay open
                self.watch.unexpected(running.call_id, error)
                await self._fail(running, call, internal(running.call_id), call.state_after_a_defect)
            else:
                await self._answer(running, call, answer)

    async def _execute(self, running: Running, call: Admitted, cleanup: AsyncExitStack) -> Answer:
        ticket, tool, note = call.ticket, call.tool, partial(self.ledger.note, call.ticket.id)
        with ticket.phases.measure("secrets"):
            tenant, deadline = ticket.caller.tenant, call.deadline
            leases = await self.broker.lease(tool.manifest.secrets, tenant, deadline=deadline, journal=note)
            cleanup.push_async_callback(leases.revoke)
            redactor = Redactor(leases.values)
        consent = partial(self.policy.consent, ticket.caller, tool)
        out = call.way_out(self.egress, leases.credentials, consent, partial(self._reached, call, redactor))
        job = call.job(leases.delivered, out, self.ledger.digest)
        feed = LiveViews(redactor, running.output).feed

        async def run(sandbox: Sandbox) -> RunOutcome:
            with ticket.phases.measure("run"):
                return await supervise(sandbox, job, on_output=feed, cancelled=running.cancelled, egress=out.begin)

        reached = await reach(partial(self._acquire, running, call, cleanup), run)
        if reached is None:
            return call.cancelled_early().timed(ticket.queue_ms, dict(ticket.phases.ms))
        sandbox, outcome = reached
        with ticket.phases.measure("result"):
            check = partial(self.schemas.output_violations, tool)
            answer = conclude(call.blank(sandbox.info), outcome, redactor, check)
        return answer.timed(ticket.queue_ms, dict(ticket.phases.ms))

    async def _acquire(self, running: Running, call: Admitted, cleanup: AsyncExitStack) -> Sandbox | None:
        """Return a sandbox, to be destroyed whatever comes; None when the call is cancelled while it waits."""
        ticket = call.ticket
        with ticket.phases.measure("acquire"):
            sandbox = await unless_cancelled(self.sandboxes.open(call.sandbox_request()), running.cancelled)
        ticket.queue_ms = ticket.phases.since_start_ms()
        if sandbox is not None:
            cleanup.push_async_callback(sandbox.destroy)
            ticket.sandbox = sandbox.id
            self.watch.started(ticket.id, call.tool.name, sandbox.id)
        return sandbox

    async def _reached(self, call: Admitted, redactor: Redactor, event: str, body: Mapping[str, Json]) -> None:
        await self.ledger.note(call.ticket.id, event, {key: redactor.json(value) for key, value in body.items()})
        self.watch.egress(call.tool.name, event, body)

    async def _answer(self, running: Running, call: Admitted, answer: Answer) -> None:
        document = to_document(answer)
        try:
            with call.ticket.phases.measure("record"):
                await self.ledger.complete(call.completion(answer, encode(document)))
        except CallError as unrecorded:
            unrecorded.call_id = running.call_id
            running.fail(unrecorded)
            return
        running.answer(document)
        # Whoever waits for the answer goes first, and what is counted and logged of it does not keep them.
        await asyncio.sleep(0)
        self.watch.finished(call.tool.name, answer.state, answer.usage, call.ticket.phases.ms)

    async def _fail(self, running: Running, call: Admitted, failure: CallError, state: State) -> None:
        """End a claimed call that has no answer."""
        failure.call_id = running.call_id
        try:
            end = Completion(running.call_id, state, failure.reason, failure.message, None, call.ticket.sandbox)
            with call.ticket.phases.measure("record"):
                await self.ledger.complete(end)
        except CallError as unrecorded:
            unrecorded.call_id = running.call_id
            failure = unrecorded
        self.watch.refused(call.tool.name, failure.reason, call.ticket.phases.ms)
        running.fail(failure)

    async def _refused(self, ticket: Ticket, refusal: CallError) -> CallError:
        """Record a refusal and return what to tell the caller: the refusal, or that it could not be recorded."""
        refusal.call_id = ticket.id
        try:
            with ticket.phases.measure("record"):
                await self.ledger.refuse(ticket.refusal(refusal, self.ledger.digest))
        except CallError as unrecorded:
            unrecorded.call_id = ticket.id
            refusal = unrecorded
        self.watch.refused(ticket.tool_name, refusal.reason, ticket.phases.ms)
        return refusal
