"""What the runner's frames mean: their order, what is kept of them, and which outcome they add up to.

Pure: frames in, a `RunOutcome` out. It never trusts the runner's caps but counts again; whatever exceeds them,
or comes in the wrong order, is a `ValueError`, after which the wire has no meaning and the sandbox is killed.
Everything kept until then stays available. How the tool ended is believed only under the runner's seal: there
are kernels under which a tool can write to the wire. Who watches the clock, and what becomes of a lost wire, is
`supervise.py`; what an egress frame means is its taker's affair, here it only has its place in the order.
"""

from collections.abc import Callable
from hmac import compare_digest
from typing import Final, Literal, assert_never

from callgate_server.execution.framing import (
    MAX_REJECTED_ARTIFACTS,
    ArtifactFrame,
    ExitFrame,
    Frame,
    FrameType,
    decode_artifact,
    decode_exit,
)
from callgate_server.model.answer import Exit
from callgate_server.model.manifest import Limits
from callgate_server.model.run import Captured, CapturedArtifact, Cause, OutputListener, RunOutcome

SIGKILL: Final = 9
# How a shell reports that SIGKILL ended its last command.
_KILLED_IN_SHELL: Final = 128 + SIGKILL


class _Stream:
    """One output stream: what came before the gap, what came after it."""

    def __init__(self, name: Literal["stdout", "stderr"], limit_bytes: int, listener: OutputListener) -> None:
        self._name = name
        self._limit_bytes = limit_bytes
        self._listener = listener
        self._head = bytearray()
        self._tail = bytearray()

    def head(self, data: bytes) -> None:
        if self._tail:
            raise ValueError(f"{self._name} after its own tail")
        self._keep(self._head, data)
        self._listener(self._name, data)

    def tail(self, data: bytes) -> None:
        self._keep(self._tail, data)

    def captured(self, total_bytes: int | None) -> Captured:
        """`total_bytes` None: nobody said how many there were."""
        head, tail = bytes(self._head), bytes(self._tail)
        return Captured(head, tail, max(total_bytes or 0, len(head) + len(tail)), open_end=total_bytes is None)

    def _keep(self, part: bytearray, data: bytes) -> None:
        if len(self._head) + len(self._tail) + len(data) > self._limit_bytes:
            raise ValueError(f"more {self._name} than may be kept")
        part += data


class _Artifacts:
    """The files taken so far, and the one whose bytes are still coming."""

    def __init__(self, limits: Limits) -> None:
        self._most = limits.artifacts
        self._budget_bytes = limits.artifacts_kb * 1024
        self._done: list[CapturedArtifact] = []
        self._accepted = 0
        self._rejected = 0
        self._open: ArtifactFrame | None = None
        self._data = bytearray()

    @property
    def incomplete(self) -> bool:
        return self._open is not None

    @property
    def done(self) -> tuple[CapturedArtifact, ...]:
        return tuple(self._done)

    def announce(self, frame: ArtifactFrame) -> None:
        if frame.rejected is not None:
            self._reject(frame)
            return
        self._accepted += 1
        self._budget_bytes -= frame.size_bytes
        if self._accepted > self._most or self._budget_bytes < 0:
            raise ValueError("more artifacts than may be taken")
        self._open = frame
        self._close_when_complete()

    def data(self, data: bytes) -> None:
        if self._open is None or len(self._data) + len(data) > self._open.size_bytes:
            raise ValueError("artifact data that no artifact announced")
        self._data += data
        self._close_when_complete()

    def _reject(self, frame: ArtifactFrame) -> None:
        self._rejected += 1
        if self._rejected > MAX_REJECTED_ARTIFACTS:
            raise ValueError("more rejected artifacts than may be listed")
        self._done.append(CapturedArtifact(frame.name, frame.size_bytes, rejected=frame.rejected))

    def _close_when_complete(self) -> None:
        if self._open is not None and len(self._data) == self._open.size_bytes:
            self._done.append(CapturedArtifact(self._open.name, self._open.size_bytes, bytes(self._data)))
            self._open = None
            self._data = bytearray()


# Takes an egress frame. Raises ValueError: it breaks the protocol.
EgressTaker = Callable[[Frame], None]


def refuse_egress(_: Frame) -> None:
    """Take egress frames where the call has no way out."""
    raise ValueError("an egress frame of a call without egress")


class Collector:
    """Everything one run sent. After `bye`, `complete` is true and nothing more is accepted."""

    def __init__(self, limits: Limits, listener: OutputListener, egress: EgressTaker = refuse_egress) -> None:
        output_bytes = limits.output_kb * 1024
        self._stdout = _Stream("stdout", output_bytes, listener)
        self._stderr = _Stream("stderr", output_bytes, listener)
        self._result_limit_bytes = limits.result_kb * 1024
        self._result = bytearray()
        self._artifacts = _Artifacts(limits)
        self._egress = egress
        self._seal: bytes | None = None
        self._cpu = limits.cpu
        self.ended: ExitFrame | None = None
        # For how long the tool can have run, at most. Whoever follows the run says it at its end.
        self.ran_ms = 0.0
        self.complete = False

    def add(self, frame: Frame) -> None:
        """Take the next frame after hello.

        Raises:
            ValueError: the frame is out of order, malformed, or more than may be kept.
        """
        if self.complete or (self._artifacts.incomplete and frame.type is not FrameType.ARTIFACT_DATA):
            raise ValueError("a frame after the last one, or inside an artifact")
        if self._seal is None:
            self._take_seal(frame)
            return
        match frame.type:
            case FrameType.STDOUT:
                self._stdout.head(frame.payload)
            case FrameType.STDERR:
                self._stderr.head(frame.payload)
            case FrameType.EXIT:
                if self.ended is not None:
                    raise ValueError("a second exit")
                self.ended = self._authentic(decode_exit(frame.payload))
            case FrameType.EGRESS_OPEN | FrameType.EGRESS_DATA | FrameType.EGRESS_CLOSE | FrameType.EGRESS_CREDIT:
                if self.ended is not None:
                    raise ValueError("an egress frame after exit")
                self._egress(frame)
            case _:
                if self.ended is None:
                    raise ValueError("a frame that may only follow exit")
                self._add_after_exit(frame)

    def outcome(self, cause: Cause, detail: str) -> RunOutcome:
        """Return what was kept, under the given cause.

        Where nobody has counted the processor time, it is the most that it can have been: a tool that ends without an
        account would otherwise cost its budget nothing.
        """
        ended = self.ended
        if ended is None:
            return RunOutcome(
                cause,
                detail,
                stdout=self._stdout.captured(None),
                stderr=self._stderr.captured(None),
                cpu_ms=self.ran_ms * self._cpu,
            )
        return RunOutcome(
            cause=cause,
            detail=detail,
            exit=Exit(ended.code, ended.signal),
            stdout=self._stdout.captured(ended.stdout_bytes),
            stderr=self._stderr.captured(ended.stderr_bytes),
            result_json=bytes(self._result) if self._result and not ended.result_truncated else None,
            result_truncated=ended.result_truncated,
            artifacts=self._artifacts.done,
            cpu_ms=ended.wall_ms * self._cpu if ended.cpu_ms is None else ended.cpu_ms,
            wall_ms=ended.wall_ms,
            max_rss_kb=ended.max_rss_kb,
        )

    def _take_seal(self, frame: Frame) -> None:
        if frame.type is not FrameType.SEAL:
            raise ValueError("a frame before the seal")
        self._seal = frame.payload

    def _authentic(self, ended: ExitFrame) -> ExitFrame:
        if self._seal is None or not compare_digest(ended.seal.encode(), self._seal.hex().encode()):
            raise ValueError("an exit that is not the runner's")
        return ended

    def _add_after_exit(self, frame: Frame) -> None:
        match frame.type:
            case FrameType.STDOUT_TAIL:
                self._stdout.tail(frame.payload)
            case FrameType.STDERR_TAIL:
                self._stderr.tail(frame.payload)
            case FrameType.RESULT:
                if len(self._result) + len(frame.payload) > self._result_limit_bytes:
                    raise ValueError("a larger result than may be kept")
                self._result += frame.payload
            case FrameType.ARTIFACT:
                self._artifacts.announce(decode_artifact(frame.payload))
            case FrameType.ARTIFACT_DATA:
                self._artifacts.data(frame.payload)
            case FrameType.BYE:
                self.complete = True
            case _:
                raise ValueError("a frame that may not follow exit")


def killed_for_unknown_reason(ended: ExitFrame) -> bool:
    """Whether the tool ended by a SIGKILL that the runner did not send: memory is the usual reason, not the only."""
    return ended.cause == "ended" and (ended.signal == SIGKILL or ended.code == _KILLED_IN_SHELL)


def classify(ended: ExitFrame, *, sandbox_oom_killed: bool) -> tuple[Cause, str]:
    """Name the cause of an end that the runner saw, with the sandbox's own evidence of an out-of-memory kill.

    A SIGKILL counts as out of memory only with evidence: the cgroup's counter, or the sandbox's. With that
    evidence a failure counts as out of memory too: what the kernel kills is often a child of the tool.
    """
    match ended.cause:
        case "ended":
            out_of_memory = sandbox_oom_killed or bool(ended.oom_kills)
            if out_of_memory and killed_for_unknown_reason(ended):
                return Cause.OUT_OF_MEMORY, "The tool was killed because it used more memory than it may."
            if out_of_memory and ended.code:
                detail = "A process of the tool was killed because it used more memory than it may"
                return Cause.OUT_OF_MEMORY, f"{detail}, and the tool exited with status {ended.code}."
            if ended.signal is not None:
                return Cause.SIGNALLED, f"The tool was ended by signal {ended.signal}."
            return Cause.EXITED, f"The tool exited with status {ended.code}."
        case "timed_out":
            return Cause.TIMED_OUT, "The tool was killed at its deadline."
        case "cancelled":
            return Cause.CANCELLED, "The call was cancelled, and the tool killed."
        case "output_flood":
            return Cause.OUTPUT_FLOOD, "The tool was killed because it wrote far more output than is kept."
        case "out_of_memory":
            return Cause.OUT_OF_MEMORY, "The tool was killed because it used more memory than it may."
        case "too_many_processes":
            return Cause.SIGNALLED, "The tool was killed because it started more processes than it may."
        case _:
            assert_never(ended.cause)
