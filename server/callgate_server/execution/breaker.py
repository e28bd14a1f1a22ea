"""One circuit breaker: may the next call go through, given how the last ones ended? Pure: outcomes and `now` in.

While it is closed, the last `window` calls are counted. Once enough of them failed, or were slow, it opens: everybody
is refused at once for `open_s`. Then a few probes go through while the others are still refused, and the probes decide
whether it closes or opens again. Opened by hand, it stays so until it is closed by hand. The terms are those of
resilience4j (CircuitBreaker, count-based sliding window); unlike there, probes that can no longer make it close are not
waited for. Times are monotonic seconds.

Each change begins a new phase. What was permitted in an earlier one counts for nothing when it ends: it says how
things were then.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import count
from typing import Final, assert_never

# How long those should stay away who come while probes are under way: they are through soon, one way or the other.
_PROBING_S: Final = 1.0


class State(StrEnum):
    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"
    FORCED_OPEN = "forced_open"


class Why(StrEnum):
    """Why a breaker changed."""

    FAILURES = "failures"
    SLOWNESS = "slowness"
    WAITED = "waited"
    RECOVERED = "recovered"
    OPENED_BY_HAND = "opened_by_hand"
    CLOSED_BY_HAND = "closed_by_hand"


# Every legal change; nothing else moves a breaker.
MOVES: Final[Mapping[tuple[State, Why], State]] = {
    (State.CLOSED, Why.FAILURES): State.OPEN,
    (State.CLOSED, Why.SLOWNESS): State.OPEN,
    (State.OPEN, Why.WAITED): State.HALF_OPEN,
    (State.HALF_OPEN, Why.FAILURES): State.OPEN,
    (State.HALF_OPEN, Why.SLOWNESS): State.OPEN,
    (State.HALF_OPEN, Why.RECOVERED): State.CLOSED,
    **{(state, Why.OPENED_BY_HAND): State.FORCED_OPEN for state in State if state is not State.FORCED_OPEN},
    **{(state, Why.CLOSED_BY_HAND): State.CLOSED for state in State if state is not State.CLOSED},
}


class Outcome(StrEnum):
    """What the end of a call says of what the breaker guards. `NOTHING`: it gives its permit back uncounted."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a breaker opens and closes. Rates are shares of the calls in the window, from above 0 to 1.

    At most the last `window` calls count, and at least `min_calls` must have ended. A call is slow that took `slow_s`
    or more; without it, none is.
    """

    window: int = 20
    min_calls: int = 5
    failure_rate: float = 0.5
    slow_s: float = math.inf
    slow_rate: float = 1.0
    open_s: float = 15.0
    probes: int = 2

    def __post_init__(self) -> None:
        """Refuse rules by which a breaker would never open, or never close.

        Raises:
            ValueError: says which.
        """
        if not 1 <= self.min_calls <= self.window:
            raise ValueError("`min_calls` is from 1 to `window`: with more, a breaker would never open")
        if not (0 < self.failure_rate <= 1 and 0 < self.slow_rate <= 1):
            raise ValueError("`failure_rate` and `slow_rate` are shares, above 0 and at most 1")
        if self.probes < 1 or self.open_s <= 0 or self.slow_s <= 0:
            raise ValueError("`probes` is at least 1, and `open_s` and `slow_s` are more than 0")


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave for one call, given in phase `phase`. It is for one report: the breaker knows it by its number."""

    phase: int
    number: int
    probe: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """No leave, and when it is worth asking again. Of a breaker that was opened by hand, nobody knows."""

    retry_after_s: float


@dataclass(frozen=True, slots=True)
class View:
    """What an operator sees. `calls`, `failures` and `slow` are those that count now; `since` is monotonic.

    One that is open stays so until somebody asks after its time: then it is half open. `retry_after_s` is what is left
    of that time, and None in every other state: opened by hand, nothing but a hand closes it.
    """

    state: State
    why: Why | None
    since: float
    calls: int
    failures: int
    slow: int
    probing: int
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class _Ended:
    failed: bool
    slow: bool


class Breaker:
    """The state of one. Not safe for threads; the event loop's."""

    def __init__(self, rules: BreakerRules, now: float) -> None:
        self._rules = rules
        self._state = State.CLOSED
        self._why: Why | None = None
        self._since = now
        self._phase = 0
        self._numbers = count(1)
        self._ended: deque[_Ended] = deque()
        # Probes under way, by number.
        self._probing: set[int] = set()

    @property
    def state(self) -> State:
        return self._state

    @property
    def why(self) -> Why | None:
        """Why it is in this state; None where it has never changed."""
        return self._why

    @property
    def phase(self) -> int:
        """Grows with each change."""
        return self._phase

    def view(self, now: float) -> View:
        failures = sum(ended.failed for ended in self._ended)
        slow = sum(ended.slow for ended in self._ended)
        left_s = self.closed_for_s(now) if self._state is State.OPEN else None
        return View(self._state, self._why, self._since, len(self._ended), failures, slow, len(self._probing), left_s)

    def ask(self, now: float) -> Permit | Refused:
        """May a call go through now? Every permit is to be reported, once: `succeed`, `fail` or `cancel`."""
        left_s = self._since + self._rules.open_s - now
        if self._state is State.OPEN and left_s <= 0:
            self._move(Why.WAITED, now)
        match self._state:
            case State.CLOSED:
                return Permit(self._phase, next(self._numbers), probe=False)
            case State.HALF_OPEN:
                return self._probe()
            case State.OPEN:
                return Refused(left_s)
            case State.FORCED_OPEN:
                return Refused(self._rules.open_s)
            case _:
                assert_never(self._state)

    def closed_for_s(self, now: float) -> float:
        """Seconds for which everybody is refused, whoever asks; 0 where somebody may go through."""
        match self._state:
            case State.OPEN:
                return max(0.0, self._since + self._rules.open_s - now)
            case State.FORCED_OPEN:
                return self._rules.open_s
            case State.CLOSED | State.HALF_OPEN:
                return 0.0
            case _:
                assert_never(self._state)

    def succeed(self, permit: Permit, now: float, duration_s: float) -> None:
        """The call of a permit ended well."""
        self._count(permit, now, _Ended(failed=False, slow=duration_s >= self._rules.slow_s))

    def fail(self, permit: Permit, now: float, duration_s: float) -> None:
        """The call of a permit failed, in a way that counts."""
        self._count(permit, now, _Ended(failed=True, slow=duration_s >= self._rules.slow_s))

    def cancel(self, permit: Permit) -> None:
        """The call of a permit ended in a way that says nothing: a probe's place is free again."""
        if permit.phase == self._phase:
            self._probing.discard(permit.number)

    def force_open(self, now: float) -> None:
        """Refuse everybody until `close`."""
        if self._state is not State.FORCED_OPEN:
            self._move(Why.OPENED_BY_HAND, now)

    def close(self, now: float) -> None:
        """Let everybody through, and count anew."""
        if self._state is not State.CLOSED:
            self._move(Why.CLOSED_BY_HAND, now)

    def _probe(self) -> Permit | Refused:
        if len(self._probing) + len(self._ended) >= self._rules.probes:
            return Refused(min(_PROBING_S, self._rules.open_s))
        permit = Permit(self._phase, next(self._numbers), probe=True)
        self._probing.add(permit.number)
        return permit

    def _count(self, permit: Permit, now: float, ended: _Ended) -> None:
        if permit.phase != self._phase or (permit.probe and permit.number not in self._probing):
            return
        self._probing.discard(permit.number)
        self._ended.append(ended)
        if permit.probe:
            self._judge(now, most=self._rules.probes)
            if self._state is State.HALF_OPEN and len(self._ended) == self._rules.probes:
                self._move(Why.RECOVERED, now)
            return
        if len(self._ended) > self._rules.window:
            self._ended.popleft()
        if len(self._ended) >= self._rules.min_calls:
            self._judge(now, most=len(self._ended))

    def _judge(self, now: float, *, most: int) -> None:
        """Open where too many of `most` calls failed or were slow, whatever the rest of them will do."""
        view = self.view(now)
        if view.failures / most >= self._rules.failure_rate:
            self._move(Why.FAILURES, now)
        elif view.slow / most >= self._rules.slow_rate:
            self._move(Why.SLOWNESS, now)

    def _move(self, why: Why, now: float) -> None:
        self._state = MOVES[self._state, why]
        self._why = why
        self._since = now
        self._phase += 1
        self._ended.clear()
        self._probing.clear()
