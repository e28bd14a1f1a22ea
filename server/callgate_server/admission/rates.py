"""How many calls in how much time. Pure: the generic cell rate algorithm on monotonic time.

One number for each key: when the next call would be due if calls came evenly. A call may come early by as much as the
whole allowance, so `calls` of them may come at once, and never more than twice that within `per_s` seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from callgate_server.model.spending import Scope

_SWEEP_AT: Final = 1024


@dataclass(frozen=True, slots=True)
class Rate:
    """`calls` in `per_s` seconds."""

    calls: int
    per_s: float


class Rates:
    """Who has called how lately. Forgets who could call at full rate again."""

    def __init__(self) -> None:
        self._due_s: dict[Scope, float] = {}
        self._sweep_at = _SWEEP_AT

    def __len__(self) -> int:
        return len(self._due_s)

    def take(self, wanted: Sequence[tuple[Scope, Rate]], now_s: float) -> float:
        """Count one call of each, or none of them; return 0, or the seconds until it would be counted."""
        wait_s = self.wait_s(wanted, now_s)
        if wait_s > 0:
            return wait_s
        self._due_s.update({scope: self._next_s(scope, rate, now_s) for scope, rate in wanted})
        if len(self._due_s) > self._sweep_at:
            self._sweep(now_s)
        return 0.0

    def wait_s(self, wanted: Sequence[tuple[Scope, Rate]], now_s: float) -> float:
        """Return 0 where one call of each would be counted now, or the seconds until then. Counts nothing."""
        # A hair of tolerance: sums of intervals that are no whole numbers must not cost the last call of an allowance.
        waits = (self._next_s(scope, rate, now_s) - now_s - rate.per_s * (1 + 1e-9) for scope, rate in wanted)
        return max(0.0, max(waits, default=0.0))

    def _next_s(self, scope: Scope, rate: Rate, now_s: float) -> float:
        return max(self._due_s.get(scope, now_s), now_s) + rate.per_s / rate.calls

    def _sweep(self, now_s: float) -> None:
        self._due_s = {scope: due_s for scope, due_s in self._due_s.items() if due_s > now_s}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._due_s))
