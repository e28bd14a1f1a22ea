"""One attempt of a claimed call: lease secrets → acquire sandbox → run under deadline → check, redact, sanitise.

It ends with an answer or an error and records neither: that is its caller's, who also decides whether there is another
attempt. Giving back the secrets and destroying the sandbox are left in `cleanup`, so that the answer need not wait.
"""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from callgate_server.admission.authorize import Policy
from callgate_server.admission.validate import Schemas
from callgate_server.execution.cancellation import unless_cancelled
from callgate_server.execution.egress import EgressGate
from callgate_server.execution.reach import reach
from callgate_server.execution.running import Running
from callgate_server.execution.sandbox import Sandbox, SandboxBackend
from callgate_server.execution.supervise import supervise
from callgate_server.ledger.store import Ledger
from callgate_server.model.answer import Answer
from callgate_server.model.run import RunOutcome
from callgate_server.model.strict_json import Json
from callgate_server.observe.watch import Watch
from callgate_server.result.conclude import conclude
from callgate_server.result.live import LiveViews
from callgate_server.result.redact import Redactor
from callgate_server.secrets.broker import Broker
from callgate_server.ticket import Admitted


@dataclass(frozen=True, slots=True)
class Attempts:
    """What attempts are made of."""

    schemas: Schemas
    policy: Policy
    ledger: Ledger
    broker: Broker
    sandboxes: SandboxBackend
    watch: Watch
    egress: EgressGate | None = None

    async def make(self, running: Running, call: Admitted, cleanup: AsyncExitStack) -> Answer:
        """Run the tool once and return the answer, whatever became of the run.

        Raises:
            CallError: nothing ran: no secret, no sandbox, no time; or what was to be recorded could not be.
        """
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
