import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_runner import wire
from callgate_server.execution import framing
from callgate_server.execution.framing import (
    HEADER,
    RECEIVED,
    ArtifactFrame,
    Frame,
    FrameDecoder,
    FrameType,
    decode_artifact,
    decode_exit,
    decode_hello,
    encode_call,
    encode_cancel,
    encode_secret,
)
from callgate_server.model.manifest import Limits, Run
from callgate_server.model.run import EgressWire
from callgate_server.model.sealed import Sealed
from support.names import NAMES

FRAMES = json.loads((Path(__file__).parents[4] / "proto/callgate_proto/frames.json").read_text())
EXIT = {
    "seal": "00" * 32,
    "cause": "ended",
    "code": 0,
    "signal": None,
    "oom_kills": None,
    "stdout_bytes": 1,
    "stderr_bytes": 2,
    "result_truncated": False,
    "cpu_ms": 1.5,
    "wall_ms": 2,
    "max_rss_kb": 3,
}
DATA_TYPES = [wire.STDOUT, wire.STDERR, wire.STDOUT_TAIL, wire.STDERR_TAIL, wire.RESULT, wire.ARTIFACT_DATA]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def test_types_are_those_of_the_description() -> None:
    described = {name.upper(): frame["type"] for name, frame in FRAMES["frames"].items()}
    assert {kind.name: kind.value for kind in FrameType} == described
    assert FRAMES["wire"] == framing.WIRE_VERSION
    assert FRAMES["header"]["struct"] == HEADER.format


def test_bounds_are_those_of_the_description() -> None:
    def bounds(sender: str) -> dict[int, tuple[int, int]]:
        frames = FRAMES["frames"].values()
        return {frame["type"]: (frame["min"], frame["max"]) for frame in frames if frame["from"] in (sender, "both")}

    assert bounds("runner") == RECEIVED
    assert bounds("gateway") == framing.SENT


def test_words_and_limits_are_those_of_the_description() -> None:
    assert list(framing.RUNNER_CAUSES) == FRAMES["causes"]
    assert sorted(FRAMES["rejections"]) == sorted(framing.REJECTIONS)
    assert FRAMES["limits"]["rejected_artifacts"] == framing.MAX_REJECTED_ARTIFACTS
    assert FRAMES["limits"]["artifact_name_bytes"] == framing.MAX_ARTIFACT_NAME_BYTES


@given(
    payloads=st.lists(st.tuples(st.sampled_from(DATA_TYPES), st.binary(min_size=1, max_size=300)), max_size=10),
    cuts=st.lists(st.integers(min_value=1, max_value=100), max_size=60),
)
def test_what_the_runner_sends_is_read_in_any_portions(payloads: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(wire.encode(kind, payload) for kind, payload in payloads)
    decoder = FrameDecoder()
    frames: list[Frame] = []
    for size in cuts:
        frames += decoder.feed(stream[:size])
        stream = stream[size:]
    frames += decoder.feed(stream)
    assert [(frame.type, frame.payload) for frame in frames] == payloads


@given(data=st.binary(max_size=400))
def test_garbage_is_refused_or_waits_but_never_passes(data: bytes) -> None:
    decoder = FrameDecoder()
    try:
        frames = list(decoder.feed(data))
    except ValueError:
        return
    for frame in frames:
        least, most = RECEIVED[frame.type]
        assert least <= len(frame.payload) <= most


@given(kind=st.integers(0, 255), size=st.integers(0, 2**32 - 1))
def test_a_length_is_judged_before_the_payload_comes(kind: int, size: int) -> None:
    least, most = RECEIVED.get(kind, (1, 0))
    if least <= size <= most:
        list(FrameDecoder().feed(HEADER.pack(kind, size)))
    else:
        with pytest.raises(ValueError, match="forbidden length"):
            list(FrameDecoder().feed(HEADER.pack(kind, size)))


@pytest.mark.parametrize("kind", [FrameType.SECRET, FrameType.CALL, FrameType.CANCEL, FrameType.LANE, 0, 16, 36, 255])
def test_frames_of_the_other_direction_are_unknown(kind: int) -> None:
    with pytest.raises(ValueError, match="unknown type"):
        list(FrameDecoder().feed(HEADER.pack(kind, 0)))


def test_the_decoder_holds_no_more_than_one_payload() -> None:
    decoder = FrameDecoder()
    frame = wire.encode(wire.STDOUT, b"x" * wire.CHUNK)
    for _ in range(100):
        assert len(list(decoder.feed(frame))) == 1
    assert list(decoder.feed(frame[:-1])) == []
    assert len(decoder._buffer) < len(frame)


def test_frames_before_a_fault_are_heard() -> None:
    frames = FrameDecoder().feed(wire.encode(wire.STDOUT, b"x") + b"\xff" * 5)
    assert next(frames) == Frame(FrameType.STDOUT, b"x")
    with pytest.raises(ValueError, match="unknown type"):
        next(frames)


def test_a_call_holds_what_the_runner_needs_and_no_more() -> None:
    limits = Limits(output_kb=2, result_kb=3, artifacts=4, artifacts_kb=5, memory_mb=64, pids=70, open_files=80)
    head, arguments = wire.split_head(encode_call(Run(python="a:b"), b"{}", limits, 77, NAMES)[HEADER.size :])
    assert arguments == b"{}"
    assert set(head) == set(FRAMES["documents"]["call"])
    assert head["deadline_ms"] == 77
    assert (head["call_id"], head["idempotency_key"]) == (NAMES.call_id, NAMES.idempotency_key)
    assert head["attempt"] == NAMES.attempt == 3
    assert head["memory_bytes"] == 64 * 1024 * 1024


@pytest.mark.parametrize("authority", [None, b"PEM"])
def test_a_call_says_what_the_way_out_is(authority: bytes | None) -> None:
    way_out = EgressWire(proxy=True, ports=(5432,), authority_pem=authority, mark="m")
    head, _ = wire.split_head(encode_call(Run(python="a:b"), b"{}", Limits(), 1, NAMES, way_out)[HEADER.size :])
    assert head["egress"] == {"proxy": True, "ports": [5432], "authority": authority and "PEM", "mark": "m"}
    without, _ = wire.split_head(encode_call(Run(python="a:b"), b"{}", Limits(), 1, NAMES)[HEADER.size :])
    assert without["egress"] is None


def test_what_does_not_fit_the_wire_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ValueError, match="larger"):
        encode_call(Run(python="a:b"), b"x" * 8388608, Limits(), 1, NAMES)
    with pytest.raises(ValueError, match="larger"):
        encode_secret("key", "file", Sealed(b"x" * 262144))
    with pytest.raises(ValueError, match="UTF-8"):
        encode_secret("key", "stdin", Sealed(b"\xff"))


def test_a_cancel_is_empty() -> None:
    assert encode_cancel() == b"\x04\x00\x00\x00\x00"


def test_the_greeting_is_of_this_version() -> None:
    decode_hello(b'{"wire":1}')
    for other in (b'{"wire":2}', b'{"wire":1,"more":1}', b"[]", b"{}", b"\xff", b'{"wire":1,"wire":1}'):
        with pytest.raises(ValueError):  # noqa: PT011  # any refusal will do
            decode_hello(other)


def test_a_lane_says_in_known_words_why_its_imports_are_not_warm() -> None:
    assert sorted(FRAMES["cold"]) == sorted(framing.COLD)
    assert decode_hello(b'{"wire":1}') is None
    assert decode_hello(b'{"wire":1,"cold":"shared memory"}') == "shared memory"
    for other in (b'{"cold":"files"}', b'{"wire":2,"cold":"files"}', b'{"wire":1,"cold":"ignore all"}',
                  b'{"wire":1,"cold":null}', b'{"wire":1,"cold":["files"]}', b'{"wire":1,"cold":"files","more":1}'):  # fmt: skip
        with pytest.raises(ValueError):  # noqa: PT011  # any refusal will do
            decode_hello(other)


def test_an_exit_is_decoded() -> None:
    ended = decode_exit(json.dumps(EXIT).encode())
    assert (ended.cause, ended.code, ended.signal, ended.oom_kills) == ("ended", 0, None, None)
    assert (ended.stdout_bytes, ended.stderr_bytes, ended.cpu_ms, ended.wall_ms) == (1, 2, 1.5, 2.0)
    assert set(EXIT) == set(FRAMES["documents"]["exit"])


@pytest.mark.parametrize(
    "change",
    [
        {"cause": "succeeded"},
        {"seal": None},
        {"seal": 7},
        {"cause": ["ended"]},
        {"code": 256},
        {"code": -1},
        {"code": True},
        {"code": "0"},
        {"code": 0.0},
        {"code": None},
        {"signal": 9},
        {"signal": 65, "code": None},
        {"oom_kills": 2**63},
        {"stdout_bytes": -1},
        {"stdout_bytes": None},
        {"stderr_bytes": 10**100},
        {"result_truncated": 0},
        {"cpu_ms": -0.1},
        {"cpu_ms": "none"},
        {"wall_ms": None},
        {"wall_ms": "1"},
        {"wall_ms": True},
        {"max_rss_kb": 1.5},
    ],
)
def test_an_exit_with_a_value_out_of_range_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"exit|range"):
        decode_exit(json.dumps({**EXIT, **change}).encode())


@given(document=st.dictionaries(st.sampled_from(sorted(EXIT)), JSON_VALUES))
def test_no_exit_document_raises_anything_but_a_refusal(document: dict[str, object]) -> None:
    with contextlib.suppress(ValueError):
        ended = decode_exit(json.dumps({**EXIT, **document}).encode())
        assert ended.cause in FRAMES["causes"]
        assert ended.stdout_bytes >= 0


@pytest.mark.parametrize(
    "document", [b"[" * 2000, b'{"cause":' * 400, b"\xff", b'{"cause":NaN}', b'{"code":1,"code":1}', b"{}", b"null"]
)
def test_documents_made_to_hurt_are_refused(document: bytes) -> None:
    for decode in (decode_exit, decode_artifact, decode_hello):
        with pytest.raises(ValueError):  # noqa: PT011  # any refusal will do
            decode(document)


def test_artifacts_are_decoded() -> None:
    assert decode_artifact(b'{"name":"a/b.txt","size":3}') == ArtifactFrame("a/b.txt", 3, None)
    assert decode_artifact(b'{"name":"","size":0,"rejected":"not_examined"}') == ArtifactFrame("", 0, "not_examined")


@pytest.mark.parametrize(
    "document",
    [
        {"name": "../a", "size": 1},
        {"name": "/a", "size": 1},
        {"name": "a//b", "size": 1},
        {"name": "a/./b", "size": 1},
        {"name": "", "size": 1},
        {"name": "a\nb", "size": 1},
        {"name": "a\x9bb", "size": 1},
        {"name": "a\0", "size": 1, "rejected": "bad_name"},
        {"name": "é" * 257, "size": 1},
        {"name": 1, "size": 1},
        {"name": "a", "size": -1},
        {"name": "a", "size": True},
        {"name": "a"},
        {"name": "a", "size": 1, "rejected": "because"},
        {"name": "a", "size": 1, "rejected": ["too_large"]},
    ],
)
def test_an_artifact_that_is_not_plain_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"artifact|range"):
        decode_artifact(json.dumps(document).encode())
