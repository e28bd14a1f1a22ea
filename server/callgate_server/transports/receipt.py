"""The HTTP connection under deadlines: a request must be there in time and within bounds, a client must read.

uvicorn's own idle timer starts again with every byte, its parser keeps headers and trailers of any size, and it
waits for ever on a client that does not read. All of that is closed here, below everything that costs memory.
"""

import asyncio
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from callgate_server.model.errors import CallError, Reason
from callgate_server.model.strict_json import encode
from callgate_server.transports.limits import TransportLimits
from callgate_server.transports.wire import problem

_PIPELINED: Final = 8
_PHRASES: Final = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


class Receipt(HttpToolsProtocol):
    """One connection."""

    def __init__(self, limits: TransportLimits, config: Config, server_state: ServerState) -> None:
        super().__init__(config, server_state, app_state={})
        self._limits = limits
        # Set when the connection is gone, and all that was to be sent with it.
        self.lost = asyncio.Event()
        # A request has begun and is not complete.
        self._partial = False
        self._head_complete = False
        # Bytes of the request that were not its body: head, framing, trailers.
        self._overhead = 0
        self._receive_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(503, Reason.OVERLOADED, "Too many connections; try again.")
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        # Armed by any byte, also by those that begin no request: they have stopped uvicorn's idle timer.
        self._arm()
        self._overhead += len(data)
        super().data_received(data)
        if self.transport.is_closing() or not self._partial:
            return
        # Chunk sizes and trailers may weigh as much as the largest body, a head only what a head may.
        allowed = self._limits.header_bytes + (self._limits.body_bytes if self._head_complete else 0)
        if self._overhead > allowed:
            self._refuse(431, Reason.REQUEST_TOO_LARGE, f"A head may have {self._limits.header_bytes} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._partial = True
        self._head_complete = False
        self._overhead = 0
        self._arm()

    def on_headers_complete(self) -> None:
        self._head_complete = True
        head = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if head > self._limits.header_bytes:
            self._refuse(431, Reason.REQUEST_TOO_LARGE, f"A head may have {self._limits.header_bytes} bytes.")
        # A single read may hold thousands of small requests, each of which would be kept while the first is served.
        if len(self.pipeline) >= _PIPELINED:
            self._refuse(503, Reason.OVERLOADED, "Too many requests at once on one connection.")
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._overhead -= len(body)
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._partial = False
        self._head_complete = False
        self._disarm()
        if not self.transport.is_closing():
            super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self._limits.stalled_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, Reason.INVALID_REQUEST, msg)

    def _arm(self) -> None:
        if self._receive_timer is None and not self.transport.is_closing():
            self._receive_timer = self.loop.call_later(self._limits.receive_s, self._late)

    def _disarm(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def _late(self) -> None:
        self._receive_timer = None
        if self._partial or not self._answering:
            self._refuse(408, Reason.INVALID_REQUEST, f"A request must be complete in {self._limits.receive_s:g} s.")

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, reason: Reason, message: str) -> None:
        """Close, with a reply if none is on its way on this connection."""
        if self.transport.is_closing():
            return
        if not (self._answering and self.cycle.response_started):
            retry_after_ms = self._limits.retry_after_ms if reason is Reason.OVERLOADED else None
            error = CallError(reason, message, retry_after_ms=retry_after_ms)
            self.transport.write(_raw_reply(status, encode(problem(error, status)), retry_after_ms))
        self.transport.close()


def _raw_reply(status: int, body: bytes, retry_after_ms: int | None) -> bytes:
    lines: list[Any] = [
        b"HTTP/1.1 %d %s" % (status, _PHRASES[status]),
        b"content-type: application/problem+json",
        b"content-length: %d" % len(body),
        b"cache-control: no-store",
        b"connection: close",
    ]
    if retry_after_ms is not None:
        lines.append(b"retry-after: %d" % -(-retry_after_ms // 1000))
    return b"\r\n".join([*lines, b"", body])
