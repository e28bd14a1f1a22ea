"""Whether the event loop keeps its time. Pure: it is told when it was to be woken and when it was.

Everything of the gateway but its blocking libraries runs on one loop. Something that holds it holds every call; what
keeps a call's deadline then is its sandbox's own clock.
"""

from typing import Final

# A pause that a caller would notice, and how long it is remembered.
LATE_S: Final = 0.25
REMEMBERED_S: Final = 10.0


class LoopLag:
    """How late the loop was, lately."""

    def __init__(self) -> None:
        self._worst_s = 0.0
        self._late_until_s = 0.0
        self.stalls = 0

    def woken(self, due_s: float, now_s: float) -> None:
        """Take note of a wake-up at monotonic `now_s` that was due at `due_s`."""
        late_s = max(0.0, now_s - due_s)
        if late_s >= LATE_S:
            self.stalls += 1
            self._worst_s = max(late_s, self._worst_s if now_s < self._late_until_s else 0.0)
            self._late_until_s = now_s + REMEMBERED_S

    def worst_s(self, now_s: float) -> float:
        """The worst of what is remembered, in seconds; 0 where the loop keeps its time."""
        return self._worst_s if now_s < self._late_until_s else 0.0
