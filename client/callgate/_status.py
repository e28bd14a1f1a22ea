"""From a gRPC status to an exception of ours. What comes from the gateway is told by typed details, not by text.

Only a status whose details carry an `ErrorInfo` of the domain `callgate` was made by the gateway. Everything else
was made by something in between: by gRPC's own half on either side, by a proxy, or by nobody at all. gRPC's halves
have one status for a message that is too large, and only their text says whose.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import (  # type: ignore[import-untyped]  # no stubs exist
    BadRequest,
    ErrorInfo,
    RetryInfo,
)
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # no stubs exist

from callgate.errors import CallgateError, CallRefused, GatewayUnreachable
from callgate.failure import Failure, Violation

CALL_ID_KEY: Final = "callgate-call-id"
_DETAILS_KEY: Final = "grpc-status-details-bin"
_CALL_ID: Final = re.compile(r"[0-9a-f-]{36}")
# A status of these kinds says that a request was turned away before anything ran, whoever in between made it.
_TURNED_AWAY: Final = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
# What gRPC says where a message is larger than its receiver takes; CLIENT is this side.
_TOO_LARGE: Final = re.compile(r"(CLIENT: )?Received message larger than max(?: \((\d+) vs\. (\d+)\))?")
# What a connection that broke, or something between that lost the gateway, makes of an RPC.
_BROKEN: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }
)
_DetailT = TypeVar("_DetailT", bound=Message)


class _Rpc(Protocol):
    """What both halves of gRPC raise."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def initial_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


@contextmanager
def translating(target: str) -> Iterator[None]:
    """Raise what a failed RPC to `target` means for the caller.

    Raises:
        CallRefused: the gateway, or something before it, turned the request away.
        GatewayUnreachable: no answer came.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error, target) from error


@contextmanager
def reading(target: str, call_id: str | None = None) -> Iterator[None]:
    """Report an answer that cannot be understood as one that did not come.

    Raises:
        GatewayUnreachable: reading it raised a `ValueError`.
    """
    try:
        yield
    except ValueError as error:
        diagnosis = _diagnosis(grpc.StatusCode.INTERNAL, target, call_id or None)
        raise GatewayUnreachable(diagnosis, target=target, call_id=call_id or None) from error


def from_rpc_error(error: grpc.RpcError, target: str, call_id: str | None = None) -> CallgateError:
    """Return the exception that says what a failed RPC means. `call_id` is the accepted call, if it is known."""
    rpc = cast("_Rpc", error)
    status = _status(rpc)
    info = _detail(status, ErrorInfo)
    if status is not None and info is not None and info.domain == "callgate":
        return _refusal(rpc.code().name, status, info)
    call_id = call_id or _call_id(rpc)
    if rpc.code() in _TURNED_AWAY and call_id is None:
        return _turned_away(rpc, target)
    return GatewayUnreachable(_diagnosis(rpc.code(), target, call_id), target=target, call_id=call_id)


def ended_early(target: str, call_id: str | None) -> GatewayUnreachable:
    """Return the exception for a stream that ended without an answer: an end is never taken for a success."""
    return GatewayUnreachable(_diagnosis(grpc.StatusCode.UNAVAILABLE, target, call_id), target=target, call_id=call_id)


def may_pass(error: CallgateError) -> bool:
    """Say whether a question that failed with `error` is worth asking again: the connection broke, or the gateway is
    on its way down or up. An answer that cannot be understood, or a call that never started, stays what it is.
    """
    if isinstance(error, CallRefused):
        return error.retryable and isinstance(error.__cause__, grpc.RpcError)
    if isinstance(error.__cause__, grpc.RpcError):
        return cast("_Rpc", error.__cause__).code() in _BROKEN
    return isinstance(error, GatewayUnreachable) and error.__cause__ is None


def _refusal(code: str, status: Status, info: ErrorInfo) -> CallRefused:
    bad_request, retry = _detail(status, BadRequest), _detail(status, RetryInfo)
    fields = () if bad_request is None else bad_request.field_violations
    failure = Failure(
        reason=info.reason,
        code=code,
        message=status.message,
        retryable=info.metadata.get("retryable") == "true",
        retry_after_ms=None if retry is None else retry.retry_delay.ToMilliseconds(),
    )
    return CallRefused(
        failure,
        violations=[Violation(field.field, field.reason, field.description) for field in fields],
        policies=[policy for policy in info.metadata.get("policies", "").split(",") if policy],
        call_id=info.metadata.get("call_id") or None,
    )


def _turned_away(rpc: _Rpc, target: str) -> CallgateError:
    """Say what something in between refused: a message of ours, or one that was for us."""
    code = rpc.code()
    too_large = _TOO_LARGE.search(rpc.details() or "") if code is grpc.StatusCode.RESOURCE_EXHAUSTED else None
    if too_large is None:
        return CallRefused(
            Failure(code.name.lower(), code.name, "Something before the gateway turned the request away.")
        )
    by_us, size, most = too_large.groups()
    if by_us:
        return GatewayUnreachable(f"The answer of {target} is larger than this client takes.", target=target)
    how_much = "How much it takes is its operator's to say." if most is None else f"It takes {most} bytes, not {size}."
    message = f"The request is larger than the gateway takes. {how_much} Send less."
    return CallRefused(Failure("request_too_large", code.name, message))


def _status(error: _Rpc) -> Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                status = Status.FromString(value)
            except DecodeError:
                return None
            # A proxy may have replaced the status and left the details of another one behind.
            return status if status.code == error.code().value[0] else None
    return None


def _detail(status: Status | None, kind: type[_DetailT]) -> _DetailT | None:
    for packed in () if status is None else status.details:
        message = kind()
        try:
            if packed.Unpack(message):
                return message
        except DecodeError:
            return None
    return None


def _call_id(error: _Rpc) -> str | None:
    for key, value in error.initial_metadata() or ():
        if key == CALL_ID_KEY and isinstance(value, str) and _CALL_ID.fullmatch(value):
            return value
    return None


def _diagnosis(code: grpc.StatusCode, target: str, call_id: str | None) -> str:
    if call_id is not None:
        return f"The answer of {target} did not arrive, but the call was accepted there: ask for call {call_id}."
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return (
                f"No gateway answers at {target}. Check that it runs, that host and port are right, "
                "and that both sides use TLS or neither does."
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"The gateway at {target} did not answer in time. What became of the request is not known."
        case grpc.StatusCode.CANCELLED:
            return f"The request to {target} was given up. What became of it is not known."
        case _:
            return (
                f"What answers at {target} does not speak callgate.v1 as this client does. "
                "Check that host and port are those of the gateway's gRPC, and the versions of both sides."
            )
