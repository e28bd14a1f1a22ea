"""An upstream on loopback whose answers a test writes, and which keeps what it was asked. As a proxy it answers too."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """`length` is what is announced, where that is not the truth."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None


# Of the call whose egress a test plays: what its tool finds in its environment.
MARK = "mark-of-the-call"


def gates(why: str, status: int, error: str = "egress_failed", mark: str = MARK) -> Answer:
    """What the gate says itself."""
    headers = {"Content-Type": "application/json", "Callgate-Egress": f"{mark} {error} {why}"}
    return Answer(json.dumps({"error": error, "why": why}).encode(), status, headers)


def through(proxy: "WebServer") -> dict[str, str]:
    """The environment of a tool whose way out is this server."""
    return {"http_proxy": proxy.url, "https_proxy": proxy.url, "CALLGATE_EGRESS_MARK": MARK}


Behaviour = Callable[[Asked], Answer]


class WebServer:
    """`url` is its address; `asked` what came, in order."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.asked: list[Asked] = []
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                asked = Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                upstream.asked.append(asked)
                answer = behaviour(asked)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
                self.send_header("Connection", "close")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_CONNECT = _answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Quiet."""

            def handle(self) -> None:
                # Who takes no more leaves, and that is all right.
                try:
                    super().handle()
                except ConnectionError:
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator["WebServer"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


@contextmanager
def serving(behaviour: Behaviour | Answer) -> Iterator[WebServer]:
    """Run a server that behaves so, or always answers so."""
    always = behaviour if isinstance(behaviour, Answer) else None
    with WebServer(behaviour if always is None else lambda _asked: always).running() as server:  # type: ignore[arg-type, return-value]
        yield server


@contextmanager
def silent_server() -> Iterator[int]:
    """A port where connections are taken, by the kernel, and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
