"""Which call gets which sandbox, and what is started ahead of any call. Pure: events and `now` in, orders out.

All sandboxes are started for nobody. A call that comes gets a ready one of its shape; calls beyond what is
ready wait, those of one tenant in the order of their deadlines and tenants in fairness to each other
(`fairness.py`), and whatever becomes ready goes to the first in turn that it fits. For calls that wait, sandboxes
are started before any is started ahead; how many are kept ready of a shape follows the busiest second of the
recent past, within a budget. Whoever carries out the orders reports what became of them; nothing here waits,
starts or knows a clock. Times are monotonic seconds.
"""

import math
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from callgate_server.execution.fairness import Fairness
from callgate_server.execution.sandbox import Shape

# Sandboxes are replaced this long after they were taken: the call that took one is answered first, as a rule.
REPLACE_AFTER_S: Final = 0.05
_FIRST_BACKOFF_S: Final = 0.5
_LONGEST_BACKOFF_S: Final = 30.0
_SHORTEST_RETRY_S: Final = 0.5
_LONGEST_RETRY_S: Final = 30.0
# How much the latest interval between two sandboxes counts in the estimate of the next.
_WEIGHT: Final = 0.2


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the pool may use.

    `sandboxes`: held by calls at once. `waiting`: calls that wait for one. `starts`: under way at once, and
    `refills`, how many of these for what is started ahead. Of each shape at most `per_shape` are kept ready,
    and `spare` without any demand; all that is ready stays within `memory_mb` and `cpus`, counted by its
    ceilings. Demand is forgotten after `idle_s`.
    """

    sandboxes: int
    waiting: int
    starts: int
    refills: int
    per_shape: int
    spare: int
    memory_mb: int
    cpus: float
    idle_s: float


@dataclass(frozen=True, slots=True)
class Give:
    """Give sandbox `sandbox` to call `call`. The sandbox is no longer the pool's."""

    call: str
    sandbox: int


@dataclass(frozen=True, slots=True)
class Start:
    """Start one sandbox of this shape, for nobody in particular."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class Drop:
    """Destroy a ready sandbox that is no longer wanted."""

    sandbox: int


Order = Give | Start | Drop


class Full(Exception):
    """No more calls may wait. `retry_after_s`: when there should be room again."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("no more calls may wait")
        self.retry_after_s = retry_after_s


class Peak:
    """The busiest second of the last `idle_s`: a sliding maximum, of which only what may still count is kept."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        # Second and arrivals in it; arrivals fall from left to right.
        self._seconds: deque[tuple[int, int]] = deque()

    def arrived(self, now: float) -> None:
        second, count = math.floor(now), 1
        if self._seconds and self._seconds[-1][0] == second:
            count += self._seconds.pop()[1]
        while self._seconds and self._seconds[-1][1] <= count:
            self._seconds.pop()
        self._seconds.append((second, count))

    def value(self, now: float, idle_s: float) -> int:
        while self._seconds and self._seconds[0][0] + 1 + idle_s <= now:
            self._seconds.popleft()
        return self._seconds[0][1] if self._seconds else 0

    def changes_at(self, idle_s: float) -> float:
        """When the value will next be smaller without a new arrival."""
        return self._seconds[0][0] + 1 + idle_s if self._seconds else math.inf


@dataclass(slots=True)
class _Stock:
    """What there is of one shape. `ready` is ordered from the oldest to the newest."""

    shape: Shape
    ready: deque[int] = field(default_factory=deque)
    starting: int = 0
    peak: Peak = field(default_factory=Peak)
    failures: int = 0
    not_before: float = -math.inf


@dataclass(frozen=True, slots=True, order=True)
class _Waiter:
    deadline: float
    number: int
    call: str = field(compare=False)
    tenant: str = field(compare=False)
    shape: Shape = field(compare=False)


class PoolPolicy:
    """The state of one pool. After every event, `orders` tells what is to be done now."""

    def __init__(self, bounds: Bounds, shapes: Iterable[Shape] = ()) -> None:
        """`shapes` are those of which `spare` are kept ready without any demand."""
        self._bounds = bounds
        self._stock = {shape: _Stock(shape) for shape in shapes}
        self._spared = frozenset(self._stock)
        # By deadline.
        self._waiting: list[_Waiter] = []
        self._waiters: dict[str, _Waiter] = {}
        self._held: dict[str, _Waiter] = {}
        self._fairness = Fairness()
        self._numbers = 0
        self._replace_at = -math.inf
        self._given_at = -math.inf
        self._interval_s = _SHORTEST_RETRY_S
        self._closed = False

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def held(self) -> int:
        return len(self._held)

    @property
    def starting(self) -> int:
        return sum(stock.starting for stock in self._stock.values())

    def ready(self) -> dict[Shape, int]:
        return {shape: len(stock.ready) for shape, stock in self._stock.items()}

    # --- what happened ---------------------------------------------------------------------------------------

    def arrive(self, call: str, tenant: str, shape: Shape, deadline: float, now: float) -> None:
        """A call of this tenant wants a sandbox.

        Raises:
            Full: as many calls wait as may.
            ValueError: the call has one already, or waits.
        """
        if call in self._held or call in self._waiters:
            raise ValueError("this call is here already")
        if len(self._waiting) >= self._bounds.waiting:
            raise Full(self.retry_after_s())
        self._stock_of(shape).peak.arrived(now)
        self._wait(call, tenant, shape, deadline)

    def leave(self, call: str) -> None:
        """A call that waits does so no longer."""
        waiter = self._waiters.pop(call, None)
        if waiter is not None:
            del self._waiting[bisect_left(self._waiting, waiter)]

    def ended(self, call: str) -> None:
        """The sandbox of a call is gone."""
        self._held.pop(call, None)

    def refused(self, call: str, deadline: float) -> None:
        """The sandbox that was given to a call turned out to be dead: the call waits again."""
        had = self._held.pop(call)
        self._wait(call, had.tenant, had.shape, deadline)

    def started(self, shape: Shape, sandbox: int) -> None:
        """A sandbox has been started, and is ready."""
        stock = self._stock[shape]
        stock.starting -= 1
        stock.failures, stock.not_before = 0, -math.inf
        stock.ready.append(sandbox)

    def failed(self, shape: Shape, now: float) -> str | None:
        """A start failed. Returns the call that is to be told: the first in turn for this shape."""
        stock = self._stock[shape]
        stock.starting -= 1
        stock.failures += 1
        stock.not_before = now + min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(stock.failures - 1, 10))
        waiter = next((waiter for waiter in self._in_turn() if waiter.shape == shape), None)
        if waiter is None:
            return None
        self.leave(waiter.call)
        return waiter.call

    def died(self, shape: Shape, sandbox: int) -> None:
        """A ready sandbox is gone by itself."""
        stock = self._stock[shape]
        if sandbox in stock.ready:
            stock.ready.remove(sandbox)

    def close(self) -> None:
        """Start nothing more and keep nothing."""
        self._closed = True

    # --- what to do ------------------------------------------------------------------------------------------

    def orders(self, now: float) -> Iterator[Order]:
        """Yield what is to be done, each order counted as carried out when it is yielded."""
        yield from self._gives(now)
        targets = self._targets(now)
        if not self._closed:
            yield from self._starts_for_calls()
            yield from self._starts_ahead(targets, now)
        yield from self._drops(targets)

    def look_again_at(self, now: float) -> float:
        """When `orders` may have something new to say although nothing happened; infinity for never."""
        times = [self._replace_at, *(stock.not_before for stock in self._stock.values())]
        times += [stock.peak.changes_at(self._bounds.idle_s) for stock in self._stock.values()]
        return min((time for time in times if time > now), default=math.inf)

    def retry_after_s(self) -> float:
        """How long a call that cannot wait should stay away: until those that wait are served, at the present pace."""
        return max(_SHORTEST_RETRY_S, min(_LONGEST_RETRY_S, len(self._waiting) * self._interval_s))

    def _gives(self, now: float) -> Iterator[Give]:
        if not self._waiting or not any(stock.ready for stock in self._stock.values()):
            return
        for waiter in self._in_turn():
            if len(self._held) >= self._bounds.sandboxes:
                return
            stock = self._stock[waiter.shape]
            if stock.ready:
                # The oldest: what has waited longest without dying is as good as any, and none grows old.
                sandbox = stock.ready.popleft()
                self.leave(waiter.call)
                self._held[waiter.call] = waiter
                self._fairness.served(waiter.tenant)
                self._note_pace(now)
                yield Give(waiter.call, sandbox)

    def _starts_for_calls(self) -> Iterator[Start]:
        """Start what calls wait for, in turn, and no more than could be given to them."""
        free = self._bounds.starts - self.starting
        room = self._bounds.sandboxes - len(self._held)
        if free <= 0 or room <= 0 or not self._waiting:
            return
        coming = {shape: stock.starting for shape, stock in self._stock.items()}
        for waiter in self._in_turn()[:room]:
            if coming[waiter.shape] > 0:
                coming[waiter.shape] -= 1
                continue
            if free == 0:
                return
            free -= 1
            self._stock[waiter.shape].starting += 1
            yield Start(waiter.shape)

    def _starts_ahead(self, targets: dict[Shape, int], now: float) -> Iterator[Start]:
        if now < self._replace_at:
            return
        free = min(self._bounds.refills, self._bounds.starts) - self.starting
        if free <= 0:
            return
        for shape, wanted in targets.items():
            stock = self._stock[shape]
            while free > 0 and now >= stock.not_before and len(stock.ready) + stock.starting < wanted:
                free -= 1
                stock.starting += 1
                yield Start(shape)

    def _drops(self, targets: dict[Shape, int]) -> Iterator[Drop]:
        # What calls wait for is kept: they do not have it only because calls may hold no more at once.
        waiting = Counter(waiter.shape for waiter in self._waiting)
        for shape, stock in self._stock.items():
            wanted = max(targets.get(shape, 0), waiting[shape])
            while len(stock.ready) > wanted:
                yield Drop(stock.ready.popleft())

    def _targets(self, now: float) -> dict[Shape, int]:
        """How many to keep ready of each shape: what demand asks for, dealt out in turns until the budget is used."""
        if self._closed:
            return {}
        wanted = {shape: self._wanted(stock, now) for shape, stock in self._stock.items()}
        targets = dict.fromkeys(wanted, 0)
        memory_mb, cpus = self._bounds.memory_mb, self._bounds.cpus
        for turn in range(self._bounds.per_shape):
            for shape, count in wanted.items():
                if turn < count and shape.memory_mb <= memory_mb and shape.cpu <= cpus:
                    targets[shape] += 1
                    memory_mb -= shape.memory_mb
                    cpus -= shape.cpu
        return targets

    def _wanted(self, stock: _Stock, now: float) -> int:
        spare = self._bounds.spare if stock.shape in self._spared else 0
        return min(self._bounds.per_shape, max(spare, stock.peak.value(now, self._bounds.idle_s)))

    def _stock_of(self, shape: Shape) -> _Stock:
        return self._stock.setdefault(shape, _Stock(shape))

    def _in_turn(self) -> list[_Waiter]:
        return self._fairness.in_turn(self._waiting, Counter(holder.tenant for holder in self._held.values()))

    def _wait(self, call: str, tenant: str, shape: Shape, deadline: float) -> None:
        self._numbers += 1
        waiter = _Waiter(deadline, self._numbers, call, tenant, shape)
        self._waiters[call] = waiter
        insort(self._waiting, waiter)

    def _note_pace(self, now: float) -> None:
        """Learn how fast sandboxes are given away, and put off replacing them."""
        if self._waiting:
            interval_s = min(_LONGEST_RETRY_S, now - self._given_at)
            self._interval_s += _WEIGHT * (interval_s - self._interval_s)
        self._given_at = now
        # Not put off again while it is: a steady stream of calls must not keep the pool empty.
        if now >= self._replace_at:
            self._replace_at = now + REPLACE_AFTER_S
