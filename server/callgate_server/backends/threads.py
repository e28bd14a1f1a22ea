"""Pools of threads for libraries that block: as many as are asked for, all there from the start.

A pool that starts threads as work comes goes on growing for as long as bursts get larger, and nobody can tell that
from a leak. Here what a process holds after its start is what it holds for good.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier


def full_pool(threads: int, name: str) -> ThreadPoolExecutor:
    """Return a pool with all of its threads started."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    # A pool starts another thread where all it has are busy: each is, until all are there.
    everybody = Barrier(threads)
    for started in [pool.submit(everybody.wait) for _ in range(threads)]:
        started.result()
    return pool
