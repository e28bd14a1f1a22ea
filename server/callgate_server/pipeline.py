"""The way of a call, from a credential and a request to a recorded answer. Read it aloud:

authenticate → validate → authorise → replay? → limits → claim + intent → lease secrets → acquire sandbox
→ run under deadline → check, redact, sanitise → outcome → answer.

It fixes the order and nothing else: every decision is a stage's, every effect a backend's. Authorise comes
before replay (a revoked caller must not read old answers), replay before limits (a stored answer costs
nothing), and the intent is durable before the first side effect. Giving back the secrets and destroying the
sandbox happen whatever comes, and the answer does not wait for them.
"""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from callgate_server.admission.authenticate import Authentication
from callgate_server.admission.authorize import Policy, refuse_unless_allowed
from callgate_server.admission.limits import Concurrency, DeadlineRule
from callgate_server.admission.validate import Schemas, check_arguments, find_tool
from callgate_server.execution.reach import reach
from callgate_server.execution.running import Running, RunningCalls, internal
from callgate_server.execution.sandbox import Sandbox, SandboxBackend
from callgate_server.execution.supervise import supervise, unless_cancelled
from callgate_server.ledger.claims import replayable
from callgate_server.ledger.store import Completion, Ledger, StoredCall
from callgate_server.model.answer import Answer, to_document
from callgate_server.model.call import CallRequest
from callgate_server.model.catalog import Catalog
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.run import Job, RunOutcome
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
    watch: Watch

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
            stored = await self._stored(call)
            running = self.running.spawn(ticket.id, partial(self._carry, call=call, stored=stored))
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

    async def _stored(self, call: Admitted) -> StoredCall | None:
        """The earlier call that holds this call's idempotency key."""
        key = call.ticket.request.idempotency_key
        if key is None:
            return None
        with call.ticket.phases.measure("ledger"):
            return await self.ledger.find(call.ticket.caller, call.tool.name, key)

    async def _carry(self, running: Running, *, call: Admitted, stored: StoredCall | None) -> None:
        """Carry an admitted call to its end: a replay, a refusal for want of room, or a run."""
        try:
            if stored is None:
                with self.concurrency.slot(call.ticket.caller):
                    with call.ticket.phases.measure("ledger"):
                        stored = await self.ledger.claim(call.intent(self.ledger.digest))
                    if stored is None:
                        running.accept()
                        return await self._run(running, call)
            running.answer(await self._replay(call, stored))
        except CallError as refusal:
            running.fail(await self._refused(call.ticket, refusal))

    async def _replay(self, call: Admitted, stored: StoredCall) -> dict[str, Json]:
        document = replayable(stored, call.arguments_digest)
        await self.ledger.replayed(stored, call.ticket.id, call.ticket.caller, call.ticket.received_at)
        return document

    async def _run(self, running: Running, call: Admitted) -> None:
        """Run a claimed call. Nothing is raised from here on: every end is recorded, then published."""
        async with AsyncExitStack() as cleanup:
            try:
                answer = await self._execute(running, call, cleanup)
            except CallError as failure:
                late = failure.reason is Reason.DEADLINE_EXCEEDED
                await self._fail(running, call, failure, State.TIMED_OUT if late else State.FAILED)
            except Exception as error:  # whatever it was, the claim must not stay open
                self.watch.unexpected(running.call_id, error)
                await self._fail(running, call, internal(running.call_id), call.state_after_a_defect)
            else:
                await self._answer(running, call, answer)

    async def _execute(self, running: Running, call: Admitted, cleanup: AsyncExitStack) -> Answer:
        ticket, tool, deadline = call.ticket, call.tool, call.deadline
        with ticket.phases.measure("secrets"):
            journal = partial(self.ledger.note, ticket.id)
            leases = await self.broker.lease(
                tool.manifest.secrets, ticket.caller.tenant, deadline=deadline, journal=journal
            )
            cleanup.push_async_callback(leases.revoke)
            redactor = Redactor(leases.values)
        job = Job(tool.manifest.run, call.arguments_json, leases.delivered, tool.manifest.limits, deadline)
        live = LiveViews(redactor, running.output)

        async def run(sandbox: Sandbox) -> RunOutcome:
            with ticket.phases.measure("run"):
                return await supervise(sandbox, job, on_output=live.feed, cancelled=running.cancelled)

        reached = await reach(partial(self._acquire, running, call, cleanup), run)
        if reached is None:
            return call.cancelled_early().timed(ticket.queue_ms, dict(ticket.phases.ms))
        sandbox, outcome = reached
        with ticket.phases.measure("result"):
            answer = conclude(
                call.blank(sandbox.info), outcome, redactor, partial(self.schemas.output_violations, tool)
            )
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

    async def _answer(self, running: Running, call: Admitted, answer: Answer) -> None:
        document = to_document(answer)
        reason = answer.error.reason if answer.error else None
        message = answer.error.message if answer.error else ""
        completion = Completion(running.call_id, answer.state, reason, message, encode(document), call.ticket.sandbox)
        try:
            with call.ticket.phases.measure("record"):
                await self.ledger.complete(completion)
        except CallError as unrecorded:
            unrecorded.call_id = running.call_id
            running.fail(unrecorded)
            return
        self.watch.finished(call.tool.name, answer.state, answer.usage, call.ticket.phases.ms)
        running.answer(document)

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
