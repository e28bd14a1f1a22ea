"""What policy says of a call."""

from dataclasses import dataclass
from enum import StrEnum


class Ruling(StrEnum):
    ALLOW = "allow"
    DENY = "deny"
    NEEDS_APPROVAL = "needs_approval"
    # Evaluation failed: treated as a deny everywhere, told apart so that it can raise an alarm.
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A ruling with what decided it.

    `policies` are the `@id`s of the deciding policies, sorted; empty means that no permit applied.
    `policy_version` is the digest of the policy set that decided: one call is decided by one set.
    `group` names the approvers when the ruling is `needs_approval`.
    """

    ruling: Ruling
    policies: tuple[str, ...]
    policy_version: str
    group: str | None = None
