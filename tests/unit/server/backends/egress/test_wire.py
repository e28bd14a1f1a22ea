import h11
import pytest

from callgate_server.backends.egress.pipes import FailedError
from callgate_server.backends.egress.wire import HttpWire
from callgate_server.execution.egress_rules import Why
from support.pipes import pair, read_all

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"


async def server(*said):
    """The gate's side towards a tool that said this, in these pieces, and then ended its side."""
    gate_end, tool_end = pair()
    for piece in said:
        await tool_end.write(piece)
    await tool_end.finish()
    return HttpWire(h11.SERVER, gate_end, Why.BAD_REQUEST), tool_end


async def test_a_request_is_read_however_it_is_cut():
    wire, _ = await server(*(bytes([byte]) for byte in POST + b"body"))
    request = await wire.next()
    assert (request.method, request.target) == (b"POST", b"/a")
    assert b"".join([data async for data in wire.body()]) == b"body"


async def test_the_end_of_the_other_side_is_no_request():
    wire, _ = await server()
    assert isinstance(await wire.next(), h11.ConnectionClosed)


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense\r\n\r\n",
        b"GET /a HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd",
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"GET /a HTT",
    ],
)
async def test_what_is_no_request_is_the_tools_fault(said):
    wire, _ = await server(said)
    with pytest.raises(FailedError, match="bad_request"):
        await wire.next()
    assert wire.may_answer


async def test_a_head_without_end_is_the_tools_fault():
    wire, _ = await server(b"GET /a HTTP/1.1\r\nHost: a\r\nX: ", *[b"x" * 4096] * 17)
    with pytest.raises(FailedError, match="bad_request"):
        await wire.next()


@pytest.mark.parametrize(
    "body",
    [b"4\r\nab", b"zz\r\n", b"4\r\nabcdXX\r\n", b"4\r\nabcd\r\n0\r\nbad trailer\r\n\r\n", b"4 \nabcd\r\n"],
)
async def test_a_body_that_is_cut_short_or_malformed_is_the_tools_fault(body):
    wire, _ = await server(b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    await wire.next()
    with pytest.raises(FailedError, match="bad_request"):
        async for _ in wire.body():
            pass


async def test_trailers_are_dropped():
    chunks = b"4\r\nabcd\r\n0\r\nAuthorization: x\r\n\r\n"
    wire, _ = await server(b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    await wire.next()
    assert [data async for data in wire.body()] == [b"abcd"]


async def test_an_answer_ends_a_cycle_and_another_may_begin():
    wire, tool_end = await server(GET + GET)
    for _ in range(2):
        await wire.next()
        await wire.next()
        response = h11.Response(status_code=200, headers=[("Content-Length", "2")])
        await wire.send(response, h11.Data(data=b"ok"), h11.EndOfMessage())
        assert not wire.may_answer
        assert wire.next_cycle()
    assert isinstance(await wire.next(), h11.ConnectionClosed)
    assert (await tool_end.read()).endswith(b"ok")


async def test_with_a_body_unread_there_is_no_other_cycle():
    wire, _ = await server(POST)
    await wire.next()
    assert not wire.heard_all
    await wire.send(h11.Response(status_code=403, headers=[("Content-Length", "0")]), h11.EndOfMessage())
    assert not wire.next_cycle()


async def test_whoever_waits_for_a_word_before_the_body_is_noticed():
    wire, _ = await server(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    await wire.next()
    assert wire.awaits_continue


async def test_what_came_after_a_tunnel_was_asked_for_is_kept():
    wire, tool_end = await server(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\nearly")
    await wire.next()
    await wire.next()
    await wire.send(h11.Response(status_code=200, headers=[]))
    assert wire.trailing == b"early"
    assert not wire.next_cycle()
    assert (await tool_end.read()).startswith(b"HTTP/1.1 200")


async def test_a_header_that_cannot_be_sent_is_not_quoted():
    gate_end, upstream = pair()
    wire = HttpWire(h11.CLIENT, gate_end, Why.BAD_ANSWER)
    with pytest.raises(FailedError) as failed:
        # Neither side of the machine allows it at this point.
        await wire.send(h11.Data(data=b"s3cr3t"))
    assert failed.value.__cause__ is None
    assert failed.value.__suppress_context__
    await gate_end.finish()
    assert await read_all(upstream) == b""


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 5\r\n\r\nabcde",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
)
async def test_what_is_no_answer_is_the_upstreams_fault(said):
    gate_end, upstream = pair()
    wire = HttpWire(h11.CLIENT, gate_end, Why.BAD_ANSWER)
    await wire.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]), h11.EndOfMessage())
    await upstream.write(said)
    await upstream.finish()
    with pytest.raises(FailedError, match="bad_answer"):
        await wire.next()
