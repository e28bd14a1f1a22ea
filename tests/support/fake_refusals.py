"""How the fake gateway refuses: a status with the typed details that a client reads."""

from dataclasses import dataclass
from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from callgate_proto.v1 import gateway_pb2 as pb


@dataclass
class Refused(Exception):
    reason: str
    code: grpc.StatusCode
    message: str
    retry_after_ms: int | None = None
    policies: tuple[str, ...] = ()
    violations: tuple[pb.Violation, ...] = ()
    call_id: str | None = None


def not_possible(message: str) -> Refused:
    return Refused("not_possible", grpc.StatusCode.FAILED_PRECONDITION, message)


def abort(context: grpc.ServicerContext, refused: Refused) -> NoReturn:
    retryable = refused.retry_after_ms is not None or refused.code is grpc.StatusCode.UNAVAILABLE
    info = ErrorInfo(reason=refused.reason, domain="callgate", metadata={"retryable": str(retryable).lower()})
    if refused.policies:
        info.metadata["policies"] = ",".join(refused.policies)
    if refused.call_id:
        info.metadata["call_id"] = refused.call_id
    details: list[Message] = [info]
    if refused.retry_after_ms is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(refused.retry_after_ms)
        details.append(retry)
    if refused.violations:
        fields = [
            BadRequest.FieldViolation(field=one.path, reason=one.rule, description=one.message)
            for one in refused.violations
        ]
        details.append(BadRequest(field_violations=fields))
    status = Status(code=Code.Value(refused.code.name), message=refused.message, details=map(_packed, details))
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(refused.code, refused.message)


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
