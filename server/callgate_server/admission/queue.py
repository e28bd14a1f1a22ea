"""Whose turn is it: calls that wait, by priority within a tenant, and tenants in fairness to each other.

Pure but for the futures that tell those who wait. The next turn goes to the tenant with the fewest calls under way, of
those to the one that had its last turn longest ago; within a tenant to the highest priority, then to who came first. So
a tenant that queues a thousand calls delays another's one by at most one turn.
"""

import asyncio
import heapq
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import count

from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason


@dataclass(frozen=True, slots=True)
class QueueRules:
    """How many may be under way at once, in all and of one tenant; and how many may be kept, also of one agent."""

    running: int
    running_per_tenant: int
    waiting: int
    waiting_per_tenant: int
    waiting_per_agent: int


@dataclass(order=True, slots=True)
class _Entry:
    rank: tuple[int, int]
    turn: "asyncio.Future[None]" = field(compare=False)


@dataclass(slots=True)
class _Tenant:
    waiting: list[_Entry] = field(default_factory=list)
    running: int = 0
    # When it had its last turn, in turns.
    served: int = 0


class Queue:
    """Turns for those who wait. Of one event loop."""

    def __init__(self, rules: QueueRules) -> None:
        self._rules = rules
        self._tenants: dict[str, _Tenant] = {}
        self._numbers = count(1)
        self._running = 0
        # Those of all, of each tenant and of each agent.
        self._kept: Counter[tuple[str, ...]] = Counter()

    @property
    def running(self) -> int:
        return self._running

    @property
    def waiting(self) -> int:
        return sum(len(tenant.waiting) for tenant in self._tenants.values())

    @contextmanager
    def place(self, caller: Caller, *, owed: bool = False) -> Iterator[None]:
        """Hold one of the places for calls that are kept, whatever they wait for. `owed`: it is kept already.

        Raises:
            CallError: `overloaded`.
        """
        of = (), (caller.tenant,), (caller.tenant, caller.agent)
        if not owed:
            self._refuse_if_full(*(self._kept[who] for who in of))
        self._kept.update(of)
        try:
            yield
        finally:
            self._kept.subtract(of)
            for who in of:
                if not self._kept[who]:
                    del self._kept[who]

    @asynccontextmanager
    async def turn(self, tenant: str, priority: int) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Who is cancelled while it waits gives it up, also one that had just come."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        state = self._tenants.setdefault(tenant, _Tenant())
        entry = _Entry((-priority, next(self._numbers)), turn)
        heapq.heappush(state.waiting, entry)
        self._serve()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                state.running -= 1
                self._running -= 1
            elif entry in state.waiting:
                state.waiting.remove(entry)
                heapq.heapify(state.waiting)
            self._forget(tenant)
            self._serve()

    def _refuse_if_full(self, of_all: int, of_tenant: int, of_agent: int) -> None:
        rules = self._rules
        if of_agent >= rules.waiting_per_agent:
            message = (
                f"This agent has {of_agent} calls waiting, which is its share; cancel some, or wait for their end."
            )
        elif of_tenant >= rules.waiting_per_tenant:
            message = "This tenant's share of calls that may wait is used up; try again when some have run."
        elif of_all >= rules.waiting:
            message = "Too many calls wait already; try again when some have run."
        else:
            return
        raise CallError(Reason.OVERLOADED, message, retry_after_ms=2000)

    def _serve(self) -> None:
        while self._running < self._rules.running and (chosen := self._next_tenant()) is not None:
            entry = heapq.heappop(chosen.waiting)
            if entry.turn.done():
                continue  # cancelled, and its task has not come to take it out
            chosen.running += 1
            chosen.served = next(self._numbers)
            self._running += 1
            entry.turn.set_result(None)

    def _next_tenant(self) -> _Tenant | None:
        able = [
            tenant
            for tenant in self._tenants.values()
            if tenant.waiting and tenant.running < self._rules.running_per_tenant
        ]
        return min(able, key=lambda tenant: (tenant.running, tenant.served), default=None)

    def _forget(self, name: str) -> None:
        tenant = self._tenants.get(name)
        if tenant is not None and not tenant.waiting and not tenant.running:
            del self._tenants[name]
