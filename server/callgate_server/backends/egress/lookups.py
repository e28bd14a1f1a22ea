"""What the system says of names, asked in threads: bounded for each tenant, so that names whose server does not
answer keep nobody from others but the tenant that asks for them.

A thread stays with such a name for longer than anybody waits, and counts for as long. Decides nothing about what may
be done with an address.
"""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from typing import Final
from weakref import WeakValueDictionary

from callgate_server.execution.egress_addresses import Address

# Together, and of these what one tenant's names may hold. What is more waits, within the time that it has.
_THREADS: Final = 128
_OF_A_TENANT: Final = 8


class Lookups:
    """One look-up of a name at a time, shared by all who ask for it meanwhile. `close` when the gate ends."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="egress-names")
        self._running: dict[str, asyncio.Future[tuple[Address, ...]]] = {}
        # Gone with the last look-up that has a place, or waits for one.
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def close(self) -> None:
        for running in list(self._running.values()):
            running.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def addresses(self, host: str, tenant: str) -> tuple[Address, ...]:
        """Return the addresses of a host: none where it has none, one has a zone, or nobody says so in time."""
        try:
            async with asyncio.timeout(self._timeout_s):
                running = self._running.get(host) or await self._begin(host, tenant)
                # Whoever gives up does so for himself.
                return await asyncio.shield(running)
        except (TimeoutError, RuntimeError):
            # A closed pool is a RuntimeError.
            return ()

    async def _begin(self, host: str, tenant: str) -> asyncio.Future[tuple[Address, ...]]:
        place = self._places.setdefault(tenant, asyncio.Semaphore(_OF_A_TENANT))
        await place.acquire()
        if host in self._running:
            # Somebody else was first.
            place.release()
        else:
            running = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host)
            self._running[host] = running
            running.add_done_callback(partial(self._end, host, place))
        return self._running[host]

    def _end(self, host: str, place: asyncio.Semaphore, _: object) -> None:
        del self._running[host]
        place.release()


def _look_up(host: str) -> tuple[Address, ...]:
    """Ask the system, in a thread."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        texts = dict.fromkeys(str(entry[4][0]) for entry in found)
        # A zone would choose an interface.
        return () if any("%" in text for text in texts) else tuple(map(ip_address, texts))
    except (OSError, ValueError):
        return ()
