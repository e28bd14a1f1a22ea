"""Calls that failed for good: what of them is shown, and what becomes of them.

A dead letter is a call that the gateway carried on by itself and that did not succeed, or any call whose effect is
unknown. Its caller may look at it, redrive or discard it, and so may an administrator of the tenant. What became of an
unknown effect says an administrator alone. Nothing that a tool printed is shown, and no argument.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from callgate_server.admission.authenticate import Authentication
from callgate_server.execution.running import Running
from callgate_server.ledger.store import Ledger, Step, StoredCall
from callgate_server.model.answer import Failure, failure_document
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.observe.refusals import Refusals
from callgate_server.queries import call_document, moment

MAX_LISTED: Final = 200
# The event of who tries to see or do what it may not.
REFUSED: Final = "dead_letter_refused"
Act = Literal["show", "redrive", "discard", "settle"]
Operation = Literal["dead_letters", "settle"]


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """`administers` says whether policy lets a caller do this for its whole tenant; `again` makes a new call of one.

    `refuse_stopped` raises for a caller that is stopped: looking it may, and nothing else. `refusals` records who tried
    what it may not.
    """

    authentication: Authentication
    ledger: Ledger
    administers: Callable[[Caller, Operation], bool]
    again: Callable[[StoredCall, Caller, str], Awaitable[Running]]
    refuse_stopped: Callable[[Caller], None]
    refusals: Refusals

    async def list(self, token: str | None, limit: int) -> tuple[list[dict[str, Any]], int]:
        """The newest ones that this caller may see, and how many there are."""
        caller = await self.authentication.identify(token)
        agent = None if self._is_administrator(caller, "dead_letters") else caller.agent
        found, total = await self.ledger.dead_letters(caller.tenant, agent, min(limit, MAX_LISTED))
        if caller.task is not None:
            found = [stored for stored in found if self._may_see(caller, stored)]
            total = len(found)
        return [await self._document(stored) for stored in found], total

    async def show(self, token: str | None, call_id: str) -> dict[str, Any]:
        """One of them with its attempts.

        Raises:
            CallError: `unknown_call`, also for a call that is no dead letter.
        """
        _, stored = await self._open(token, call_id, "show")
        return await self._document(stored)

    async def redrive(self, token: str | None, call_id: str) -> dict[str, Any]:
        """Make a new call of it, for its own caller and as policy is now, and return that.

        Raises:
            CallError: `unknown_call`, `not_possible`, `stopped`, or why the new call is refused: then it stays dead.
        """
        caller, stored = await self._open(token, call_id, "redrive")
        # Its own agent as it is now; an administrator does it in the name of the agent as it was.
        owner = replace(caller, task=stored.caller.task) if caller.agent == stored.caller.agent else stored.caller
        running = await self.again(stored, owner, caller.name)
        made = await self.ledger.get(running.call_id)
        if made is None:
            raise CallError(Reason.AUDIT_UNAVAILABLE, "The new call cannot be shown now; list your calls.")
        return call_document(made)

    async def discard(self, token: str | None, call_id: str) -> dict[str, Any]:
        """Give it up; what was kept of it is deleted.

        Raises:
            CallError: `unknown_call`, `not_possible`, `stopped`.
        """
        caller, _ = await self._open(token, call_id, "discard")
        return call_document(await self.ledger.discard(call_id, caller.name))

    async def settle(self, token: str | None, call_id: str, *, happened: bool) -> dict[str, Any]:
        """Say what became of a call whose effect is unknown.

        Raises:
            CallError: `unknown_call`; `policy_denied`: policy lets this caller not administer; `not_possible`.
        """
        caller = await self.authentication.identify(token)
        await self._seen(caller, call_id, "settle")
        if not self._is_administrator(caller, "settle"):
            refusal = CallError(Reason.POLICY_DENIED, "Only an administrator of the tenant says what became of a call.")
            raise self.refusals.noted(REFUSED, caller, "settle", refusal, call_id)
        state = State.SUCCEEDED if happened else State.FAILED
        return call_document(await self.ledger.settle(call_id, state, caller.name))

    async def _open(self, token: str | None, call_id: str, act: Act) -> tuple[Caller, StoredCall]:
        caller = await self.authentication.identify(token)
        stored = await self._seen(caller, call_id, act)
        if stored.dead != "open":
            raise _unknown()
        return caller, stored

    async def _seen(self, caller: Caller, call_id: str, act: Act) -> StoredCall:
        """Return a call that the caller may do this with."""
        stored = await self.ledger.get(call_id)
        if stored is None:
            raise _unknown()
        try:
            if not self._may_see(caller, stored):
                raise _unknown()
            if act != "show":
                self.refuse_stopped(caller)
        except CallError as refusal:
            raise self.refusals.noted(REFUSED, caller, act, refusal, stored.call_id) from None
        return stored

    def _may_see(self, caller: Caller, stored: StoredCall) -> bool:
        if caller.tenant != stored.caller.tenant or caller.task not in (None, stored.caller.task):
            return False
        return caller.agent == stored.caller.agent or self._is_administrator(caller, "dead_letters")

    def _is_administrator(self, caller: Caller, operation: Operation) -> bool:
        return caller.task is None and self.administers(caller, operation)

    async def _document(self, stored: StoredCall) -> dict[str, Any]:
        reason = stored.reason or Reason.INTERNAL
        return {
            "call_id": stored.call_id,
            "tool": stored.tool,
            "version": stored.version,
            "tenant": stored.caller.tenant,
            "agent": stored.caller.agent,
            "task": stored.caller.task,
            "state": stored.state.value,
            "error": failure_document(Failure(reason, stored.message)),
            "effect": stored.effect,
            "received_at": moment(stored.received_at),
            "finished_at": moment(stored.finished_at),
            "attempts": [_step(step) for step in await self.ledger.steps(stored.call_id)],
            "redrivable": stored.kept,
            "follows": stored.follows,
        }


def _step(step: Step) -> dict[str, Any]:
    return {"attempt": step.attempt, "at": step.at.isoformat(), "state": step.state, "reason": step.reason}


def _unknown() -> CallError:
    return CallError(Reason.UNKNOWN_CALL, "No such dead letter.")
