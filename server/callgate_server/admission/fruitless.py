"""Requests of an agent that come to nothing: refused ones, and repetitions of calls that were made. Pure.

Each is a row of the record for good, so that an agent in a loop, or one that means it, would fill the disk on which
recording depends. Of so many in a time each is recorded; beyond them everything that the agent asks for is refused, and
these refusals are counted and recorded as a sum.
"""

from collections import Counter
from typing import Final

from callgate_server.admission.rates import Rate, Rates
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.spending import Scope

FRUITLESS: Final = Rate(3000, 300)


class TooFruitlessError(CallError):
    """A refusal that is recorded in a sum."""


class Fruitless:
    """`rate` is each agent's."""

    def __init__(self, rate: Rate = FRUITLESS) -> None:
        self._rate = rate
        self._rates = Rates()
        self._beyond: Counter[Scope] = Counter()

    def count(self, caller: Caller, now_s: float) -> None:
        """Count a request that came to nothing."""
        self._rates.take([(_scope(caller), self._rate)], now_s)

    def refuse_beyond(self, caller: Caller, now_s: float) -> None:
        """Refuse who has had its share, until that is a while ago.

        Raises:
            TooFruitlessError: `rate_limited`.
        """
        wait_s = self._rates.wait_s([(_scope(caller), self._rate)], now_s)
        if wait_s > 0:
            self._beyond[_scope(caller)] += 1
            raise TooFruitlessError(
                Reason.RATE_LIMITED,
                "Too many of this agent's requests were refused or repeated; see why, and wait.",
                retry_after_ms=round(wait_s * 1000) + 1,
            )

    def take_beyond(self) -> list[tuple[Scope, int]]:
        """How many were refused since the last time that this was asked, of each agent."""
        beyond, self._beyond = self._beyond, Counter()
        return list(beyond.items())


def _scope(caller: Caller) -> Scope:
    return Scope(caller.tenant, caller.agent)
