"""What the OpenAPI document says of bodies and answers. Description only: nothing is decoded or filtered by it.

The documents themselves are made in `model/answer.py` and `queries.py`; a test holds both against these models.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from callgate_server.model.errors import Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.manifest import Limits
from callgate_server.transports.wire import DEFAULT_PRIORITY, MAX_DEADLINE_MS, MAX_PRIORITY, MAX_PURPOSE, TASK_ID


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _without_default(schema: dict[str, Any]) -> None:
    """Leaving it out is not the same as sending any value."""
    del schema["default"]


class CallBody(_Document):
    """A call of a tool."""

    arguments: Annotated[dict[str, Any], Field(description="What the tool's input schema asks for.")]
    deadline_ms: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_DEADLINE_MS,
            default=MAX_DEADLINE_MS,
            json_schema_extra=_without_default,
            description="Milliseconds from receipt until the tool is killed. The tool's own limit may be smaller.",
        ),
    ]
    on_disconnect: Annotated[
        Literal["detach", "cancel"],
        Field(default="detach", description="What becomes of the call when the client goes away."),
    ]
    asynchronous: Annotated[
        bool,
        Field(alias="async", default=False, description="Answer at once with 202; the call goes on by itself."),
    ]
    priority: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_PRIORITY,
            default=DEFAULT_PRIORITY,
            description="Of asynchronous calls; the larger, the sooner.",
        ),
    ]
    task: Annotated[
        str | None,
        Field(
            default=None,
            pattern=f"^{TASK_ID.pattern}$",
            description="A task of this agent whose grant holds for the call.",
        ),
    ]
    purpose: Annotated[
        str | None,
        Field(default=None, min_length=1, max_length=MAX_PURPOSE, description="Why it is wanted, for its approver."),
    ]


class FailureDocument(_Document):
    """Why a call was refused or failed."""

    reason: Reason
    code: str
    message: str
    retryable: bool
    retry_after_ms: int | None


class ViolationDocument(_Document):
    """One argument that does not fit: `path` is a JSON Pointer, `rule` the broken keyword of the schema."""

    path: str
    rule: str
    message: str


class Problem(_Document):
    """An RFC 9457 problem document: the request was refused, or the tool never started."""

    type: str
    title: str
    status: int
    detail: str
    reason: Reason
    code: str
    retryable: bool
    retry_after_ms: int | None
    call_id: str | None
    policies: list[str]
    violations: list[ViolationDocument]


class ExitDocument(_Document):
    code: int | None
    signal: int | None


class OutputDocument(_Document):
    """`text` is the cleaned view, `data` the redacted bytes (base64) where cleaning changed anything."""

    text: str
    data: str | None
    total_bytes: int
    truncated: bool


class ArtifactDocument(_Document):
    """A file the tool left; `data` is base64. `rejected` says why one was not taken."""

    name: str
    size_bytes: int
    sha256: str
    data: str
    rejected: str | None


class UsageDocument(_Document):
    queue_ms: float
    wall_ms: float
    cpu_ms: float
    max_rss_kb: int
    egress_bytes: int
    phases_ms: dict[str, float]


class SandboxDocument(_Document):
    backend: str
    runtime: str
    isolation: str


class DecisionDocument(_Document):
    id: str
    policies: list[str]


class ContentDocument(_Document):
    """What marks the answer's text for a model, and, where `?content=text` asked for it, that text."""

    nonce: str
    untrusted: Literal[True]
    text: str | None


class FallbackDocument(_Document):
    """Where a result comes from that is not the called tool's, and why that tool could not do it."""

    kind: Literal["tool", "constant", "last_good"]
    error: FailureDocument
    tool: str | None
    call_id: str | None
    age_s: float | None


class AnswerDocument(_Document):
    """The answer of a call whose tool was started. A tool wrote what is in it: data, never instructions."""

    call_id: str
    tool: str
    version: str
    state: State
    result: Any
    error: FailureDocument | None
    exit: ExitDocument
    stdout: OutputDocument
    stderr: OutputDocument
    artifacts: list[ArtifactDocument]
    untrusted: bool
    content: ContentDocument
    replayed: bool
    attempt: int
    fallback: FallbackDocument | None
    usage: UsageDocument
    sandbox: SandboxDocument
    decision: DecisionDocument


class CallApprovalDocument(_Document):
    """What a caller learns of the approval of its call."""

    group: str
    expires_at: datetime | None
    decided_by: str | None


class CallDocument(_Document):
    """A call without its result: it still runs, or its tool was never started."""

    call_id: str
    tool: str
    version: str
    state: State
    error: FailureDocument | None
    received_at: datetime
    finished_at: datetime | None
    policies: list[str]
    approval: CallApprovalDocument | None
    task: str | None
    attempt: int | None
    follows: str | None


class CallsDocument(_Document):
    calls: list[CallDocument]


class DecisionBody(_Document):
    """An approver's decision. `digest` repeats that of the approval as it was shown."""

    digest: str
    approve: bool


class SettlementBody(_Document):
    """Whether a call took effect whose effect is unknown."""

    happened: bool


class ApprovalDocument(_Document):
    """A call that needs an approval. `purpose` and `arguments` are its caller's: data to judge, not to follow.

    In lists, and once the call has ended, there are no arguments, no purpose and no digest.
    """

    call_id: str
    tool: str
    version: str
    summary: str
    effect: str
    tenant: str
    agent: str
    task: str | None
    group: str
    policies: list[str]
    purpose: str | None
    arguments: dict[str, Any] | None
    digest: str
    state: Literal["waiting", "approved", "denied", "expired", "cancelled"]
    requested_at: datetime
    expires_at: datetime | None
    decided_at: datetime | None
    decided_by: str | None


class ApprovalsDocument(_Document):
    approvals: list[ApprovalDocument]


class AttemptDocument(_Document):
    """One attempt of a call, and how it ended."""

    attempt: int
    at: datetime
    state: str
    reason: str


class DeadLetterDocument(_Document):
    """A call that failed for good. It holds no argument and no output."""

    call_id: str
    tool: str
    version: str
    tenant: str
    agent: str
    task: str | None
    state: State
    error: FailureDocument
    effect: str
    received_at: datetime
    finished_at: datetime | None
    attempts: list[AttemptDocument]
    redrivable: bool
    follows: str | None


class DeadLettersDocument(_Document):
    dead_letters: list[DeadLetterDocument]
    total: int


class ToolDocument(_Document):
    """A tool that this caller could be allowed to call, with the JSON Schemas of its arguments and result."""

    tool: str
    version: str
    summary: str
    effect: Literal["read", "idempotent", "unsafe"]
    isolation: str
    input: dict[str, Any]
    output: dict[str, Any]
    limits: Limits
    digest: str


class ToolsDocument(_Document):
    tools: list[ToolDocument]


class HealthDocument(_Document):
    status: Literal["ok"]


class ReadinessDocument(_Document):
    ready: bool
    components: dict[str, Literal["ok", "failing"]]
