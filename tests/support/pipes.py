"""Pipes in memory, and a client of TLS on one: for what the egress gate does between the tool and the upstream."""

import asyncio
import ssl


class End:
    """One end of a pair. Implements `Pipe`; whatever is written here is read at the other end, in the same pieces."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.other: End = self
        self.aborted = False
        self.finished = False

    async def read(self) -> bytes:
        if self.aborted:
            raise ConnectionResetError("aborted")
        data = await self._queue.get()
        if data is None:
            raise ConnectionResetError("aborted")
        if not data:
            self._queue.put_nowait(b"")
        return data

    async def write(self, data: bytes) -> None:
        if self.aborted or self.finished:
            raise ConnectionResetError("aborted")
        if data:
            self.other._queue.put_nowait(data)
        await asyncio.sleep(0)

    async def finish(self) -> None:
        if not self.finished:
            self.finished = True
            self.other._queue.put_nowait(b"")

    async def abort(self) -> None:
        for end in (self, self.other):
            end.aborted = True
            end._queue.put_nowait(None)


def pair() -> tuple[End, End]:
    one, other = End(), End()
    one.other, other.other = other, one
    return one, other


async def read_all(end: End) -> bytes:
    data = b""
    while piece := await end.read():
        data += piece
    return data


class TlsClient:
    """The client's side of TLS on an end."""

    def __init__(self, end: End, context: ssl.SSLContext, name: str | None) -> None:
        self._end = end
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)

    async def handshake(self) -> None:
        await self._until_done(self.tls.do_handshake)

    async def write(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            at += self.tls.write(data[at:])
        await self._end.write(self._outgoing.read())

    async def read(self) -> bytes:
        try:
            return await self._until_done(lambda: self.tls.read(65536))
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""

    async def _until_done(self, step):
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                await self._flush()
                if data := await self._end.read():
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            else:
                await self._flush()
                return done

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._end.write(self._outgoing.read())


def client_hello(name: str | None) -> bytes:
    """What a client of TLS says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake needs two")
