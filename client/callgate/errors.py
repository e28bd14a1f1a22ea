"""What the client raises. A call that never started raises; a call that ran is an answer, failed or not.

Example:
    >>> try:
    ...     raise CallRefused(Failure("policy_denied", "PERMISSION_DENIED", "No policy permits it."), call_id="c1")
    ... except CallgateError as error:
    ...     print(error)
    policy_denied: No policy permits it. (call c1)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from callgate.failure import Failure, Violation

if TYPE_CHECKING:
    from callgate.types import Answer, CallSummary


class CallgateError(Exception):
    """Everything this package raises on account of the gateway. Mistakes in arguments are `ValueError`s."""


class CallRefused(CallgateError):
    """The tool was not started: refused by the gateway, or it could not come to it.

    Example:
        >>> refusal = CallRefused(
        ...     Failure("invalid_arguments", "INVALID_ARGUMENT", "The arguments do not fit."),
        ...     violations=[Violation("/code", "type", "must be a string")],
        ... )
        >>> refusal.reason, refusal.retryable, refusal.violations[0].path
        ('invalid_arguments', False, '/code')
    """

    def __init__(
        self,
        failure: Failure,
        *,
        violations: Sequence[Violation] = (),
        policies: Sequence[str] = (),
        call_id: str | None = None,
    ) -> None:
        self.failure = failure
        self.violations = tuple(violations)
        self.policies = tuple(policies)
        self.call_id = call_id
        fields = "".join(f"; {violation.path or '/'}: {violation.message}" for violation in self.violations)
        super().__init__(f"{failure.reason}: {failure.message}{fields}{_suffix(call_id)}")

    @property
    def reason(self) -> str:
        return self.failure.reason

    @property
    def message(self) -> str:
        return self.failure.message

    @property
    def retryable(self) -> bool:
        return self.failure.retryable

    @property
    def retry_after_ms(self) -> int | None:
        return self.failure.retry_after_ms

    def to_json(self) -> dict[str, Any]:
        return {
            "call_id": self.call_id,
            "error": self.failure.to_json(),
            "policies": list(self.policies),
            "violations": [violation.to_json() for violation in self.violations],
        }


class CallFailed(CallgateError):
    """The tool was started and did not succeed. `answer` has the reason and everything it left behind."""

    def __init__(self, answer: "Answer") -> None:
        self.answer = answer
        message = "" if answer.error is None else f": {answer.error.message}"
        super().__init__(f"{answer.tool} {answer.state}{message}{_suffix(answer.call_id)}")


class CallPending(CallgateError):
    """The call waits for somebody's approval. It is not refused: once approved it runs by itself.

    `summary` has its id and, in `approval`, which group may approve it and until when.

    Example:
        >>> from callgate.approval import CallApproval
        >>> from callgate.types import CallSummary
        >>> waiting = CallSummary("c1", "a.b", "1.0.0", "awaiting_approval", approval=CallApproval("finance"))
        >>> print(CallPending(waiting))
        a.b waits for an approval by finance: ask for it with get() or follow() (call c1)
    """

    def __init__(self, summary: "CallSummary") -> None:
        self.summary = summary
        waits = f"is {summary.state}"
        if summary.approval is not None:
            expires_at = summary.approval.expires_at
            until = "" if expires_at is None else f" until {expires_at.isoformat(timespec='seconds')}"
            waits = f"waits for an approval by {summary.approval.group}{until}"
        super().__init__(f"{summary.tool} {waits}: ask for it with get() or follow(){_suffix(summary.call_id)}")


class GatewayUnreachable(CallgateError):
    """No answer came from the gateway, so it is not known what became of the request.

    `call_id` is known if the gateway had accepted the call: it goes on there, ask for it with `get()`. Without
    it a call may or may not run; repeat it only with the idempotency key it was made with, or if its tool's
    effect is `read`.

    Example:
        >>> str(GatewayUnreachable("Nothing answers.", target="127.0.0.1:9090"))
        'Nothing answers.'
    """

    def __init__(self, message: str, *, target: str, call_id: str | None = None) -> None:
        super().__init__(message)
        self.target = target
        self.call_id = call_id

    def to_json(self) -> dict[str, Any]:
        failure = Failure("gateway_unreachable", "UNAVAILABLE", str(self))
        return {"call_id": self.call_id, "error": failure.to_json(), "policies": [], "violations": []}


def _suffix(call_id: str | None) -> str:
    return f" (call {call_id})" if call_id else ""
