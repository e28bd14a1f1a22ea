"""The kill switch: what an administrator stops, and how it goes on again.

Stopping takes effect before it is written: where it cannot be written, everybody is stopped until the restart, and the
administrator is told. Resuming is the other way round. Neither is a call, so that no stop applies to them: who stopped
its whole tenant, itself with it, can resume it. Who may do either is policy's (`administer`), each in its own tenant.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from callgate_server.admission.authenticate import Authentication
from callgate_server.admission.authorize import Administration, Operation
from callgate_server.admission.stops import StopList
from callgate_server.execution.running import RunningCalls
from callgate_server.ledger.register import Register
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.identifiers import PRINCIPAL_NAME
from callgate_server.model.task import Stop

MAX_REASON: Final = 200


@dataclass(frozen=True, slots=True)
class Stops:
    authentication: Authentication
    administration: Administration
    register: Register
    stopped: StopList
    running: RunningCalls
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    async def list(self, token: str | None) -> list[dict[str, Any]]:
        """What is stopped in the administrator's tenant.

        Raises:
            CallError: `policy_denied`, `policy_error`.
        """
        caller = await self._administrator(token, "stop")
        return [stop_document(stop) for stop in self.stopped.of(caller.tenant)]

    async def stop(self, token: str | None, agent: str, reason: str) -> tuple[dict[str, Any], int]:
        """Refuse every call of an agent, or with an empty one of the whole tenant; cancel what runs, and count it.

        Raises:
            CallError: `policy_denied`, `policy_error`, `invalid_request`, or `audit_unavailable`: it holds until the
                gateway restarts, and no longer.
        """
        caller = await self._administrator(token, "stop")
        _check(agent)
        if len(reason) > MAX_REASON or not reason.isprintable():
            raise CallError(Reason.INVALID_REQUEST, f"`reason` is one line of at most {MAX_REASON} characters.")
        stop = Stop(caller.tenant, agent, reason, caller.agent, self.now())
        self.stopped.put(stop)
        running = self.running.of(caller.tenant, agent)
        for call in running:
            call.cancel()
        await self.register.stop(stop)
        return stop_document(stop), len(running)

    async def resume(self, token: str | None, agent: str) -> None:
        """Take a stop back.

        Raises:
            CallError: `policy_denied`, `policy_error`, `invalid_request`, `not_possible` (it is not stopped),
                `audit_unavailable`.
        """
        caller = await self._administrator(token, "resume")
        _check(agent)
        was = await self.register.resume(caller.tenant, agent, caller.agent)
        if not was and not any(stop.agent == agent for stop in self.stopped.of(caller.tenant)):
            raise CallError(Reason.NOT_POSSIBLE, "It is not stopped by itself; list the stops to see what is.")
        self.stopped.lift(caller.tenant, agent)

    async def load(self) -> None:
        """Take over the stops of before.

        Raises:
            CallError: `audit_unavailable`.
        """
        for stop in await self.register.stops():
            self.stopped.put(stop)

    async def _administrator(self, token: str | None, operation: Operation) -> Caller:
        caller = await self.authentication.identify(token)
        await self.administration.permit(caller, operation)
        return caller


def stop_document(stop: Stop) -> dict[str, Any]:
    """A stop in its public JSON shape; an empty agent means the whole tenant."""
    return {"agent": stop.agent, "reason": stop.reason, "at": stop.at.isoformat(), "by": stop.by}


def _check(agent: str) -> None:
    if agent and not PRINCIPAL_NAME.fullmatch(agent):
        raise CallError(Reason.INVALID_REQUEST, "`agent` is not the name of an agent.")
