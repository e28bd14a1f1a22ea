"""One run of the tool: the loop that feeds it, listens to it and watches the clock, and the account at its end."""

import os
import select
import time

from callgate_runner import artifacts, limits, wire
from callgate_runner.call import Call
from callgate_runner.capture import Bounded, HeadAndTail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from callgate_runner.cell import Cell
    from callgate_runner.child import Child
    from callgate_runner.egress import Egress

    Tool = Child | Cell

_FLOOD_BYTES = 16 * 1024 * 1024
_FLOOD_FACTOR = 16
# The longest that the loop sleeps: a wake-up that was lost costs no more than this.
_TICK_S = 1.0
# How long the account may take when the gateway reads slowly or not at all, after the deadline or the end.
_FAREWELL_S = 10.0


class Run:
    """The tool's process from its start to its account. Nothing in it is reused.

    `start` starts it; `waking` becomes readable when a child has died.
    """

    def __init__(
        self,
        link: wire.Wire,
        call: Call,
        stdin: bytes,
        waking: int,
        deadline: float,
        start: "Callable[[], Tool]",
        watch: limits.Watch | None = None,
        egress: "Egress | None" = None,
    ) -> None:
        self._link = link
        self._call = call
        self._deadline = deadline
        self._waking = waking
        self._cause: str | None = None
        self._status: int | None = None
        self._killed_for_memory = False
        self._stdout = HeadAndTail(call.output_bytes)
        self._stderr = HeadAndTail(call.output_bytes)
        self._result = Bounded(call.result_bytes)
        self._flood_bytes = max(_FLOOD_BYTES, _FLOOD_FACTOR * call.output_bytes)
        self._egress = egress
        self._input = bytearray(stdin)
        self._watch = watch or limits.Watch(call.memory_bytes, call.pids)
        self._next_look = time.monotonic()
        self._oom_kills = limits.oom_kills()
        self._cpu_ms = limits.cpu_ms()
        self._started = time.monotonic()
        self._tool = start()
        self._pipes = self._tool.pipes
        self._seal = self._show_seal()
        self._tool.release()
        self._readers = {self._pipes.stdout: self._on_stdout, self._pipes.stderr: self._on_stderr}
        if self._pipes.result is not None:
            self._readers[self._pipes.result] = self._result.feed

    def supervise(self) -> None:
        """Relay until the tool's first process has ended, or there is a cause to end it.

        Raises:
            ConnectionError: the gateway is gone.
            ValueError: it broke the protocol.
        """
        while self._status is None and self._cause is None:
            for fd, event in self._poll():
                self._handle(fd, event)
            self._link.pump()
            self._status = self._tool.ended()
            # Who ended by itself was neither cancelled nor too late, were it by a hair.
            self._cause = None if self._status is not None else self._cause or self._reason_to_kill()

    @property
    def regular(self) -> bool:
        """After the account: whether the tool ended by itself, by no signal, and nothing was killed for memory."""
        ended_by_itself = self._cause is None and self._status is not None and not os.WIFSIGNALED(self._status)
        return ended_by_itself and not self._killed_for_memory

    def account(self) -> None:
        """End everything, and tell the gateway how it was.

        Raises:
            ConnectionError: the gateway is gone.
            TimeoutError: it did not read in time.
        """
        ended = time.monotonic()
        status, all_gone = self._tool.end()
        self._status = self._status if self._status is not None else status
        # The dead write no more: what is left in the pipes is finite.
        for fd in list(self._readers):
            while self._read(fd):
                pass
        self._close_pipes()
        if self._egress is not None:
            self._egress.close()
        until = max(self._deadline, ended) + _FAREWELL_S
        for frame in self._account_frames((ended - self._started) * 1000, all_gone=all_gone):
            self._link.queue(frame)
            if self._link.pending > wire.HIGH_WATER:
                self._link.flush(until)
        self._link.flush(until)

    def _show_seal(self) -> bytes:
        """Tell the gateway by what it will know the account as ours.

        Where the kernel lets processes of one uid open each other's descriptors, as gVisor does even if one is not
        dumpable, the tool can write to the wire. It cannot know the seal, which is made after the fork and so in
        none of the tool's memory, and cannot send one of its own first, while the gate is shut.
        """
        seal = os.urandom(wire.SEAL_BYTES)
        self._link.queue(wire.encode(wire.SEAL, seal))
        self._link.pump()
        self._link.flush(self._deadline)
        return seal

    def _poll(self) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(self._link.source, select.POLLIN)
        poll.register(self._link.sink, select.POLLOUT if self._link.pending else 0)
        poll.register(self._waking, select.POLLIN)
        if self._tool.news is not None:
            poll.register(self._tool.news, select.POLLIN)
        if self._input:
            poll.register(self._pipes.stdin, select.POLLOUT)
        if self._link.pending < wire.HIGH_WATER:
            for fd in self._readers:
                poll.register(fd, select.POLLIN)
        if self._egress is not None:
            self._egress.register(poll)
        wake_at = min(self._deadline, self._next_look if self._watch.needed else self._deadline)
        pause = min(max(wake_at - time.monotonic(), 0.0), _TICK_S)
        # Rounded up: rounded down, the last millisecond before a deadline would be spent spinning.
        return poll.poll(int(pause * 1000) + 1)

    def _handle(self, fd: int, event: int) -> None:
        if fd == self._link.source:
            self._on_gateway()
        elif fd == self._link.sink:
            if event & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
                raise ConnectionError("the wire broke")
        elif fd == self._waking:
            self._drain_wakeups()
        elif fd == self._pipes.stdin and self._input:
            # With nothing left to write it is closed, and its number may be another's.
            self._write_input()
        elif fd in self._readers:
            self._read(fd)
        elif self._egress is not None:
            self._egress.handle(fd, event)

    def _on_gateway(self) -> None:
        for kind, payload in self._link.receive():
            if kind == wire.CANCEL:
                self._cause = "cancelled"
            elif kind in wire.EGRESS and self._egress is not None:
                self._egress.on_frame(kind, payload)
            else:
                raise ValueError("a frame that may not follow call")

    def _drain_wakeups(self) -> None:
        try:
            os.read(self._waking, wire.CHUNK)
        except BlockingIOError:
            return

    def _write_input(self) -> None:
        try:
            written = os.write(self._pipes.stdin, self._input[: wire.CHUNK])
        except BlockingIOError:
            return
        except BrokenPipeError:
            # The tool does not want its input; that is its own affair.
            written = len(self._input)
        del self._input[:written]
        if not self._input:
            os.close(self._pipes.stdin)

    def _read(self, fd: int) -> bool:
        """Take what a pipe holds, one chunk at most. Returns whether there may be more."""
        try:
            data = os.read(fd, wire.CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._readers[fd](data)
            return True
        os.close(fd)
        del self._readers[fd]
        return False

    def _close_pipes(self) -> None:
        """Close what the tool's end did not: an input that it never read, an output that somebody still holds."""
        if self._input:
            self._input.clear()
            os.close(self._pipes.stdin)
        for fd in self._readers:
            os.close(fd)
        self._readers.clear()

    def _on_stdout(self, data: bytes) -> None:
        if self._call.result_from_stdout:
            self._result.feed(data)
        head = self._stdout.feed(data)
        if head:
            self._link.queue(wire.encode(wire.STDOUT, head))

    def _on_stderr(self, data: bytes) -> None:
        head = self._stderr.feed(data)
        if head:
            self._link.queue(wire.encode(wire.STDERR, head))

    def _reason_to_kill(self) -> str | None:
        now = time.monotonic()
        if now >= self._deadline:
            return "timed_out"
        if self._stdout.total + self._stderr.total + self._result.total > self._flood_bytes:
            return "output_flood"
        if self._watch.needed and now >= self._next_look:
            self._next_look = now + limits.WATCH_INTERVAL_S
            return self._watch.broken()
        return None

    def _account_frames(self, wall_ms: float, *, all_gone: bool) -> "Iterator[bytes]":
        yield wire.encode_document(wire.EXIT, self._exit_document(wall_ms))
        yield from _rest(self._stdout, wire.STDOUT, wire.STDOUT_TAIL)
        yield from _rest(self._stderr, wire.STDERR, wire.STDERR_TAIL)
        if not self._result.truncated:
            yield from _chunks(wire.RESULT, self._result.data)
        # While something still lives, what it writes may change under the walk.
        if self._call.artifacts and all_gone:
            yield from self._artifact_frames()
        yield wire.encode(wire.BYE, b"")

    def _artifact_frames(self) -> "Iterator[bytes]":
        folder = self._tool.output_folder()
        if folder is None:
            return
        try:
            yield from _artifact_frames(folder, self._call)
        finally:
            os.close(folder)

    def _exit_document(self, wall_ms: float) -> dict[str, object]:
        code = signal = None
        if self._status is not None:
            code, signal = _code_and_signal(self._status)
        now_killed = limits.oom_kills()
        counted = None if now_killed is None or self._oom_kills is None else max(0, now_killed - self._oom_kills)
        self._killed_for_memory = bool(counted)
        cpu_ms, max_rss_kb = self._usage()
        return {
            "seal": self._seal.hex(),
            "cause": self._cause or "ended",
            "code": code,
            "signal": signal,
            "oom_kills": counted,
            "stdout_bytes": self._stdout.total,
            "stderr_bytes": self._stderr.total,
            "result_truncated": self._result.truncated,
            "cpu_ms": None if cpu_ms is None else round(cpu_ms, 3),
            "wall_ms": round(wall_ms, 3),
            "max_rss_kb": max_rss_kb,
        }

    def _usage(self) -> tuple[float | None, int]:
        """Return processor time (ms), None where no cgroup counts it, and the largest resident set (KiB)."""
        collected, max_rss_kb = self._tool.usage()
        now = limits.cpu_ms()
        # No other call's tool lives in this cgroup meanwhile.
        return (None if now is None or self._cpu_ms is None else max(collected, now - self._cpu_ms)), max_rss_kb


def _code_and_signal(status: int) -> tuple[int | None, int | None]:
    code = os.waitstatus_to_exitcode(status)
    return (code, None) if code >= 0 else (None, -code)


def _rest(stream: HeadAndTail, kind: int, tail_kind: int) -> "Iterator[bytes]":
    yield from _chunks(tail_kind if stream.gap else kind, stream.tail)


def _chunks(kind: int, data: bytes) -> "Iterator[bytes]":
    for start in range(0, len(data), wire.CHUNK):
        yield wire.encode(kind, data[start : start + wire.CHUNK])


def _artifact_frames(folder: int, call: Call) -> "Iterator[bytes]":
    for found in artifacts.find(folder, call.artifacts, call.artifacts_bytes):
        yield from _file_frames(found)


def _file_frames(found: artifacts.Found) -> "Iterator[bytes]":
    document: dict[str, object] = {"name": found.name, "size": found.size}
    if found.rejected is not None:
        document["rejected"] = found.rejected
    yield wire.encode_document(wire.ARTIFACT, document)
    left = 0 if found.rejected is not None else found.size
    while left:
        data = os.read(found.fd, min(left, wire.CHUNK))
        if not data:
            raise OSError("a file is shorter than its size")
        left -= len(data)
        yield wire.encode(wire.ARTIFACT_DATA, data)
