"""Both edges on real sockets against clients that mean harm, or leave. What stands behind them is played."""

import asyncio
import functools
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import grpc
import httpx
import pytest
import uvloop

from callgate import CallRefused
from callgate._status import from_rpc_error
from callgate_proto.v1 import gateway_pb2 as pb
from callgate_proto.v1 import gateway_pb2_grpc
from callgate_server.transports.limits import TransportLimits
from support.edge import (
    AUTHORIZED,
    CANARY,
    LARGE,
    TOKEN,
    Edge,
    authorized,
    edge,
    grpc_server,
    grpc_stub,
    http_port,
    metadata,
)
from support.h2 import DATA, PING, RST_STREAM, SETTINGS, RawConnection, frame, rpc_headers

HEAD = b"POST /v1/tools/text.echo/calls HTTP/1.1\r\nhost: a\r\nauthorization: Bearer " + TOKEN.encode() + b"\r\n"
JSON_HEAD = HEAD + b"content-type: application/json\r\n"
_T = TypeVar("_T")
EMPTY: dict[str, Any] = {"arguments": {}}


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on the loop that the gateway runs on."""

    @functools.wraps(test)
    def run(*args: Any, **options: Any) -> None:
        uvloop.run(test(*args, **options))

    return run


def client(port: int, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=AUTHORIZED, timeout=60, **options)


def wait_request(**fields: Any) -> pb.CallRequest:
    return pb.CallRequest(tool="demo.wait", arguments_json=b"{}", **fields)


async def refused(awaitable: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value


# Clients that are slow on purpose


async def trickle(port: int, start: bytes, drop: bytes) -> tuple[bytes, float]:
    """Send `start`, then a drop every 20 ms, until the other side ends; return what it said and how long it took."""
    began_s = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reading = asyncio.ensure_future(reader.read())
    writer.write(start)
    while not reading.done():
        if not writer.is_closing():
            writer.write(drop)
        await asyncio.wait((reading,), timeout=0.02)
    said = b"" if reading.exception() else reading.result()
    writer.close()
    return said, time.monotonic() - began_s


@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (HEAD + b"x-slow: ", b"a"),
        (b"", b"\r\n"),
        (JSON_HEAD + b"content-length: 100000\r\n\r\n", b" "),
        (JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["headers", "line breaks", "body", "chunks"],
)
@on_uvloop
async def test_slow_requests_are_ended_and_others_served_meanwhile(start: bytes, drop: bytes) -> None:
    async with edge(TransportLimits(receive_s=1, requests_per_agent=256)) as world, http_port(world) as port:
        slow = [asyncio.ensure_future(trickle(port, start, drop)) for _ in range(200)]
        async with client(port) as honest:
            for _ in range(5):
                assert (await honest.post("/v1/tools/text.echo/calls", json=EMPTY)).status_code == 200
        ended = await asyncio.gather(*slow)
    assert max(seconds for _, seconds in ended) < 60
    # Who goes on sending after the end may lose the reply to a reset; whatever arrives is this one.
    replies = [said for said, _ in ended if said]
    assert replies
    assert all(said.startswith(b"HTTP/1.1 408 ") for said in replies)


@on_uvloop
async def test_slow_bodies_of_strangers_take_no_place() -> None:
    start = b"POST /v1/tools/text.echo/calls HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n"
    async with edge(TransportLimits(concurrent_requests=5)) as world, http_port(world) as port:
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        for reader, writer in connections:
            writer.write(start)
            assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        async with client(port) as honest:
            assert (await honest.get("/v1/tools")).status_code == 200
        for _, writer in connections:
            writer.close()


@on_uvloop
async def test_trickled_rpcs_take_no_place_for_ever() -> None:
    async with (
        edge(TransportLimits(receive_s=1, concurrent_requests=10)) as world,
        grpc_server(world) as server,
        RawConnection(server.port) as slow,
    ):
        for number in range(10):
            stream = 2 * number + 1
            headers = rpc_headers(stream, "Call", ("authorization", f"Bearer {TOKEN}"))
            await slow.send(headers + frame(DATA, 0, stream, b"\0\0\0\0\x10"))
        async with asyncio.timeout(30), grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub, seen = gateway_pb2_grpc.GatewayStub(channel), []
            while not seen or seen[-1] is not grpc.StatusCode.OK:
                call = stub.ListTools(pb.ListToolsRequest(), metadata=metadata())
                seen.append(await call.code())
                await asyncio.sleep(0.05)
    assert set(seen) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


@pytest.mark.parametrize("said", [b"", b"PRI * HTTP"])
@on_uvloop
async def test_a_grpc_connection_that_says_nothing_is_ended(said: bytes) -> None:
    async with edge(TransportLimits(receive_s=0.5)) as world, grpc_server(world) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(said)
        async with asyncio.timeout(20):
            await reader.read()
        writer.close()


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@on_uvloop
async def test_a_client_that_does_not_read_its_answer_is_cut(accept: str) -> None:
    async with edge(TransportLimits(stalled_s=0.3)) as world, http_port(world) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        head = JSON_HEAD.replace(b"text.echo", b"text.large") + b"accept: " + accept.encode() + b"\r\n"
        writer.write(head + b'content-length: 16\r\n\r\n{"arguments":{}}')
        # Longer than it may refuse to read. What the kernel's buffers took is all that it gets.
        await asyncio.sleep(2)
        async with asyncio.timeout(30):
            received = 0
            try:
                while piece := await reader.read(65536):
                    received += len(piece)
            except ConnectionError:
                pass
        writer.close()
    assert 0 < received < LARGE


# Requests that are too large


@pytest.mark.parametrize("chunked", [True, False])
@on_uvloop
async def test_a_large_body_is_refused_and_the_reason_arrives(*, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b" " * 1024 * 1024

    async with edge() as world, http_port(world) as port, client(port) as large:
        reply = await large.post(
            "/v1/tools/text.echo/calls",
            content=pieces(),
            headers={"content-type": "application/json"} | ({} if chunked else {"content-length": str(50 * 2**20)}),
        )
    assert (reply.status_code, reply.json()["reason"]) == (413, "request_too_large")
    assert world.played.requests == []


@on_uvloop
async def test_deep_nesting_is_refused() -> None:
    deep = b'{"arguments":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    async with edge() as world, http_port(world) as port, client(port) as hostile:
        reply = await hostile.post(
            "/v1/tools/text.echo/calls", content=deep, headers={"content-type": "application/json"}
        )
    assert (reply.status_code, reply.json()["reason"]) == (400, "invalid_request")
    assert world.unexpected == []


@pytest.mark.parametrize("head", [{"x-large": "a" * 20_000}, {f"x-{number}": "a" for number in range(500)}])
@on_uvloop
async def test_a_large_head_is_refused(head: dict[str, str]) -> None:
    async with edge() as world, http_port(world) as port, client(port) as large:
        assert (await large.get("/v1/tools", headers=head)).status_code == 431


@on_uvloop
async def test_a_large_message_is_refused() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        message = pb.CallRequest(tool="text.echo", arguments_json=b" " * 2 * 1024 * 1024)
        error = await refused(stub.Call(message, metadata=metadata()))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # The words by which a client tells it from other things that there are too many of.
    refusal = from_rpc_error(error, "h:1")
    assert isinstance(refusal, CallRefused)
    assert refusal.reason == "request_too_large"
    assert world.played.requests == []


@on_uvloop
async def test_large_metadata_is_refused() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        large = (*metadata(), ("x-large", "a" * 20_000))
        error = await refused(stub.ListTools(pb.ListToolsRequest(), metadata=large))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# More than there is room for


async def first(count: int, awaitables: Sequence[Awaitable[_T]]) -> list[_T]:
    """Return what the first `count` of them give; the others go on."""
    done: set[asyncio.Future[_T]] = set()
    waiting = {asyncio.ensure_future(awaitable) for awaitable in awaitables}
    async with asyncio.timeout(60):
        while len(done) < count:
            ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= ended
    return [future.result() for future in done]


@on_uvloop
async def test_a_flood_of_rpcs_is_refused_at_once_and_those_that_run_are_answered() -> None:
    async with (
        edge(TransportLimits(concurrent_requests=128, requests_per_agent=128)) as world,
        grpc_stub(world) as stub,
    ):
        calls = [stub.Call(wait_request(), metadata=metadata()) for _ in range(1000)]
        refused_codes = await first(1000 - 128, [call.code() for call in calls])
        assert set(refused_codes) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        world.played.release.set()
        codes = [await call.code() for call in calls]
    assert codes.count(grpc.StatusCode.OK) == len(world.played.calls_seen) == 128


@on_uvloop
async def test_a_flood_of_requests_is_refused_at_once_and_probes_are_answered() -> None:
    limits = TransportLimits(concurrent_requests=20, requests_per_agent=20)
    async with edge(limits) as world, http_port(world) as port:
        pool = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with client(port, limits=pool) as flood:
            asked = [asyncio.ensure_future(flood.post("/v1/tools/demo.wait/calls", json=EMPTY)) for _ in range(200)]
            refusals = await first(180, asked)
            probe = await flood.get("/healthz")
            world.played.release.set()
            replies = await asyncio.gather(*asked)
    assert {reply.status_code for reply in refusals} == {503}
    assert {(reply.headers["retry-after"], reply.json()["reason"]) for reply in refusals} == {("1", "overloaded")}
    assert probe.status_code == 200
    assert sum(reply.status_code == 200 for reply in replies) == 20


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110  # nobody tells when
            await asyncio.sleep(0.01)


async def empty(world: Edge) -> None:
    """Wait until nobody has a place."""
    await until(lambda: len(world.places) == 0)


@on_uvloop
async def test_one_agent_cannot_keep_others_out_over_grpc_nor_all_of_them_the_kill_switch() -> None:
    limits = TransportLimits(concurrent_requests=8, requests_per_agent=4, streams_per_agent=2)
    async with edge(limits) as world, grpc_stub(world) as stub:
        made = (await stub.Call(wait_request(asynchronous=True), metadata=metadata())).summary.call_id
        followers = []
        for agent in ("bot", "bot1", "bot2", "bot3"):
            for _ in range(2):
                followers.append(stub.FollowCall(pb.FollowCallRequest(call_id=made), metadata=metadata(agent)))
                assert (await followers[-1].read()).event.accepted.call_id == made
            if agent == "bot":
                one_more = stub.FollowCall(pb.FollowCallRequest(call_id=made), metadata=metadata())
                error = await refused(one_more.read())
                assert (await stub.GetCall(pb.GetCallRequest(call_id=made), metadata=metadata())).summary
                assert (await stub.ListTools(pb.ListToolsRequest(), metadata=metadata("bot1"))).tools
        full = await refused(stub.ListTools(pb.ListToolsRequest(), metadata=metadata("root")))
        stopped = await stub.Stop(pb.StopRequest(agent="bot"), metadata=metadata("root"))
        for follower in followers:
            follower.cancel()
        await empty(world)
        assert (await stub.ListTools(pb.ListToolsRequest(), metadata=metadata())).tools
    assert (error.code(), "2 event streams" in (error.details() or "")) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    assert full.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stopped.stopped.agent == "bot"


@on_uvloop
async def test_one_agent_cannot_keep_others_out_over_http_nor_all_of_them_the_kill_switch() -> None:
    limits = TransportLimits(concurrent_requests=8, requests_per_agent=4, streams_per_agent=2)
    async with edge(limits) as world, http_port(world) as port, AsyncExitStack() as held:
        web = await held.enter_async_context(client(port))
        made = (await web.post("/v1/tools/demo.wait/calls", json={**EMPTY, "async": True})).json()["call_id"]

        async def follow(agent: str) -> int:
            head = f"GET /v1/calls/{made}/events HTTP/1.1\r\nhost: a\r\nauthorization: "
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            held.callback(writer.close)
            writer.write(f"{head}{authorized(agent)['authorization']}\r\n\r\n".encode())
            return int((await reader.readline()).split()[1])

        assert [await follow("bot") for _ in range(3)] == [200, 200, 503]
        assert (await web.get(f"/v1/calls/{made}")).status_code == 200
        assert [await follow(agent) for agent in ("bot1", "bot2", "bot3") for _ in range(2)] == [200] * 6
        full = await web.get("/v1/tools", headers=authorized("root"))
        stopped = await web.post("/v1/stops", json={"agent": "bot"}, headers=authorized("root"))
        await held.aclose()
        await empty(world)
    assert (full.status_code, full.json()["reason"]) == (503, "overloaded")
    assert (stopped.status_code, stopped.json()["stopped"]["agent"]) == (200, "bot")


@on_uvloop
async def test_slow_bodies_for_what_operators_do_keep_no_operator_out() -> None:
    head = "POST /v1/stops HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100\r\n"
    limits = TransportLimits(concurrent_requests=1, operator_requests=4)
    async with edge(limits) as world, http_port(world) as port, AsyncExitStack() as held:
        for number in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            held.callback(writer.close)
            writer.write(f"{head}authorization: {authorized(f'bot{number}')['authorization']}\r\n\r\n".encode())
        await until(lambda: world.places.taken(("reserve of anybody",)) == 2)
        async with client(port) as web:
            stopped = await web.post("/v1/stops", json={"agent": "bot"}, headers=authorized("root"))
        assert stopped.status_code == 200
        await held.aclose()
        await empty(world)


@on_uvloop
async def test_slow_probes_of_strangers_take_no_place_of_an_rpc() -> None:
    async with (
        edge(TransportLimits(concurrent_requests=2)) as world,
        grpc_server(world) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        slow = [channel.stream_stream("/grpc.health.v1.Health/Check")() for _ in range(3)]
        await until(lambda: world.places.taken(("probes",)) == 2)
        assert (await gateway_pb2_grpc.GatewayStub(channel).ListTools(pb.ListToolsRequest(), metadata=metadata())).tools
        for call in slow:
            call.cancel()
        await empty(world)


@on_uvloop
async def test_streams_that_nobody_reads_give_their_places_back_when_they_are_cut() -> None:
    async with edge() as world, http_port(world) as port, grpc_server(world) as server:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        stub = gateway_pb2_grpc.GatewayStub(channel)
        large = pb.StreamCallRequest(call=pb.CallRequest(tool="text.large", arguments_json=b"{}"))
        streams = [stub.StreamCall(large, metadata=metadata()) for _ in range(3)]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        body = b'{"arguments":{}}'
        head = HEAD.replace(b"text.echo", b"text.large") + b"content-type: application/json\r\n"
        writer.write(head + b"accept: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: world.places.taken(("streams", "acme", "bot")) == len(world.played.documents) == 4)
        await asyncio.sleep(0.2)
        streams[0].cancel()
        await channel.close()
        writer.transport.abort()
        await empty(world)


@on_uvloop
async def test_connections_beyond_the_ceiling_are_refused() -> None:
    async with edge(TransportLimits(connections=10)) as world, http_port(world) as port:
        kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        for _, kept_writer in kept:
            kept_writer.close()


@on_uvloop
async def test_grpc_connections_beyond_the_ceiling_are_ended() -> None:
    async with edge(TransportLimits(connections=5)) as world, grpc_server(world) as server, AsyncExitStack() as held:
        kept = [await held.enter_async_context(RawConnection(server.port)) for _ in range(5)]
        async with asyncio.timeout(20), RawConnection(server.port) as surplus:
            await surplus.ended.wait()
        assert not any(connection.ended.is_set() for connection in kept)


# Clients that leave


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
@pytest.mark.parametrize(("on_disconnect", "state"), [("detach", "succeeded"), ("cancel", "cancelled")])
@on_uvloop
async def test_an_http_client_may_leave_without_ending_its_call(accept: str, on_disconnect: str, state: str) -> None:
    async with edge() as world, http_port(world) as port:
        async with client(port) as leaving:
            asked = asyncio.ensure_future(
                leaving.post(
                    "/v1/tools/demo.wait/calls",
                    json={"arguments": {}, "on_disconnect": on_disconnect},
                    headers={"accept": accept},
                )
            )
            await world.played.waiting.wait()
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        async with asyncio.timeout(20):
            await world.handled.wait()
        [running] = world.played.calls_seen
        assert running.cancelled.is_set() is (on_disconnect == "cancel")
        world.played.release.set()
        assert (await running.wait())["state"] == state
        async with client(port) as back:
            shown = (await back.get(f"/v1/calls/{running.call_id}")).json()
    assert shown["state"] == state


@on_uvloop
async def test_a_grpc_client_that_vanishes_does_not_end_its_call() -> None:
    async with edge() as world, grpc_server(world) as server:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
        call = gateway_pb2_grpc.GatewayStub(channel).Call(wait_request(), metadata=metadata())
        await world.played.waiting.wait()
        await channel.close()
        async with asyncio.timeout(20):
            await world.handled.wait()
        [running] = world.played.calls_seen
        assert not running.cancelled.is_set()
        world.played.release.set()
        assert (await running.wait())["state"] == "succeeded"
        assert call.done()


# Deadlines


@on_uvloop
async def test_the_deadline_of_an_rpc_reaches_the_pipeline_and_ends_the_wait() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        error = await refused(stub.Call(wait_request(), metadata=metadata(), timeout=2))
        await asyncio.wait_for(world.handled.wait(), 20)
    [wanted] = world.played.requests
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert wanted.deadline_ms is not None
    # The library rounds what it sends up.
    assert wanted.deadline_ms <= 3000


# Floods of frames


async def still_served(world: Edge, port: int) -> None:
    async with asyncio.timeout(60), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = gateway_pb2_grpc.GatewayStub(channel)
        assert (await stub.ListTools(pb.ListToolsRequest(), metadata=metadata())).tools


@on_uvloop
async def test_rapid_resets_reach_nothing_behind_the_edge() -> None:
    async with edge() as world, grpc_server(world) as server, RawConnection(server.port) as hostile:
        for number in range(20_000):
            stream = 2 * number + 1
            await hostile.send(rpc_headers(stream, "Call") + frame(RST_STREAM, 0, stream, b"\0\0\0\x08"))
        await still_served(world, server.port)
    assert world.played.requests == []


@on_uvloop
async def test_a_flood_of_pings_ends_its_connection() -> None:
    async with edge() as world, grpc_server(world) as server:
        async with RawConnection(server.port) as hostile:
            sent = 0
            while not hostile.ended.is_set():
                assert sent < 100_000
                await hostile.send(frame(PING, payload=b"12345678"))
                sent += 1
        await still_served(world, server.port)


@on_uvloop
async def test_a_flood_of_settings_starves_nobody() -> None:
    async with edge() as world, grpc_server(world) as server, RawConnection(server.port) as hostile:
        for _ in range(2_000):
            await hostile.send(frame(SETTINGS) * 10)
        await still_served(world, server.port)


# What must not be seen


@on_uvloop
async def test_no_secret_is_in_an_answer_or_a_log_at_any_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    async with edge() as world, http_port(world) as port, grpc_stub(world) as stub:
        async with client(port) as honest:
            await honest.get(f"/v1/calls/{CANARY}?key={CANARY}")
            for accept in ("application/json", "text/event-stream"):
                reply = await honest.post("/v1/tools/demo.broken/calls", json=EMPTY, headers={"accept": accept})
                said += [(reply.status_code, reply.text, str(reply.headers))]
        for _ in range(2):
            error = await refused(
                stub.Call(pb.CallRequest(tool="demo.broken", arguments_json=b"{}"), metadata=metadata())
            )
            said += [(error.code(), error.details(), repr(error.trailing_metadata()), error.debug_error_string())]
    assert len(world.unexpected) == 4
    server_logs = [record.getMessage() + str(record.exc_info) for record in caplog.records if record.name != "httpx"]
    for text in (repr(said), repr(server_logs), repr(world.accessed)):
        assert CANARY not in text
        assert TOKEN not in text


@on_uvloop
async def test_both_edges_give_the_same_answer() -> None:
    async with edge() as world, http_port(world) as port, grpc_stub(world) as stub:
        async with client(port) as one:
            over_http = (await one.post("/v1/tools/text.echo/calls", json={"arguments": {"n": 2**53 + 1}})).json()
        over_grpc = (
            await stub.Call(
                pb.CallRequest(tool="text.echo", arguments_json=b'{"n":9007199254740993}'), metadata=metadata()
            )
        ).answer
    assert json.loads(over_grpc.result_json) == over_http["result"] == {"n": 2**53 + 1}
    assert (over_grpc.state, over_grpc.tool, over_grpc.sandbox.backend) == (
        over_http["state"],
        over_http["tool"],
        over_http["sandbox"]["backend"],
    )
    first, second = world.played.requests
    assert (first.tool, first.arguments_json) == (second.tool, second.arguments_json)


@on_uvloop
async def test_garbage_before_and_after_requests_is_refused() -> None:
    async with edge() as world, http_port(world) as port:
        for garbage in (b"\x00" * 100, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET \xff HTTP/1.1\r\n\r\n", b"]" * 5000):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(garbage)
            async with asyncio.timeout(20):
                assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
            writer.close()
    assert world.unexpected == []


@on_uvloop
async def test_smuggled_lengths_are_refused() -> None:
    both = (
        JSON_HEAD + b"content-length: 16\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/tools HTTP/1.1\r\n\r\n"
    )
    twice = JSON_HEAD + b'content-length: 16\r\ncontent-length: 17\r\n\r\n{"arguments":{}}'
    async with edge() as world, http_port(world) as port:
        for request in (both, twice):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            async with asyncio.timeout(20):
                assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
            writer.close()
    assert world.played.requests == []
