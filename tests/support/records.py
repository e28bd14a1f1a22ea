"""Entries of the record as the pipeline writes them, for tests of the ledger."""

from datetime import UTC, datetime, timedelta

from callgate_server.ledger.store import Beginning, Completion, Intent, Keeping, Parcel, Refusal
from callgate_server.model.call import Caller
from callgate_server.model.errors import Reason
from callgate_server.model.identifiers import new_call_id
from callgate_server.model.lifecycle import State

CALLER = Caller("acme", "bot", ("analyst",), "task-1")
ANSWER = b'{"result":42}'


def intent(key: str | None = None, *, caller: Caller = CALLER, tool: str = "a.b", effect: str = "read") -> Intent:
    now = datetime.now(UTC)
    return Intent(
        call_id=new_call_id(),
        caller=caller,
        tool=tool,
        version="1.0.0",
        tool_digest="sha256:tool",
        effect=effect,
        idempotency_key=key,
        arguments={"x": "hmac:1"},
        arguments_digest="digest",
        decision_id="decision",
        policies=("p1", "p2"),
        policy_version="v1",
        received_at=now,
        deadline_at=now + timedelta(seconds=5),
        transport="http",
    )


def refusal(*, caller: Caller = CALLER, reason: Reason = Reason.POLICY_DENIED) -> Refusal:
    return Refusal(
        call_id=new_call_id(),
        caller=caller,
        tool="a.b",
        version="1.0.0",
        reason=reason,
        policies=("p1",),
        policy_version="v1",
        arguments={"x": "hmac:1"},
        received_at=datetime.now(UTC),
        transport="grpc",
    )


def success(call_id: str, answer: bytes = ANSWER) -> Completion:
    return Completion(call_id, State.SUCCEEDED, None, "", answer)


def never_started(call_id: str) -> Completion:
    return Completion(call_id, State.FAILED, Reason.SANDBOX_UNAVAILABLE, "No sandbox.", None)


PARCEL = Parcel(b'{"x":1}', "sha256:tool", "known", 5000, "An invoice is due.")


def keeping(approval: str | None = None, **changes: object) -> Keeping:
    expires_at = changes.pop("expires_at", datetime.now(UTC) + timedelta(hours=1))
    return Keeping(PARCEL, 5, expires_at, approval, **changes)  # type: ignore[arg-type]


def beginning(call_id: str, effect: str = "read") -> Beginning:
    return Beginning(
        call_id, "1.0.0", effect, "sha256:tool", "decision-2", ("p3",), "v2", datetime.now(UTC) + timedelta(seconds=5)
    )


def failure(call_id: str) -> Completion:
    return Completion(call_id, State.FAILED, Reason.TOOL_FAILED, "It failed.", ANSWER)
