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
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES = 128 * 1024


def serve(settings: Settings, purpose: Purpose, ready: Callable[[Gateway], None]) -> None:
    """Start, call `ready`, serve until SIGTERM, SIGINT or SIGHUP, drain.

    Raises:
        ValueError, OSError: it could not start; the text says what to do.
    """
    _keep_memory_private()
    _give_memory_back()
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


def _give_memory_back() -> None:
    """Have the C library return large blocks to the system when they are freed, as it does at first.

    It would learn from the first of them to keep such blocks in its heap, which then never shrinks: mallopt(3). Another
    library than glibc takes no such advice, and need not.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
