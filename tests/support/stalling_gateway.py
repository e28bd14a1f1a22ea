"""A gateway whose event loop is held for eight seconds at each SIGUSR1: `stalling_gateway.py serve --config FILE`."""

import asyncio
import signal
import time

from callgate_server.cli.main import main
from callgate_server.execution.running import RunningCalls

STALL_S = 8


def _arm() -> None:
    original = RunningCalls.__aenter__

    async def entered(self: RunningCalls) -> RunningCalls:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, time.sleep, STALL_S)
        return await original(self)

    RunningCalls.__aenter__ = entered  # type: ignore[method-assign]


if __name__ == "__main__":
    _arm()
    main()
