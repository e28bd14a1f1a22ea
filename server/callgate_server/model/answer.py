"""What a caller gets for a call whose tool was started, and the JSON document it is stored and sent as.

The document is the public shape: HTTP sends it as it is, the ledger stores its bytes, gRPC maps it field by
field. Text fields are cleaned views; where cleaning changed anything, `data` keeps the (redacted) bytes.
"""

from base64 import b64encode
from dataclasses import dataclass, field, replace
from typing import Any

from callgate_server.model.errors import REASONS, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.strict_json import MAX_DEPTH, Json, decode


@dataclass(frozen=True, slots=True)
class Output:
    """One output stream: `text` is the cleaned view of head and tail, `data` the bytes if they differ from it."""

    text: str = ""
    data: bytes | None = None
    total_bytes: int = 0
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file the tool left in its output folder; `rejected` names why one was not taken (then `data` is empty)."""

    name: str
    size_bytes: int
    sha256: str = ""
    data: bytes = b""
    rejected: str | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """How the tool's process ended: an exit code, or the number of the signal that ended it."""

    code: int | None = None
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    reason: Reason
    message: str
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call cost. `queue_ms` is from receipt to the tool's start, `wall_ms` and the rest the tool's own run.

    Where nobody counted it, as in a run that was lost, `cpu_ms` is the most that it can have been.
    """

    queue_ms: float = 0.0
    wall_ms: float = 0.0
    cpu_ms: float = 0.0
    max_rss_kb: int = 0
    egress_bytes: int = 0
    phases_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    backend: str
    runtime: str
    isolation: str


@dataclass(frozen=True, slots=True)
class Decision:
    """`id` names the decision in the record."""

    id: str
    policies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Substitute:
    """Where the result of an answer comes from whose own tool could not do it, and `error`, why it could not.

    `kind` is tool, constant or last_good. `tool` and `call_id` name the call whose result it is, where there is one;
    `age_s` is how old a last good answer is.
    """

    kind: str
    error: Failure
    tool: str | None = None
    call_id: str | None = None
    age_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a call that ran. `result` is decoded JSON, present only when `state` is succeeded.

    `nonce` marks the ends of the answer's text for a model (`callgate_proto/envelope.py`); no tool may know it.
    """

    call_id: str
    tool: str
    version: str
    state: State
    decision: Decision
    sandbox: SandboxInfo
    result: Json = None
    error: Failure | None = None
    exit: Exit = Exit()
    stdout: Output = Output()
    stderr: Output = Output()
    artifacts: tuple[Artifact, ...] = ()
    usage: Usage = Usage()
    replayed: bool = False
    untrusted: bool = True
    nonce: str = ""
    attempt: int = 1
    fallback: Substitute | None = None

    def timed(self, queue_ms: float, phases_ms: dict[str, float]) -> "Answer":
        """The same answer with the gateway's own measurements."""
        return replace(self, usage=replace(self.usage, queue_ms=queue_ms, phases_ms=phases_ms))


def to_document(answer: Answer) -> dict[str, Any]:
    """Return the answer in its public JSON shape."""
    return {
        "call_id": answer.call_id,
        "tool": answer.tool,
        "version": answer.version,
        "state": answer.state.value,
        "result": answer.result,
        "error": None if answer.error is None else failure_document(answer.error),
        "exit": {"code": answer.exit.code, "signal": answer.exit.signal},
        "stdout": _output_document(answer.stdout),
        "stderr": _output_document(answer.stderr),
        "artifacts": [_artifact_document(artifact) for artifact in answer.artifacts],
        "untrusted": answer.untrusted,
        # `text` is made where somebody asks for it: kept here, it would be a second copy of everything.
        "content": {"nonce": answer.nonce, "untrusted": True, "text": None},
        "replayed": answer.replayed,
        "attempt": answer.attempt,
        "fallback": None if answer.fallback is None else _fallback_document(answer.fallback),
        "usage": {
            "queue_ms": answer.usage.queue_ms,
            "wall_ms": answer.usage.wall_ms,
            "cpu_ms": answer.usage.cpu_ms,
            "max_rss_kb": answer.usage.max_rss_kb,
            "egress_bytes": answer.usage.egress_bytes,
            "phases_ms": dict(answer.usage.phases_ms),
        },
        "sandbox": {
            "backend": answer.sandbox.backend,
            "runtime": answer.sandbox.runtime,
            "isolation": answer.sandbox.isolation,
        },
        "decision": {"id": answer.decision.id, "policies": list(answer.decision.policies)},
    }


def from_stored(document: bytes) -> dict[str, Json]:
    """Decode an answer that was stored as a document.

    Raises:
        ValueError: it is none.
    """
    # One level more than a tool may use: a result of the full depth stands inside the answer.
    decoded = decode(document, max_depth=MAX_DEPTH + 1)
    if not isinstance(decoded, dict):
        raise ValueError("a stored answer is not an object")
    return decoded


def failure_document(failure: Failure) -> dict[str, Any]:
    """Return an error in its public shape, the same in an answer and in a refusal."""
    spec = REASONS[failure.reason]
    return {
        "reason": failure.reason.value,
        "code": spec.grpc,
        "message": failure.message,
        "retryable": spec.retryable,
        "retry_after_ms": failure.retry_after_ms,
    }


def _fallback_document(fallback: Substitute) -> dict[str, Any]:
    return {
        "kind": fallback.kind,
        "error": failure_document(fallback.error),
        "tool": fallback.tool,
        "call_id": fallback.call_id,
        "age_s": fallback.age_s,
    }


def _output_document(output: Output) -> dict[str, Any]:
    return {
        "text": output.text,
        "data": None if output.data is None else b64encode(output.data).decode(),
        "total_bytes": output.total_bytes,
        "truncated": output.truncated,
    }


def _artifact_document(artifact: Artifact) -> dict[str, Any]:
    return {
        "name": artifact.name,
        "size_bytes": artifact.size_bytes,
        "sha256": artifact.sha256,
        "data": b64encode(artifact.data).decode(),
        "rejected": artifact.rejected,
    }
