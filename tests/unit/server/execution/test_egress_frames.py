import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_runner import egress, wire
from callgate_server.execution import egress_frames
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
from callgate_server.execution.framing import HEADER, RECEIVED, SENT, Frame, FrameDecoder, FrameType

FRAMES = json.loads((Path(__file__).parents[4] / "proto/callgate_proto/frames.json").read_text())
NUMBERS = st.integers(0, 2**32 - 1)


def test_the_layouts_are_those_of_the_description() -> None:
    layouts = {"id+port": ">IH", "id+how": ">IB", "id+count": ">II"}
    assert egress_frames._OPEN.format == layouts["id+port"]
    assert egress_frames._CLOSE.format == layouts["id+how"]
    assert egress_frames._CREDIT.format == layouts["id+count"]
    for payload, layout in layouts.items():
        assert layout in FRAMES["payloads"][payload]
    assert tuple(FRAMES["closings"].values()) == (egress_frames._NO_MORE, egress_frames._OVER)
    assert FRAMES["frames"]["egress_data"]["max"] == egress_frames._ID.size + CHUNK


@given(number=NUMBERS, port=st.integers(0, 65535), data=st.binary(min_size=1, max_size=99), count=NUMBERS)
def test_what_the_runner_sends_is_decoded(number: int, port: int, data: bytes, count: int) -> None:
    stream = b"".join(
        [
            wire.encode(wire.EGRESS_OPEN, egress._OPEN.pack(number, port)),
            wire.encode(wire.EGRESS_DATA, wire.EGRESS_HEAD.pack(number) + data),
            wire.encode(wire.EGRESS_CREDIT, egress._CREDIT.pack(number, count)),
            egress._close_frame(number, egress.NO_MORE),
            egress._close_frame(number, egress.OVER),
        ]
    )
    assert [decode_egress(frame) for frame in FrameDecoder().feed(stream)] == [
        EgressOpen(number, port),
        EgressData(number, data),
        EgressCredit(number, count),
        EgressClose(number, over=False),
        EgressClose(number, over=True),
    ]


@given(number=NUMBERS, data=st.binary(min_size=1, max_size=99), count=NUMBERS)
def test_what_is_sent_is_read_by_the_runner(number: int, data: bytes, count: int) -> None:
    stream = encode_data(number, data) + encode_no_more(number) + encode_over(number) + encode_credit(number, count)
    frames = wire.Decoder().feed(stream)
    assert [kind for kind, _ in frames] == [wire.EGRESS_DATA, wire.EGRESS_CLOSE, wire.EGRESS_CLOSE, wire.EGRESS_CREDIT]
    assert all(wire.EGRESS_HEAD.unpack_from(payload) == (number,) for _, payload in frames)
    assert frames[0][1][wire.EGRESS_HEAD.size :] == data
    assert [egress._CLOSE.unpack(payload)[1] for _, payload in frames[1:3]] == [egress.NO_MORE, egress.OVER]
    assert egress._CREDIT.unpack(frames[3][1]) == (number, count)


def test_the_largest_data_frame_fits_both_ways() -> None:
    assert len(encode_data(1, bytes(CHUNK))) - HEADER.size == SENT[FrameType.EGRESS_DATA][1]
    assert RECEIVED[FrameType.EGRESS_DATA] == SENT[FrameType.EGRESS_DATA]


@pytest.mark.parametrize("how", [2, 255])
def test_an_unknown_end_is_refused(how: int) -> None:
    with pytest.raises(ValueError, match="unknown end"):
        decode_egress(Frame(FrameType.EGRESS_CLOSE, b"\0\0\0\1" + bytes([how])))


@pytest.mark.parametrize("kind", [kind for kind in FrameType if not kind.name.startswith("EGRESS")])
def test_a_frame_of_anything_else_is_refused(kind: FrameType) -> None:
    with pytest.raises(ValueError, match="not of egress"):
        decode_egress(Frame(kind, bytes(6)))
