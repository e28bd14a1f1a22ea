"""The process from which a lane's cells are forked: the interpreter, warm, with the tool's imports.

It is forked from the runner before the first call's frames are read, has no wire, is told nothing but "one more",
and never hears of arguments, secrets or output. That is what makes "no call's secret is in the memory of a later
one" true by construction: cells are copies of this process, and nothing of a call ever enters it.

The tool's own modules are imported here once, outside any cell. Their code is part of the declared tool; still
nothing may come of it that two calls would share, so that the runner does without the warm imports when they
started threads, kept descriptors open or made memory shared (`Unshareable`).
"""

import _socket
import gc
import os
import struct
import time

from callgate_runner import child, kernel, namespaces, python_tool
from callgate_runner.cell import Cell, CellError, live
from callgate_runner.fault import describe
from callgate_runner.order import Order

_ONE_MORE = b"1"
_PID = struct.Struct(">i")
_FAILED = -1
_MOST_TEXT = 512
_UNSHAREABLE = 75
# Standard descriptors, the result's and the cell's news: /dev/null in a zygote, so that no pipe has their number.
_HELD_FDS = 5


class Unshareable(RuntimeError):  # what the imports are
    """The tool's imports left something in the zygote that calls would share."""


class Zygote:
    """The runner's handle on its zygote."""

    __slots__ = ("_channel", "_order", "pid")

    def __init__(self, order: Order, *, warm: bool) -> None:
        self._order = order
        self._channel, theirs = _pair()
        self.pid = os.fork()
        if self.pid == 0:
            _live(order, theirs, warm=warm)
        theirs.close()

    def make_cell(self, until: float) -> Cell:
        """Have the next cell made, and wait until it is closed.

        Raises:
            CellError: it cannot be.
            Unshareable: the tool's imports cannot be kept warm; start another zygote without.
            TimeoutError: it was not made in time.
        """
        self._channel.settimeout(max(0.001, until - time.monotonic()))
        self._channel.send(_ONE_MORE)
        room = _socket.CMSG_SPACE(_HELD_FDS * struct.calcsize("i"))
        try:
            data, ancillary, _, _ = self._channel.recvmsg(_MOST_TEXT, room, _socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            raise self._died() from None
        if not ancillary:
            raise self._died() if not data else CellError(data.decode("ascii", "replace"))
        packed = ancillary[0][2]
        *pipes, news = struct.unpack(f"{len(packed) // 4}i", packed)
        cell = Cell(_PID.unpack(data)[0], child.Pipes.of(pipes), news)
        cell.await_ready(until)
        return cell

    def is_dead(self) -> bool:
        return os.waitpid(self.pid, os.WNOHANG)[0] != 0

    def _died(self) -> CellError | Unshareable:
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if status == _UNSHAREABLE:
            return Unshareable("the tool's imports cannot be shared by calls")
        return CellError(f"the zygote ended with {status}")


def _pair() -> tuple[_socket.socket, _socket.socket]:
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)


def _live(order: Order, channel: _socket.socket, *, warm: bool) -> None:
    """Be the zygote. Does not return."""
    status = 1
    try:
        channel = _leave_the_runner(channel)
        # What a program finds around it is the same in every call; the imports shall find it, too.
        child.set_surroundings(with_result=not order.result_from_stdout)
        if warm and order.function is not None:
            for name in python_tool.COMMON_IMPORTS:
                __import__(name)
            python_tool.preload(order.function)
            if _has_something_to_share(channel.fileno()):
                status = _UNSHAREABLE
                return
        # What is there now is there for good: nothing of it is moved or counted in a cell, so that its pages stay
        # shared.
        gc.collect()
        gc.freeze()
        gc.disable()
        while channel.recv(1):
            _make_cell(order, channel)
        status = 0
    except BaseException as error:
        channel.send(describe(error)[:_MOST_TEXT].encode("ascii", "replace"))
    finally:
        os._exit(status)


def _leave_the_runner(channel: _socket.socket) -> _socket.socket:
    """Drop everything of the runner's: the wire first."""
    null = os.open("/dev/null", os.O_RDWR)
    kept = os.dup2(channel.detach(), _HELD_FDS + (null == _HELD_FDS))
    for fd in range(_HELD_FDS):
        os.dup2(null, fd)
    os.closerange(kept + 1, child.HIGHEST_FD)
    for fd in range(_HELD_FDS, kept):
        os.close(fd)
    kernel.default_signals()
    return _socket.socket(fileno=kept)


def _has_something_to_share(channel: int) -> bool:
    """Whether threads, descriptors or memory came with the imports that would be common to all calls."""
    own = {*range(_HELD_FDS), channel}
    if any(fd not in own and _is_open(fd) for fd in map(int, os.listdir("/proc/self/fd"))):
        return True
    if len(os.listdir("/proc/self/task")) > 1:
        return True
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        return any(_is_shared_memory(line) for line in maps)


def _is_open(fd: int) -> bool:
    """Whether a descriptor of a listing is still there: the listing's own is in it, too."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _is_shared_memory(mapping: str) -> bool:
    """Whether a line of /proc/self/maps is memory that a fork shares, but for files of the read-only image."""
    fields = mapping.split(maxsplit=5)
    shared = fields[1][3] == "s"
    of_the_image = len(fields) == 6 and fields[5].startswith("/usr/") and "w" not in fields[1]
    return shared and not of_the_image


def _make_cell(order: Order, channel: _socket.socket) -> None:
    pipes = child.Pipes(with_result=not order.result_from_stdout)
    news, theirs = _pair()
    ids = os.getuid(), os.getgid()
    try:
        pid = namespaces.fork_into_new_namespaces()
    except OSError as error:
        channel.send(describe(error)[:_MOST_TEXT].encode("ascii", "replace"))
    else:
        if pid == 0:
            live(order, pipes.theirs, theirs.fileno(), ids)
        fds = [*pipes.ours(), news.fileno()]
        channel.sendmsg([_PID.pack(pid)], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))])
    for fd in (*pipes.theirs, *pipes.ours()):
        os.close(fd)
    news.close()
    theirs.close()
