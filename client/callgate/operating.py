"""What administrators of a tenant see and do: stops and circuit breakers.

Example:
    >>> Stop(agent="bot", reason="it loops").to_json()["agent"]
    'bot'
"""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Stop:
    """Every call of `agent` is refused; where that is empty, every call of the tenant."""

    agent: str
    reason: str = ""
    at: datetime | None = None
    by: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the public JSON document."""
        return {
            "agent": self.agent,
            "reason": self.reason,
            "at": None if self.at is None else self.at.isoformat(),
            "by": self.by,
        }


@dataclass(frozen=True, slots=True)
class Stopped:
    """A stop, and how many calls it cancelled."""

    stop: Stop
    cancelled: int

    def to_json(self) -> dict[str, Any]:
        """Return the public JSON document."""
        return {"stopped": self.stop.to_json(), "cancelled": self.cancelled}


@dataclass(frozen=True, slots=True)
class Breaker:
    """A circuit breaker. `state` is closed, half_open, open or forced_open; the counts are those of its window.

    `retry_after_ms` is how long an open one refuses until calls try it again by themselves; None in every other state:
    one that was opened by hand is closed by hand.
    """

    name: str
    state: str
    calls: int = 0
    failures: int = 0
    slow: int = 0
    retry_after_ms: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the public JSON document."""
        return asdict(self)
