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
    """Turn every ruling but `allow` into its refusal.

    Raises:
        CallError: `policy_denied`, `policy_error` or `approval_required`.
    """
    if verdict.ruling is Ruling.ALLOW:
        return
    deciding = ", ".join(verdict.policies)
    if verdict.ruling is Ruling.NEEDS_APPROVAL:
        raise CallError(
            Reason.APPROVAL_REQUIRED,
            f"Policy {deciding} asks for an approval by {verdict.group}, and this gateway cannot collect approvals.",
            policies=verdict.policies,
        )
    if verdict.ruling is Ruling.ERROR:
        raise CallError(
            Reason.POLICY_ERROR,
            "Policy could not be evaluated, so the call is refused; the operator has been alerted.",
            policies=verdict.policies,
        )
    message = f"Forbidden by policy {deciding}." if verdict.policies else "No policy permits this call."
    raise CallError(Reason.POLICY_DENIED, message, policies=verdict.policies)
