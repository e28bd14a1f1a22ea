"""Between protobuf messages and the values of `callgate.types`; the only module that knows both.

What arrives is checked no further than it must be to be represented: the gateway has done that. What cannot be
represented is a `ValueError`, never a guess.
"""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn

from google.protobuf.timestamp_pb2 import Timestamp

from callgate import types
from callgate.approval import Approval, CallApproval
from callgate.dead_letter import CallAttempt, DeadLetter, DeadLetters
from callgate.errors import CallRefused
from callgate.failure import Failure, Violation
from callgate_proto.v1 import gateway_pb2 as pb

_ON_DISCONNECT = {"detach": pb.ON_DISCONNECT_DETACH, "cancel": pb.ON_DISCONNECT_CANCEL}
_MOST_LISTED = 200


def call_request(
    tool: str,
    arguments: Mapping[str, Any] | None,
    *,
    idempotency_key: str | None,
    deadline_s: float | None,
    on_disconnect: types.OnDisconnect = "detach",
    task: str | None = None,
    purpose: str | None = None,
    asynchronous: bool = False,
    priority: int | None = None,
) -> pb.CallRequest:
    """Build the request.

    Raises:
        ValueError: arguments that JSON cannot hold, or a deadline that is not a positive number of seconds.
        TypeError: arguments that JSON has no type for.
    """
    if on_disconnect not in _ON_DISCONNECT:
        raise ValueError("on_disconnect must be 'detach' or 'cancel'")
    return pb.CallRequest(
        tool=tool,
        arguments_json=encode_arguments(arguments),
        idempotency_key=idempotency_key,
        deadline_ms=None if deadline_s is None else _deadline_ms(deadline_s),
        on_disconnect=_ON_DISCONNECT[on_disconnect],
        asynchronous=asynchronous,
        priority=priority,
        task=task,
        purpose=purpose,
    )


def encode_arguments(arguments: Mapping[str, Any] | None) -> bytes:
    """Encode the arguments of a call as one JSON object.

    Raises:
        ValueError: NaN or an infinity, a lone surrogate, a circle, or nesting without end.
        TypeError: not a mapping, a key that is no string at the top, or a value that JSON has no type for.
    """
    if arguments is None:
        return b"{}"
    if not isinstance(arguments, Mapping) or not all(isinstance(key, str) for key in arguments):
        raise TypeError("the arguments of a call are a mapping from names to values")
    try:
        text = json.dumps(dict(arguments), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError("the arguments hold a lone surrogate, which is not text") from None
    except RecursionError:
        raise ValueError("the arguments are nested too deep") from None
    except ValueError:
        raise ValueError("the arguments hold NaN, an infinity or themselves, which JSON cannot hold") from None


def answer(message: pb.Answer) -> types.Answer:
    """Read an answer.

    Raises:
        ValueError: its result is not JSON.
    """
    return types.Answer(
        call_id=message.call_id,
        tool=message.tool,
        version=message.version,
        state=message.state,
        result=decode_json(message.result_json) if message.HasField("result_json") else None,
        error=failure(message.error) if message.HasField("error") else None,
        exit=types.Exit(_optional(message.exit, "code"), _optional(message.exit, "signal")),
        stdout=_output(message.stdout),
        stderr=_output(message.stderr),
        artifacts=tuple(_artifact(artifact) for artifact in message.artifacts),
        usage=_usage(message.usage),
        sandbox=types.Sandbox(message.sandbox.backend, message.sandbox.runtime, message.sandbox.isolation),
        decision=types.Decision(message.decision.id, tuple(message.decision.policies)),
        replayed=message.replayed,
        untrusted=message.untrusted,
        nonce=message.content.nonce,
        # An older gateway does not count.
        attempt=message.attempt or 1,
        fallback=_fallback(message.fallback) if message.HasField("fallback") else None,
    )


def list_limit(limit: int) -> int:
    """Return how many to list, if the gateway lists so many at once.

    Raises:
        ValueError: it does not.
    """
    if not 1 <= limit <= _MOST_LISTED:
        raise ValueError(f"limit is 1 to {_MOST_LISTED}")
    return limit


def call_state(
    message: pb.CallResponse | pb.GetCallResponse | pb.CancelCallResponse,
) -> types.Answer | types.CallSummary:
    """Read what is known of a call.

    Raises:
        ValueError: the gateway said nothing that this version knows.
    """
    match message.WhichOneof("call"):
        case "answer":
            return answer(message.answer)
        case "summary":
            return summary(message.summary)
        case _:
            raise ValueError("neither an answer nor a summary")


def summary(message: pb.CallSummary) -> types.CallSummary:
    return types.CallSummary(
        call_id=message.call_id,
        tool=message.tool,
        version=message.version,
        state=message.state,
        error=failure(message.error) if message.HasField("error") else None,
        received_at=_moment(message, "received_at"),
        finished_at=_moment(message, "finished_at"),
        policies=tuple(message.policies),
        approval=_call_approval(message.approval) if message.HasField("approval") else None,
        task=_optional(message, "task"),
        attempt=_optional(message, "attempt"),
        follows=_optional(message, "follows"),
    )


def approval(message: pb.Approval) -> Approval:
    """Read an approval.

    Raises:
        ValueError: its arguments are not what a call can have.
    """
    return Approval(
        call_id=message.call_id,
        tool=message.tool,
        version=message.version,
        state=message.state,
        digest=message.digest,
        summary=message.summary,
        effect=message.effect,
        tenant=message.tenant,
        agent=message.agent,
        task=_optional(message, "task"),
        group=message.group,
        policies=tuple(message.policies),
        purpose=_optional(message, "purpose"),
        arguments=decode_arguments(message.arguments_json) if message.HasField("arguments_json") else None,
        requested_at=_moment(message, "requested_at"),
        expires_at=_moment(message, "expires_at"),
        decided_at=_moment(message, "decided_at"),
        decided_by=_optional(message, "decided_by"),
    )


def dead_letter(message: pb.DeadLetter) -> DeadLetter:
    return DeadLetter(
        call_id=message.call_id,
        tool=message.tool,
        version=message.version,
        state=message.state,
        tenant=message.tenant,
        agent=message.agent,
        task=_optional(message, "task"),
        error=failure(message.error) if message.HasField("error") else None,
        effect=message.effect,
        received_at=_moment(message, "received_at"),
        finished_at=_moment(message, "finished_at"),
        attempts=tuple(CallAttempt(one.attempt, _moment(one, "at"), one.state, one.reason) for one in message.attempts),
        redrivable=message.redrivable,
        follows=_optional(message, "follows"),
    )


def dead_letters(message: pb.ListDeadLettersResponse) -> DeadLetters:
    return DeadLetters(tuple(dead_letter(letter) for letter in message.dead_letters), message.total)


def tool(message: pb.Tool) -> types.Tool:
    """Read a tool.

    Raises:
        ValueError: one of its schemas is not a JSON object.
    """
    limits = {field.name: getattr(message.limits, field.name) for field in pb.Limits.DESCRIPTOR.fields}
    known = types.Limits.__dataclass_fields__
    return types.Tool(
        tool=message.tool,
        version=message.version,
        summary=message.summary,
        effect=message.effect,
        isolation=message.isolation,
        input=_schema(message.input_json),
        output=_schema(message.output_json),
        limits=types.Limits(**{name: value for name, value in limits.items() if name in known}),
        digest=message.digest,
    )


def event(message: pb.StreamCallResponse) -> types.Event | CallRefused | None:
    """Read one event of a call; a refusal is returned, not raised. None stands for an event newer than this client.

    Raises:
        ValueError: the answer in it is malformed.
    """
    match message.WhichOneof("event"):
        case "accepted":
            return types.Accepted(message.seq, message.accepted.call_id)
        case "waiting":
            return _waiting(message.seq, message.waiting)
        case "output":
            return types.OutputChunk(message.seq, message.output.stream, message.output.text)
        case "answer":
            return types.Answered(message.seq, answer(message.answer))
        case "error":
            return _refusal(message.error)
        case _:
            return None


def failure(message: pb.Failure) -> Failure:
    return Failure(
        message.reason, message.code, message.message, message.retryable, _optional(message, "retry_after_ms")
    )


def decode_json(document: bytes) -> Any:  # noqa: ANN401  # a tool's result is any JSON value
    """Decode one JSON value.

    Raises:
        ValueError: it is not JSON, or nested without end.
    """
    try:
        return json.loads(document, parse_constant=_not_json)
    except RecursionError:
        raise ValueError("nested too deep") from None


def decode_arguments(document: bytes) -> dict[str, Any]:
    """Decode the arguments of a call, for somebody who judges it: what is shown must be all that is there.

    Raises:
        ValueError: they are no JSON object, name something twice, or hold a number that JSON cannot give back.
    """
    try:
        decoded = json.loads(document, object_pairs_hook=_named_once, parse_float=_finite, parse_constant=_not_json)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(decoded, dict):
        raise ValueError("the arguments are not an object")
    return decoded


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) != len(pairs):
        raise ValueError("a name is there twice")
    return named


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _waiting(seq: int, message: pb.Waiting) -> types.Waiting:
    return types.Waiting(
        seq, message.call_id, message.state, _optional(message, "group"), _moment(message, "expires_at")
    )


def _call_approval(message: pb.CallApproval) -> CallApproval:
    return CallApproval(message.group, _moment(message, "expires_at"), _optional(message, "decided_by"))


def _deadline_ms(deadline_s: float) -> int:
    if not 0 < deadline_s < math.inf:
        raise ValueError("the deadline must be a positive number of seconds")
    return math.ceil(deadline_s * 1000)


def _refusal(message: pb.Error) -> CallRefused:
    violations = [Violation(field.path, field.rule, field.message) for field in message.violations]
    return CallRefused(
        failure(message.failure), violations=violations, policies=message.policies, call_id=message.call_id or None
    )


def _fallback(message: pb.Fallback) -> types.Fallback:
    return types.Fallback(
        message.kind,
        failure(message.error),
        _optional(message, "tool"),
        _optional(message, "call_id"),
        _optional(message, "age_s"),
    )


def _output(message: pb.Output) -> types.Output:
    return types.Output(message.text, _optional(message, "data"), message.total_bytes, message.truncated)


def _artifact(message: pb.Artifact) -> types.Artifact:
    return types.Artifact(
        message.name, message.size_bytes, message.sha256, message.data, _optional(message, "rejected")
    )


def _usage(message: pb.Usage) -> types.Usage:
    return types.Usage(
        message.queue_ms,
        message.wall_ms,
        message.cpu_ms,
        message.max_rss_kb,
        message.egress_bytes,
        dict(message.phases_ms),
    )


def _schema(document: bytes) -> dict[str, Any]:
    decoded = decode_json(document)
    if not isinstance(decoded, dict):
        raise ValueError("a schema is not an object")
    return decoded


def _moment(message: Any, name: str) -> datetime | None:  # noqa: ANN401  # one of many with such a field
    stamp: Timestamp | None = _optional(message, name)
    return None if stamp is None else stamp.ToDatetime(tzinfo=UTC)


def _optional(message: Any, name: str) -> Any:  # noqa: ANN401  # the type is that of the field
    return getattr(message, name) if message.HasField(name) else None


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
