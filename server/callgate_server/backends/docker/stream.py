"""Takes apart the engine's attach stream: sans-I/O, and no byte is held back.

The engine puts eight bytes before each piece: the stream's number, three zeros, the length as 32 bits big
endian. Standard output is the wire, standard error is the runner's own diagnostics. What is inside the
pieces is not looked at. Nothing but an unfinished header is buffered, so that a length that is never
fulfilled costs nothing.
"""

from typing import Final

_HEADER: Final = 8
_STDOUT: Final = 1
# Standard error, and what the engine itself has to say about the stream.
_DIAGNOSTICS: Final = (2, 3)
DIAGNOSTICS_LIMIT: Final = 4096


class AttachStream:
    """State of one attached stream. `diagnostics` are the first bytes of standard error, at most 4 KiB."""

    __slots__ = ("_header", "_left", "_stream", "diagnostics")

    def __init__(self) -> None:
        self._header = b""
        self._stream = 0
        self._left = 0
        self.diagnostics = b""

    @property
    def at_border(self) -> bool:
        """Whether the stream could end here without having been cut."""
        return self._left == 0 and not self._header

    def feed(self, data: bytes) -> bytes:
        """Return the bytes of the wire that `data` holds, possibly none.

        Raises:
            ConnectionError: this is not an attach stream.
        """
        wire = []
        position = 0
        while position < len(data):
            if self._left == 0:
                position = self._take_header(data, position)
                continue
            piece = data[position : position + self._left]
            position += len(piece)
            self._left -= len(piece)
            if self._stream == _STDOUT:
                wire.append(piece)
            else:
                self.diagnostics += piece[: DIAGNOSTICS_LIMIT - len(self.diagnostics)]
        return b"".join(wire)

    def _take_header(self, data: bytes, position: int) -> int:
        taken = data[position : position + _HEADER - len(self._header)]
        self._header += taken
        if len(self._header) == _HEADER:
            self._stream, self._left = self._header[0], int.from_bytes(self._header[4:])
            if self._header[1:4] != b"\0\0\0" or self._stream not in (_STDOUT, *_DIAGNOSTICS):
                raise ConnectionError("the engine's stream is out of step")
            self._header = b""
        return position + len(taken)
