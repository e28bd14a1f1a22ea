"""Which tenant is next for what all of them share. Pure.

A caller chooses its deadline, so deadlines order the calls of one tenant and never those of two: next is the tenant
that holds the fewest, of those the one that was served longest ago. It takes one turn of each to come to everybody,
whatever anybody asks for.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import count
from typing import Protocol, TypeVar


class OfTenant(Protocol):
    @property
    def tenant(self) -> str: ...


_W = TypeVar("_W", bound=OfTenant)


class Fairness:
    """Remembers when each tenant was served last, for as long as it holds or wants something."""

    __slots__ = ("_numbers", "_served")

    def __init__(self) -> None:
        self._numbers = count(1)
        self._served: dict[str, int] = {}

    def served(self, tenant: str) -> None:
        """A tenant got what it waited for."""
        self._served[tenant] = next(self._numbers)

    def in_turn(self, waiting: Iterable[_W], held: Mapping[str, int]) -> list[_W]:
        """Return who waits in the order of their turns. Each tenant's own keep the order in which they are given."""
        holds = Counter(held)
        ranked: list[tuple[int, int, int, _W]] = []
        for at, waiter in enumerate(waiting):
            # Who comes anew, or again after a pause, stands behind those that are there: a pause gains nobody a turn.
            if waiter.tenant not in self._served:
                self.served(waiter.tenant)
            ranked.append((holds[waiter.tenant], self._served[waiter.tenant], at, waiter))
            # The next one of this tenant comes when this one has been served.
            holds[waiter.tenant] += 1
        self._served = {tenant: turn for tenant, turn in self._served.items() if holds[tenant]}
        ranked.sort(key=lambda rank: rank[:3])
        return [waiter for *_, waiter in ranked]
