"""What the four egress frames hold: connections of a tool, their bytes, their windows and their ends.

Bytes and values only, without I/O; what a sequence of them means is `egress_streams.py`. Described, with the other
frames, in `proto/callgate_proto/frames.json`.
"""

import struct
from dataclasses import dataclass
from typing import Final

from callgate_server.execution.framing import HEADER, Frame, FrameType

# Most bytes of a data frame, beside the connection's number.
CHUNK: Final = 65536
_ID: Final = struct.Struct(">I")
_OPEN: Final = struct.Struct(">IH")
_CLOSE: Final = struct.Struct(">IB")
_CREDIT: Final = struct.Struct(">II")
_NO_MORE: Final = 0
_OVER: Final = 1


@dataclass(frozen=True, slots=True)
class EgressOpen:
    """The tool connected to `port` of 127.0.0.1."""

    id: int
    port: int


@dataclass(frozen=True, slots=True)
class EgressData:
    id: int
    data: bytes


@dataclass(frozen=True, slots=True)
class EgressClose:
    """The tool's side sends no more, or, `over`, the whole connection is no more."""

    id: int
    over: bool


@dataclass(frozen=True, slots=True)
class EgressCredit:
    """So many bytes were taken out of our window."""

    id: int
    count: int


EgressMessage = EgressOpen | EgressData | EgressClose | EgressCredit


def decode_egress(frame: Frame) -> EgressMessage:
    """Decode an egress frame; its length is in the bounds of its type.

    Raises:
        ValueError: it is malformed, or no egress frame.
    """
    match frame.type:
        case FrameType.EGRESS_OPEN:
            return EgressOpen(*_OPEN.unpack(frame.payload))
        case FrameType.EGRESS_DATA:
            return EgressData(_ID.unpack_from(frame.payload)[0], frame.payload[_ID.size :])
        case FrameType.EGRESS_CLOSE:
            number, how = _CLOSE.unpack(frame.payload)
            if how not in (_NO_MORE, _OVER):
                raise ValueError("an unknown end of a connection")
            return EgressClose(number, over=how == _OVER)
        case FrameType.EGRESS_CREDIT:
            return EgressCredit(*_CREDIT.unpack(frame.payload))
        case _:
            raise ValueError("a frame that is not of egress")


def encode_data(number: int, data: bytes) -> bytes:
    """Return the frame that brings bytes, 1 to `CHUNK`, to a connection of the tool."""
    return b"".join((HEADER.pack(FrameType.EGRESS_DATA, _ID.size + len(data)), _ID.pack(number), data))


def encode_no_more(number: int) -> bytes:
    """Return the frame that ends our direction of a connection."""
    return HEADER.pack(FrameType.EGRESS_CLOSE, _CLOSE.size) + _CLOSE.pack(number, _NO_MORE)


def encode_over(number: int) -> bytes:
    """Return the frame that asks for the end of a whole connection."""
    return HEADER.pack(FrameType.EGRESS_CLOSE, _CLOSE.size) + _CLOSE.pack(number, _OVER)


def encode_credit(number: int, count: int) -> bytes:
    """Return the frame that widens the tool's window by `count` bytes."""
    return HEADER.pack(FrameType.EGRESS_CREDIT, _CREDIT.size) + _CREDIT.pack(number, count)
