"""The protocol on a connection in memory; `tests/integration/test_edges.py` has it on real sockets."""

import asyncio
import json
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from callgate_server.transports.limits import TransportLimits
from callgate_server.transports.receipt import Receipt

LIMITS = TransportLimits(
    body_bytes=1000, header_bytes=400, receive_s=0.05, stalled_s=0.05, connections=2, retry_after_ms=1000
)
HEAD = b"GET / HTTP/1.1\r\nhost: a\r\n"


class Wire(asyncio.Transport):
    """What the protocol writes to, and whether it has closed or aborted."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = asyncio.Event()
        self.aborted = asyncio.Event()
        self.paused = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed.set()

    def abort(self) -> None:
        self.aborted.set()
        self.closed.set()

    def is_closing(self) -> bool:
        return self.closed.is_set()

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    @property
    def status(self) -> int | None:
        return int(self.written.split()[1]) if self.written else None


class Served:
    """An application that reads the body, then waits until it may answer."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.asked = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()
        self.answered = asyncio.Event()

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies.append(body)
        self.asked.set()
        await self.release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
        self.answered.set()


def connect(app: Any, state: ServerState | None = None, limits: TransportLimits = LIMITS) -> tuple[Receipt, Wire]:
    config = Config(app, http=Receipt, ws="none", lifespan="off", interface="asgi3", log_config=None, access_log=False)
    protocol, wire = Receipt(limits, config, state or ServerState()), Wire()
    protocol.connection_made(wire)
    return protocol, wire


async def passed(seconds: float) -> None:
    """Let deadlines of that length pass: what must *not* happen can only be waited for."""
    await asyncio.sleep(seconds)


async def test_a_complete_request_is_answered_and_the_connection_kept() -> None:
    app = Served()
    protocol, wire = connect(app)
    protocol.data_received(HEAD + b"content-length: 3\r\n\r\nabc")
    await app.answered.wait()
    await passed(2 * LIMITS.receive_s)
    assert (app.bodies, wire.status, wire.closed.is_set()) == ([b"abc"], 200, False)
    protocol.connection_lost(None)


@pytest.mark.parametrize(
    "trickle",
    [
        b"",
        b"\r\n" * 50,
        HEAD + b"x-slow: " + b"a" * 50,
        HEAD + b"content-length: 900\r\n\r\n" + b"a" * 50,
        HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 20,
        HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"1;" + b"x" * 50,
    ],
    ids=["silence", "line breaks", "head", "body", "chunks", "chunk extension"],
)
async def test_a_request_that_is_not_there_in_time_ends_the_connection(trickle: bytes) -> None:
    protocol, wire = connect(Served())
    for position in range(len(trickle)):
        protocol.data_received(trickle[position : position + 1])
    async with asyncio.timeout(5):
        await wire.closed.wait()
    assert wire.status == 408
    protocol.connection_lost(None)


async def test_idle_bytes_after_an_answer_do_not_keep_a_connection() -> None:
    app = Served()
    protocol, wire = connect(app)
    protocol.data_received(HEAD + b"\r\n")
    await app.answered.wait()
    protocol.data_received(b"\r\n")  # uvicorn's idle timer has stopped with this
    async with asyncio.timeout(5):
        await wire.closed.wait()
    protocol.connection_lost(None)


async def test_a_slow_answer_is_not_the_clients_fault() -> None:
    app = Served()
    app.release.clear()
    protocol, wire = connect(app)
    protocol.data_received(HEAD + b"\r\n")
    await app.asked.wait()
    protocol.data_received(b"\r\n")
    await passed(2 * LIMITS.receive_s)
    assert not wire.closed.is_set()
    app.release.set()
    await app.answered.wait()
    assert wire.status == 200
    protocol.connection_lost(None)


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"x-large: " + b"a" * 400 + b"\r\n\r\n",
        HEAD + b"x: y\r\n" * 400 + b"\r\n",
        b"GET /" + b"a" * 400 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["value", "fields", "path"],
)
async def test_a_large_head_is_refused_whole(head: bytes) -> None:
    app = Served()
    protocol, wire = connect(app)
    protocol.data_received(head)
    assert (wire.status, wire.closed.is_set(), app.bodies) == (431, True, [])
    assert json.loads(wire.written.split(b"\r\n\r\n")[1])["reason"] == "request_too_large"
    protocol.connection_lost(None)


@pytest.mark.parametrize("piece", [b"x", b"x-a: b\r\n"], ids=["one field", "many fields"])
async def test_a_head_without_end_is_cut_soon_after_its_cap(piece: bytes) -> None:
    protocol, wire = connect(Served())
    protocol.data_received(HEAD)
    sent = 0
    while not wire.closed.is_set():
        assert sent <= 2 * LIMITS.header_bytes
        protocol.data_received(piece)
        sent += len(piece)
    assert wire.status == 431
    protocol.connection_lost(None)


async def test_trailers_and_chunk_framing_are_bounded() -> None:
    app = Served()
    protocol, wire = connect(app)
    protocol.data_received(HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")
    sent = 0
    while not wire.closed.is_set():
        assert sent <= 2 * (LIMITS.header_bytes + LIMITS.body_bytes)
        protocol.data_received(b"x-trailer: b\r\n")
        sent += 14
    protocol.connection_lost(None)
    await passed(0)


async def test_what_is_not_http_is_refused() -> None:
    protocol, wire = connect(Served())
    protocol.data_received(b"\x16\x03\x01\x02\x00\x01\x00")
    assert (wire.status, wire.closed.is_set()) == (400, True)
    assert b"application/problem+json" in wire.written
    protocol.connection_lost(None)


async def test_a_few_requests_may_be_sent_ahead_but_not_thousands() -> None:
    app = Served()
    protocol, wire = connect(app)
    protocol.data_received((HEAD + b"\r\n") * 9)
    assert not wire.closed.is_set()
    again, crowded = connect(app)
    again.data_received((HEAD + b"\r\n") * 10_000)
    assert crowded.closed.is_set()
    assert len(again.pipeline) <= 8
    for one in (protocol, again):
        one.connection_lost(None)
    await passed(0)


async def test_connections_beyond_the_ceiling_are_refused_at_once() -> None:
    state = ServerState()
    kept = [connect(Served(), state) for _ in range(LIMITS.connections)]
    protocol, wire = connect(Served(), state)
    assert (wire.status, wire.closed.is_set()) == (503, True)
    assert b"retry-after: 1\r\n" in wire.written
    protocol.connection_lost(None)
    kept[0][0].connection_lost(None)
    again, open_wire = connect(Served(), state)
    assert open_wire.status is None
    for one in (kept[1][0], again):
        one.connection_lost(None)


async def test_a_client_that_does_not_read_is_cut() -> None:
    protocol, wire = connect(Served())
    protocol.pause_writing()
    async with asyncio.timeout(5):
        await wire.aborted.wait()
    protocol.connection_lost(None)


async def test_a_client_that_reads_again_in_time_is_kept() -> None:
    protocol, wire = connect(Served(), limits=TransportLimits(stalled_s=0.05, receive_s=60))
    protocol.pause_writing()
    protocol.resume_writing()
    await passed(0.1)
    assert not wire.aborted.is_set()
    protocol.connection_lost(None)


async def test_after_the_end_no_timer_is_left() -> None:
    protocol, wire = connect(Served())
    protocol.pause_writing()
    protocol.connection_lost(None)
    wire.closed.clear()
    await passed(2 * LIMITS.receive_s)
    assert not wire.closed.is_set()
