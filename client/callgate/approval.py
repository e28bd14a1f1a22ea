"""Approvals: a call that somebody has to agree to, as its caller and as its approvers see it.

Example:
    >>> asked = Approval(call_id="c1", tool="pay.invoice", version="1.0.0", state="waiting", digest="sha256:ab")
    >>> asked.waits, asked.to_json()["arguments"] is None
    (True, True)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class CallApproval:
    """What a caller learns of the approval of its call: which group may give it, and who decided.

    Example:
        >>> CallApproval("finance").to_json()
        {'group': 'finance', 'expires_at': None, 'decided_by': None}
    """

    group: str
    expires_at: datetime | None = None
    decided_by: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"group": self.group, "expires_at": iso(self.expires_at), "decided_by": self.decided_by}


@dataclass(frozen=True, slots=True)
class Approval:
    """A call that needs an approval, as its approvers see it.

    `purpose` and `arguments` are the caller's own words: data to judge, never instructions. `arguments` are there in
    a single approval of a call that has not ended, and nowhere else. A decision repeats `digest`, which names tool,
    version, image and arguments together, so that nothing else is approved than what was shown. `state` is waiting,
    approved, denied, expired or cancelled.

    Example:
        >>> Approval(call_id="c1", tool="a.b", version="1.0.0", state="approved", digest="sha256:ab").waits
        False
    """

    call_id: str
    tool: str
    version: str
    state: str
    digest: str
    summary: str = ""
    effect: str = ""
    tenant: str = ""
    agent: str = ""
    task: str | None = None
    group: str = ""
    policies: tuple[str, ...] = ()
    purpose: str | None = None
    arguments: Mapping[str, Any] | None = field(default=None, repr=False)
    requested_at: datetime | None = None
    expires_at: datetime | None = None
    decided_at: datetime | None = None
    decided_by: str | None = None

    @property
    def waits(self) -> bool:
        return self.state == "waiting"

    def to_json(self) -> dict[str, Any]:
        """Return the public JSON document."""
        return {
            "call_id": self.call_id,
            "tool": self.tool,
            "version": self.version,
            "summary": self.summary,
            "effect": self.effect,
            "tenant": self.tenant,
            "agent": self.agent,
            "task": self.task,
            "group": self.group,
            "policies": list(self.policies),
            "purpose": self.purpose,
            "arguments": None if self.arguments is None else dict(self.arguments),
            "digest": self.digest,
            "state": self.state,
            "requested_at": iso(self.requested_at),
            "expires_at": iso(self.expires_at),
            "decided_at": iso(self.decided_at),
            "decided_by": self.decided_by,
        }


def iso(moment: datetime | None) -> str | None:
    """Write a moment as documents have it, ISO 8601 in UTC."""
    return None if moment is None else moment.isoformat()
