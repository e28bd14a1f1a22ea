"""One run of one tool: what the supervisor is given and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, assert_never

from callgate_server.model.answer import Exit
from callgate_server.model.call import Deadline
from callgate_server.model.egress import EgressUsage
from callgate_server.model.errors import Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.manifest import Limits, Run
from callgate_server.model.sealed import Sealed

# EX_TEMPFAIL of sysexits.h: by it a tool says that it could not do it for now, and that another attempt may.
EXIT_UNAVAILABLE: Final = 75


@dataclass(frozen=True, slots=True)
class DeliveredSecret:
    name: str
    deliver: Literal["file", "stdin"]
    value: Sealed


@dataclass(frozen=True, slots=True)
class CallNames:
    """What a tool may call its call. `idempotency_key` is the same for each attempt of the same call.

    It is for an upstream that tells repetitions by a key, and is never the caller's own, which is nobody else's affair.
    `attempt` counts from 1: a tool with a condition (`if_match`) sees by it that what it finds changed may be its own.
    """

    call_id: str
    idempotency_key: str
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class EgressWire:
    """What the sandbox offers its tool as a way out: an HTTP proxy, and a port for each `tcp` destination.

    `authority_pem` is the certificate by which the tool knows the gate's own TLS, where a rule needs that; `mark` is in
    what the proxy says itself. Without one the tool takes nothing for the gate's words.
    """

    proxy: bool
    ports: tuple[int, ...]
    authority_pem: bytes | None
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One run. `arguments_json` are canonical bytes; `deadline` is enforced inside by the runner and outside by us.

    `egress` None means that the tool may reach nothing.
    """

    run: Run
    arguments_json: bytes
    secrets: tuple[DeliveredSecret, ...]
    limits: Limits
    deadline: Deadline
    names: CallNames
    egress: EgressWire | None = None


class Cause(StrEnum):
    """Why a run ended. Exactly one, from the process's status and the sandbox's, never from what it printed."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    OUT_OF_MEMORY = "out_of_memory"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    OUTPUT_FLOOD = "output_flood"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Captured:
    """One output stream: first and last bytes, how many there were. `tail` is empty when nothing was cut out.

    `open_end`: nobody saw the end of the stream, and `total_bytes` are those that came.
    """

    head: bytes = b""
    tail: bytes = b""
    total_bytes: int = 0
    open_end: bool = False

    @property
    def truncated(self) -> bool:
        return len(self.head) + len(self.tail) < self.total_bytes


@dataclass(frozen=True, slots=True)
class CapturedArtifact:
    """A file from the tool's output folder, or the reason why it was not taken."""

    name: str
    size_bytes: int
    data: bytes = b""
    rejected: str | None = None


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How one run ended, with everything that was kept. `result_json` are hostile bytes."""

    cause: Cause
    detail: str
    exit: Exit = Exit()
    stdout: Captured = Captured()
    stderr: Captured = Captured()
    result_json: bytes | None = None
    result_truncated: bool = False
    artifacts: tuple[CapturedArtifact, ...] = ()
    cpu_ms: float = 0.0
    wall_ms: float = 0.0
    max_rss_kb: int = 0
    egress: EgressUsage = EgressUsage()


def judge(outcome: RunOutcome) -> tuple[State, Reason | None]:
    """Map the end of a run to a state and a reason. Only exit status 0 can become a success."""
    match outcome.cause:
        case Cause.EXITED:
            if outcome.exit.code == 0:
                return State.SUCCEEDED, None
            unavailable = outcome.exit.code == EXIT_UNAVAILABLE
            return State.FAILED, Reason.TOOL_UNAVAILABLE if unavailable else Reason.TOOL_FAILED
        case Cause.SIGNALLED:
            return State.FAILED, Reason.TOOL_FAILED
        case Cause.OUT_OF_MEMORY:
            return State.FAILED, Reason.OUT_OF_MEMORY
        case Cause.OUTPUT_FLOOD:
            return State.FAILED, Reason.OUTPUT_FLOOD
        case Cause.TIMED_OUT:
            return State.TIMED_OUT, Reason.TIMED_OUT
        case Cause.CANCELLED:
            return State.CANCELLED, Reason.CANCELLED
        case Cause.LOST:
            return State.LOST, Reason.SANDBOX_LOST
        case _:
            assert_never(outcome.cause)


# Called with "stdout" or "stderr" and the next bytes of the head, as they arrive. Must not block or raise.
OutputListener = Callable[[Literal["stdout", "stderr"], bytes], None]
