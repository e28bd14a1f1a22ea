"""The attach stream: whatever way it is cut into pieces, the wire comes out whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.backends.docker.stream import DIAGNOSTICS_LIMIT, AttachStream

FRAMES = st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=300)), max_size=12)


def frame(stream: int, payload: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4) + payload


@given(frames=FRAMES, cuts=st.lists(st.integers(1, 64), min_size=1, max_size=20))
def test_any_cutting_gives_the_same_bytes(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(frame(*one) for one in frames)
    stream, wire, position = AttachStream(), b"", 0
    while position < len(data):
        for size in cuts:
            wire += stream.feed(data[position : position + size])
            position += size
    assert wire == b"".join(payload for number, payload in frames if number == 1)
    assert stream.diagnostics == b"".join(payload for number, payload in frames if number == 2)[:DIAGNOSTICS_LIMIT]
    assert stream.at_border


def test_a_piece_is_given_before_its_frame_is_complete() -> None:
    stream = AttachStream()
    assert stream.feed(frame(1, b"abcdef")[:11]) == b"abc"
    assert not stream.at_border
    assert stream.feed(b"def") == b"def"
    assert stream.at_border


def test_half_a_header_is_no_border() -> None:
    stream = AttachStream()
    stream.feed(b"\1\0\0")
    assert not stream.at_border


def test_diagnostics_are_capped_and_the_wire_goes_on() -> None:
    stream = AttachStream()
    for _ in range(3):
        assert stream.feed(frame(2, b"x" * DIAGNOSTICS_LIMIT)) == b""
    assert stream.diagnostics == b"x" * DIAGNOSTICS_LIMIT
    assert stream.feed(frame(1, b"on")) == b"on"


def test_what_the_engine_says_itself_is_kept_as_diagnostics() -> None:
    stream = AttachStream()
    assert stream.feed(frame(3, b"engine trouble")) == b""
    assert stream.diagnostics == b"engine trouble"


@pytest.mark.parametrize("header", [b"\4\0\0\0\0\0\0\1", b"\1\1\0\0\0\0\0\1", b"HTTP/1.1", b"\0\0\0\0\0\0\0\1"])
def test_a_stream_out_of_step_is_a_broken_connection(header: bytes) -> None:
    with pytest.raises(ConnectionError):
        AttachStream().feed(header)


def test_a_length_that_never_comes_costs_nothing() -> None:
    stream = AttachStream()
    assert stream.feed(b"\1\0\0\0\xff\xff\xff\xff" + b"a") == b"a"
