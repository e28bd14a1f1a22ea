"""Running a gateway in the foreground until it is told to stop, for `serve` and `dev`."""

import asyncio
import ctypes
import resource
import signal
from collections.abc import Callable

import uvloop

from callgate_server.app import Gateway, gateway
from callgate_server.backends.api_keys import Purpose
from callgate_server.config import Settings

_PR_SET_DUMPABLE = 4


def serve(settings: Settings, purpose: Purpose, ready: Callable[[Gateway], None]) -> None:
    """Start, call `ready`, serve until SIGTERM, SIGINT or SIGHUP, drain.

    Raises:
        ValueError, OSError: it could not start; the text says what to do.
    """
    _keep_memory_private()
    uvloop.run(_serve(settings, purpose, ready))


async def _serve(settings: Settings, purpose: Purpose, ready: Callable[[Gateway], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = [signal.SIGTERM, signal.SIGINT]
    # Its terminal is closed, which `nohup` has it ignore.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    async with gateway(settings, purpose=purpose) as running:
        ready(running)
        await stop.wait()


def _keep_memory_private() -> None:
    """Secrets pass through this process: no core dumps, and no debugger of the same user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
