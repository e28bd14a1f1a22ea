"""One call's sandbox inside a lane: the steps from a fork to confinement, its process 1, and the tool beside it.

Three processes know a cell. The runner holds the outer ends of its pipes (`Cell`) and has every right over it. The
cell's own process 1 waits for the tool and reports its end; when it goes, the kernel kills everything else in the
cell. The tool is its child. Both inner ones are under the same confinement, which is complete before the tool's
process exists, and neither has the wire.

Tried and rejected: the tool as the cell's process 1, which saves a fork (signals without a handler are not
delivered to process 1 of a namespace, so that `abort()` or a kill of oneself would do nothing); making the
namespaces with `unshare` after a fork (one more process, and one more copy of the interpreter's pages).
"""

import _socket
import errno
import os
import resource
import select
import signal
import stat
import struct
import sys
import time

from callgate_runner import artifacts, child, json_text, kernel, namespaces, python_tool, wire
from callgate_runner.call import accept_secret
from callgate_runner.fault import describe
from callgate_runner.order import Order

TYPE_CHECKING = False
if TYPE_CHECKING:
    from callgate_runner.child import Pipes

# The wait status of the tool, whether it left processes behind, processor time in ms, largest resident set in KiB.
_REPORT = struct.Struct(">i?dQ")
_FOLDER = b"folder"
_READY = b"ready"
_SIZE = struct.Struct(">I")
_NEWS_FD = 4
MOST_NEWS = 512
_ABOVE = 65536
_DEATH_WAIT_S = 2.0
# Process 1 and the tool.
CELL_PIDS = (1, 2)
_REFUSED, _FAILED = "refused", "failed"
# How a kernel says no for good, where it was not set up for this: everything else may go better another time.
_REFUSALS = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOSPC, errno.EUSERS)


class CellError(RuntimeError):
    """A cell could not be made; the text is for the operator, and says where it failed.

    `refused`: the host does not let one be made.
    """

    def __init__(self, text: str, *, refused: bool = False) -> None:
        super().__init__(text)
        self.refused = refused

    @classmethod
    def heard(cls, said: bytes) -> "CellError":
        """Return what a `complaint` was about."""
        kind, _, text = said.decode("ascii", "replace").partition(" ")
        return cls(text, refused=kind == _REFUSED)


def complaint(error: BaseException) -> bytes:
    """Return what is said in place of a cell."""
    kind = _REFUSED if isinstance(error, OSError) and error.errno in _REFUSALS else _FAILED
    return f"{kind} {describe(error)}"[:MOST_NEWS].encode("ascii", "replace")


class Cell:
    """A cell as the runner sees it: its process 1, its pipes, and the socket on which that process reports."""

    __slots__ = ("_dead", "_dead_usage", "_folder", "_pid", "_report", "_socket", "pipes")

    def __init__(self, pid: int, pipes: "Pipes", news: int) -> None:
        self._pid = pid
        self.pipes = pipes
        self._socket = _socket.socket(fileno=news)
        self._socket.setblocking(False)
        self._folder: int | None = None
        self._report: tuple[int, bool, float, int] | None = None
        self._dead: int | None = None
        self._dead_usage: tuple[float, int] = (0.0, 0)

    @property
    def news(self) -> int:
        return self._socket.fileno()

    @property
    def left_nothing(self) -> bool:
        """Whether its process 1 said that the tool ended by itself, and left nobody behind."""
        return self._report is not None and not self._report[1]

    def await_ready(self, until: float) -> None:
        """Wait until the cell is closed and the tool's process is inside.

        Raises:
            CellError: it could not be made.
            TimeoutError: nothing was heard in time.
        """
        data = self._hear(until)
        if data == _FOLDER:
            data = self._hear(until)
        if data == _READY:
            return
        self._await_death(_DEATH_WAIT_S)
        raise CellError.heard(data) if data else CellError(f"a cell's process 1 died, wait status {self._dead}")

    def _hear(self, until: float) -> bytes:
        """Wait for what process 1 says next, and take the folder that may come with it."""
        poll = select.poll()
        poll.register(self.news, select.POLLIN)
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise TimeoutError("a cell was not ready in time")
        room = _socket.CMSG_SPACE(struct.calcsize("i"))
        data, ancillary, _, _ = self._socket.recvmsg(MOST_NEWS, room, _socket.MSG_CMSG_CLOEXEC)
        for _, _, packed in ancillary:
            (self._folder,) = struct.unpack("i", packed)
        return data

    def release(self) -> None:
        """Nothing to do: the tool's process waits for what stands before its input."""

    def ended(self) -> int | None:
        """Return the wait status of the tool, or of the cell's process 1 where that was killed; None while both live.

        Raises:
            RuntimeError: process 1 went away without a report, and was not killed.
        """
        if self._report is None:
            try:
                data = self._socket.recv(MOST_NEWS)
            except BlockingIOError:
                return None
            # It may complain instead, and then ends.
            if len(data) == _REPORT.size:
                self._report = _REPORT.unpack(data)
        if self._report is not None:
            return self._report[0]
        self._await_death(_DEATH_WAIT_S)
        if self._dead is None or not os.WIFSIGNALED(self._dead):
            raise RuntimeError("the cell's process 1 ended without a report")
        return self._dead

    def end(self) -> tuple[int | None, bool]:
        """See to it that nothing of the tool lives; return its wait status and whether that is so.

        Where process 1 reported that nobody is left, everything of the tool is dead already.
        """
        if self.left_nothing:
            return self.ended(), True
        self.kill()
        gone = self._await_death(_DEATH_WAIT_S)
        return self._report[0] if self._report is not None else self._dead, gone

    def usage(self) -> tuple[float, int]:
        """Return processor time (ms) and the largest resident set (KiB)."""
        return self._dead_usage if self._report is None else self._report[2:]

    def output_folder(self) -> int | None:
        """Hand over the folder of its artifacts, for the caller to close.

        It was opened before there was a tool. One that has made it unreadable since gets what it would get elsewhere.
        """
        folder, self._folder = self._folder, None
        if folder is not None and not os.fstat(folder).st_mode & stat.S_IRUSR:
            os.close(folder)
            return None
        return folder

    def kill(self) -> None:
        """Kill process 1, and with it everything inside. It stays ours to collect, so that its id is no other's."""
        if self._dead is None:
            os.kill(self._pid, signal.SIGKILL)

    def bury(self) -> bool:
        """Collect process 1, which ends by itself after its report; return whether it is gone."""
        gone = self._await_death(_DEATH_WAIT_S)
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None
        self._socket.close()
        return gone

    def is_dead(self) -> bool:
        return self._await_death(0)

    def _await_death(self, seconds: float) -> bool:
        """Wait for process 1; when it is collected, the kernel has ended every other process of its namespace."""
        give_up = time.monotonic() + seconds
        pause = 0.0002
        while self._dead is None:
            pid, status, usage = os.wait4(self._pid, os.WNOHANG)
            if pid:
                self._dead = status
                self._dead_usage = ((usage.ru_utime + usage.ru_stime) * 1000, usage.ru_maxrss)
            elif time.monotonic() >= give_up:
                return False
            else:
                time.sleep(pause)
                pause = min(pause * 2, 0.01)
        return True


def live(order: Order, theirs: list[int], news: int, ids: tuple[int, int]) -> None:
    """Turn this process, new in its namespaces, into a cell. Does not return.

    `ids` are the user and group outside, which this process cannot see any more until they are mapped.
    """
    status = 1
    try:
        _take_descriptors(theirs, news)
        _confine(order, ids)
        if order.artifacts:
            _hand_over(artifacts.open_folder())
        # Only now: the kernel refuses a descriptor to be sent where sandboxes of this uid, all together, have more on
        # their way than the sender may have open.
        child.limit(resource.RLIMIT_NOFILE, order.open_files)
        pid = os.fork()
        if pid == 0:
            _become_the_tool(order, len(theirs))
        # Without a handler, a signal from inside does nothing to process 1: those that the imports set are the tool's.
        # Before the call can begin.
        kernel.default_signals()
        os.write(_NEWS_FD, _READY)
        _wait_for_the_tool(pid)
        status = 0
    except BaseException as error:
        # The place says which step it was.
        os.write(_NEWS_FD, complaint(error))
    finally:
        # The end of this process is the end of everything in the cell.
        os._exit(status)


def _take_descriptors(theirs: list[int], news: int) -> None:
    """Keep the tool's ends and the socket to the runner, and nothing else that was open before."""
    for number, fd in enumerate(theirs):
        os.dup2(fd, number)
    os.dup2(news, _NEWS_FD)
    os.closerange(_NEWS_FD + 1, _ABOVE)
    if len(theirs) < _NEWS_FD:
        os.closerange(len(theirs), _NEWS_FD)


def _confine(order: Order, ids: tuple[int, int]) -> None:
    """Close the cell. The order is part of the design."""
    # 1. The last use of /proc: its files belong to root while this process is not dumpable. Nobody who could look
    #    into it meanwhile is not ours.
    kernel.set_dumpable(dumpable=True)
    child.volunteer_for_oom()
    namespaces.map_own_ids(*ids)
    kernel.set_dumpable(dumpable=False)
    # 2. What was writable for the lane is not writable for the call: everything first, then the call's own on top,
    #    so that nothing is missed.
    os.chdir("/")
    namespaces.make_everything_read_only()
    for mount in order.mounts:
        namespaces.mount_empty(mount.path, mount.options, execute=mount.execute, writable=mount.writable)
    # 3. The rights that were needed for 2 go, with the way back to them.
    with_loopback = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    namespaces.raise_loopback(with_loopback.fileno())
    with_loopback.close()
    kernel.set_no_new_privs()
    namespaces.drop_every_capability()
    # 4. No core file: it would hold the call's secrets.
    child.limit(resource.RLIMIT_CORE, 0)
    # 5. Last: it refuses most of the above.
    order.filter.install()


def _hand_over(folder: int | None) -> None:
    """Send the runner the folder of artifacts, before anybody can have made it unreadable."""
    if folder is None:
        return
    news = _socket.socket(fileno=_NEWS_FD)
    news.sendmsg([_FOLDER], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", folder))])
    news.detach()
    os.close(folder)


def _wait_for_the_tool(pid: int) -> None:
    """Collect who dies until the tool does, and report."""
    # The pipes end when the tool's ends are closed; these would keep them open.
    os.closerange(0, _NEWS_FD)
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            break
    left_some = _somebody_is_left()
    cpu_ms, max_rss_kb = kernel.children_usage()
    os.write(_NEWS_FD, _REPORT.pack(status, left_some, cpu_ms, max_rss_kb))


def _somebody_is_left() -> bool:
    """Whether a process of the cell still lives: orphans become children of this one."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def _become_the_tool(order: Order, descriptors: int) -> None:
    """Wait for the call, and be its tool. Does not return."""
    status = child.CANNOT_START
    try:
        # Process 1's socket to the runner, and the folder that it holds open for it.
        os.closerange(descriptors, _ABOVE)
        os.setsid()
        os.chdir(child.SCRATCH)
        python_tool.forget_inherited_randomness()
        # So far nothing was of any one call; from here on it is.
        _receive_opening()
        if order.function is not None:
            status = python_tool.call(order.function, with_result=not order.result_from_stdout)
        elif order.command is not None:
            os.execve(order.command[0], order.command, os.environ)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _receive_opening() -> None:
    """Wait for the call to begin; take its names and write its secrets to their files.

    What follows is the tool's own input.
    """
    names, secrets = wire.split_head(_read_exactly(_SIZE.unpack(_read_exactly(_SIZE.size))[0]))
    os.environ.update({name: str(value) for name, value in names.items()})
    while secrets:
        end = _SIZE.size + _SIZE.unpack_from(secrets)[0]
        accept_secret(secrets[_SIZE.size : end], {})
        secrets = secrets[end:]


def opening(names: dict[str, str], secrets: list[bytes]) -> bytes:
    """Return what stands before a tool's input: the call's names, and the secrets' payloads that it gets as files."""
    body = b"".join(_SIZE.pack(len(payload)) + payload for payload in secrets)
    head = json_text.encode(names)
    payload = wire.HEAD.pack(len(head)) + head + body
    return _SIZE.pack(len(payload)) + payload


def _read_exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        portion = os.read(0, min(size - len(data), wire.CHUNK))
        if not portion:
            raise EOFError("the lane ended before the call began")
        data += portion
    return data
