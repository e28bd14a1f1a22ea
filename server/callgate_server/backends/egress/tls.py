"""The tool's TLS, ended at the gate: a pipe inside a pipe. What it is ended as, and for whom, is the context's."""

import asyncio
import contextlib
import ssl
from typing import Final

from callgate_server.backends.egress.pipes import CHUNK_BYTES, Pipe

_RECORD_BYTES: Final = 16384


class EndedTls:
    """The server's side of TLS on another pipe. Implements `Pipe`; `handshake` comes first.

    One task may read while another writes. What either makes the library say goes out in the order it was said.
    """

    def __init__(self, pipe: Pipe, context: ssl.SSLContext, early: bytes) -> None:
        """`early` came over `pipe` before."""
        self._pipe = pipe
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._incoming.write(early)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._flushing = asyncio.Lock()

    async def handshake(self) -> None:
        """Agree with the client.

        Raises:
            ConnectionError: it broke the connection, asked for another host or spoke something else.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._more()
            except ssl.SSLError as error:
                # The alert says why, to whoever listens still.
                await self._flush()
                raise ConnectionAbortedError("no TLS with the tool") from error
            else:
                await self._flush()
                return

    async def read(self) -> bytes:
        """See `Pipe`. An end without farewell is an end: what it cuts short is found by the parser above."""
        while True:
            try:
                return self._tls.read(CHUNK_BYTES)
            except ssl.SSLWantReadError:
                await self._more()
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                return b""
            except ssl.SSLError as error:
                raise ConnectionAbortedError("the tool's TLS broke") from error

    async def write(self, data: bytes) -> None:
        """See `Pipe`."""
        try:
            at = 0
            while at < len(data):
                # One record at a time, whatever it is given.
                at += self._tls.write(data[at : at + _RECORD_BYTES])
                if self._outgoing.pending >= CHUNK_BYTES or at == len(data):
                    await self._flush()
        except ssl.SSLError as error:
            raise ConnectionAbortedError("the tool's TLS broke") from error

    async def finish(self) -> None:
        """See `Pipe`."""
        # It waits for the other's farewell; ours is said.
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        await self._flush()
        await self._pipe.finish()

    async def abort(self) -> None:
        """See `Pipe`."""
        await self._pipe.abort()

    async def _more(self) -> None:
        await self._flush()
        data = await self._pipe.read()
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        if not self._outgoing.pending:
            return
        async with self._flushing:
            data = self._outgoing.read()
            if data:
                await self._pipe.write(data)
