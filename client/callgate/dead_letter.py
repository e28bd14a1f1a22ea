"""Dead letters: calls that failed for good and wait for somebody to look at them. They hold no argument and no output.

Example:
    >>> letter = DeadLetter(call_id="c1", tool="mail.send", version="1.0.0", state="failed", redrivable=True)
    >>> DeadLetters((letter,), total=3).to_json()["total"]
    3
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from callgate.approval import iso
from callgate.failure import Failure


@dataclass(frozen=True, slots=True)
class CallAttempt:
    """One attempt of a call, from 1, and how it ended.

    Example:
        >>> CallAttempt(1, state="failed", reason="tool_failed").to_json()
        {'attempt': 1, 'at': None, 'state': 'failed', 'reason': 'tool_failed'}
    """

    attempt: int
    at: datetime | None = None
    state: str = ""
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"attempt": self.attempt, "at": iso(self.at), "state": self.state, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A call that failed for good. `redrivable` says that its arguments are still there for a new call.

    `follows` is the call that it repeats or redrives.

    Example:
        >>> DeadLetter(call_id="c1", tool="mail.send", version="1.0.0", state="failed").redrivable
        False
    """

    call_id: str
    tool: str
    version: str
    state: str
    tenant: str = ""
    agent: str = ""
    task: str | None = None
    error: Failure | None = None
    effect: str = ""
    received_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: tuple[CallAttempt, ...] = ()
    redrivable: bool = False
    follows: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the public JSON document."""
        return {
            "call_id": self.call_id,
            "tool": self.tool,
            "version": self.version,
            "tenant": self.tenant,
            "agent": self.agent,
            "task": self.task,
            "state": self.state,
            "error": None if self.error is None else self.error.to_json(),
            "effect": self.effect,
            "received_at": iso(self.received_at),
            "finished_at": iso(self.finished_at),
            "attempts": [attempt.to_json() for attempt in self.attempts],
            "redrivable": self.redrivable,
            "follows": self.follows,
        }


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """The newest dead letters, newest first; `total` counts those that are not listed too."""

    dead_letters: tuple[DeadLetter, ...]
    total: int

    def to_json(self) -> dict[str, Any]:
        """Return the public JSON document."""
        return {"dead_letters": [letter.to_json() for letter in self.dead_letters], "total": self.total}
