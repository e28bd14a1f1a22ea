"""The same failing call again and again is stopped for a while. Pure.

The same call is the same agent's call of the same tool with the same arguments. A success forgets its failures, and so
does time. What is remembered is bounded: beyond, the calls are forgotten that failed the longest time ago.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from callgate_server.model.errors import Reason

MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class LoopRule:
    """So many failures within so many seconds are a loop."""

    failures: int
    within_s: float


@dataclass(frozen=True, slots=True)
class SameCall:
    tenant: str
    agent: str
    tool: str
    arguments_digest: str


@dataclass(frozen=True, slots=True)
class Loop:
    """A call that failed too often: for what reason last, and in how many seconds it may be tried again."""

    reason: Reason
    failures: int
    over_in_s: float


class LoopGuard:
    """Remembers failures, newest last. Without a rule it remembers nothing."""

    def __init__(self, rule: LoopRule | None, *, most: int = MOST) -> None:
        self._rule = rule
        self._most = most
        self._failures: OrderedDict[SameCall, tuple[tuple[float, Reason], ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failures)

    def found(self, call: SameCall, now_s: float) -> Loop | None:
        """The loop that this call would go on with, or None."""
        if self._rule is None:
            return None
        recent = self._recent(call, now_s)
        if len(recent) < self._rule.failures:
            return None
        return Loop(recent[-1][1], len(recent), recent[0][0] + self._rule.within_s - now_s)

    def failed(self, call: SameCall, reason: Reason, now_s: float) -> None:
        if self._rule is None:
            return
        # More than make a loop would never be looked at.
        self._failures[call] = (*self._recent(call, now_s), (now_s, reason))[-self._rule.failures :]
        self._failures.move_to_end(call)
        if len(self._failures) > self._most:
            self._failures.popitem(last=False)

    def succeeded(self, call: SameCall) -> None:
        self._failures.pop(call, None)

    def _recent(self, call: SameCall, now_s: float) -> tuple[tuple[float, Reason], ...]:
        if self._rule is None:
            return ()
        since_s = now_s - self._rule.within_s
        return tuple(failure for failure in self._failures.get(call, ()) if failure[0] > since_s)
