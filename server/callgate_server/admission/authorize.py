"""Does policy allow it. Only an explicit allow is an allow: no policy, no decision and errors are denials."""

from typing import Protocol

from callgate_server.model.call import Caller
from callgate_server.model.catalog import Tool
from callgate_server.model.egress import EgressAsk
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.strict_json import Json
from callgate_server.model.verdict import Ruling, Verdict


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
    message = f"Forbidden by policy {deciding}." if verdict.policies else "No policy permits this call."
    raise CallError(Reason.POLICY_DENIED, message, policies=verdict.policies)


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
