import asyncio
import gc
import json
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from callgate_proto.envelope import render
from callgate_proto.v1 import gateway_pb2 as pb
from callgate_server.model.call import CallRequest
from callgate_server.transports.grpc import CALL_ID
from callgate_server.transports.limits import TransportLimits
from callgate_server.transports.server import GrpcServer
from support.edge import CANARY, REFUSALS, TOKEN, Edge, edge, grpc_server, grpc_stub, metadata, noisy

Ask = Callable[..., Awaitable[Any]]
METHODS: list[tuple[str, Any]] = [
    ("Call", pb.CallRequest(tool="text.echo", arguments_json=b"{}")),
    ("GetCall", pb.GetCallRequest(call_id="c1")),
    ("CancelCall", pb.CancelCallRequest(call_id="c1")),
    ("ListCalls", pb.ListCallsRequest()),
    ("ListTools", pb.ListToolsRequest()),
    ("GetTool", pb.GetToolRequest(tool="text.echo")),
    ("ListApprovals", pb.ListApprovalsRequest()),
    ("GetApproval", pb.GetApprovalRequest()),
    ("DecideApproval", pb.DecideApprovalRequest()),
    ("ListDeadLetters", pb.ListDeadLettersRequest()),
    ("GetDeadLetter", pb.GetDeadLetterRequest()),
    ("RedriveDeadLetter", pb.RedriveDeadLetterRequest()),
    ("DiscardDeadLetter", pb.DiscardDeadLetterRequest()),
    ("SettleCall", pb.SettleCallRequest()),
    ("CreateTask", pb.CreateTaskRequest()),
    ("ListTasks", pb.ListTasksRequest()),
    ("GetTask", pb.GetTaskRequest()),
    ("EndTask", pb.EndTaskRequest()),
    ("ListBreakers", pb.ListBreakersRequest()),
    ("SetBreaker", pb.SetBreakerRequest()),
    ("ListStops", pb.ListStopsRequest()),
    ("Stop", pb.StopRequest()),
    ("Resume", pb.ResumeRequest()),
]


def request(tool: str = "text.echo", **fields: Any) -> pb.CallRequest:
    return pb.CallRequest(tool=tool, arguments_json=fields.pop("arguments_json", b"{}"), **fields)


def channel_to(server: GrpcServer) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")


async def refused(awaitable: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value


def info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    detail = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(detail)
    return detail


async def test_a_call_waits_for_its_answer() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        reply = await stub.Call(
            request(arguments_json=b'{"n":9007199254740993}', idempotency_key="k"), metadata=metadata()
        )
    assert (reply.answer.state, reply.answer.result_json) == ("succeeded", b'{"n":9007199254740993}')
    [wanted] = world.played.requests
    assert (wanted.idempotency_key, wanted.deadline_ms, wanted.transport) == ("k", None, "grpc")


async def test_the_text_for_a_model_comes_to_who_asks_for_it() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        plain = (await stub.Call(request("text.noisy"), metadata=metadata())).answer
        asked = (await stub.Call(request("text.noisy", content_text=True), metadata=metadata())).answer
        streamed = [
            event.answer
            async for event in stub.StreamCall(
                pb.StreamCallRequest(call=request("text.noisy", content_text=True)), metadata=metadata()
            )
        ][-1]
        world.played.documents["c1"] = noisy("c1")
        wanted = pb.GetCallRequest(call_id="c1", content_text=True)
        stored = (await stub.GetCall(wanted, metadata=metadata())).answer
        cancel = pb.CancelCallRequest(call_id="c1", content_text=True)
        cancelled = (await stub.CancelCall(cancel, metadata=metadata())).answer
    assert not plain.content.HasField("text")
    for answer in (asked, streamed, stored, cancelled):
        assert answer.content.text == render(noisy(answer.call_id))


async def test_an_outcome_is_an_answer_with_status_ok() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        reply = await stub.Call(request("text.noisy"), metadata=metadata())
    assert (reply.answer.state, reply.answer.error.reason, reply.answer.exit.code) == ("failed", "tool_failed", 3)


@pytest.mark.parametrize(
    ("tool", "code"),
    [
        ("demo.denied", grpc.StatusCode.PERMISSION_DENIED),
        ("demo.misfit", grpc.StatusCode.INVALID_ARGUMENT),
        ("demo.full", grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_a_refusal_is_a_status_with_details(tool: str, code: grpc.StatusCode) -> None:
    async with edge() as world, grpc_stub(world) as stub:
        error = await refused(stub.Call(request(tool), metadata=metadata()))
    assert (error.code(), error.details()) == (code, REFUSALS[tool].message)
    assert (info(error).reason, info(error).domain) == (REFUSALS[tool].reason.value, "callgate")
    assert info(error).metadata.get("call_id") == REFUSALS[tool].call_id


async def test_the_call_id_comes_before_the_answer() -> None:
    async with edge() as world, grpc_server(world) as server, channel_to(server) as channel:
        # Over the wire a unary answer is a stream of one; read as a stream, its head is seen when it comes.
        method = channel.unary_stream("/callgate.v1.Gateway/Call", pb.CallRequest.SerializeToString)
        call = method(request("demo.wait"), metadata=metadata())
        early = dict(await call.initial_metadata())
        world.played.release.set()
        reply = pb.CallResponse.FromString(await call.read())
    assert early[CALL_ID] == reply.answer.call_id


async def test_a_tool_that_never_started_is_a_status_unary_and_an_event_in_a_stream() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        error = await refused(stub.Call(request("demo.late"), metadata=metadata()))
        events = [
            event
            async for event in stub.StreamCall(pb.StreamCallRequest(call=request("demo.late")), metadata=metadata())
        ]
    assert (error.code(), info(error).reason) == (grpc.StatusCode.UNAVAILABLE, "sandbox_unavailable")
    assert [event.WhichOneof("event") for event in events] == ["accepted", "error"]
    assert events[1].error.failure.reason == "sandbox_unavailable"


async def test_events_are_streamed_in_order() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        stream = stub.StreamCall(pb.StreamCallRequest(call=request("text.noisy")), metadata=metadata())
        events = [event async for event in stream]
    assert [(event.seq, event.WhichOneof("event")) for event in events] == [
        (0, "accepted"), (1, "output"), (2, "output"), (3, "answer")
    ]  # fmt: skip


async def test_a_refusal_before_the_stream_is_a_status() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        stream = stub.StreamCall(pb.StreamCallRequest(call=request("demo.denied")), metadata=metadata())
        error = await refused(stream.read())
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(("method", "message"), METHODS)
@pytest.mark.parametrize("credentials", [(), ("Bearer wrong",), (f"Basic {TOKEN}",), (f"Bearer {TOKEN}",) * 2])
async def test_every_method_needs_one_credential(method: str, message: Any, credentials: tuple[str, ...]) -> None:
    async with edge() as world, grpc_stub(world) as stub:
        sent = tuple(("authorization", value) for value in credentials)
        error = await refused(getattr(stub, method)(message, metadata=sent))
    assert (error.code(), info(error).reason) == (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated")
    assert TOKEN not in repr((error.details(), error.trailing_metadata(), error.initial_metadata()))


async def test_calls_are_listed_shown_and_cancelled() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        waiting = stub.Call(request("demo.wait"), metadata=metadata())
        await world.played.waiting.wait()
        [listed] = (await stub.ListCalls(pb.ListCallsRequest(limit=5), metadata=metadata())).calls
        shown = await stub.GetCall(pb.GetCallRequest(call_id=listed.call_id), metadata=metadata())
        cancelled = await stub.CancelCall(pb.CancelCallRequest(call_id=listed.call_id), metadata=metadata())
        again = await stub.CancelCall(pb.CancelCallRequest(call_id=listed.call_id), metadata=metadata())
        afterwards = await stub.GetCall(pb.GetCallRequest(call_id=listed.call_id), metadata=metadata())
        answered = await waiting
        absent = await refused(stub.GetCall(pb.GetCallRequest(call_id="no"), metadata=metadata()))
    assert shown.summary.state == "running"
    assert cancelled.answer == again.answer == afterwards.answer == answered.answer
    assert answered.answer.state == "cancelled"
    assert absent.code() is grpc.StatusCode.NOT_FOUND


async def test_tools_are_listed_and_shown() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        [tool] = (await stub.ListTools(pb.ListToolsRequest(), metadata=metadata())).tools
        same = (await stub.GetTool(pb.GetToolRequest(tool="text.echo"), metadata=metadata())).tool
        absent = await refused(stub.GetTool(pb.GetToolRequest(tool="x.y"), metadata=metadata()))
    assert tool == same
    assert json.loads(tool.output_json)["maximum"] == 2**53 + 1
    assert info(absent).reason == "unknown_tool"


async def test_a_negative_limit_is_refused() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        error = await refused(stub.ListCalls(pb.ListCallsRequest(limit=-1), metadata=metadata()))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_deadline_of_the_rpc_is_passed_on() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        await stub.Call(request(), metadata=metadata(), timeout=20)
        await stub.Call(request(deadline_ms=700), metadata=metadata(), timeout=20)
    first, second = world.played.requests
    assert first.deadline_ms is not None
    # The library rounds what it sends up.
    assert 1000 < first.deadline_ms <= 21_000
    assert second.deadline_ms == 700


@pytest.mark.parametrize(("on_disconnect", "cancelled"), [("DETACH", False), ("CANCEL", True), ("UNSPECIFIED", False)])
@pytest.mark.parametrize("streaming", [True, False])
async def test_leaving_cancels_a_call_only_if_it_asked_for_that(
    on_disconnect: str, *, cancelled: bool, streaming: bool
) -> None:
    async with edge() as world, grpc_stub(world) as stub:
        wanted = request("demo.wait", on_disconnect=pb.OnDisconnect.Value(f"ON_DISCONNECT_{on_disconnect}"))
        call = (
            stub.StreamCall(pb.StreamCallRequest(call=wanted), metadata=metadata())
            if streaming
            else stub.Call(wanted, metadata=metadata())
        )
        if streaming:
            await call.read()
        await world.played.waiting.wait()
        call.cancel()
        [running] = world.played.calls_seen
        await handled(world)
        if cancelled:
            # A stream that nobody reads any more ends after its handler.
            async with asyncio.timeout(10):
                await running.cancelled.wait()
        assert running.cancelled.is_set() is cancelled
        world.played.release.set()
        document = await running.wait()
    assert document["state"] == ("cancelled" if cancelled else "succeeded")


@pytest.mark.parametrize(("on_disconnect", "cancelled"), [("DETACH", False), ("CANCEL", True)])
async def test_a_call_that_is_just_being_claimed_is_not_cut_in_half(on_disconnect: str, *, cancelled: bool) -> None:
    async with edge() as world, grpc_stub(world) as stub:
        world.played.hold_start = asyncio.Event()
        wanted = request("demo.wait", on_disconnect=pb.OnDisconnect.Value(f"ON_DISCONNECT_{on_disconnect}"))
        call = stub.Call(wanted, metadata=metadata())
        await world.played.starting.wait()
        call.cancel()
        await handled(world)
        world.played.hold_start.set()
        await world.played.waiting.wait()
        world.played.release.set()
        [running] = world.played.calls_seen
        document = await running.wait()
    assert document["state"] == ("cancelled" if cancelled else "succeeded")


async def handled(world: Edge) -> None:
    """Wait until the handler of the one RPC has ended."""
    async with asyncio.timeout(10):
        await world.handled.wait()


async def test_no_text_of_an_exception_reaches_a_client() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        unary = await refused(stub.Call(request("demo.broken"), metadata=metadata()))
        stream = stub.StreamCall(pb.StreamCallRequest(call=request("demo.broken")), metadata=metadata())
        streamed = await refused(stream.read())
    assert [CANARY in str(error) for _, error in world.unexpected] == [True, True]
    for (error_id, _), error in zip(world.unexpected, (unary, streamed), strict=True):
        assert error.code() is grpc.StatusCode.INTERNAL
        assert error.details() == f"Unexpected error; quote {error_id} to the operator."
        assert CANARY not in repr((error.debug_error_string(), error.trailing_metadata()))


async def test_what_is_not_protobuf_is_a_malformed_request() -> None:
    async with edge() as world, grpc_server(world) as server, channel_to(server) as channel:
        call = channel.unary_unary("/callgate.v1.Gateway/Call")
        error = await refused(call(b"\xff\xff\xff", metadata=metadata()))
    assert (error.code(), info(error).reason) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")
    assert "google" not in (error.details() or "")
    assert world.unexpected == []


async def test_the_access_log_has_methods_and_outcomes() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        await stub.Call(request(), metadata=metadata())
        await refused(stub.Call(request("demo.denied"), metadata=metadata()))
    assert [(access.route, access.status, access.caller) for access in world.accessed] == [
        ("/callgate.v1.Gateway/Call", "OK", "acme/bot"),
        ("/callgate.v1.Gateway/Call", "PERMISSION_DENIED", "acme/bot"),
    ]


async def test_health_is_open_and_can_be_switched() -> None:
    async with edge() as world, grpc_server(world) as server, channel_to(server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        states = {}
        for serving in (True, False):
            server.set_serving(serving=serving)
            for service in ("", "callgate.v1.Gateway"):
                reply = await health.Check(health_pb2.HealthCheckRequest(service=service))
                states[serving, service] = reply.status == reply.SERVING
        unknown = await refused(health.Check(health_pb2.HealthCheckRequest(service="x")))
    assert all(said is serving for (serving, _), said in states.items())
    assert unknown.code() is grpc.StatusCode.NOT_FOUND


async def test_health_cannot_be_watched_for_ever_by_anybody() -> None:
    async with edge() as world, grpc_server(world) as server, channel_to(server) as channel:
        error = await refused(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()).read())
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert world.unexpected == []


@pytest.mark.parametrize(
    ("reflection", "sent", "code"),
    [
        (True, metadata(), None),
        (True, (), grpc.StatusCode.UNAUTHENTICATED),
        (False, metadata(), grpc.StatusCode.UNIMPLEMENTED),
    ],
)
async def test_reflection_is_off_unless_asked_for_and_needs_a_credential(
    *, reflection: bool, sent: tuple[tuple[str, str], ...], code: grpc.StatusCode | None
) -> None:
    async with (
        edge() as world,
        grpc_server(world, reflection=reflection) as server,
        channel_to(server) as channel,
    ):
        stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(metadata=sent)
        if code is None:
            await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            reply = await stream.read()
            assert "callgate.v1.Gateway" in {service.name for service in reply.list_services_response.service}
        else:
            # Nothing is sent: a message that meets a stream which is over is an error of the client's own library.
            assert (await refused(stream.read())).code() is code


@pytest.mark.parametrize("method", ["Call", "StreamCall"])
async def test_a_message_that_does_not_come_is_not_waited_for(method: str) -> None:
    async with (
        edge(TransportLimits(receive_s=0.2)) as world,
        grpc_server(world) as server,
        channel_to(server) as channel,
    ):
        call = channel.stream_stream(f"/callgate.v1.Gateway/{method}")(metadata=metadata())
        error = await refused(call.read())
    assert (error.code(), info(error).reason) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")


async def test_without_a_credential_the_message_is_not_waited_for() -> None:
    async with edge() as world, grpc_server(world) as server, channel_to(server) as channel:
        error = await refused(channel.stream_stream("/callgate.v1.Gateway/Call")().read())
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_call_without_a_message_is_malformed() -> None:
    async with edge() as world, grpc_server(world) as server, channel_to(server) as channel:
        call = channel.stream_stream("/callgate.v1.Gateway/Call")(metadata=metadata())
        await call.done_writing()
        error = await refused(call.read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_method_is_unimplemented() -> None:
    async with edge() as world, grpc_server(world) as server, channel_to(server) as channel:
        error = await refused(channel.unary_unary("/callgate.v1.Gateway/Drop")(b"", metadata=metadata()))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_every_method_of_the_service_is_tested_for_its_credential() -> None:
    service = pb.DESCRIPTOR.services_by_name["Gateway"]
    assert {method.name for method in service.methods} == {name for name, _ in METHODS} | {"StreamCall", "FollowCall"}


async def test_what_a_refused_request_held_goes_with_it_and_waits_for_no_collector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[weakref.ref[CallRequest]] = []

    class Watched(CallRequest):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            held.append(weakref.ref(self))

    monkeypatch.setattr("callgate_server.transports.wire.CallRequest", Watched)
    async with edge() as world, grpc_stub(world) as stub:
        gc.disable()
        try:
            for _ in range(5):
                await refused(stub.Call(request("demo.denied"), metadata=metadata()))
            assert len(held) == 5
            world.played.requests.clear()
            # The server's end of the last one may still be on its way out.
            async with asyncio.timeout(5):
                while any(one() for one in held):  # noqa: ASYNC110  # nothing tells of it
                    await asyncio.sleep(0.01)
        finally:
            gc.enable()
