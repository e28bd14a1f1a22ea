"""Which lane serves whom: pure. It knows lanes, keys, who waits and until when, and says what to do next.

A lane is given only to calls of its own key. Waiting calls of a tenant are served in the order of their deadlines, and
tenants in fairness to each other (`fairness.py`). When there is no room for a lane that is needed, the idle one that
was used longest ago has to go, whosever it is; a busy one never. What is being started, or is about to be free again,
counts as coming, so that a moment's gap between two calls starts nothing.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import count

from callgate_server.execution.fairness import Fairness
from callgate_server.execution.sandbox import LaneTerms
from callgate_server.model.manifest import Limits


@dataclass(frozen=True, slots=True)
class LaneKey:
    """What calls must have in common to be served, one after another, by the same lane."""

    tenant: str
    image_digest: str
    runtime: str | None
    limits: Limits
    terms: LaneTerms


@dataclass(frozen=True, slots=True)
class LaneRules:
    """What the operator decides about lanes.

    `calls`: after how many a lane is replaced; `idle_s`: after how long without one it ends; `lanes` and `memory_mb`:
    how many there may be in all, and the sum of their memory limits; `per_key`: how many for one tool of one tenant;
    `starts`: how many may be started at once; `waiting`: how many calls may wait for one, of one tenant half of them;
    `start_s`: how long a start may take.
    """

    calls: int = 500
    idle_s: int = 300
    lanes: int = 16
    memory_mb: int = 4096
    per_key: int = 2
    starts: int = 4
    waiting: int = 128
    start_s: float = 20.0


class Phase(Enum):
    """Where a lane is. `COMING`: being started, or between two calls."""

    COMING = "coming"
    IDLE = "idle"
    BUSY = "busy"
    ENDING = "ending"


@dataclass(slots=True, eq=False)
class Slot:
    """One lane as the board sees it. It takes up room from the decision to start it until it is gone."""

    key: LaneKey
    memory_mb: int
    phase: Phase = Phase.COMING
    started: bool = False
    calls: int = 0
    since_s: float = 0.0


@dataclass(slots=True, eq=False)
class Waiter:
    """One call that needs a lane."""

    key: LaneKey
    memory_mb: int
    deadline_s: float

    @property
    def tenant(self) -> str:
        return self.key.tenant


@dataclass(frozen=True, slots=True)
class Give:
    slot: Slot
    waiter: Waiter


@dataclass(frozen=True, slots=True)
class Start:
    """Start a lane; its slot is taken. The waiter shows what for; another may get it."""

    slot: Slot
    waiter: Waiter


@dataclass(frozen=True, slots=True)
class End:
    slot: Slot


Action = Give | Start | End


@dataclass(slots=True)
class LaneBoard:
    """All lanes and all who wait for one. Times are monotonic seconds."""

    rules: LaneRules
    _slots: list[Slot] = field(default_factory=list)
    # By deadline.
    _queue: list[tuple[float, int, Waiter]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=count)
    _fairness: Fairness = field(default_factory=Fairness)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(self._slots)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def join(self, waiter: Waiter) -> None:
        """Let a call wait.

        Raises:
            OverflowError: as many wait as may, in all or of its tenant.
        """
        of_tenant = sum(1 for _, _, other in self._queue if other.tenant == waiter.tenant)
        if len(self._queue) >= self.rules.waiting or of_tenant >= (self.rules.waiting + 1) // 2:
            raise OverflowError("too many calls wait for a lane")
        insort(self._queue, (waiter.deadline_s, next(self._order), waiter))

    def leave(self, waiter: Waiter) -> None:
        """Forget a call that waits no more, if it still did."""
        self._queue = [entry for entry in self._queue if entry[2] is not waiter]

    def first(self, key: LaneKey) -> Waiter | None:
        """Who is next for a lane of this key."""
        return next((waiter for _, _, waiter in self._queue if waiter.key == key), None)

    def idle(self, slot: Slot, now_s: float) -> None:
        """The lane can serve the next call."""
        slot.phase = Phase.IDLE
        slot.started = True
        slot.since_s = now_s

    def gone(self, slot: Slot) -> None:
        """The lane is no more, and its room is free."""
        if slot in self._slots:
            self._slots.remove(slot)

    def ending(self, slot: Slot) -> None:
        slot.phase = Phase.ENDING

    def between(self, slot: Slot) -> None:
        """The lane has ended one call in order, and gets ready for the next."""
        slot.phase = Phase.COMING

    def worn(self, slot: Slot) -> bool:
        """Whether the lane has served as many calls as one may."""
        return slot.calls >= self.rules.calls

    def expired(self, now_s: float) -> list[Slot]:
        """Lanes that idle for too long."""
        return [slot for slot in self._slots if slot.phase is Phase.IDLE and now_s - slot.since_s > self.rules.idle_s]

    def next_action(self) -> Action | None:
        """Decide one thing to do, and count it as done; None when there is nothing.

        Call it until it says None, after every change.
        """
        coming: dict[LaneKey, int] = {}
        for slot in self._slots:
            if slot.phase is Phase.COMING:
                coming[slot.key] = coming.get(slot.key, 0) + 1
        short_mb = short_lanes = 0
        for waiter in self._in_turn():
            idle = self._idle_of(waiter.key)
            if idle is not None:
                return self._give(idle, waiter)
            if coming.get(waiter.key, 0) > 0:
                coming[waiter.key] -= 1
                continue
            if self._count(waiter.key) >= self.rules.per_key or self._starting() >= self.rules.starts:
                continue
            short_mb += waiter.memory_mb
            short_lanes += 1
            if self._fits(short_mb, short_lanes):
                return self._start(waiter)
            if self._fits(short_mb, short_lanes, without_ending=True):
                continue
            longest = self._longest_idle()
            if longest is not None:
                longest.phase = Phase.ENDING
                return End(longest)
        return None

    def _in_turn(self) -> list[Waiter]:
        held = Counter(slot.key.tenant for slot in self._slots if slot.phase in (Phase.COMING, Phase.BUSY))
        return self._fairness.in_turn((waiter for _, _, waiter in self._queue), held)

    def _give(self, slot: Slot, waiter: Waiter) -> Give:
        self.leave(waiter)
        self._fairness.served(waiter.tenant)
        slot.phase = Phase.BUSY
        slot.calls += 1
        return Give(slot, waiter)

    def _start(self, waiter: Waiter) -> Start:
        slot = Slot(waiter.key, waiter.memory_mb)
        self._slots.append(slot)
        return Start(slot, waiter)

    def _idle_of(self, key: LaneKey) -> Slot | None:
        """The idle lane of this key that was used last: the others may then grow old and end."""
        idle = [slot for slot in self._slots if slot.phase is Phase.IDLE and slot.key == key]
        return max(idle, key=_since, default=None)

    def _longest_idle(self) -> Slot | None:
        return min((slot for slot in self._slots if slot.phase is Phase.IDLE), key=_since, default=None)

    def _count(self, key: LaneKey) -> int:
        return sum(1 for slot in self._slots if slot.key == key and slot.phase is not Phase.ENDING)

    def _starting(self) -> int:
        return sum(1 for slot in self._slots if not slot.started)

    def _fits(self, memory_mb: int, lanes: int, *, without_ending: bool = False) -> bool:
        counted = [slot for slot in self._slots if not (without_ending and slot.phase is Phase.ENDING)]
        used_mb = sum(slot.memory_mb for slot in counted)
        return len(counted) + lanes <= self.rules.lanes and used_mb + memory_mb <= self.rules.memory_mb


def _since(slot: Slot) -> float:
    return slot.since_s
