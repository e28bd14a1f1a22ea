"""A connection to an upstream as one call pays for it: every byte is counted before it goes on, in either direction."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from callgate_server.backends.egress.dialler import Link
from callgate_server.backends.egress.pipes import FailedError
from callgate_server.execution.egress_addresses import Address
from callgate_server.execution.egress_budget import Spending
from callgate_server.execution.egress_rules import Why
from callgate_server.model.egress import EgressAsk


class Metered:
    """A link and its account. Implements `Pipe`, but fails with `FailedError`: the tool's own pipe raises the other.

    `ask` is what the link was opened for.
    """

    def __init__(self, link: Link, ask: EgressAsk, spending: Spending, touch: Callable[[], None]) -> None:
        self._link = link
        self._spending = spending
        self._touch = touch
        self.ask = ask
        self.sent_bytes = 0
        self.received_bytes = 0

    @property
    def address(self) -> Address:
        return self._link.address

    @property
    def usable(self) -> bool:
        return self._link.usable

    async def read(self) -> bytes:
        """See `Pipe`.

        Raises:
            FailedError: `bytes_spent`, or `broken_off`.
        """
        try:
            data = await self._link.read()
        except ConnectionError as error:
            raise FailedError(Why.BROKEN_OFF) from error
        self._touch()
        self.received_bytes += len(data)
        if why := self._spending.receive(len(data)):
            raise FailedError(why)
        return data

    async def write(self, data: bytes) -> None:
        """See `Pipe`.

        Raises:
            FailedError: `bytes_spent`, or `broken_off`.
        """
        if why := self._spending.send(len(data)):
            raise FailedError(why)
        self.sent_bytes += len(data)
        self._touch()
        try:
            await self._link.write(data)
        except ConnectionError as error:
            raise FailedError(Why.BROKEN_OFF) from error

    async def finish(self) -> None:
        """See `Pipe`.

        Raises:
            FailedError: `broken_off`.
        """
        try:
            await self._link.finish()
        except ConnectionError as error:
            raise FailedError(Why.BROKEN_OFF) from error

    async def abort(self) -> None:
        """See `Pipe`."""
        await self._link.abort()


class Trip:
    """One connection of the tool: what is open for it, and how long nothing has moved to or from upstreams."""

    def __init__(self, idle_s: float) -> None:
        self.links: list[Metered] = []
        # What was allowed and has not answered yet.
        self.dialling: EgressAsk | None = None
        self._idle_s = idle_s
        self._limits: list[tuple[asyncio.Timeout, float]] = []

    @asynccontextmanager
    async def silence(self, more_s: float = 0) -> AsyncIterator[None]:
        """Bound how long nothing moves while the body runs: `idle_s`, and `more_s`.

        Raises:
            TimeoutError: nothing did for that long.
        """
        async with asyncio.timeout(self._idle_s + more_s) as limit:
            self._limits.append((limit, self._idle_s + more_s))
            try:
                yield
            finally:
                self._limits.pop()

    def touch(self) -> None:
        """Bytes have moved."""
        now_s = asyncio.get_running_loop().time()
        for limit, allowed_s in self._limits:
            if not limit.expired():
                limit.reschedule(now_s + allowed_s)
