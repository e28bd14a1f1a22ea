"""Where the time of a call goes, by phase: the same names in the answer, in the metrics and in the benchmark."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

Phase = Literal["admission", "ledger", "secrets", "acquire", "run", "result"]
PHASES: Final[tuple[Phase, ...]] = ("admission", "ledger", "secrets", "acquire", "run", "result")


class Phases:
    """A stopwatch of one call. Milliseconds, summed per phase."""

    def __init__(self) -> None:
        self.started_s = time.monotonic()
        self.ms: dict[str, float] = {}

    @contextmanager
    def measure(self, phase: Phase) -> Iterator[None]:
        begin_s = time.monotonic()
        try:
            yield
        finally:
            self.ms[phase] = round(self.ms.get(phase, 0.0) + (time.monotonic() - begin_s) * 1000, 3)

    def since_start_ms(self) -> float:
        return round((time.monotonic() - self.started_s) * 1000, 3)
