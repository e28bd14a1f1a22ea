"""What happens to the gateway itself and to no call, on its way into the record: in order, and again until it is there.

Decides how long it waits where the record cannot be written: as long as that lasts, the oldest first to be given up.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from callgate_server.model.errors import CallError
from callgate_server.model.strict_json import Json

# More than a bad night brings.
MOST_WAITING: Final = 1024

_log = logging.getLogger(__name__)
Remark = Callable[[str, Mapping[str, Json]], Awaitable[None]]


class Remarks:
    """Takes remarks from the event loop, and writes them when it gets its turn: call `write` again and again."""

    def __init__(self, remark: Remark) -> None:
        self._remark = remark
        self._waiting: deque[tuple[str, Mapping[str, Json]]] = deque()
        self._some = asyncio.Event()

    def add(self, kind: str, body: Mapping[str, Json]) -> None:
        """Take one. Never blocks."""
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft()
            _log.warning("an event is lost: too many wait for the record")
        self._waiting.append((kind, body))
        self._some.set()

    async def write(self) -> None:
        """Wait until there are some, and write them. What cannot be written waits for the next time."""
        await self._some.wait()
        await self.flush()

    async def flush(self) -> None:
        """Write what waits, as far as the record takes it now."""
        while self._waiting:
            remark = self._waiting[0]
            try:
                await self._remark(*remark)
            except CallError:
                return
            # Not before: whoever stops this now finds it waiting. Written twice is better than not at all.
            if self._waiting and self._waiting[0] is remark:
                self._waiting.popleft()
        self._some.clear()
