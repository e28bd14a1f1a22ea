"""The gRPC edge: decode, hand to the pipeline, encode. It decides nothing about a call.

A refused call ends with the status of its reason and google.rpc details; a call whose tool was started is OK with
its answer, whatever became of it (`server/adr/0001-outcomes-are-answers.md`). grpc.aio by itself sends the text of
an exception to the client and cancels a handler whose client is gone: here one interceptor renders every error,
and nothing of a call depends on the life of its handler.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, TypeAlias

import grpc
from grpc.aio import EOF  # type: ignore[attr-defined]  # the stubs lack it
from grpc_health.v1 import health_pb2

from callgate_proto.v1 import gateway_pb2, gateway_pb2_grpc
from callgate_server.execution.running import Running
from callgate_server.model.call import OnDisconnect
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.identifiers import new_call_id
from callgate_server.transports import wire
from callgate_server.transports.gate import Access, Gate
from callgate_server.transports.grpc_bounds import BoundsMethods
from callgate_server.transports.grpc_kept import Context, KeptMethods, listed, token_of
from callgate_server.transports.limits import TransportLimits
from callgate_server.transports.places import Place, Places

CALL_ID: Final = "callgate-call-id"
_DETAILS: Final = "grpc-status-details-bin"
_HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_OPEN: Final = frozenset({f"/{_HEALTH}/Check"})
# What operators do: let in beyond the general ceiling.
_OPERATING: Final = frozenset(
    f"/{gateway_pb2.DESCRIPTOR.services_by_name['Gateway'].full_name}/{name}"
    for name in (
        *("ListStops", "Stop", "Resume", "ListBreakers", "SetBreaker", "SettleCall"),
        *("ListApprovals", "GetApproval", "DecideApproval"),
        *("ListDeadLetters", "GetDeadLetter", "RedriveDeadLetter", "DiscardDeadLetter"),
    )
)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class GatewayService(BoundsMethods, KeptMethods, gateway_pb2_grpc.GatewayServicer):
    """The methods. Each raises CallError for a refusal; the door renders it."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def add_to(self, server: grpc.aio.Server) -> None:
        # It registers each method, which costs a task each, looked through at every RPC. Looked up by their names, all
        # methods would share one queue of gRPC's, and a flood of one would end RPCs of the others.
        gateway_pb2_grpc.add_GatewayServicer_to_server(self, server)  # type: ignore[no-untyped-call]  # generated

    async def Call(self, request: gateway_pb2.CallRequest, context: Context) -> gateway_pb2.CallResponse:  # noqa: N802
        running, on_disconnect = await self._start(request, context)
        with _left(running, on_disconnect):
            if not running.ended:
                # The client can ask for the call should it stop waiting, and no library between may retry it now.
                await context.send_initial_metadata(((CALL_ID, running.claimed_id),))
            if not request.asynchronous:
                await running.settled()
            if running.ended:
                document = await running.wait()
                return gateway_pb2.CallResponse(answer=wire.answer_to_proto(document, with_text=request.content_text))
            # It goes on by itself: at once where that was asked for, else once somebody has approved it.
            summary = await self._gate.queries.call(token_of(context), running.claimed_id)
            return gateway_pb2.CallResponse(summary=wire.summary_to_proto(summary))

    async def StreamCall(  # noqa: N802
        self, request: gateway_pb2.StreamCallRequest, context: Context
    ) -> AsyncIterator[gateway_pb2.StreamCallResponse]:
        running, on_disconnect = await self._start(request.call, context)
        with _left(running, on_disconnect):
            async for event in running.events():
                yield wire.event_to_proto(event, with_text=request.call.content_text)

    async def GetCall(  # noqa: N802
        self, request: gateway_pb2.GetCallRequest, context: Context
    ) -> gateway_pb2.GetCallResponse:
        document = await self._gate.queries.call(token_of(context), request.call_id)
        if wire.is_answer(document):
            return gateway_pb2.GetCallResponse(answer=wire.answer_to_proto(document, with_text=request.content_text))
        return gateway_pb2.GetCallResponse(summary=wire.summary_to_proto(document))

    async def CancelCall(  # noqa: N802
        self, request: gateway_pb2.CancelCallRequest, context: Context
    ) -> gateway_pb2.CancelCallResponse:
        document = await self._gate.queries.cancel(token_of(context), request.call_id)
        if wire.is_answer(document):
            return gateway_pb2.CancelCallResponse(answer=wire.answer_to_proto(document, with_text=request.content_text))
        return gateway_pb2.CancelCallResponse(summary=wire.summary_to_proto(document))

    async def ListCalls(  # noqa: N802
        self, request: gateway_pb2.ListCallsRequest, context: Context
    ) -> gateway_pb2.ListCallsResponse:
        documents = await self._gate.queries.calls(token_of(context), listed(request.limit))
        return gateway_pb2.ListCallsResponse(calls=map(wire.summary_to_proto, documents))

    async def ListTools(  # noqa: N802
        self, _request: gateway_pb2.ListToolsRequest, context: Context
    ) -> gateway_pb2.ListToolsResponse:
        documents = await self._gate.queries.tools(token_of(context))
        return gateway_pb2.ListToolsResponse(tools=map(wire.tool_to_proto, documents))

    async def GetTool(  # noqa: N802
        self, request: gateway_pb2.GetToolRequest, context: Context
    ) -> gateway_pb2.GetToolResponse:
        document = await self._gate.queries.tool(token_of(context), request.tool)
        return gateway_pb2.GetToolResponse(tool=wire.tool_to_proto(document))

    async def _start(self, request: gateway_pb2.CallRequest, context: Context) -> tuple[Running, OnDisconnect]:
        wanted = wire.call_from_proto(request, context.time_remaining())
        return await self._gate.calls.start(token_of(context), wanted), wanted.on_disconnect


@contextmanager
def _left(running: Running, on_disconnect: OnDisconnect) -> Iterator[None]:
    """Notice that the client left: cancelled while waiting, or its stream closed."""
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        if on_disconnect is OnDisconnect.CANCEL:
            running.cancel()
        raise


class Health:
    """grpc.health.v1 with `Check` alone: a `Watch` of anybody would hold one of the places for RPCs for ever."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {"": False}

    def add_to(self, server: grpc.aio.Server) -> None:
        check = grpc.unary_unary_rpc_method_handler(
            self.check,
            request_deserializer=health_pb2.HealthCheckRequest.FromString,
            response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_HEALTH, {"Check": check}),))

    def set(self, service: str, *, serving: bool) -> None:
        self._serving = {"": serving, service: serving}

    async def check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        serving = self._serving.get(request.service)
        if serving is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service.")
        answer = health_pb2.HealthCheckResponse
        return answer(status=answer.SERVING if serving else answer.NOT_SERVING)


class Door(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # it takes none at run time
    """What every RPC passes: a place, its credential, the receipt of its message in time, and how its errors are told.

    grpc.aio counts an RPC as running before its message is there, and waits for the message for ever: whoever
    trickles a few of them takes every place. So each unary method is served as one that streams its request (the
    same bytes on the wire), which lets us ask for the credential first and read under a deadline.
    """

    def __init__(self, gate: Gate, limits: TransportLimits, places: Places) -> None:
        self._gate = gate
        self._receive_s = limits.receive_s
        self._places = places

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401  # a handler or none; the stubs do not know of none
        handler = await continuation(details)
        if handler is None:  # no such method
            return handler
        decode, encode = _decoder(handler.request_deserializer), handler.response_serializer
        if handler.request_streaming:  # reflection
            return grpc.stream_stream_rpc_method_handler(
                self._conversation(details.method, handler.stream_stream), decode, encode
            )
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(details.method, handler.unary_stream), decode, encode
            )
        return grpc.stream_unary_rpc_method_handler(self._unary(details.method, handler.unary_unary), decode, encode)

    def _unary(self, method: str, behaviour: Any) -> Any:  # noqa: ANN401  # a handler of any message type
        async def guarded(_requests: object, context: Context) -> object:
            async with self._rendered(method, context) as place:
                await self._let_in(method, context, place)
                return await behaviour(await self._received(context), context)

        return guarded

    def _stream(self, method: str, behaviour: Any) -> Any:  # noqa: ANN401  # a handler of any message type
        async def guarded(_requests: object, context: Context) -> AsyncIterator[object]:
            async with self._rendered(method, context) as place:
                await self._let_in(method, context, place)
                place.stream()
                async for message in behaviour(await self._received(context), context):
                    yield message

        return guarded

    def _conversation(self, method: str, behaviour: Any) -> Any:  # noqa: ANN401  # a handler of any message type
        async def guarded(requests: object, context: Context) -> AsyncIterator[object]:
            async with self._rendered(method, context) as place:
                await self._let_in(method, context, place)
                place.stream()
                async for message in behaviour(requests, context):
                    yield message

        return guarded

    async def _let_in(self, method: str, context: Context, place: Place) -> None:
        """Take the place, for a caller.

        Raises:
            CallError: `overloaded`, `unauthenticated`.
        """
        place.enter()
        if method not in _OPEN:
            await place.identified(token_of(context))

    async def _received(self, context: Context) -> object:
        """Return the one message.

        Raises:
            CallError: `invalid_request`: not there in time, or not a message of this method.
        """
        try:
            async with asyncio.timeout(self._receive_s):
                message: object = await context.read()
        except TimeoutError:
            raise CallError(Reason.INVALID_REQUEST, f"A request must be complete in {self._receive_s:g} s.") from None
        if message is EOF or isinstance(message, _Malformed):
            raise CallError(Reason.INVALID_REQUEST, "The message is not well-formed protobuf of this method.")
        return message

    def _rendered(self, method: str, context: Context) -> "_Rendered":
        place = self._places.at("probes" if method in _OPEN else "grpc", operating=method in _OPERATING)
        return _Rendered(self._gate, method, context, place)


class _Rendered:
    """Around a handler: what it raises is told to the client as we would have it, its place is given back, and the
    access is noted."""

    def __init__(self, gate: Gate, method: str, context: Context, place: Place) -> None:
        self._gate = gate
        self._method = method
        self._context = context
        self._place = place
        self._began_s = time.monotonic()

    async def __aenter__(self) -> Place:
        return self._place

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome, told = self._judged(error)
        try:
            if told is not None:
                # gRPC keeps what `abort` raises in a circle, and the frames behind an error hold the whole request.
                told.__traceback__ = None
                del error, trace
                await _abort(self._context, told)
        finally:
            self._place.leave()
            duration_ms = round((time.monotonic() - self._began_s) * 1000, 3)
            self._gate.accessed(Access("grpc", "POST", self._method, outcome, duration_ms, self._place.name))

    def _judged(self, error: BaseException | None) -> tuple[str, CallError | None]:
        """The name of the status, and what to tell the client unless it was told or has left."""
        match error:
            case None:
                return "OK", None
            case CallError():
                return error.spec.grpc, error
            case asyncio.CancelledError() | GeneratorExit():
                return "CANCELLED", None
            case grpc.aio.AbortError():
                return "ABORTED", None
            case Exception():
                error_id = new_call_id()
                self._gate.unexpected(error_id, error)
                return "INTERNAL", CallError(Reason.INTERNAL, f"Unexpected error; quote {error_id} to the operator.")
            case _:
                return "INTERNAL", None


async def _abort(context: Context, error: CallError) -> None:
    status = wire.status(error)
    code = grpc.StatusCode[error.spec.grpc]
    await context.abort(code, status.message, ((_DETAILS, status.SerializeToString()),))


class _Malformed:
    """Stands for a message that could not be decoded: what a deserialiser raises, grpc.aio shows to the client."""


def _decoder(deserialize: Callable[[bytes], object] | None) -> Callable[[bytes], object]:
    def decode(data: bytes) -> object:
        try:
            return deserialize(data) if deserialize else _Malformed()
        except Exception:  # whatever the parser found: the message is not one of ours
            return _Malformed()

    return decode
