import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_runner import artifacts, wire
from callgate_server.execution.framing import encode_call, encode_cancel, encode_secret
from callgate_server.model.manifest import Limits, Run
from callgate_server.model.sealed import Sealed
from support.names import NAMES

ROOT = Path(__file__).parents[3]
FRAMES = json.loads((ROOT / "proto/callgate_proto/frames.json").read_text())
# Beside what the gateway may send, every type that it may not.
ANY_FRAME = st.builds(
    lambda kind, size, body: wire.HEADER.pack(kind, size) + body,
    st.integers(0, 255),
    st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1)),
    st.binary(max_size=64),
)


def test_types_are_those_of_the_description() -> None:
    described = {name.upper(): frame["type"] for name, frame in FRAMES["frames"].items()}
    assert {name: getattr(wire, name) for name in described} == described
    assert FRAMES["wire"] == wire.VERSION
    assert wire.HEADER.format == FRAMES["header"]["struct"]


def test_bounds_are_those_of_the_description() -> None:
    frames = FRAMES["frames"].values()
    incoming = {frame["type"]: (frame["min"], frame["max"]) for frame in frames if frame["from"] in ("gateway", "both")}
    outgoing = {frame["type"]: frame["max"] for frame in frames if frame["from"] in ("runner", "both")}
    assert incoming == wire.RECEIVED
    assert outgoing == {kind: wire.MAX_SENT.get(kind, wire.CHUNK) for kind in outgoing}


def test_limits_of_artifacts_are_those_of_the_description() -> None:
    limits = FRAMES["limits"]
    assert limits["rejected_artifacts"] == artifacts.MAX_REJECTED
    assert limits["artifact_name_bytes"] == artifacts.MAX_NAME_BYTES


@given(cuts=st.lists(st.integers(min_value=1, max_value=40), max_size=30))
def test_what_the_gateway_sends_is_read_in_any_portions(cuts: list[int]) -> None:
    stream = (
        encode_secret("key", "file", Sealed(b"\x00value"))
        + encode_call(Run(command=("/bin/true", "é")), b'{"a":1}', Limits(), 1234, NAMES)
        + encode_cancel()
    )
    decoder = wire.Decoder()
    frames = []
    for size in cuts:
        frames += decoder.feed(stream[:size])
        stream = stream[size:]
    frames += decoder.feed(stream)
    assert [kind for kind, _ in frames] == [wire.SECRET, wire.CALL, wire.CANCEL]
    assert wire.split_head(frames[0][1]) == ({"name": "key", "deliver": "file"}, b"\x00value")
    head, arguments = wire.split_head(frames[1][1])
    assert (head["command"], head["deadline_ms"], arguments) == (["/bin/true", "é"], 1234, b'{"a":1}')


@given(data=st.one_of(st.binary(max_size=200), st.lists(ANY_FRAME, max_size=5).map(b"".join)))
def test_garbage_is_refused_or_waits_but_never_passes(data: bytes) -> None:
    decoder = wire.Decoder()
    try:
        frames = decoder.feed(data)
    except ValueError:
        return
    for kind, payload in frames:
        least, most = wire.RECEIVED[kind]
        assert least <= len(payload) <= most


@pytest.mark.parametrize("payload", [b"\x00\x00\x00\x09{}", b"\x00\x00\x00\x02[]", b"\x00\x00\x00\x01{}"])
def test_a_malformed_head_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"head|Expecting"):
        wire.split_head(payload)


def test_a_frame_above_its_bound_is_not_built() -> None:
    with pytest.raises(ValueError, match="larger"):
        wire.encode(wire.STDOUT, b"x" * (wire.CHUNK + 1))
    with pytest.raises(ValueError, match="larger"):
        wire.encode_document(wire.HELLO, {"wire": "x" * 300})


class Pipes:
    """A wire and the gateway's ends of it."""

    def __init__(self) -> None:
        source, self.to_runner = os.pipe()
        self.from_runner, sink = os.pipe()
        self.wire = wire.Wire(source, sink)

    def close(self) -> None:
        for fd in (self.to_runner, self.from_runner, self.wire.source, self.wire.sink):
            try:
                os.close(fd)
            except OSError:
                continue


@pytest.fixture
def pipes():
    both = Pipes()
    yield both
    both.close()


def test_a_peer_that_does_not_read_costs_no_more_than_the_limit(pipes: Pipes) -> None:
    pipes.wire.queue(b"x" * 1_000_000)
    with pytest.raises(TimeoutError):
        pipes.wire.flush(time.monotonic() + 0.05)
    assert 0 < pipes.wire.pending < 1_000_000


def test_a_closed_wire_is_noticed_while_reading(pipes: Pipes) -> None:
    os.close(pipes.to_runner)
    with pytest.raises(ConnectionError):
        pipes.wire.next_frames()


def test_news_are_words_or_the_end_of_the_wire(pipes: Pipes) -> None:
    assert not pipes.wire.has_news(0.01)
    os.write(pipes.to_runner, encode_cancel())
    assert pipes.wire.has_news(10)
    assert pipes.wire.receive() == [(wire.CANCEL, b"")]
    assert not pipes.wire.has_news(0)
    os.close(pipes.to_runner)
    assert pipes.wire.has_news(10)


@pytest.mark.parametrize("end", ["to_runner", "from_runner"])
def test_a_closed_wire_is_noticed_while_writing(pipes: Pipes, end: str) -> None:
    pipes.wire.queue(b"x" * 1_000_000)
    os.close(getattr(pipes, end))
    with pytest.raises(ConnectionError):
        pipes.wire.flush(time.monotonic() + 10)


def test_everything_queued_arrives(pipes: Pipes) -> None:
    pipes.wire.queue(b"x" * 1000)
    pipes.wire.flush(time.monotonic() + 10)
    assert os.read(pipes.from_runner, 2000) == b"x" * 1000
    assert pipes.wire.pending == 0


def test_the_wire_leaves_the_standard_descriptors() -> None:
    program = (
        f"import sys, os; sys.path.insert(0, {str(ROOT / 'sandbox_images/base')!r})\n"
        "from callgate_runner import wire\n"
        "link = wire.Wire.take_over()\n"
        "names = [os.readlink(f'/proc/self/fd/{fd}') for fd in (0, 1, 3)]\n"
        "kept = [os.get_inheritable(fd) for fd in (link.source, link.sink, 0, 1, 3)]\n"
        "os.write(link.sink, repr((names, kept, link.source > 3, link.sink > 3, os.read(link.source, 9))).encode())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=b"hi", stdout=subprocess.PIPE, check=True)
    assert done.stdout.decode() == repr((["/dev/null"] * 3, [False] * 5, True, True, b"hi"))
