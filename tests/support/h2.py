"""Raw HTTP/2 frames (RFC 9113) for what no well-behaved client can be made to send."""

import asyncio
import struct
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0x0, 0x1, 0x3, 0x4, 0x6
END_HEADERS = 0x4


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def rpc_headers(stream: int, method: str, *metadata: tuple[str, str]) -> bytes:
    """HEADERS of an RPC, each field a literal without indexing (RFC 7541, section 6.2.2)."""
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/callgate.v1.Gateway/{method}"),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *metadata,
    )
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in fields
    )
    return frame(HEADERS, END_HEADERS, stream, block)


@dataclass
class RawConnection:
    """A connection that has said its preface and reads whatever comes."""

    port: int
    received: bytearray = field(default_factory=bytearray)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._reading = asyncio.ensure_future(self._read())
        await self.send(PREFACE + frame(SETTINGS))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._writer.close()

    async def send(self, data: bytes) -> None:
        """Send, and notice nothing: whether the other side has ended is in `ended`."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            self.ended.set()

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(65536):
                self.received += data
        except ConnectionError:
            pass
        self.ended.set()
