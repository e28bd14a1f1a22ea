"""The tool's only way out: local ports, and a relay of their bytes to the gateway. It understands none of them.

Each accepted connection is numbered and becomes frames. Both windows bound what is kept of it: the tool is not read
while the gateway has not taken what it sent before, and the gateway sends no more than the tool has taken. Nothing
here blocks, and one connection that nobody reads does not keep another from going on.

`over` is the last word on a connection and always the runner's, so that the gateway needs to remember none that is
over. What it sent before it knew is ignored here. At the end of the tool everything ends; what a tool has not waited
for may be lost, as it would be with its machine.
"""

import _socket
import os
import select
import struct

from callgate_runner import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from callgate_runner.call import WayOut

PROXY_PORT = 3128
WINDOW = 262144
MOST_OPEN = 32
MOST_CONNECTIONS = 4096
NO_MORE = 0
OVER = 1

SYSTEM_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# Beside the secrets: memory that only this call sees. No secret's name has a dot.
CERTIFICATES = "/run/secrets/ca-certificates.crt"

_ADDRESS = "127.0.0.1"
_BACKLOG = 128
# Credit is worth a frame of its own from here on.
_CREDIT_STEP = WINDOW // 4
_OPEN = struct.Struct(">IH")
_CLOSE = struct.Struct(">IB")
_CREDIT = struct.Struct(">II")
# Closed so, a connection is reset: what was cut off must not look complete to the tool.
_RESET = struct.pack("ii", 1, 0)


class Egress:
    """All local ports and connections of one tool."""

    __slots__ = ("_by_fd", "_by_number", "_last", "_link", "_listeners")

    def __init__(self, link: wire.Wire, way_out: "WayOut") -> None:
        ports = [PROXY_PORT, *way_out.ports] if way_out.proxy else way_out.ports
        self._link = link
        self._listeners = {listener.fileno(): (port, listener) for port, listener in map(_listen, ports)}
        self._by_fd: dict[int, Connection] = {}
        self._by_number: dict[int, Connection] = {}
        self._last = 0

    def register(self, poll: select.poll) -> None:
        """Say what is waited for.

        A descriptor of which nothing is wanted is left out: `poll` would report its hang-up again and again.
        """
        reading = self._link.pending < wire.HIGH_WATER
        if reading and len(self._by_fd) < MOST_OPEN:
            for fd in self._listeners:
                poll.register(fd, select.POLLIN)
        for fd, connection in self._by_fd.items():
            events = connection.wants(reading=reading)
            if events:
                poll.register(fd, events)

    def handle(self, fd: int, event: int) -> None:
        """Do what a descriptor is ready for; one that is not of egress, or no more, is left alone."""
        if fd in self._listeners:
            self._accept(*self._listeners[fd])
        elif fd in self._by_fd:
            connection = self._by_fd[fd]
            try:
                connection.handle(event)
            except OSError:
                connection.reset()
            self._forget_if_over(connection)

    def on_frame(self, kind: int, payload: bytes) -> None:
        """Take an egress frame of the gateway.

        Raises:
            ValueError: it is of a connection that there never was.
        """
        number = wire.EGRESS_HEAD.unpack_from(payload)[0]
        if not 0 < number <= self._last:
            raise ValueError("a frame of an unknown connection")
        connection = self._by_number.get(number)
        if connection is None:
            return
        if kind == wire.EGRESS_DATA:
            connection.queue(payload[wire.EGRESS_HEAD.size :])
        elif kind == wire.EGRESS_CREDIT:
            connection.window += _CREDIT.unpack(payload)[1]
        elif _CLOSE.unpack(payload)[1] == NO_MORE:
            connection.no_more_is_queued()
        else:
            connection.reset()
        self._forget_if_over(connection)

    def close(self) -> None:
        """End every connection, and listen no more."""
        for connection in list(self._by_number.values()):
            connection.reset()
            self._forget_if_over(connection)
        self._stop_listening()

    def _accept(self, port: int, listener: _socket.socket) -> None:
        if len(self._by_fd) >= MOST_OPEN:
            return
        try:
            fd, _ = listener._accept()  # type: ignore[attr-defined]  # the stubs know `accept` alone
        except OSError:
            # Whoever came is gone again.
            return
        self._last += 1
        connection = Connection(self._link, self._last, _socket.socket(fileno=fd))
        self._by_fd[fd] = self._by_number[self._last] = connection
        self._link.queue(wire.encode(wire.EGRESS_OPEN, _OPEN.pack(self._last, port)))
        if self._last == MOST_CONNECTIONS:
            self._stop_listening()

    def _stop_listening(self) -> None:
        for _, listener in self._listeners.values():
            listener.close()
        self._listeners.clear()

    def _forget_if_over(self, connection: "Connection") -> None:
        if connection.over:
            del self._by_fd[connection.fd]
            del self._by_number[connection.number]
            self._link.queue(_close_frame(connection.number, OVER))


class Connection:
    """One connection of the tool. `window` is what may still be sent of it to the gateway."""

    __slots__ = (
        "_consumed",
        "_link",
        "_pending",
        "_socket",
        "_tool_ended",
        "_we_end",
        "fd",
        "number",
        "over",
        "window",
    )

    def __init__(self, link: wire.Wire, number: int, socket: _socket.socket) -> None:
        socket.setblocking(False)
        socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self.number = number
        self.fd = socket.fileno()
        self.window = WINDOW
        self.over = False
        self._link = link
        self._socket = socket
        self._pending = bytearray()
        self._consumed = 0
        self._tool_ended = False
        self._we_end = False

    def wants(self, *, reading: bool) -> int:
        """Return the events to wait for."""
        events = select.POLLOUT if self._pending else 0
        if reading and self.window and not self._tool_ended:
            events |= select.POLLIN
        return events

    def handle(self, event: int) -> None:
        """Relay what can be. An error or a hang-up shows in reading, or in writing.

        Raises:
            OSError: the tool broke the connection.
        """
        if event & ~select.POLLIN and self._pending:
            self._write()
        if event & ~select.POLLOUT and self.window and not (self._tool_ended or self.over):
            self._read()

    def queue(self, data: bytes) -> None:
        """Take bytes for the tool."""
        self._pending += data

    def no_more_is_queued(self) -> None:
        """After what is queued, end our side of the connection."""
        self._we_end = True
        self._end_if_written()

    def reset(self) -> None:
        """Break the connection."""
        if not self.over:
            self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET)
            self._close()

    def _read(self) -> None:
        try:
            data = self._socket.recv(min(self.window, wire.CHUNK))
        except BlockingIOError:
            return
        if data:
            self.window -= len(data)
            self._link.queue(wire.encode(wire.EGRESS_DATA, wire.EGRESS_HEAD.pack(self.number) + data))
            return
        self._tool_ended = True
        self._link.queue(_close_frame(self.number, NO_MORE))
        self._close_if_done()

    def _write(self) -> None:
        try:
            sent = self._socket.send(memoryview(self._pending)[: wire.CHUNK])
        except BlockingIOError:
            return
        del self._pending[:sent]
        self._consumed += sent
        if self._consumed >= _CREDIT_STEP:
            self._link.queue(wire.encode(wire.EGRESS_CREDIT, _CREDIT.pack(self.number, self._consumed)))
            self._consumed = 0
        self._end_if_written()

    def _end_if_written(self) -> None:
        if self._we_end and not self._pending and not self.over:
            try:
                self._socket.shutdown(_socket.SHUT_WR)
            except OSError:
                # The tool has broken it already.
                self.reset()
            self._close_if_done()

    def _close_if_done(self) -> None:
        if self._tool_ended and self._we_end and not self._pending and not self.over:
            self._close()

    def _close(self) -> None:
        self.over = True
        self._pending.clear()
        self._socket.close()


def environment(way_out: "WayOut") -> dict[str, str]:
    """Return what tells ordinary libraries of the way out."""
    variables: dict[str, str] = {}
    if way_out.proxy:
        proxy = f"http://{_ADDRESS}:{PROXY_PORT}"
        variables |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy)
        variables |= dict.fromkeys(("NO_PROXY", "no_proxy"), "")
        variables["NODE_USE_ENV_PROXY"] = "1"
        if way_out.mark is not None:
            variables["CALLGATE_EGRESS_MARK"] = way_out.mark
    if way_out.authority is not None:
        names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
        variables |= dict.fromkeys(names, CERTIFICATES)
    return variables


def write_certificates(authority: str) -> None:
    """Write the system's certificates, where the image has any, and the gate's own to one file for the tool.

    The tool owns it as it owns everything it can read, and could replace it: whom it trusts is its own affair.
    """
    certificates = _system_certificates() + authority.encode("ascii")
    fd = os.open(CERTIFICATES, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    with open(fd, "wb") as file:
        file.write(certificates)


def _system_certificates() -> bytes:
    try:
        with open(SYSTEM_CERTIFICATES, "rb") as file:
            return file.read().rstrip() + b"\n"
    except FileNotFoundError:
        return b""


def _listen(port: int) -> tuple[int, _socket.socket]:
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind((_ADDRESS, port))
    listener.listen(_BACKLOG)
    return port, listener


def _close_frame(number: int, how: int) -> bytes:
    return wire.encode(wire.EGRESS_CLOSE, _CLOSE.pack(number, how))
