"""The wish that a call end, as its waiters see it: an event that can also shorten a time limit.

A task that watched for it beside every wait of a call would be several for each call, and none is ever told a thing.
"""

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

_T = TypeVar("_T")


class Cancellation(asyncio.Event):
    """Set once, when the end of the call is asked for. Belongs to one event loop."""

    def __init__(self) -> None:
        super().__init__()
        self._told: list[Callable[[], None]] = []

    def set(self) -> None:
        if self.is_set():
            return
        super().set()
        for tell in tuple(self._told):
            tell()

    def shortening(self, limit: asyncio.Timeout, grace_s: float = 0) -> "_Shortening":
        """Return a context in which `limit`, entered before it, ends `grace_s` seconds after this is set, or sooner.

        Whatever its waiter is to be given in the same turn of the event loop still reaches it.
        """
        return _Shortening(self, self._told, limit, grace_s)


class _Shortening:
    __slots__ = ("_cancellation", "_grace_s", "_limit", "_next_turn", "_told")

    def __init__(
        self, cancellation: Cancellation, told: list[Callable[[], None]], limit: asyncio.Timeout, grace_s: float
    ) -> None:
        self._cancellation = cancellation
        self._told = told
        self._limit = limit
        self._grace_s = grace_s
        self._next_turn: asyncio.Handle | None = None

    def __enter__(self) -> None:
        self._told.append(self._tell)
        if self._cancellation.is_set():
            self._tell()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._told.remove(self._tell)
        if self._next_turn is not None:
            self._next_turn.cancel()

    def _tell(self) -> None:
        # A limit that is over is acted upon in the next turn, this one in the turn after it: by then the waiter has
        # what came together with the cancelling.
        self._next_turn = asyncio.get_running_loop().call_soon(self._shorten)

    def _shorten(self) -> None:
        if self._limit.expired():
            return
        sooner = asyncio.get_running_loop().time() + self._grace_s
        until = self._limit.when()
        self._limit.reschedule(sooner if until is None else min(sooner, until))


async def unless_cancelled(work: Coroutine[Any, Any, _T], cancelled: Cancellation) -> _T | None:
    """Await `work`, or give it up as soon as the call is cancelled; None then.

    What was done in the moment of the cancelling is returned all the same: it may be a sandbox to destroy.
    """
    result: _T | None = None
    limit = asyncio.timeout(None)
    try:
        async with limit:
            with cancelled.shortening(limit):
                result = await work
    except TimeoutError:
        if not limit.expired():
            raise
    return result
