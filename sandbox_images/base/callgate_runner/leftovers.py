"""What a tool's imports left behind that calls would share, or would miss: the reason not to keep them warm.

Imports happen once for all calls of a lane, outside any of its cells. Whatever of them is more than memory of the
interpreter would be common to calls (a thread that none of them has, a descriptor, a process, shared memory), or
gone in each (a file in a folder that every call gets anew, a line of output). A tool that does such things at
import does them in every call instead.

This is about honest tools, so that they behave in a lane as in a container. It cannot hold a hostile one: imports
run in the very process that looks.
"""

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

KINDS = ("output", "descriptors", "threads", "processes", "shared memory", "files")
_MOST_OUTPUT = 1
_THREAD_END_S = 0.25


def of_imports(held: "Collection[int]", said: int, places: "Iterable[bytes]") -> str | None:
    """Return the first of `KINDS` that is there, None where there is nothing.

    `held` are the descriptors that were open before, `said` is where standard output and error can be read without
    waiting, `places` the folders that every call gets anew.
    """
    looks: tuple[Callable[[], bool], ...] = (
        lambda: _wrote(said),
        lambda: any(fd not in held and _is_open(fd) for fd in map(int, os.listdir("/proc/self/fd"))),
        _has_threads,
        _others,
        _shares_memory,
        lambda: any(os.listdir(place) for place in places),
    )
    return next((kind for kind, is_there in zip(KINDS, looks, strict=True) if is_there()), None)


def _wrote(said: int) -> bool:
    """Whether anything was written to the standard streams, or put in their place so that nobody can tell."""
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except Exception:  # whatever stands there now
        return True
    try:
        return bool(os.read(said, _MOST_OUTPUT))
    except BlockingIOError:
        return False


def _is_open(fd: int) -> bool:
    """Whether a descriptor of a listing is still there: the listing's own is in it, too."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _has_threads() -> bool:
    """Whether there are threads that stay. One that was waited for is still there for a moment."""
    give_up = time.monotonic() + _THREAD_END_S
    while len(os.listdir("/proc/self/task")) > 1:
        if time.monotonic() > give_up:
            return True
        time.sleep(0.005)
    return False


def _others() -> bool:
    """Whether the lane has processes beside the runner and this one."""
    own = ("1", str(os.getpid()))
    return any(name.isdecimal() and name not in own for name in os.listdir("/proc"))


def _shares_memory() -> bool:
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        return any(is_shared_memory(line) for line in maps)


def is_shared_memory(mapping: str) -> bool:
    """Whether a line of /proc/self/maps is memory that a fork shares, but for files of the read-only image."""
    fields = mapping.split(maxsplit=5)
    shared = fields[1][3] == "s"
    of_the_image = len(fields) == 6 and fields[5].startswith("/usr/") and "w" not in fields[1]
    return shared and not of_the_image
