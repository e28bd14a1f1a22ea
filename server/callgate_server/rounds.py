"""What the gateway does again and again beside its calls. A piece of it that fails is reported, and goes on."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

from callgate_server.execution.running import contained


class Rounds:
    """Background work: each piece is a task of one group, and a piece that fails is reported and goes on."""

    def __init__(self, report: Callable[[str, BaseException], None]) -> None:
        self._report = report
        self._tasks = asyncio.TaskGroup()
        self._started: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._started:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    def carry(self, name: str, work: Callable[[], Awaitable[object]], *, pause_s: float) -> None:
        """Do `work` again and again, with a pause after each time."""
        self._started.append(self._tasks.create_task(self._repeat(name, work, pause_s), name=name))

    async def _repeat(self, name: str, work: Callable[[], Awaitable[object]], pause_s: float) -> None:
        while True:
            try:
                await contained(work())
            except Exception as error:  # a round must not end the gateway
                self._report(name, error)
            await asyncio.sleep(pause_s)
