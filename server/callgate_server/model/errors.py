"""Every way a call can be refused or fail, in one table.

A `Reason` fixes the gRPC status, the HTTP status and whether trying again makes sense. The class of a
failure comes from where it happened, never from text that a tool printed. Messages are for people: they
say what to do next and never contain argument values, secrets or a tool's output.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Stable, public reason of a refusal or failure. Values are part of the API and never change."""

    # Refusals: nothing ran.
    UNAUTHENTICATED = "unauthenticated"
    INVALID_REQUEST = "invalid_request"
    INVALID_ARGUMENTS = "invalid_arguments"
    REQUEST_TOO_LARGE = "request_too_large"
    UNKNOWN_TOOL = "unknown_tool"
    UNKNOWN_CALL = "unknown_call"
    POLICY_DENIED = "policy_denied"
    POLICY_ERROR = "policy_error"
    APPROVAL_REQUIRED = "approval_required"
    APPROVAL_DENIED = "approval_denied"
    APPROVAL_EXPIRED = "approval_expired"
    APPROVAL_VOID = "approval_void"
    NOT_POSSIBLE = "not_possible"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    CALL_IN_FLIGHT = "call_in_flight"
    OVERLOADED = "overloaded"
    CIRCUIT_OPEN = "circuit_open"
    RATE_LIMITED = "rate_limited"
    BUDGET_EXCEEDED = "budget_exceeded"
    LOOP_STOPPED = "loop_stopped"
    STOPPED = "stopped"
    UNKNOWN_TASK = "unknown_task"
    TASK_ENDED = "task_ended"
    OUTSIDE_GRANT = "outside_grant"
    DRAINING = "draining"
    AUDIT_UNAVAILABLE = "audit_unavailable"
    SECRETS_UNAVAILABLE = "secrets_unavailable"
    SECRET_REFUSED = "secret_refused"
    SANDBOX_UNAVAILABLE = "sandbox_unavailable"
    RUNTIME_MISSING = "runtime_missing"
    IMAGE_MISSING = "image_missing"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    INTERNAL = "internal"
    # Outcomes: the tool was started.
    TOOL_FAILED = "tool_failed"
    TOOL_UNAVAILABLE = "tool_unavailable"
    INVALID_RESULT = "invalid_result"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_FLOOD = "output_flood"
    CANCELLED = "cancelled"
    SANDBOX_LOST = "sandbox_lost"
    INTERRUPTED = "interrupted"
    EFFECT_UNKNOWN = "effect_unknown"


@dataclass(frozen=True, slots=True)
class ReasonSpec:
    """What a reason means on the wires.

    `grpc` is the canonical status name, `http` the status code, `retryable` says whether the same call may
    succeed later without a change by the caller, `title` is the short text for people.
    """

    grpc: str
    http: int
    retryable: bool
    title: str


REASONS: dict[Reason, ReasonSpec] = {
    Reason.UNAUTHENTICATED: ReasonSpec("UNAUTHENTICATED", 401, False, "No valid credential"),
    Reason.INVALID_REQUEST: ReasonSpec("INVALID_ARGUMENT", 400, False, "Malformed request"),
    Reason.INVALID_ARGUMENTS: ReasonSpec("INVALID_ARGUMENT", 422, False, "Arguments do not fit the tool's schema"),
    Reason.REQUEST_TOO_LARGE: ReasonSpec("RESOURCE_EXHAUSTED", 413, False, "Request too large"),
    Reason.UNKNOWN_TOOL: ReasonSpec("NOT_FOUND", 404, False, "No such tool"),
    Reason.UNKNOWN_CALL: ReasonSpec("NOT_FOUND", 404, False, "No such call"),
    Reason.POLICY_DENIED: ReasonSpec("PERMISSION_DENIED", 403, False, "Refused by policy"),
    Reason.POLICY_ERROR: ReasonSpec("PERMISSION_DENIED", 403, False, "Policy could not be evaluated"),
    Reason.APPROVAL_REQUIRED: ReasonSpec("PERMISSION_DENIED", 403, False, "Needs an approval"),
    Reason.APPROVAL_DENIED: ReasonSpec("PERMISSION_DENIED", 403, False, "The approval was denied"),
    Reason.APPROVAL_EXPIRED: ReasonSpec("PERMISSION_DENIED", 403, False, "Nobody approved it in time"),
    Reason.APPROVAL_VOID: ReasonSpec("FAILED_PRECONDITION", 409, False, "What was asked to be approved has changed"),
    Reason.NOT_POSSIBLE: ReasonSpec("FAILED_PRECONDITION", 409, False, "Not possible in this state"),
    Reason.IDEMPOTENCY_CONFLICT: ReasonSpec(
        "INVALID_ARGUMENT", 422, False, "Idempotency key was used with other arguments"
    ),
    Reason.CALL_IN_FLIGHT: ReasonSpec("ABORTED", 409, True, "The same call is still running"),
    Reason.OVERLOADED: ReasonSpec("RESOURCE_EXHAUSTED", 503, True, "At capacity"),
    Reason.CIRCUIT_OPEN: ReasonSpec("UNAVAILABLE", 503, True, "Stopped by a circuit breaker"),
    Reason.RATE_LIMITED: ReasonSpec("RESOURCE_EXHAUSTED", 429, True, "Too many calls in this time"),
    Reason.BUDGET_EXCEEDED: ReasonSpec("RESOURCE_EXHAUSTED", 429, False, "The budget is used up"),
    Reason.LOOP_STOPPED: ReasonSpec("RESOURCE_EXHAUSTED", 429, False, "The same failing call again and again"),
    Reason.STOPPED: ReasonSpec("PERMISSION_DENIED", 403, False, "Stopped by an operator"),
    Reason.UNKNOWN_TASK: ReasonSpec("NOT_FOUND", 404, False, "No such task"),
    Reason.TASK_ENDED: ReasonSpec("FAILED_PRECONDITION", 409, False, "The task has ended"),
    Reason.OUTSIDE_GRANT: ReasonSpec("PERMISSION_DENIED", 403, False, "Outside the task's grant"),
    Reason.DRAINING: ReasonSpec("UNAVAILABLE", 503, True, "The gateway is shutting down"),
    Reason.AUDIT_UNAVAILABLE: ReasonSpec("UNAVAILABLE", 503, True, "The call cannot be recorded"),
    Reason.SECRETS_UNAVAILABLE: ReasonSpec("UNAVAILABLE", 503, True, "The secret store does not answer"),
    Reason.SECRET_REFUSED: ReasonSpec("FAILED_PRECONDITION", 424, False, "The secret is not given"),
    Reason.SANDBOX_UNAVAILABLE: ReasonSpec("UNAVAILABLE", 503, True, "No sandbox could be started"),
    Reason.RUNTIME_MISSING: ReasonSpec("FAILED_PRECONDITION", 424, False, "Isolation runtime missing"),
    Reason.IMAGE_MISSING: ReasonSpec("FAILED_PRECONDITION", 424, False, "Pinned image missing"),
    Reason.DEADLINE_EXCEEDED: ReasonSpec("DEADLINE_EXCEEDED", 504, True, "Deadline passed before the tool started"),
    Reason.INTERNAL: ReasonSpec("INTERNAL", 500, False, "Unexpected error"),
    Reason.TOOL_FAILED: ReasonSpec("UNKNOWN", 200, False, "The tool reported a failure"),
    Reason.TOOL_UNAVAILABLE: ReasonSpec("UNAVAILABLE", 200, True, "The tool could not do it for now"),
    Reason.INVALID_RESULT: ReasonSpec("UNKNOWN", 200, False, "The tool's result does not fit its schema"),
    Reason.TIMED_OUT: ReasonSpec("DEADLINE_EXCEEDED", 200, False, "Killed at its deadline"),
    Reason.OUT_OF_MEMORY: ReasonSpec("RESOURCE_EXHAUSTED", 200, False, "Killed for memory"),
    Reason.OUTPUT_FLOOD: ReasonSpec("RESOURCE_EXHAUSTED", 200, False, "Killed for flooding its output"),
    Reason.CANCELLED: ReasonSpec("CANCELLED", 200, False, "Cancelled"),
    Reason.SANDBOX_LOST: ReasonSpec("UNAVAILABLE", 200, False, "The sandbox was lost while the tool ran"),
    Reason.INTERRUPTED: ReasonSpec("ABORTED", 200, True, "The gateway stopped while the tool ran; safe to run again"),
    # Of the call itself an outcome, and of another one with its key a refusal.
    Reason.EFFECT_UNKNOWN: ReasonSpec(
        "ABORTED", 409, False, "The gateway stopped while the tool ran; its effect is unknown"
    ),
}


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that does not fit: `path` is a JSON Pointer into the arguments, `rule` the broken keyword."""

    path: str
    rule: str
    message: str


class CallError(Exception):
    """A refusal or failure as it crosses a stage border.

    The transports render it; nothing else about an exception ever reaches a client. `particular` says that who failed
    works, and failed just this: no circuit breaker counts it.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        policies: Sequence[str] = (),
        retry_after_ms: int | None = None,
        call_id: str | None = None,
        particular: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.policies = tuple(policies)
        self.retry_after_ms = retry_after_ms
        self.call_id = call_id
        self.particular = particular

    @property
    def spec(self) -> ReasonSpec:
        return REASONS[self.reason]
