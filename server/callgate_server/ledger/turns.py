"""One after the other for each idempotency key, from looking it up to its claim.

Without turns, the duplicates that come in the moment before the first one's claim would each ask for a place to
run, and be refused where there are fewer places than duplicates. The store decides who holds a key; this only
spares the asking.
"""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    interested: int = 0


class Turns:
    """The keys of which somebody has, or waits for, the turn."""

    def __init__(self) -> None:
        self._turns: dict[Hashable, _Turn] = {}

    def __len__(self) -> int:
        return len(self._turns)

    @asynccontextmanager
    async def of(self, key: Hashable | None) -> AsyncIterator[None]:
        """Wait for the turn, first come first served. None is nobody's key and waits for nothing."""
        if key is None:
            yield
            return
        turn = self._turns.setdefault(key, _Turn())
        turn.interested += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.interested -= 1
            if not turn.interested:
                del self._turns[key]
