"""Who may approve a call, what they see of it, and what their word does.

An approver is another agent of the same tenant that has the role which policy names; never the caller, and never a
task's credential. What is approved is named by a digest over the tool, its version and image, and the arguments: a
decision that does not repeat the digest that was shown decides nothing. Whether an approved call may still run is
judged again when its turn has come (`pipeline.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from callgate_server.admission.authenticate import Authentication
from callgate_server.execution.running import RunningCalls
from callgate_server.ledger.store import Ledger, Parcel, StoredCall
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Catalog
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.spending import Charge
from callgate_server.model.strict_json import decode, encode
from callgate_server.observe.refusals import Refusals
from callgate_server.queries import moment

MAX_LISTED: Final = 200
# The event of who tries to see or decide what it may not.
REFUSED: Final = "approval_refused"
_UNKNOWN: Final = "No such call asks for your approval."


@dataclass(frozen=True, slots=True)
class Approvals:
    """`unused` says what a call gives back that is denied; `refusals` records who tried what it may not."""

    authentication: Authentication
    catalog: Catalog
    ledger: Ledger
    running: RunningCalls
    refuse_stopped: Callable[[Caller], None]
    unused: Callable[[StoredCall], tuple[Charge, ...]]
    refusals: Refusals

    async def list(self, token: str | None) -> list[dict[str, Any]]:
        """What waits for an approval that this caller may give, then what was decided lately; without arguments."""
        caller = await self.authentication.identify(token)
        if caller.task is not None or not caller.roles:
            return []
        asked = await self.ledger.approvals(caller.tenant, caller.roles, MAX_LISTED)
        return [self._document(stored, None) for stored in asked if not _is_by(caller, stored)]

    async def show(self, token: str | None, call_id: str) -> dict[str, Any]:
        """One of them, with the arguments while they are kept.

        Raises:
            CallError: `unknown_call`, also for who may not approve it.
        """
        caller = await self.authentication.identify(token)
        stored = await self._asked(caller, call_id, "show")
        return self._document(stored, await self.ledger.parcel(call_id))

    async def decide(self, token: str | None, call_id: str, digest: str, *, approve: bool) -> dict[str, Any]:
        """Approve or deny it, once.

        Raises:
            CallError: `unknown_call`; `stopped`; `policy_denied`: nobody approves its own call, or one that it has
                redriven; `approval_void`: the digest is not that of this call; `not_possible`: it does not wait any
                more; `audit_unavailable`.
        """
        caller = await self.authentication.identify(token)
        stored = await self._asked(caller, call_id, "decide")
        try:
            parcel = await self._decidable(caller, stored, digest)
            # An approver that leaves meanwhile takes nothing back: what is written must reach the call that waits.
            decided = await self.running.carried_out(call_id, self._decided(stored, caller.name, approve=approve))
        except CallError as refusal:
            raise self.refusals.noted(REFUSED, caller, "decide", refusal, stored.call_id) from None
        return self._document(decided, parcel)

    async def _decidable(self, caller: Caller, stored: StoredCall, digest: str) -> Parcel:
        self.refuse_stopped(caller)
        if _is_by(caller, stored):
            raise CallError(Reason.POLICY_DENIED, "Who makes a call cannot approve it.")
        parcel = await self.ledger.parcel(stored.call_id)
        if stored.state is not State.AWAITING_APPROVAL or parcel is None:
            raise CallError(Reason.NOT_POSSIBLE, f"The call does not wait for an approval: it is {_state(stored)}.")
        if digest != digest_of(stored, parcel):
            raise CallError(
                Reason.APPROVAL_VOID, "This digest is not that of the call; look at it again and repeat its digest."
            )
        return parcel

    async def _decided(self, asked: StoredCall, by: str, *, approve: bool) -> StoredCall:
        decided = await self.ledger.decide(asked.call_id, by, approve=approve, charges=self.unused(asked))
        running = self.running.get(asked.call_id)
        if running is not None:
            running.decided.set()
        return decided

    async def _asked(self, caller: Caller, call_id: str, operation: str) -> StoredCall:
        stored, unknown = await self.ledger.get(call_id), CallError(Reason.UNKNOWN_CALL, _UNKNOWN)
        if stored is None:
            raise unknown
        if caller.task is None and stored.caller.tenant == caller.tenant and stored.approval in caller.roles:
            return stored
        raise self.refusals.noted(REFUSED, caller, operation, unknown, stored.call_id)

    def _document(self, stored: StoredCall, parcel: Parcel | None) -> dict[str, Any]:
        tool = self.catalog.tools.get(stored.tool)
        return {
            "call_id": stored.call_id,
            "tool": stored.tool,
            "version": stored.version,
            "summary": tool.manifest.summary if tool else "",
            "effect": stored.effect,
            "tenant": stored.caller.tenant,
            "agent": stored.caller.agent,
            "task": stored.caller.task,
            "group": stored.approval,
            "policies": list(stored.policies),
            "purpose": parcel.purpose if parcel else None,
            "arguments": decode(parcel.arguments_json) if parcel else None,
            "digest": digest_of(stored, parcel) if parcel else "",
            "state": _state(stored),
            "requested_at": moment(stored.received_at),
            "expires_at": moment(stored.expires_at),
            "decided_at": moment(stored.decided_at),
            "decided_by": stored.decided_by,
        }


def digest_of(stored: StoredCall, parcel: Parcel) -> str:
    """Name what an approver approves: this call, of this tool as it was pinned, with these arguments."""
    return sha256(encode([stored.call_id, stored.tool, parcel.tool_digest, decode(parcel.arguments_json)])).hexdigest()


def _is_by(caller: Caller, stored: StoredCall) -> bool:
    return (caller.tenant, caller.agent) == (stored.caller.tenant, stored.caller.agent)


def _state(stored: StoredCall) -> str:
    if stored.state is State.AWAITING_APPROVAL:
        return "waiting"
    if stored.reason is Reason.APPROVAL_EXPIRED:
        return "expired"
    if stored.decided_by is None:
        return "cancelled"
    return "denied" if stored.reason is Reason.APPROVAL_DENIED else "approved"
