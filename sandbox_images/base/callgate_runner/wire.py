"""The runner's side of the wire: frames and bytes, and the two descriptors that carry them.

Described by `proto/callgate_proto/frames.json`, which this module is tested against. Nothing here blocks without
a limit: a peer that does not read must never keep the runner from its deadline.
"""

import fcntl
import os
import select
import struct
import time

from callgate_runner import json_text

VERSION = 1
HEADER = struct.Struct(">BI")
HEAD = struct.Struct(">I")

HELLO = 1
SECRET = 2
CALL = 3
CANCEL = 4
STDOUT = 5
STDERR = 6
EXIT = 7
STDOUT_TAIL = 8
STDERR_TAIL = 9
RESULT = 10
ARTIFACT = 11
ARTIFACT_DATA = 12
BYE = 13
SEAL = 14
LANE = 15
EGRESS_OPEN = 32
EGRESS_DATA = 33
EGRESS_CLOSE = 34
EGRESS_CREDIT = 35
EGRESS = (EGRESS_DATA, EGRESS_CLOSE, EGRESS_CREDIT)

# Data frames carry at most this much.
CHUNK = 65536
# A connection's number before its data.
EGRESS_HEAD = struct.Struct(">I")
_EGRESS_MOST = EGRESS_HEAD.size + CHUNK
# Smallest and largest payload of what may come in.
RECEIVED = {
    SECRET: (6, 262144),
    CALL: (6, 8388608),
    CANCEL: (0, 0),
    LANE: (6, 131072),
    EGRESS_DATA: (5, _EGRESS_MOST),
    EGRESS_CLOSE: (5, 5),
    EGRESS_CREDIT: (8, 8),
}
SEAL_BYTES = 32
MAX_SENT = {
    HELLO: 256,
    EXIT: 4096,
    ARTIFACT: 8192,
    BYE: 0,
    SEAL: SEAL_BYTES,
    EGRESS_OPEN: 6,
    EGRESS_DATA: _EGRESS_MOST,
    EGRESS_CLOSE: 5,
    EGRESS_CREDIT: 8,
}
# While more than this waits to be sent, the tool's output is not read: the tool blocks, not the runner.
HIGH_WATER = 4 * CHUNK
# The first descriptor free of meaning: 0 to 3 are the tool's input, outputs and result.
FIRST_FREE_FD = 4


def encode(kind: int, payload: bytes) -> bytes:
    """Return one frame.

    Raises:
        ValueError: the payload is larger than its type allows.
    """
    if len(payload) > MAX_SENT.get(kind, CHUNK):
        raise ValueError("a frame is larger than its type allows")
    return HEADER.pack(kind, len(payload)) + payload


def encode_document(kind: int, document: dict[str, object]) -> bytes:
    return encode(kind, json_text.encode(document))


def split_head(payload: bytes) -> tuple[dict[str, object], bytes]:
    """Return the document and the bytes of a `head+bytes` payload.

    Raises:
        ValueError: it is malformed.
    """
    size = HEAD.unpack_from(payload)[0]
    end = HEAD.size + size
    if end > len(payload):
        raise ValueError("a head is longer than its frame")
    document = json_text.decode(payload[HEAD.size : end])
    if not isinstance(document, dict):
        raise ValueError("a head is not an object")
    return document, payload[end:]


class Decoder:
    """Turns the gateway's bytes into frames. Holds at most one payload and the bytes of one `feed`."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take the next bytes and return the frames that they complete.

        Raises:
            ValueError: an unknown type, or a length outside its bounds.
        """
        self._buffer += data
        frames = []
        while len(self._buffer) >= HEADER.size:
            kind, size = HEADER.unpack_from(self._buffer)
            least, most = RECEIVED.get(kind, (1, 0))
            if not least <= size <= most:
                raise ValueError("a frame of an unknown type or a forbidden length")
            end = HEADER.size + size
            if len(self._buffer) < end:
                break
            frames.append((kind, bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
        return frames


class Wire:
    """The two descriptors, non-blocking, with what waits to be sent."""

    __slots__ = ("_decoder", "_pending", "sink", "source")

    def __init__(self, source: int, sink: int) -> None:
        self.source = source
        self.sink = sink
        self._pending = bytearray()
        self._decoder = Decoder()
        os.set_blocking(source, False)
        os.set_blocking(sink, False)

    @classmethod
    def take_over(cls) -> "Wire":
        """Move the wire from standard input and output to descriptors that no child inherits.

        Their places, and that of the result descriptor, are held by /dev/null, so that no pipe made later can
        have a number that the child needs for something else.
        """
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        source = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FD)
        sink = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FD)
        for fd in (0, 1, 3):
            if fd != null:
                os.dup2(null, fd, inheritable=False)
        if null >= FIRST_FREE_FD:
            os.close(null)
        return cls(source, sink)

    @property
    def pending(self) -> int:
        return len(self._pending)

    def queue(self, frame: bytes) -> None:
        self._pending += frame

    def receive(self) -> list[tuple[int, bytes]]:
        """Return the frames that have come in.

        Raises:
            ConnectionError: the gateway is gone.
            ValueError: it broke the protocol.
        """
        try:
            data = os.read(self.source, CHUNK)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionError("the wire ended")
        return self._decoder.feed(data)

    def pump(self) -> None:
        """Send what can be sent now.

        Raises:
            ConnectionError: the gateway is gone.
        """
        while self._pending:
            try:
                sent = os.write(self.sink, memoryview(self._pending)[:CHUNK])
            except BlockingIOError:
                return
            del self._pending[:sent]

    def flush(self, until: float) -> None:
        """Send everything, at most until monotonic `until`.

        Raises:
            ConnectionError: the gateway is gone.
            TimeoutError: it did not read in time.
        """
        while self._pending:
            self._wait(select.POLLOUT, until)
            self.pump()

    def has_news(self, seconds: float) -> bool:
        """Wait for the gateway, at most so long; return whether it has said something or is gone."""
        poll = select.poll()
        poll.register(self.source, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def next_frames(self) -> list[tuple[int, bytes]]:
        """Return the next frames, waiting for them as long as the wire is held.

        Raises:
            ConnectionError: the gateway is gone.
            ValueError: it broke the protocol.
        """
        while True:
            self._wait(0, None)
            frames = self.receive()
            if frames:
                return frames

    def _wait(self, sink_events: int, until: float | None) -> None:
        """Wait until the wire can be read, or written where `sink_events` asks for it."""
        poll = select.poll()
        poll.register(self.sink, sink_events)
        poll.register(self.source, 0 if sink_events else select.POLLIN)
        remaining = None if until is None else until - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise TimeoutError("the gateway did not keep up")
        for fd, event in poll.poll(None if remaining is None else remaining * 1000):
            if (fd == self.sink and event & (select.POLLERR | select.POLLNVAL)) or (
                fd == self.source and sink_events and event & select.POLLHUP
            ):
                raise ConnectionError("the wire broke")
