"""The connections of one tool as streams, made of the runner's egress frames: windows, half ends, and the end.

It decides whether a frame may come as it comes, and keeps no more of a connection than its window. What is allowed,
dialled or recorded is decided elsewhere. The runner names a connection once, and says once that it is over; between
the two its number is in the table here, whatever this side did to the connection, so that what crosses on the wire
is told from what breaks the protocol without remembering numbers that are over.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, assert_never

from callgate_server.execution.egress import Outlet
from callgate_server.execution.egress_frames import (
    CHUNK,
    EgressClose,
    EgressCredit,
    EgressData,
    EgressOpen,
    decode_egress,
    encode_credit,
    encode_data,
    encode_no_more,
    encode_over,
)
from callgate_server.execution.framing import Frame

# What either side may have sent of a connection and the other not yet taken.
WINDOW_BYTES: Final = 262144
# The runner's ceilings, counted again: open at a time, and opened in one call.
MOST_OPEN: Final = 32
MOST_CONNECTIONS: Final = 4096
# Credit is worth a frame of its own from here on: a quarter of the window.
_CREDIT_STEP: Final = WINDOW_BYTES // 4


class Stream:
    """One connection of the tool. One task may read and another write; `abort` may come from any.

    `port` is the local port that the tool connected to. After a `write` or `finish` that was cancelled or failed,
    `abort` is all that is left to do.
    """

    def __init__(self, number: int, port: int, outlet: Outlet) -> None:
        self.id = number
        self.port = port
        self._outlet = outlet
        self._buffer = bytearray()
        self._allowance = WINDOW_BYTES  # that the tool still may send
        self._taken = 0  # and not granted again
        self._window = WINDOW_BYTES  # that we still may send
        self._sent_bytes = 0
        self._received_bytes = 0
        self._tool_ended = False
        self._finished = False
        self._broken = False  # nothing more is to be read
        self._over = False  # nothing more is to be written
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()

    @property
    def sent_bytes(self) -> int:
        """What the tool sent."""
        return self._sent_bytes

    @property
    def received_bytes(self) -> int:
        """What was sent to the tool."""
        return self._received_bytes

    async def read(self) -> bytes:
        """Return the tool's next bytes, at most `CHUNK`, or b"" at the end of its side.

        Coming back for more is what lets the tool send more. Cancelling it loses no byte.

        Raises:
            ConnectionError: the connection was aborted, or the wire is gone.
        """
        if self._taken >= _CREDIT_STEP and not (self._tool_ended or self._over):
            await self._grant()
        while not (self._buffer or self._tool_ended or self._broken):
            self._readable.clear()
            await self._readable.wait()
        if self._broken:
            raise ConnectionAbortedError("the connection was aborted")
        data = bytes(self._buffer[:CHUNK])
        del self._buffer[: len(data)]
        self._taken += len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Send to the tool; waits while its window is full.

        Raises:
            ConnectionError: the connection is over, or the wire is gone.
        """
        if self._finished:
            raise RuntimeError("a write after finish")
        at = 0
        while at < len(data):
            room = await self._room()
            piece = data[at : at + min(room, CHUNK)]
            at += len(piece)
            self._window -= len(piece)
            self._received_bytes += len(piece)
            await self._outlet(encode_data(self.id, piece))

    async def finish(self) -> None:
        """Say that no more is sent to the tool, which may go on sending. Idempotent.

        Raises:
            ConnectionError: the wire is gone.
        """
        if not (self._finished or self._over):
            self._finished = True
            await self._outlet(encode_no_more(self.id))

    async def abort(self) -> None:
        """End the connection at once, both ways: the tool sees it reset. Idempotent. Never raises."""
        if self._over:
            self._break()
            return
        self._break()
        # A wire that is gone has aborted everything.
        with contextlib.suppress(ConnectionError):
            await self._outlet(encode_over(self.id))

    async def _room(self) -> int:
        while not (self._window or self._over):
            self._writable.clear()
            await self._writable.wait()
        if self._over:
            raise ConnectionAbortedError("the connection is over")
        return self._window

    async def _grant(self) -> None:
        count, self._taken = self._taken, 0
        # Before it is sent: the answer to it may come while we still wait here.
        self._allowance += count
        try:
            await self._outlet(encode_credit(self.id, count))
        except asyncio.CancelledError:
            # Whether it was sent is not known. Granted twice it costs memory once; never granted, the tool may wait
            # for ever.
            self._taken += count
            raise

    def _break(self) -> None:
        self._broken = self._over = True
        self._buffer.clear()
        self._wake()

    def _wake(self) -> None:
        self._readable.set()
        self._writable.set()

    # What the runner says; only `Streams` calls these.

    def take_data(self, data: bytes) -> None:
        """Keep bytes of the tool, or drop them after an abort of ours.

        Raises:
            ValueError: more than the window holds, or after the end of that side.
        """
        if self._tool_ended or len(data) > self._allowance:
            raise ValueError("a connection's data beyond its window, or after its end")
        self._allowance -= len(data)
        if not self._broken:
            self._sent_bytes += len(data)
            self._buffer += data
            self._readable.set()

    def take_credit(self, count: int) -> None:
        """Widen our window.

        Raises:
            ValueError: by nothing, or by more than it was narrowed.
        """
        if not 0 < count <= WINDOW_BYTES - self._window:
            raise ValueError("a connection's credit for bytes that it was not sent")
        self._window += count
        self._writable.set()

    def take_no_more(self) -> None:
        """End the tool's side.

        Raises:
            ValueError: it was ended before.
        """
        if self._tool_ended:
            raise ValueError("a second end of a connection's side")
        self._tool_ended = True
        self._readable.set()

    def take_over(self) -> None:
        """End everything. What the tool sent before it ended its side in order stays readable."""
        if self._tool_ended:
            self._over = True
            self._wake()
        else:
            self._break()


class Streams:
    """All connections of one tool. `accept` is called with each new one, and must not block or raise."""

    def __init__(self, outlet: Outlet, accept: Callable[[Stream], None]) -> None:
        self._outlet = outlet
        self._accept = accept
        self._open: dict[int, Stream] = {}
        self._last = 0

    def feed(self, frame: Frame) -> None:
        """Take an egress frame of the runner.

        Raises:
            ValueError: it breaks the protocol; the sandbox is to be killed.
        """
        match decode_egress(frame):
            case EgressOpen(number, port):
                self._open_next(number, port)
            case EgressData(number, data):
                self._known(number).take_data(data)
            case EgressCredit(number, count):
                self._known(number).take_credit(count)
            case EgressClose(number, over):
                self._end(self._known(number), over=over)
            case other:
                assert_never(other)

    def _open_next(self, number: int, port: int) -> None:
        if number != self._last + 1 or number > MOST_CONNECTIONS or len(self._open) >= MOST_OPEN:
            raise ValueError("a connection out of order, or one too many")
        self._last = number
        self._open[number] = stream = Stream(number, port, self._outlet)
        self._accept(stream)

    def _end(self, stream: Stream, *, over: bool) -> None:
        if over:
            stream.take_over()
            del self._open[stream.id]
        else:
            stream.take_no_more()

    def _known(self, number: int) -> Stream:
        stream = self._open.get(number)
        if stream is None:
            raise ValueError("a frame of a connection that is not open")
        return stream
