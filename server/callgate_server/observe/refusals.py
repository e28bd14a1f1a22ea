"""How often it is said that somebody was refused: a few times in a minute of each, and what goes beyond is counted.

Decides that nobody fills the record, or the log, by asking for what it may not have. What is said here is made of names
and reasons of ours, and of no text of a caller's.
"""

import time
from collections.abc import Callable, Mapping
from typing import Final

from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError
from callgate_server.model.strict_json import Json
from callgate_server.observe.remarks import Remark

# Of one agent and kind, in the record.
MOST: Final = 6
PER_S: Final = 60.0
_SWEEP_AT: Final = 1024


class Allowance:
    """`most` of each key within each stretch of `per_s`. Forgets what is longer ago."""

    def __init__(self, most: int, per_s: float) -> None:
        self._most = most
        self._per_s = per_s
        # Of each key: when its stretch began, how many came in it, how many were left out since the last one was taken.
        self._came: dict[tuple[str, ...], tuple[float, int, int]] = {}
        self._sweep_at = _SWEEP_AT

    def __len__(self) -> int:
        return len(self._came)

    def take(self, key: tuple[str, ...], now_s: float) -> int | None:
        """Return how many of it were left out since the last that was not, or None: this one is left out too."""
        began_s, count, left_out = self._came.get(key, (now_s, 0, 0))
        if now_s - began_s >= self._per_s:
            began_s, count = now_s, 0
        taken = count < self._most
        self._came[key] = (began_s, count + 1, 0 if taken else left_out + 1)
        if len(self._came) > self._sweep_at:
            self._sweep(now_s)
        return left_out if taken else None

    def _sweep(self, now_s: float) -> None:
        self._came = {key: came for key, came in self._came.items() if now_s - came[0] < self._per_s}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._came))


class Refusals:
    """Records what was refused beside calls, in the background: whoever asks learns nothing from how long it takes."""

    def __init__(
        self, add: Callable[[str, Mapping[str, Json]], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._add = add
        self._now = now
        self._allowance = Allowance(MOST, PER_S)

    def noted(self, kind: str, caller: Caller, operation: str, refusal: CallError, call_id: str) -> CallError:
        """Record that a caller was refused something about a call that there is, and return the refusal."""
        body: dict[str, Json] = {
            "tenant": caller.tenant,
            "agent": caller.agent,
            "task": caller.task,
            "operation": operation,
            "reason": refusal.reason.value,
            "call": call_id,
        }
        if said := self._allowed(kind, body):
            self._add(kind, said)
        return refusal

    def bounded(self, remark: Remark) -> Remark:
        """Return `remark`, for what is written before who asks is told."""

        async def write(kind: str, body: Mapping[str, Json]) -> None:
            if said := self._allowed(kind, body):
                await remark(kind, said)

        return write

    def _allowed(self, kind: str, body: Mapping[str, Json]) -> Mapping[str, Json] | None:
        left_out = self._allowance.take((kind, str(body["tenant"]), str(body["agent"])), self._now())
        if left_out is None:
            return None
        return {**body, "left_out": left_out} if left_out else body
