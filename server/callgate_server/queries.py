"""What a caller may ask besides making a call: its tools, its calls, and to cancel one of them.

Another caller's call answers exactly like one that does not exist. A tool is listed only to who could be
allowed to call it, and a stored answer is shown only to who still could call its tool. A task's credential sees the
tools of its grant and the calls of its task. Who is stopped may still look: it has no effect, and whoever answers for a
stopped agent wants to know what became of its calls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from callgate_server.admission.authenticate import Authentication
from callgate_server.admission.authorize import Administration, Policy, is_administrator
from callgate_server.admission.tasks import LiveTasks
from callgate_server.admission.validate import find_tool, unknown_tool
from callgate_server.execution.running import Running, RunningCalls
from callgate_server.ledger.store import Ledger, StoredCall
from callgate_server.model.answer import Failure, failure_document, from_stored
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import FINISHED, State
from callgate_server.model.task import is_task_of_ours

MAX_LISTED = 200


@dataclass(frozen=True, slots=True)
class Figures:
    """The metrics. They name tools, upstreams and tenants of everybody: who may see them is policy's, as `metrics`."""

    authentication: Authentication
    administration: Administration
    exposition: Callable[[], bytes]

    async def show(self, token: str | None) -> bytes:
        """All metrics in the text format of Prometheus.

        Raises:
            CallError: `policy_denied`, `policy_error`.
        """
        await self.administration.permit(await self.authentication.identify(token), "metrics")
        return self.exposition()


@dataclass(frozen=True, slots=True)
class Queries:
    authentication: Authentication
    catalog: Catalog
    policy: Policy
    ledger: Ledger
    running: RunningCalls
    tasks: LiveTasks

    async def tools(self, token: str | None) -> list[dict[str, Any]]:
        """The tools of which some call by this caller could be allowed, by name."""
        caller = await self.authentication.identify(token)
        return [_tool_document(tool) for tool in self.catalog if self._could_call(caller, tool)]

    async def tool(self, token: str | None, name: str) -> dict[str, Any]:
        """One tool with its schemas.

        Raises:
            CallError: `unknown_tool`, also for a tool that this caller could never call.
        """
        caller = await self.authentication.identify(token)
        tool = find_tool(self.catalog, name)
        if not self._could_call(caller, tool):
            raise unknown_tool()
        return _tool_document(tool)

    async def call(self, token: str | None, call_id: str) -> dict[str, Any]:
        """One call of this caller: its answer, or how far it is.

        Raises:
            CallError: `unknown_call`.
        """
        caller = await self.authentication.identify(token)
        stored = await self._own(caller, call_id)
        if stored.answer_json is None:
            return call_document(stored)
        return from_stored(stored.answer_json)

    async def calls(self, token: str | None, limit: int) -> list[dict[str, Any]]:
        """The newest calls of this caller, newest first, without their results."""
        caller = await self.authentication.identify(token)
        return [call_document(stored) for stored in await self.ledger.recent(caller, min(limit, MAX_LISTED))]

    async def cancel(self, token: str | None, call_id: str) -> dict[str, Any]:
        """Ask a running call to end, wait for it, and return it. A call that has ended stays as it is.

        Raises:
            CallError: `unknown_call`.
        """
        caller = await self.authentication.identify(token)
        await self._own(caller, call_id)
        running = self.running.get(call_id)
        if running is not None:
            running.cancel()
            await running.finished.wait()
        return await self.call(token, call_id)

    async def follow(self, token: str | None, call_id: str, after: int) -> Running:
        """One call of this caller, to follow its events; of a call that has ended there is the last one.

        Raises:
            CallError: `unknown_call`.
        """
        caller = await self.authentication.identify(token)
        stored = await self._own(caller, call_id)
        running = self.running.get(call_id)
        return running if running is not None else _ended(stored, after)

    async def identify(self, token: str | None) -> Caller:
        """Who this credential belongs to; for pages that any caller may read.

        Raises:
            CallError: `unauthenticated`.
        """
        return await self.authentication.identify(token)

    def operates(self, caller: Caller) -> bool:
        """Whether policy lets this caller pull its tenant's kill switch. Never raises."""
        return is_administrator(self.policy, caller, "stop")

    async def _own(self, caller: Caller, call_id: str) -> StoredCall:
        stored = await self.ledger.get(call_id)
        if stored is not None and _is_by(caller, stored):
            tool = self.catalog.tools.get(stored.tool)
            if stored.answer_json is None or (tool is not None and self._could_call(caller, tool)):
                return stored
        raise CallError(Reason.UNKNOWN_CALL, "No such call.")

    def _could_call(self, caller: Caller, tool: Tool) -> bool:
        return self.tasks.may_call(caller, tool.name) and self.policy.could_allow(caller, tool)


def _is_by(caller: Caller, stored: StoredCall) -> bool:
    within = not is_task_of_ours(caller.task) or stored.caller.task == caller.task
    return within and (stored.caller.tenant, stored.caller.agent) == (caller.tenant, caller.agent)


def _ended(stored: StoredCall, after: int) -> Running:
    """Return a call that nobody carries any more as one whose last event has just come."""
    ended = Running(stored.call_id, max(0, after + 1))
    if stored.answer_json is not None:
        ended.answer(from_stored(stored.answer_json))
    elif stored.reason is not None:
        ended.fail(CallError(stored.reason, stored.message, policies=stored.policies, call_id=stored.call_id))
    else:
        text = "Its answer is not kept any more." if stored.state in FINISHED else "Nobody carries it now; ask again."
        ended.fail(CallError(Reason.NOT_POSSIBLE, f"The call is {stored.state}. {text}", call_id=stored.call_id))
    return ended


def _tool_document(tool: Tool) -> dict[str, Any]:
    manifest = tool.manifest
    return {
        "tool": manifest.tool,
        "version": manifest.version,
        "summary": manifest.summary,
        "effect": manifest.effect,
        "isolation": manifest.isolation,
        "input": manifest.input,
        "output": manifest.output,
        "limits": manifest.limits.model_dump(mode="json"),
        "digest": tool.digest,
    }


def call_document(stored: StoredCall) -> dict[str, Any]:
    """A call without its result, in its public JSON shape."""
    # A success with a reason is a fallback: what failed was answered, and the answer says so.
    failed = stored.state is not State.SUCCEEDED
    failure = Failure(stored.reason, stored.message) if failed and stored.reason is not None else None
    return {
        "call_id": stored.call_id,
        "tool": stored.tool,
        "version": stored.version,
        "state": stored.state.value,
        "error": None if failure is None else failure_document(failure),
        "received_at": stored.received_at.isoformat(),
        "finished_at": moment(stored.finished_at),
        "policies": list(stored.policies),
        "approval": _approval_of(stored),
        "task": stored.caller.task,
        "attempt": stored.attempt,
        "follows": stored.follows,
    }


def _approval_of(stored: StoredCall) -> dict[str, Any] | None:
    """What a caller learns of the approval of its call."""
    if stored.approval is None:
        return None
    return {"group": stored.approval, "expires_at": moment(stored.expires_at), "decided_by": stored.decided_by}


def moment(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
