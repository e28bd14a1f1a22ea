"""Generated requests against both edges: no error of ours, nothing that the description does not say, no hang."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import schemathesis
import uvloop
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.schemas import OpenApiSchema

from callgate_proto.v1 import gateway_pb2 as pb
from callgate_server.transports.limits import TransportLimits
from support.edge import AUTHORIZED, CANARY, Edge, edge, grpc_server, http_port, metadata

CREDENTIAL = {"Authorization": AUTHORIZED["authorization"]}
PAGES = [
    ("/v1/tools/{tool}/calls", "post"),
    ("/v1/calls", "get"),
    ("/v1/calls/{call_id}", "get"),
    ("/v1/calls/{call_id}/cancel", "post"),
    ("/v1/calls/{call_id}/events", "get"),
    ("/v1/calls/{call_id}/settle", "post"),
    ("/v1/approvals", "get"),
    ("/v1/approvals/{call_id}", "get"),
    ("/v1/approvals/{call_id}/decision", "post"),
    ("/v1/dead-letters", "get"),
    ("/v1/dead-letters/{call_id}", "get"),
    ("/v1/dead-letters/{call_id}/redrive", "post"),
    ("/v1/dead-letters/{call_id}/discard", "post"),
    ("/v1/tasks", "post"),
    ("/v1/tasks", "get"),
    ("/v1/tasks/{task_id}", "get"),
    ("/v1/tasks/{task_id}/end", "post"),
    ("/v1/stops", "get"),
    ("/v1/stops", "post"),
    ("/v1/stops/resume", "post"),
    ("/v1/breakers", "get"),
    ("/v1/breakers", "post"),
    ("/v1/tools", "get"),
    ("/v1/tools/{tool}", "get"),
    ("/healthz", "get"),
    ("/readyz", "get"),
    ("/metrics", "get"),
]
TOOLS = ("text.echo", "text.noisy", "demo.denied")
MANY = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
)
PLAIN_REFUSALS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
}


@dataclass(frozen=True)
class Ports:
    http: int
    grpc: int
    world: Edge


@pytest.fixture(scope="module")
def ports() -> Iterator[Ports]:
    """Both edges on a loop in a thread of their own, as they run in production."""
    opened: list[Ports] = []
    ready, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        limits = TransportLimits(receive_s=5)
        async with edge(limits) as world, http_port(world) as http, grpc_server(world) as server:
            opened.append(Ports(http, server.port, world))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: uvloop.run(serve()), name="edges")
    thread.start()
    assert ready.wait(30)
    yield opened[0]
    loops[0].call_soon_threadsafe(stop.set)
    thread.join(30)
    assert not thread.is_alive()


def with_tools(_context: Any, path_parameters: dict[str, Any]) -> dict[str, Any]:
    """Half of the generated names are of tools that exist."""
    name = path_parameters.get("tool") if path_parameters else None
    if isinstance(name, str) and len(name) % 2:
        return {"tool": TOOLS[len(name) % len(TOOLS)]}
    return path_parameters


@pytest.fixture(scope="module")
def described(ports: Ports) -> OpenApiSchema:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{ports.http}/openapi.json", headers=dict(CREDENTIAL))
    schema.hook("map_path_parameters")(with_tools)
    return schema


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("path", "method"), PAGES)
def test_generated_requests_are_answered_as_described(
    path: str, method: str, mode: GenerationMode, ports: Ports, described: OpenApiSchema
) -> None:
    operation = described[path][method]
    answered: Counter[int] = Counter()

    @given(case=operation.as_strategy(generation_mode=mode))
    @MANY
    def answer_as_described(case: Case) -> None:
        # A parameter without a value is not sent, and what may be wrong with the request goes with it.
        assume(all(value not in (None, [], {}) for value in (case.query or {}).values()))
        reply = case.call_and_validate(headers=dict(CREDENTIAL), timeout=30)
        answered[reply.status_code] += 1
        assert reply.status_code < 500
        assert CANARY not in reply.text
        assert ports.world.unexpected == []

    try:
        answer_as_described()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # this page takes nothing that could be wrong
    else:
        assert answered
    if (path, mode) == ("/v1/tools/{tool}/calls", GenerationMode.POSITIVE):
        assert answered[200] > 5


def test_every_page_is_generated_for(described: OpenApiSchema) -> None:
    pages = {(one.ok().path, one.ok().method) for one in described.get_all_operations()}
    assert pages == set(PAGES)


def _call(ports: Ports, method: str, message: bytes) -> grpc.StatusCode:
    with grpc.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
        call = channel.unary_stream(f"/callgate.v1.Gateway/{method}")(message, metadata=metadata(), timeout=30)
        said = b"".join(_messages(call)) + str(call.details()).encode() + repr(call.trailing_metadata()).encode()
        assert CANARY.encode() not in said
        code: grpc.StatusCode = call.code()
    return code


def _messages(call: Any) -> Iterator[bytes]:
    with suppress(grpc.RpcError):
        yield from call


METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["Gateway"].methods]
call_requests = st.builds(
    pb.CallRequest,
    tool=st.sampled_from(TOOLS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    arguments_json=st.sampled_from([b"{}", b'{"a":1}', b"[]", b"null", b"{", b'{"a":NaN}', b'{"a":1,"a":2}'])
    | st.binary(max_size=100),
    idempotency_key=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    deadline_ms=st.none() | st.integers(-(2**63), 2**63 - 1),
    on_disconnect=st.integers(0, 3),
)


@given(request=call_requests, streaming=st.booleans())
@MANY
def test_generated_calls_are_answered_or_refused_over_grpc(ports: Ports, request: Any, *, streaming: bool) -> None:
    message = pb.StreamCallRequest(call=request) if streaming else request
    code = _call(ports, "StreamCall" if streaming else "Call", message.SerializeToString())
    assert code in PLAIN_REFUSALS
    assert ports.world.unexpected == []


@given(method=st.sampled_from(METHODS), message=st.binary(max_size=200))
@MANY
def test_generated_bytes_are_answered_or_refused_over_grpc(ports: Ports, method: str, message: bytes) -> None:
    assert _call(ports, method, message) in PLAIN_REFUSALS
    assert ports.world.unexpected == []
