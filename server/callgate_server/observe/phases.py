"""Where the time of a call goes, by phase: the same names in the answer, in the metrics and in the benchmark.

`record`, the writing of the outcome, is only in the metrics: what is written of an answer holds its other phases.
"""

import time
from types import TracebackType
from typing import Final, Literal

Phase = Literal["admission", "ledger", "secrets", "acquire", "run", "result", "record"]
PHASES: Final[tuple[Phase, ...]] = ("admission", "ledger", "secrets", "acquire", "run", "result", "record")


class Phases:
    """A stopwatch of one call. Milliseconds, summed per phase."""

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.ms: dict[str, float] = {}

    def measure(self, phase: Phase) -> "_Lap":
        """Return a context whose time counts for a phase, however it ends."""
        return _Lap(self.ms, phase)

    def since_start_ms(self) -> float:
        return round((time.monotonic() - self.started_s) * 1000, 3)


class _Lap:
    __slots__ = ("_begin_s", "_ms", "_phase")

    def __init__(self, ms: dict[str, float], phase: Phase) -> None:
        self._ms = ms
        self._phase = phase

    def __enter__(self) -> None:
        self._begin_s = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        taken_ms = (time.monotonic() - self._begin_s) * 1000
        self._ms[self._phase] = round(self._ms.get(self._phase, 0.0) + taken_ms, 3)
