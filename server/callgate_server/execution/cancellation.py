"""The wish that a call end, as its waiters see it: an event that can also call back.

A task that watched for it beside every wait of a call would be several for each call, and none is ever told a thing.
"""

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_MOMENT_S: Final = 0.001


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

    def calling(self, tell: Callable[[], None]) -> "_Calling":
        """Return a context in which `tell` is called when this is set, and at its beginning if that is so by then."""
        return _Calling(self, self._told, tell)


class _Calling:
    __slots__ = ("_cancellation", "_tell", "_told")

    def __init__(self, cancellation: Cancellation, told: list[Callable[[], None]], tell: Callable[[], None]) -> None:
        self._cancellation = cancellation
        self._told = told
        self._tell = tell

    def __enter__(self) -> None:
        self._told.append(self._tell)
        if self._cancellation.is_set():
            self._tell()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._told.remove(self._tell)


async def unless_cancelled(work: Coroutine[Any, Any, _T], cancelled: Cancellation) -> _T | None:
    """Await `work`, or give it up as soon as the call is cancelled; None then.

    What was done in the moment of the cancelling is returned all the same: it may be a sandbox to destroy.
    """
    result: _T | None = None
    limit = asyncio.timeout(None)
    try:
        async with limit:
            with cancelled.calling(lambda: shorten(limit, 0)):
                result = await work
    except TimeoutError:
        if not limit.expired():
            raise
    return result


def shorten(limit: asyncio.Timeout, grace_s: float) -> None:
    """Let a time limit end in `grace_s` seconds, unless it does so sooner. It ends a moment later at the earliest.

    In that moment whoever waits takes what came at the same time, which would be lost to a limit that is over at once.
    """
    if limit.expired():
        return
    sooner = asyncio.get_running_loop().time() + max(grace_s, _MOMENT_S)
    until = limit.when()
    limit.reschedule(sooner if until is None else min(sooner, until))
