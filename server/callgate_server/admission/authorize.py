"""Does policy allow it. Only an explicit allow is an allow: no policy, no decision and errors are denials."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args

from callgate_server.model.call import Caller
from callgate_server.model.catalog import Tool
from callgate_server.model.egress import EgressAsk
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.strict_json import Json
from callgate_server.model.verdict import Ruling, Verdict

# What `administer` may be about. `shared_breakers` are those that all tenants share, and `metrics` tell of all of them.
Operation = Literal["stop", "resume", "breakers", "shared_breakers", "dead_letters", "settle", "metrics"]
OPERATIONS: Final[tuple[Operation, ...]] = get_args(Operation)


class Policy(Protocol):
    """The live policy set."""

    def decide(self, caller: Caller, tool: Tool, arguments: dict[str, Json]) -> Verdict:
        """Rule on one call: action `call` on the tool and `use` on each of its secrets. Never raises."""

    def consent(self, caller: Caller, tool: Tool, ask: EgressAsk) -> Verdict:
        """Rule on one connection or request of a running tool: action `connect` on the host.

        It is asked of the set that is live at that moment, so that what is revoked ends in running calls too.
        Only `allow` is consent. Never raises.
        """

    def could_allow(self, caller: Caller, tool: Tool) -> bool:
        """Whether some call of this caller to this tool could be allowed (or parked for approval)."""

    def may_administer(self, caller: Caller, operation: Operation) -> Verdict:
        """Rule on one act of an operator: action `administer` on the caller's own tenant. Never raises."""


def refuse_unless_allowed(verdict: Verdict) -> None:
    """Turn every ruling into its refusal but `allow`, and `needs_approval`, which is an allow once somebody agrees.

    Raises:
        CallError: `policy_denied` or `policy_error`.
    """
    if verdict.ruling is Ruling.ALLOW or (verdict.ruling is Ruling.NEEDS_APPROVAL and verdict.group):
        return
    deciding = ", ".join(verdict.policies)
    if verdict.ruling is Ruling.ERROR:
        raise CallError(
            Reason.POLICY_ERROR,
            "Policy could not be evaluated, so the call is refused; the operator has been alerted.",
            policies=verdict.policies,
        )
    if not verdict.policies:
        raise never_permitted()
    raise CallError(Reason.POLICY_DENIED, f"Forbidden by policy {deciding}.", policies=verdict.policies)


def never_permitted() -> CallError:
    """The refusal of what no policy permits."""
    return CallError(Reason.POLICY_DENIED, "No policy permits this call.")


def refuse_unless_still_allowed(verdict: Verdict, approved_by: str | None) -> None:
    """Judge a call once more whose turn has come: what policy said when it came may not be what it says now.

    `approved_by` is the group of which somebody approved it.

    Raises:
        CallError: `policy_denied`, `policy_error`, `approval_required` (it needs one by now), or `approval_void` (it
            needs another group's by now).
    """
    refuse_unless_allowed(verdict)
    if verdict.ruling is Ruling.ALLOW or verdict.group == approved_by:
        return
    deciding = ", ".join(verdict.policies)
    reason = Reason.APPROVAL_REQUIRED if approved_by is None else Reason.APPROVAL_VOID
    raise CallError(
        reason,
        f"Policy {deciding} now asks for an approval by {verdict.group}; make the call again.",
        policies=verdict.policies,
    )


@dataclass(frozen=True, slots=True)
class Administration:
    """Who may do what operators do. `remark` records each refusal, as every refused call is."""

    policy: Policy
    remark: Callable[[str, Mapping[str, Json]], Awaitable[None]]

    async def permit(self, caller: Caller, operation: Operation) -> None:
        """Let only administrators of the caller's tenant pass. A credential that is confined to a task is none.

        Raises:
            CallError: `policy_denied`, `policy_error`, or `audit_unavailable` instead of either.
        """
        try:
            refuse_unless_administrator(self.policy, caller, operation)
        except CallError as refusal:
            body: dict[str, Json] = {
                "tenant": caller.tenant,
                "agent": caller.agent,
                "task": caller.task,
                "operation": operation,
                "reason": refusal.reason.value,
                "policies": list(refusal.policies),
            }
            await self.remark("administration_refused", body)
            raise


def is_administrator(policy: Policy, caller: Caller, operation: Operation) -> bool:
    """Whether policy lets this caller do this for its whole tenant."""
    return caller.task is None and policy.may_administer(caller, operation).ruling is Ruling.ALLOW


def refuse_unless_administrator(policy: Policy, caller: Caller, operation: Operation) -> None:
    """Let only administrators of the caller's tenant pass; an approval cannot be asked for here.

    Raises:
        CallError: `policy_denied` or `policy_error`.
    """
    if caller.task is not None:
        raise CallError(Reason.POLICY_DENIED, "A credential that is bound to a task administers nothing.")
    verdict = policy.may_administer(caller, operation)
    if verdict.ruling is Ruling.ALLOW:
        return
    if verdict.ruling is Ruling.ERROR:
        raise CallError(
            Reason.POLICY_ERROR, "Policy could not be evaluated, so it is refused.", policies=verdict.policies
        )
    raise CallError(Reason.POLICY_DENIED, "No policy lets you administer this tenant.", policies=verdict.policies)
