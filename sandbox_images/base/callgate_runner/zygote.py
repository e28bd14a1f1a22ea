"""The process from which a lane's cells are forked: the interpreter, warm, with the tool's imports.

It is forked from the runner before the first call's frames are read, has no wire, is told nothing but "one more",
and never hears of arguments, secrets or output. That is what makes "no call's secret is in the memory of a later
one" true by construction: cells are copies of this process, and nothing of a call ever enters it.

The tool's own modules are imported here once, outside any cell. Their code is part of the declared tool, and is
trusted as far as the calls of one lane are concerned: imports that mean to could undo what keeps these apart, in
copies of this process. Imports that mean no harm, and still leave something behind (`leftovers.py`), are done
without: the runner then starts another zygote, which imports nothing.
"""

import _socket
import contextlib
import fcntl
import gc
import os
import struct
import time

from callgate_runner import child, kernel, leftovers, namespaces, python_tool
from callgate_runner.cell import CELL_PIDS, MOST_NEWS, Cell, CellError, complaint, live
from callgate_runner.order import Order

_ONE_MORE = b"1"
_PID = struct.Struct(">i")
_UNSHAREABLE = b"unshareable "
_FAILURE, _DIED, _LATE = "failure", "the zygote died", "a cell was not made in time"
# Why a zygote has to do without warm imports. The gateway knows these words.
COLD = (*leftovers.KINDS, _FAILURE, _DIED, _LATE)
# What stands in a zygote where a tool has its streams and its result and a cell its news, so that no pipe made later
# has a number of theirs; and then the channel to the runner.
_NEWS_FD, _CHANNEL_FD = 4, 5
_HELD_FDS = range(_CHANNEL_FD + 1)
_INHERITED_FDS = 4
# Free in a zygote that has just been forked: the runner has about ten descriptors.
_ASIDE_FD = 32


class Unshareable(CellError):  # what the imports are
    """The tool's imports cannot be kept warm; another zygote has to do without. The text is one of `COLD`."""


class Zygote:
    """The runner's handle on its zygote."""

    __slots__ = ("_channel", "_made_cells", "_warm", "pid")

    def __init__(self, order: Order, *, warm: bool) -> None:
        self._warm = warm
        self._made_cells = False
        self._channel, theirs = _pair()
        self.pid = _fork_unlike_a_cell()
        if self.pid == 0:
            _live(order, theirs, warm=warm)
        theirs.close()

    def make_cell(self, until: float) -> Cell:
        """Have the next cell made, and wait until it is closed.

        Raises:
            CellError: it cannot be, or was not in time.
            Unshareable: the first one cannot be with the imports kept warm.
        """
        try:
            cell = self._ask(until)
            cell.await_ready(until)
        except TimeoutError:
            raise self._failure(_LATE) from None
        self._made_cells = True
        return cell

    def is_dead(self) -> bool:
        return os.waitpid(self.pid, os.WNOHANG)[0] != 0

    def end(self) -> None:
        """End it, with everything that its imports may have started.

        Raises:
            CellError: something does not die.
        """
        self._channel.close()
        if not kernel.kill_everything(self.pid)[1]:
            raise CellError("what the imports started does not die")

    def _ask(self, until: float) -> Cell:
        self._channel.settimeout(max(0.001, until - time.monotonic()))
        # Where it is gone, its last words may still be here.
        with contextlib.suppress(ConnectionError):
            self._channel.send(_ONE_MORE)
        data, fds = self._hear()
        if fds:
            *pipes, news = fds
            return Cell(_PID.unpack(data)[0], child.Pipes.of(pipes), news)
        if data.startswith(_UNSHAREABLE):
            raise Unshareable(data.removeprefix(_UNSHAREABLE).decode("ascii"))
        if data:
            raise CellError.heard(data)
        # Imports that end the interpreter end it in the call, too, where it is told.
        raise self._failure(_DIED)

    def _hear(self) -> tuple[bytes, tuple[int, ...]]:
        room = _socket.CMSG_SPACE(len(_HELD_FDS) * struct.calcsize("i"))
        try:
            data, ancillary, _, _ = self._channel.recvmsg(MOST_NEWS, room, _socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            # It died with the request unread, which is told before what it said.
            data, ancillary, _, _ = self._channel.recvmsg(MOST_NEWS, room, _socket.MSG_CMSG_CLOEXEC)
        packed = ancillary[0][2] if ancillary else b""
        return data, struct.unpack(f"{len(packed) // 4}i", packed)

    def _failure(self, text: str) -> CellError:
        return Unshareable(text) if self._warm and not self._made_cells else CellError(text)


def _pair() -> tuple[_socket.socket, _socket.socket]:
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)


def _fork_unlike_a_cell() -> int:
    """Fork, so that the child's process id is none that anything in a cell has.

    Libraries tell by it that they are in a fork, and then forget what they may not share, their random numbers among
    it. The first process of a lane after the runner has the number that the tool has in each cell.
    """
    while True:
        pid = os.fork()
        if pid == 0:
            if os.getpid() in CELL_PIDS:
                os._exit(0)
            return 0
        if pid not in CELL_PIDS:
            return pid
        os.waitpid(pid, 0)


def _live(order: Order, channel: _socket.socket, *, warm: bool) -> None:
    """Be the zygote. Does not return."""
    status = 1
    try:
        channel = _leave_the_runner(channel)
        # What a program finds around it is the same in every call; the imports shall find it, too.
        child.set_surroundings(with_result=not order.result_from_stdout)
        if order.function is not None:
            for name in python_tool.COMMON_IMPORTS if warm else ():
                __import__(name)
            python_tool.become_a_python_program()
        if warm and order.function is not None:
            left = _import(order.function, order)
            if left is not None:
                channel.send(_UNSHAREABLE + left.encode("ascii"))
                return
        # What is there now is there for good: no collection looks at it, so that its pages stay shared.
        gc.collect()
        gc.freeze()
        while channel.recv(1):
            _make_cell(order, channel)
        status = 0
    except BaseException as error:
        channel.send(complaint(error))
    finally:
        os._exit(status)


def _leave_the_runner(channel: _socket.socket) -> _socket.socket:
    """Drop everything of the runner's: the wire first.

    The standard streams become pipes, as they are in a call (what a file object can do is remembered in it): without
    an input, and with room for a little output.
    """
    said, output = os.pipe2(os.O_NONBLOCK)
    empty, _ = os.pipe2(0)
    null = os.open("/dev/null", os.O_RDWR)
    held = (empty, output, output, null, said, channel.detach())
    aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ASIDE_FD) for fd in held]
    for number, fd in enumerate(aside):
        os.dup2(fd, number, inheritable=number < _INHERITED_FDS)
    os.closerange(len(held), child.HIGHEST_FD)
    kernel.default_signals()
    return _socket.socket(fileno=_CHANNEL_FD)


def _import(function: str, order: Order) -> str | None:
    """Import the tool's module; return why that is not to be kept, None when it is."""
    if not python_tool.preload(function):
        return _FAILURE
    places = [mount.path for mount in order.mounts if mount.writable]
    return leftovers.of_imports(_HELD_FDS, _NEWS_FD, places)


def _make_cell(order: Order, channel: _socket.socket) -> None:
    pipes = child.Pipes(with_result=not order.result_from_stdout)
    news, theirs = _pair()
    ids = os.getuid(), os.getgid()
    try:
        pid = namespaces.fork_into_new_namespaces()
    except OSError as error:
        channel.send(complaint(error))
    else:
        if pid == 0:
            live(order, pipes.theirs, theirs.fileno(), ids)
        fds = [*pipes.ours(), news.fileno()]
        channel.sendmsg([_PID.pack(pid)], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))])
    for fd in (*pipes.theirs, *pipes.ours()):
        os.close(fd)
    news.close()
    theirs.close()
