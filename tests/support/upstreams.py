"""Upstreams for the egress gate, on real sockets: helpful ones, and such as nobody would want to talk to.

Each is a server in threads, on any address that this thread's network has; it keeps what it saw. They follow no
rules beyond those of the test: an endless body ends with the connection.
"""

import base64
import gzip
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_FOREVER_S = 30


class TestAuthority:
    """Signs for upstreams; `ca_file` is what the gate is told to trust."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Upstreams of a test")])
        certificate = self._sign(self._name, self._key.public_key(), x509.BasicConstraints(ca=True, path_length=0))
        self.ca_file = folder / "upstreams.pem"
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def context(self, *names: str, expired: bool = False) -> ssl.SSLContext:
        """A server's context whose certificate is for `names`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
        certificate = self._sign(subject, key.public_key(), alternatives, expired=expired)
        path = self.folder / f"{names[0]}-{time.monotonic_ns()}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        extension: x509.ExtensionType,
        *,
        expired: bool = False,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + timedelta(days=-1 if expired else 1))
            .add_extension(extension, critical=True)
            .sign(self._key, hashes.SHA256())
        )


class Upstream:
    """An HTTP server that answers by path; `seen` are its requests, `connections` counts who came at
    all, `broken` whom it could not answer to the end. While `mood` names an answer, all get that."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.seen: list[dict[str, Any]] = []
        self.connections = 0
        self.broken = 0
        self.mood = ""
        self.closing = threading.Event()
        self._server = _Server((address, port), self)
        if tls is not None:
            # The handshake is the handler's: one client that is slow to begin must not keep the others out.
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def headers_seen(self, name: str) -> list[str]:
        """Values of a header, one for each request that had it."""
        return [request["headers"][name.lower()] for request in self.seen if name.lower() in request["headers"]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], owner: Upstream) -> None:
        self.owner = owner
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.owner.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are what the tests are about."""
        self.owner.broken += 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/early-413":
            self._say(413, b"")
            self.close_connection = True
            return
        length = self.headers.get("Content-Length")
        body = self._chunked() if self.headers.get("Transfer-Encoding") else self.rfile.read(int(length or 0))
        self.server.owner.seen.append(
            {
                "method": self.command,
                "target": self.path,
                "headers": {name.lower(): value for name, value in self.headers.items()},
                "header_names": [name.lower() for name in self.headers],
                "body": body,
            }
        )
        # The last word of the path says which answer is wanted, whatever stands before it.
        name = self.server.owner.mood or parts.path.rpartition("/")[2].replace("-", "_") or "echo"
        answer: Callable[[dict[str, list[str]]], None] = getattr(self, f"say_{name}", self.say_echo)
        answer(parse_qs(parts.query))

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = _handle  # noqa: N815 - the library asks for these names

    def say_echo(self, _: dict[str, list[str]]) -> None:
        """Everything that came: the header, and the body, in the body of the answer."""
        last = self.server.owner.seen[-1]
        document = {**last, "body": last["body"].decode("latin-1")}
        self._say(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def say_echo_header(self, _: dict[str, list[str]]) -> None:
        """The credential in a header, a cookie and the reason phrase of the answer."""
        value = self.headers.get("Authorization", "none")
        self.send_response(200, value)
        self.send_header("X-Echo", value)
        self.send_header("Set-Cookie", f"key={value}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def say_echo_gzip(self, _: dict[str, list[str]]) -> None:
        """The same in compressed form, whatever was asked for."""
        body = gzip.compress(self.headers.get("Authorization", "none").encode())
        self._say(200, body, {"Content-Encoding": "gzip"})

    def say_echo_base64(self, _: dict[str, list[str]]) -> None:
        self._say(200, base64.b64encode(b"ab" + self.headers.get("Authorization", "none").encode()))

    def say_echo_url(self, _: dict[str, list[str]]) -> None:
        value = "".join(f"%{byte:02x}" for byte in self.headers.get("Authorization", "none").encode())
        self._say(302, b"", {"Location": f"/?{value}"})

    def say_echo_slowly(self, _: dict[str, list[str]]) -> None:
        """The credential, a byte at a time."""
        value = self.headers.get("Authorization", "none").encode()
        self._chunked_head({})
        for byte in b"before " + value + b" after":
            self._chunk(bytes([byte]))
        self._chunk(b"")

    def say_demand(self, query: dict[str, list[str]]) -> None:
        """200 only with a key, or with this one."""
        given = self.headers.get("Authorization")
        allowed = given is not None and given == query.get("key", [given])[0]
        self._say(200 if allowed else 401, b"welcome" if allowed else b"who are you?")

    def say_redirect(self, query: dict[str, list[str]]) -> None:
        self._say(int(query.get("status", ["302"])[0]), b"", {"Location": query["to"][0]})

    def say_closing(self, _: dict[str, list[str]]) -> None:
        """Says nothing of it, and closes after the answer."""
        self._say(200, b"x")
        self.close_connection = True

    def say_bytes(self, query: dict[str, list[str]]) -> None:
        self._say(200, b"x" * int(query["n"][0]))

    def say_endless(self, _: dict[str, list[str]]) -> None:
        self._chunked_head({})
        until_s = time.monotonic() + _FOREVER_S
        while not self.server.owner.closing.is_set() and time.monotonic() < until_s:
            self._chunk(b"x" * 65536)

    def say_endless_hints(self, _: dict[str, list[str]]) -> None:
        """Early hints, and never an answer."""
        until_s = time.monotonic() + _FOREVER_S
        while not self.server.owner.closing.is_set() and time.monotonic() < until_s:
            self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </" + b"x" * 4096 + b">\r\n\r\n")

    def say_dripping(self, _: dict[str, list[str]]) -> None:
        """One byte now and then, for ever."""
        self._chunked_head({})
        while not self.server.owner.closing.wait(0.05):
            self._chunk(b"x")

    def say_silent(self, _: dict[str, list[str]]) -> None:
        self.server.owner.closing.wait(_FOREVER_S)
        self.close_connection = True

    def say_unavailable(self, _: dict[str, list[str]]) -> None:
        self._say(503, b"not now")

    def say_every_third_is_unavailable(self, _: dict[str, list[str]]) -> None:
        self._say(503 if len(self.server.owner.seen) % 3 == 0 else 200, b"x")

    def say_hang_up(self, _: dict[str, list[str]]) -> None:
        """Takes the request, and says nothing."""
        self.close_connection = True

    def say_slow(self, _: dict[str, list[str]]) -> None:
        self.server.owner.closing.wait(0.3)
        self._say(200, b"x")

    def say_half(self, _: dict[str, list[str]]) -> None:
        """Promises a hundred bytes, sends ten, and hangs up."""
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"x" * 10)
        self.close_connection = True

    def say_gzip_bomb(self, query: dict[str, list[str]]) -> None:
        """Small on the way, huge to whoever unpacks it."""
        self._say(200, gzip.compress(b"\0" * int(query["n"][0]), 9), {"Content-Encoding": "gzip"})

    def say_nonsense(self, _: dict[str, list[str]]) -> None:
        self.wfile.write(b"I do not speak HTTP\r\n\r\n")
        self.close_connection = True

    def say_two_lengths(self, _: dict[str, list[str]]) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 5\r\n\r\nabcde")
        self.close_connection = True

    def say_upgrade(self, _: dict[str, list[str]]) -> None:
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nfree")
        self.close_connection = True

    def _say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _chunked_head(self, headers: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_: object) -> None:
        pass


class Canary:
    """A TCP server that nobody should ever reach: `hits` counts those who did."""

    def __init__(self, address: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, port), family=family)
        self.hits = 0

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._count)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # The thread wakes from `accept` only by this.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _count(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.hits += 1
            client.close()


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
