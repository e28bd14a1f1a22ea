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
from callgate.errors import CallRefused
from callgate.failure import Failure, Violation
from callgate_proto.v1 import gateway_pb2 as pb

_ON_DISCONNECT = {"detach": pb.ON_DISCONNECT_DETACH, "cancel": pb.ON_DISCONNECT_CANCEL}


def call_request(
    tool: str,
    arguments: Mapping[str, Any] | None,
    *,
    idempotency_key: str | None,
    deadline_s: float | None,
    on_disconnect: types.OnDisconnect,
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


def call_state(message: pb.GetCallResponse | pb.CancelCallResponse) -> types.Answer | types.CallSummary:
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
        received_at=_time(message.received_at) if message.HasField("received_at") else None,
        finished_at=_time(message.finished_at) if message.HasField("finished_at") else None,
        policies=tuple(message.policies),
    )


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


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def _optional(message: Any, name: str) -> Any:  # noqa: ANN401  # the type is that of the field
    return getattr(message, name) if message.HasField(name) else None


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
