"""Requests over kept connections, to an engine that answers, refuses, leaves, hangs or speaks something else."""

import select
import socketserver
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker.errors import APIError, ImageNotFound, NotFound

from callgate_server.backends.docker.direct import Direct


def answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


ANSWERS = {
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
    "image": answer("404 Not Found", b'{"message":"No such image: sha256:0"}'),
    "container": answer("404 Not Found", b'{"message":"No such container: x"}'),
    "conflict": answer("409 Conflict", b"not JSON"),
}
# After these the connection is closed.
LAST_WORDS = {"last": answer("204 No Content"), "nonsense": b"hello?\r\n"}
UPGRADED = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"


class _Handler(socketserver.StreamRequestHandler):
    """Answers each request on a connection by its path; on other paths, not at all."""

    def handle(self) -> None:
        self.server.connections += 1  # type: ignore[attr-defined]
        while line := self.rfile.readline():
            method, path, _ = line.decode().split()
            name, body = path.rpartition("/")[2], self._body()
            if name == "echo":
                self.wfile.write(answer("200 OK", f"{method} {path} ".encode() + body))
            elif name in ANSWERS:
                self.wfile.write(ANSWERS[name])
            elif name in LAST_WORDS:
                self.wfile.write(LAST_WORDS[name])
                return
            elif name == "waits":
                self.server.released.wait(30)  # type: ignore[attr-defined]
                self.wfile.write(answer("204 No Content"))
            elif name == "attach":
                self.wfile.write(UPGRADED)
                self.wfile.write(self.rfile.read(4).upper())
                return
            else:
                self.server.released.wait(30)  # type: ignore[attr-defined]

    def _body(self) -> bytes:
        size = 0
        while (header := self.rfile.readline()) != b"\r\n":
            name, _, value = header.decode().partition(":")
            size = int(value) if name.lower() == "content-length" else size
        return self.rfile.read(size)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    connections = 0

    def __init__(self, path: str) -> None:
        super().__init__(path, _Handler)
        self.released = threading.Event()


@pytest.fixture
def server() -> Iterator[_Server]:
    with tempfile.TemporaryDirectory() as folder, _Server(f"{folder}/s") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def engine(server: _Server) -> Iterator[Direct]:
    engine = Direct(str(server.server_address), "1.41", 1)
    yield engine
    engine.close()


def test_requests_one_after_another_share_a_connection(engine: Direct, server: _Server) -> None:
    for _ in range(3):
        assert engine.ask("POST", "/echo", {"a": 1}) == b'POST /v1.41/echo {"a": 1}'
    assert engine.ask("DELETE", "/echo") == b"DELETE /v1.41/echo "
    assert engine.ask("GET", "/chunked") == b"abc"
    assert server.connections == 1


def test_requests_at_the_same_time_do_not_share_one(server: _Server) -> None:
    engine = Direct(str(server.server_address), "1.41", 20, connections=2)
    other = threading.Thread(target=engine.ask, args=("GET", "/waits"))
    other.start()
    _wait_for(server, 1)
    assert engine.ask("GET", "/echo") == b"GET /v1.41/echo "
    assert server.connections == 2
    server.released.set()
    other.join()
    engine.close()


def test_once_it_is_open_no_burst_makes_more_connections(server: _Server) -> None:
    engine = Direct(str(server.server_address), "1.41", 20, connections=3)
    engine.open()
    _wait_for(server, 3)
    others = [threading.Thread(target=engine.ask, args=("GET", "/echo")) for _ in range(20)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert server.connections == 3
    engine.close()


def test_of_an_engine_that_is_away_nothing_is_kept_open(tmp_path: Path) -> None:
    engine = Direct(str(tmp_path / "s"), "1.41", 1, connections=2)
    with pytest.raises(FileNotFoundError):
        engine.open()
    assert [connection.sock for connection in engine._all] == [None, None]


def _wait_for(server: _Server, connections: int) -> None:
    until = time.monotonic() + 20
    while server.connections < connections:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_connection_that_the_engine_has_closed_is_made_again(engine: Direct, server: _Server) -> None:
    for _ in range(3):
        assert engine.ask("GET", "/last") == b""
        # Until its end is here.
        assert select.select([engine._all[0].sock], [], [], 10)[0]
    assert server.connections == 3


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [("/image", ImageNotFound, 404), ("/container", NotFound, 404), ("/conflict", APIError, 409)],
)
def test_a_refusal_is_the_librarys_and_the_connection_stays(
    engine: Direct, server: _Server, path: str, kind: type[APIError], status: int
) -> None:
    with pytest.raises(APIError) as refused:
        engine.ask("POST", path)
    assert type(refused.value) is kind
    assert refused.value.status_code == status
    assert engine.ask("GET", "/echo")
    assert server.connections == 1


def test_an_answer_that_does_not_come_is_not_waited_for_and_not_taken_for_another(
    engine: Direct, server: _Server
) -> None:
    with pytest.raises(TimeoutError):
        engine.ask("GET", "/hangs")
    with pytest.raises(TimeoutError):
        engine.ask("GET", "/hangs", timeout_s=0.01)
    server.released.set()
    assert engine.ask("GET", "/echo") == b"GET /v1.41/echo "
    assert server.connections == 3


def test_what_is_no_http_is_a_lost_connection(engine: Direct) -> None:
    with pytest.raises(ConnectionError):
        engine.ask("GET", "/nonsense")
    with pytest.raises(ConnectionError):
        engine.upgrade("/nonsense")


def test_an_engine_that_is_away_cannot_be_reached(tmp_path: Path) -> None:
    engine = Direct(str(tmp_path / "s"), "1.41", 1)
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            engine.ask("GET", "/echo")
    with pytest.raises(FileNotFoundError):
        engine.upgrade("/attach")
    engine.close()


def test_a_stream_is_free_of_http_and_of_the_time_limit_of_requests(engine: Direct) -> None:
    with engine.upgrade("/attach") as stream:
        stream.settimeout(20)
        stream.sendall(b"ping")
        assert stream.recv(9) == b"PING"
        assert stream.recv(9) == b""


@pytest.mark.parametrize(
    ("path", "kind"), [("/container", NotFound), ("/echo", ConnectionError), ("/hangs", TimeoutError)]
)
def test_no_stream_is_no_stream(engine: Direct, path: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        engine.upgrade(path)


def test_after_a_renewal_no_connection_is_used_that_was_open_before(engine: Direct, server: _Server) -> None:
    for _ in range(3):
        engine.ask("GET", "/echo")
    assert server.connections == 1
    engine.renew()
    for _ in range(3):
        engine.ask("GET", "/echo")
    assert server.connections == 2


def test_a_renewal_leaves_what_is_under_way_alone(engine: Direct, server: _Server) -> None:
    stream = engine.upgrade("/attach")
    engine.ask("GET", "/echo")
    engine.renew()
    stream.sendall(b"word")
    assert stream.recv(4) == b"WORD"
    stream.close()
