"""What calls cost, whose spending it counts as, and what may be spent at most.

Whole numbers throughout, so that what was reserved and given back adds up to nothing: microseconds of processor time,
and millionths of the unit in which manifests declare a call's cost.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

MILLION: Final = 1_000_000
_HOUR_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose spending: a tenant's, with `agent` an agent's, with `task` that of one of the agent's tasks."""

    tenant: str
    agent: str = ""
    task: str = ""

    def __str__(self) -> str:
        if self.task:
            return f"task {self.task}"
        return f"agent {self.tenant}/{self.agent}" if self.agent else f"tenant {self.tenant}"


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much of each. `cost` is in millionths of the manifests' unit."""

    calls: int = 0
    cpu_us: int = 0
    egress_bytes: int = 0
    cost: int = 0

    def __add__(self, other: "Amounts") -> "Amounts":
        return Amounts(
            self.calls + other.calls,
            self.cpu_us + other.cpu_us,
            self.egress_bytes + other.egress_bytes,
            self.cost + other.cost,
        )

    def __neg__(self) -> "Amounts":
        return Amounts(-self.calls, -self.cpu_us, -self.egress_bytes, -self.cost)


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent at most; None is no bound. In a window of `window_h` hours, or in a task's whole life.

    Windows are counted from the epoch: 24 hours are a day in UTC. `cost` is in millionths.
    """

    calls: int | None = None
    cpu_us: int | None = None
    egress_bytes: int | None = None
    cost: int | None = None
    window_h: int | None = None

    def window_start(self, hour: int) -> int:
        """The first hour of the window that holds this one."""
        return 0 if self.window_h is None else hour - hour % self.window_h

    def window_end(self, hour: int) -> datetime | None:
        """When the window ends that holds this hour."""
        if self.window_h is None:
            return None
        return datetime.fromtimestamp((self.window_start(hour) + self.window_h) * _HOUR_S, UTC)


@dataclass(frozen=True, slots=True)
class Charge:
    """What is added to the spending of a scope, in which hour since the epoch. Of a task, the hour is 0."""

    scope: Scope
    hour: int
    amounts: Amounts


def hour_of(at: datetime) -> int:
    """The hour since the epoch."""
    return int(at.timestamp() // _HOUR_S)


def millionths(value: float) -> int:
    return round(value * MILLION)
