"""The one translation between the wires and the model: JSON and protobuf in, documents, events and errors out.

Requests are decoded as hostile input and checked for form only; whether a call may run is the pipeline's. What
goes out is a document in its public JSON shape (`model/answer.py`, `queries.py`): HTTP sends it as it is, gRPC
gets it field by field. An error shows its reason, message, violations, policies and call id, and nothing else.
"""

import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, assert_never

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]  # no stubs exist

from callgate_proto.envelope import render
from callgate_proto.v1 import gateway_pb2
from callgate_server.execution.running import Accepted, Answered, Event, Failed, OutputChunk, Waiting
from callgate_server.model.answer import Failure, failure_document
from callgate_server.model.call import CallRequest, OnDisconnect
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.strict_json import Json, decode, encode

ERROR_DOMAIN: Final = "callgate"
MAX_DEADLINE_MS: Final = 24 * 3600 * 1000
IDEMPOTENCY_KEY: Final = re.compile(r"[!-~]([ -~]{0,253}[!-~])?")
_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([!-~]+)")
_SHOWABLE_KEY: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
TASK_ID: Final = re.compile(r"[!-~]{1,128}")
MAX_PRIORITY: Final = 9
DEFAULT_PRIORITY: Final = 5
MAX_PURPOSE: Final = 500
_BODY_KEYS: Final = frozenset({"arguments", "deadline_ms", "on_disconnect", "async", "priority", "task", "purpose"})
# Clients accept 8 KiB of trailers (gRPC's default); base64 makes four of three, percent-encoding three of one.
_STATUS_BYTES: Final = 4096
_TEXT_BYTES: Final = 400


# Requests


def bearer(values: Sequence[str]) -> str | None:
    """Return the token of an `Authorization: Bearer …`; None unless there is exactly one and it is that."""
    match = _BEARER.fullmatch(values[0]) if len(values) == 1 else None
    return match[1] if match else None


def object_from_json(body: bytes, known: frozenset[str]) -> dict[str, Json]:
    """Decode a body that is an object of at most these keys.

    Raises:
        CallError: `invalid_request`.
    """
    try:
        document = decode(body)
    except ValueError as error:
        raise _malformed(f"The body is not acceptable JSON: {error}.") from None
    if not isinstance(document, dict):
        raise _malformed("The body must be a JSON object.")
    for key in document:
        if key not in known:
            shown = f"`{key}`" if _SHOWABLE_KEY.fullmatch(key) else "with a name that is not shown"
            raise _malformed(f"The body has an unknown key {shown}.")
    return document


def call_from_json(tool: str, body: bytes, idempotency_key: str | None) -> CallRequest:
    """Decode the body of `POST /v1/tools/{tool}/calls`. The caller has capped its size.

    Raises:
        CallError: `invalid_request`.
    """
    document = object_from_json(body, _BODY_KEYS)
    arguments = document.get("arguments")
    if not isinstance(arguments, dict):
        raise _malformed("The body needs `arguments`, a JSON object.")
    return CallRequest(
        tool=tool,
        arguments_json=encode(arguments),
        transport="http",
        deadline_ms=_deadline_ms(document["deadline_ms"]) if "deadline_ms" in document else None,
        idempotency_key=_idempotency_key(idempotency_key),
        on_disconnect=_on_disconnect(document.get("on_disconnect", "detach")),
        asynchronous=_flag("async", document.get("async", False)),
        priority=_priority(document.get("priority", DEFAULT_PRIORITY)),
        task=_task(document.get("task")),
        purpose=_purpose(document.get("purpose")),
    )


def call_from_proto(request: gateway_pb2.CallRequest, remaining_s: float | None) -> CallRequest:
    """Decode a `CallRequest` whose RPC has `remaining_s` seconds left, or no deadline.

    Raises:
        CallError: `invalid_request`.
    """
    match request.on_disconnect:
        case gateway_pb2.ON_DISCONNECT_UNSPECIFIED | gateway_pb2.ON_DISCONNECT_DETACH:
            on_disconnect = OnDisconnect.DETACH
        case gateway_pb2.ON_DISCONNECT_CANCEL:
            on_disconnect = OnDisconnect.CANCEL
        case _:
            raise _malformed("`on_disconnect` is not a value that this gateway knows.")
    wishes_ms = [_deadline_ms(request.deadline_ms)] if request.HasField("deadline_ms") else []
    # Who asks for an answer at once does not say with that how long the call may take.
    if remaining_s is not None and not request.asynchronous:
        wishes_ms.append(int(max(0.0, min(remaining_s * 1000, MAX_DEADLINE_MS))))
    return CallRequest(
        tool=request.tool,
        arguments_json=request.arguments_json,
        transport="grpc",
        deadline_ms=min(wishes_ms, default=None),
        idempotency_key=_idempotency_key(request.idempotency_key if request.HasField("idempotency_key") else None),
        on_disconnect=on_disconnect,
        asynchronous=request.asynchronous,
        priority=_priority(request.priority if request.HasField("priority") else DEFAULT_PRIORITY),
        task=_task(request.task if request.HasField("task") else None),
        purpose=_purpose(request.purpose if request.HasField("purpose") else None),
    )


def _deadline_ms(value: Json) -> int:
    return _whole(value, 1, MAX_DEADLINE_MS, "`deadline_ms` must be a whole number of milliseconds")


def _priority(value: Json) -> int:
    return _whole(value, 0, MAX_PRIORITY, "`priority` must be a whole number")


def _whole(value: Json, least: int, most: int, rule: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON knows one kind of number: 5.0 is a whole one
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _malformed(f"{rule} from {least} to {most}.")
    return value


def _idempotency_key(value: str | None) -> str | None:
    if value is not None and not IDEMPOTENCY_KEY.fullmatch(value):
        raise _malformed("The idempotency key must be 1 to 255 printable ASCII characters.")
    return value


def _on_disconnect(value: Json) -> OnDisconnect:
    if value not in ("detach", "cancel"):
        raise _malformed("`on_disconnect` must be `detach` or `cancel`.")
    return OnDisconnect(value)


def _flag(name: str, value: Json) -> bool:
    if not isinstance(value, bool):
        raise _malformed(f"`{name}` must be true or false.")
    return value


def _task(value: Json) -> str | None:
    if value is not None and not (isinstance(value, str) and TASK_ID.fullmatch(value)):
        raise _malformed("`task` must be a task's id.")
    return value


def _purpose(value: Json) -> str | None:
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= MAX_PURPOSE):
        raise _malformed(f"`purpose` must be a text of 1 to {MAX_PURPOSE} characters.")
    return value


def _malformed(message: str) -> CallError:
    return CallError(Reason.INVALID_REQUEST, message)


# Errors


def problem(error: CallError, status: int | None = None) -> dict[str, Any]:
    """Return the RFC 9457 problem document. `status` replaces the table's where HTTP has a more exact one."""
    return {
        "type": f"urn:callgate:reason:{error.reason.value}",
        "title": error.spec.title,
        "status": status or error.spec.http,
        "detail": error.message,
        "reason": error.reason.value,
        "code": error.spec.grpc,
        "retryable": error.spec.retryable,
        "retry_after_ms": error.retry_after_ms,
        "call_id": error.call_id,
        "policies": list(error.policies),
        "violations": [
            {"path": violation.path, "rule": violation.rule, "message": violation.message}
            for violation in error.violations
        ],
    }


def status(error: CallError) -> status_pb2.Status:
    """Return the google.rpc.Status, small enough for the trailers of every client."""
    info = error_details_pb2.ErrorInfo(reason=error.reason.value, domain=ERROR_DOMAIN)
    info.metadata["retryable"] = "true" if error.spec.retryable else "false"
    if error.call_id is not None:
        info.metadata["call_id"] = error.call_id
    if error.policies:
        info.metadata["policies"] = _short(",".join(error.policies))
    details = [_packed(info)]
    if error.retry_after_ms is not None:
        delay = Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    result = status_pb2.Status(
        code=code_pb2.Code.Value(error.spec.grpc), message=_short(error.message), details=details
    )
    fields = [
        error_details_pb2.BadRequest.FieldViolation(
            field=_short(violation.path), reason=violation.rule, description=_short(violation.message)
        )
        for violation in error.violations
    ]
    while fields:
        request = _packed(error_details_pb2.BadRequest(field_violations=fields))
        if result.ByteSize() + request.ByteSize() <= _STATUS_BYTES:
            result.details.append(request)
            break
        fields.pop()
    return result


def _packed(detail: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(detail)
    return packed


def _short(text: str) -> str:
    encoded = text.encode()
    return text if len(encoded) <= _TEXT_BYTES else encoded[:_TEXT_BYTES].decode(errors="ignore") + "…"


# Events


def event_name(event: Event) -> str:
    match event:
        case Accepted():
            return "accepted"
        case Waiting():
            return "waiting"
        case OutputChunk():
            return "output"
        case Answered():
            return "answer"
        case Failed():
            return "error"
        case _:
            assert_never(event)


def event_to_sse(event: Event, *, with_text: bool = False) -> bytes:
    """Return one server-sent event; JSON has no line break that could end it early."""
    match event:
        case Accepted():
            data: Mapping[str, Any] = {"call_id": event.call_id}
        case Waiting():
            data = {
                "call_id": event.call_id,
                "state": event.state.value,
                "group": event.group,
                "expires_at": event.expires_at.isoformat(),
            }
        case OutputChunk():
            data = {"stream": event.stream, "text": event.text}
        case Answered():
            data = with_content_text(event.document) if with_text else event.document
        case Failed():
            data = problem(event.error)
        case _:
            assert_never(event)
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.seq, event_name(event).encode(), encode(data))


def event_to_proto(event: Event, *, with_text: bool = False) -> gateway_pb2.StreamCallResponse:
    message = gateway_pb2.StreamCallResponse(seq=event.seq)
    match event:
        case Accepted():
            message.accepted.call_id = event.call_id
        case Waiting():
            message.waiting.call_id = event.call_id
            message.waiting.state = event.state.value
            if event.group is not None:
                message.waiting.group = event.group
            message.waiting.expires_at.FromDatetime(event.expires_at)
        case OutputChunk():
            message.output.stream = event.stream
            message.output.text = event.text
        case Answered():
            message.answer.CopyFrom(answer_to_proto(event.document, with_text=with_text))
        case Failed():
            message.error.CopyFrom(_error_to_proto(event.error))
        case _:
            assert_never(event)
    return message


def _error_to_proto(error: CallError) -> gateway_pb2.Error:
    failure = failure_document(Failure(error.reason, error.message, error.retry_after_ms))
    return gateway_pb2.Error(
        call_id=error.call_id or "",
        failure=failure_to_proto(failure),
        policies=error.policies,
        violations=[
            gateway_pb2.Violation(path=violation.path, rule=violation.rule, message=violation.message)
            for violation in error.violations
        ],
    )


# Documents


def with_content_text(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer with its text for a model. A call without an answer, or one without a nonce, has none."""
    content = document.get("content")
    if not content or not content["nonce"]:
        return dict(document)
    return {**document, "content": {**content, "text": render(document)}}


def answer_to_proto(document: Mapping[str, Any], *, with_text: bool = False) -> gateway_pb2.Answer:
    succeeded = document["state"] == State.SUCCEEDED.value
    content = (with_content_text(document) if with_text else document).get("content")
    return gateway_pb2.Answer(
        call_id=document["call_id"],
        tool=document["tool"],
        version=document["version"],
        state=document["state"],
        result_json=encode(document["result"]) if succeeded else None,
        error=failure_to_proto(document["error"]),
        exit=gateway_pb2.Exit(**document["exit"]),
        stdout=_output_to_proto(document["stdout"]),
        stderr=_output_to_proto(document["stderr"]),
        artifacts=[_artifact_to_proto(artifact) for artifact in document["artifacts"]],
        untrusted=document["untrusted"],
        replayed=document["replayed"],
        usage=gateway_pb2.Usage(**document["usage"]),
        sandbox=gateway_pb2.Sandbox(**document["sandbox"]),
        decision=gateway_pb2.Decision(**document["decision"]),
        fallback=_fallback_to_proto(document.get("fallback")),
        # Answers that were stored before there were more than one have no number.
        attempt=document.get("attempt", 1),
        content=None if content is None else gateway_pb2.Content(**content),
    )


def _fallback_to_proto(document: Mapping[str, Any] | None) -> gateway_pb2.Fallback | None:
    if document is None:
        return None
    return gateway_pb2.Fallback(**{**document, "error": failure_to_proto(document["error"])})


def summary_to_proto(document: Mapping[str, Any]) -> gateway_pb2.CallSummary:
    return gateway_pb2.CallSummary(
        call_id=document["call_id"],
        tool=document["tool"],
        version=document["version"],
        state=document["state"],
        error=failure_to_proto(document["error"]),
        received_at=timestamp(document["received_at"]),
        finished_at=timestamp(document["finished_at"]),
        policies=document["policies"],
        approval=_approval_to_proto(document["approval"]),
        task=document["task"],
        attempt=document["attempt"],
        follows=document["follows"],
    )


def _approval_to_proto(document: Mapping[str, Any] | None) -> gateway_pb2.CallApproval | None:
    if document is None:
        return None
    return gateway_pb2.CallApproval(
        group=document["group"], expires_at=timestamp(document["expires_at"]), decided_by=document["decided_by"]
    )


def is_answer(document: Mapping[str, Any]) -> bool:
    """Tell an answer from a call without one: both come from the same lookup."""
    return "sandbox" in document


def tool_to_proto(document: Mapping[str, Any]) -> gateway_pb2.Tool:
    return gateway_pb2.Tool(
        tool=document["tool"],
        version=document["version"],
        summary=document["summary"],
        effect=document["effect"],
        isolation=document["isolation"],
        input_json=encode(document["input"]),
        output_json=encode(document["output"]),
        limits=gateway_pb2.Limits(**document["limits"]),
        digest=document["digest"],
    )


def failure_to_proto(document: Mapping[str, Any] | None) -> gateway_pb2.Failure | None:
    return None if document is None else gateway_pb2.Failure(**document)


def _output_to_proto(document: Mapping[str, Any]) -> gateway_pb2.Output:
    return gateway_pb2.Output(
        text=document["text"],
        data=None if document["data"] is None else b64decode(document["data"]),
        total_bytes=document["total_bytes"],
        truncated=document["truncated"],
    )


def _artifact_to_proto(document: Mapping[str, Any]) -> gateway_pb2.Artifact:
    return gateway_pb2.Artifact(
        name=document["name"],
        size_bytes=document["size_bytes"],
        sha256=document["sha256"],
        data=b64decode(document["data"]),
        rejected=document["rejected"],
    )


def timestamp(text: str | None) -> Timestamp | None:
    if text is None:
        return None
    moment = Timestamp()
    moment.FromDatetime(datetime.fromisoformat(text))
    return moment
