"""What a measurement says and what was promised of it. Pure: samples in, rows out; measures nothing."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Goal:
    """What a figure must be and shall be. `of` the ratio to what it was paired with, or of the value itself."""

    of: Literal["ratio", "value"]
    sense: Literal["≤", "≥"]
    must: float
    aim: float

    def verdict(self, measured: float) -> Literal["aim", "must", "short"]:
        """How far `measured` comes: as far as the aim, at least as far as it must, or not even there."""
        for name, bound in (("aim", self.aim), ("must", self.must)):
            if measured <= bound if self.sense == "≤" else measured >= bound:
                return name
        return "short"


GOALS = {
    "fork, one caller": Goal("ratio", "≤", 1.5, 1.0),
    "fork, sustained, 8 callers": Goal("ratio", "≥", 0.5, 1.0),
    "container, pool warm": Goal("ratio", "≤", 0.10, 0.05),
    "container, sustained, 4 callers": Goal("ratio", "≥", 0.9, 1.0),
    "container, cold": Goal("ratio", "≤", 1.2, 1.0),
    "refused by policy": Goal("value", "≤", 3, 1.5),
    "fork, the gate's own share": Goal("value", "≤", 3, 1.5),
    "a neighbour's p99, beside a lane that is killed again and again": Goal("ratio", "≤", 2, 1),
    # The aim is "flat": what remains below one in a hundred is the allocator's.
    "gateway memory, growth": Goal("value", "≤", 5, 1),
    "idle lane, shared pages once": Goal("value", "≤", 20, 12),
    "containers left": Goal("value", "≤", 0, 0),
    "tasks left": Goal("value", "≤", 0, 0),
    "descriptors left": Goal("value", "≤", 0, 0),
    "mounts left": Goal("value", "≤", 0, 0),
    "threads left": Goal("value", "≤", 0, 0),
    "calls without an answer": Goal("value", "≤", 0, 0),
}


@dataclass(frozen=True)
class Figure:
    """One row. `value` is the median; `ratio` is of the medians of this row and of the one that it is paired with.

    For rates, which are better when higher, p95 and p99 are those of the slow end.
    """

    figure: str
    value: float
    unit: str
    runs: int
    p50: float
    p95: float
    p99: float
    paired_with: str | None = None
    ratio: float | None = None
    goal: Goal | None = None

    @property
    def verdict(self) -> str | None:
        """`aim`, `must` or `short`; None for a figure of which nothing was promised."""
        if self.goal is None:
            return None
        measured = self.ratio if self.goal.of == "ratio" else self.value
        return None if measured is None else self.goal.verdict(measured)


def times(name: str, samples_ms: Sequence[float], paired: Figure | None = None) -> Figure:
    """A row of durations in milliseconds."""
    return _figure(name, "ms", samples_ms, (95, 99), paired)


def rates(name: str, per_s: Sequence[float], paired: Figure | None = None, *, unit: str = "calls/s") -> Figure:
    """A row of calls, or of `unit`, a second, a sample for each round."""
    return _figure(name, unit, per_s, (5, 1), paired)


def sizes(name: str, unit: str, samples: Sequence[float]) -> Figure:
    """A row of anything else that is better when lower."""
    return _figure(name, unit, samples, (95, 99), None)


def _figure(name: str, unit: str, samples: Sequence[float], percents: tuple[int, int], paired: Figure | None) -> Figure:
    ordered = sorted(samples)
    p50 = statistics.median(ordered)
    # A yardstick may be paired with several; the promise is about one of them, which comes first.
    return Figure(
        figure=name,
        value=round(p50, 3),
        unit=unit,
        runs=len(ordered),
        p50=round(p50, 3),
        p95=round(percentile(ordered, percents[0]), 3),
        p99=round(percentile(ordered, percents[1]), 3),
        paired_with=paired.figure if paired else None,
        ratio=round(p50 / paired.p50, 3) if paired else None,
        goal=GOALS.get(name),
    )


def percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, round(len(ordered) * percent / 100))]
