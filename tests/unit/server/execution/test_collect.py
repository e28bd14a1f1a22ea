import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.execution.collect import Collector, classify, killed_for_unknown_reason
from callgate_server.execution.framing import ExitFrame, Frame, FrameType
from callgate_server.model.answer import Exit
from callgate_server.model.manifest import Limits
from callgate_server.model.run import CapturedArtifact, Cause

LIMITS = Limits(output_kb=1, result_kb=1, artifacts=2, artifacts_kb=1)
BYE = Frame(FrameType.BYE, b"")
SEAL = Frame(FrameType.SEAL, bytes(range(32)))


def stdout(data: bytes) -> Frame:
    return Frame(FrameType.STDOUT, data)


def tail(data: bytes) -> Frame:
    return Frame(FrameType.STDOUT_TAIL, data)


def ended(**change: object) -> Frame:
    document = {
        "seal": SEAL.payload.hex(), "cause": "ended", "code": 0, "signal": None, "oom_kills": None, "stdout_bytes": 0, "stderr_bytes": 0,
        "result_truncated": False, "cpu_ms": 1.5, "wall_ms": 2.5, "max_rss_kb": 9,
    }  # fmt: skip
    return Frame(FrameType.EXIT, json.dumps(document | change).encode())


def artifact(name: str, size: int, rejected: str | None = None) -> Frame:
    document: dict[str, object] = {"name": name, "size": size}
    if rejected is not None:
        document["rejected"] = rejected
    return Frame(FrameType.ARTIFACT, json.dumps(document).encode())


def data(content: bytes) -> Frame:
    return Frame(FrameType.ARTIFACT_DATA, content)


def collect(frames: Sequence[Frame]) -> Collector:
    collector = Collector(LIMITS, lambda _name, _data: None)
    for frame in [SEAL, *frames]:
        collector.add(frame)
    return collector


def test_a_whole_run_becomes_an_outcome() -> None:
    heard: list[tuple[str, bytes]] = []
    collector = Collector(LIMITS, lambda name, content: heard.append((name, content)))
    for frame in [
        SEAL,
        stdout(b"out"),
        Frame(FrameType.STDERR, b"err"),
        ended(stdout_bytes=5, stderr_bytes=1000),
        stdout(b"!!"),
        Frame(FrameType.STDERR_TAIL, b"end"),
        Frame(FrameType.RESULT, b"[1,"),
        Frame(FrameType.RESULT, b"2]"),
        artifact("a", 4),
        data(b"12"),
        data(b"34"),
        artifact("empty", 0),
        artifact("link", 7, "symbolic_link"),
        BYE,
    ]:
        assert not collector.complete
        collector.add(frame)
    outcome = collector.outcome(Cause.EXITED, "text")
    assert collector.complete
    assert heard == [("stdout", b"out"), ("stderr", b"err"), ("stdout", b"!!")]
    assert (outcome.cause, outcome.detail, outcome.exit) == (Cause.EXITED, "text", Exit(code=0))
    assert (outcome.stdout.head, outcome.stdout.tail, outcome.stdout.truncated) == (b"out!!", b"", False)
    assert (outcome.stderr.head, outcome.stderr.tail, outcome.stderr.total_bytes) == (b"err", b"end", 1000)
    assert outcome.stderr.truncated
    assert outcome.result_json == b"[1,2]"
    assert outcome.artifacts == (
        CapturedArtifact("a", 4, b"1234"),
        CapturedArtifact("empty", 0, b""),
        CapturedArtifact("link", 7, rejected="symbolic_link"),
    )
    assert (outcome.cpu_ms, outcome.wall_ms, outcome.max_rss_kb) == (1.5, 2.5, 9)


def test_what_came_before_a_loss_is_kept() -> None:
    outcome = collect([stdout(b"partial")]).outcome(Cause.LOST, "gone")
    assert (outcome.stdout.head, outcome.stdout.total_bytes, outcome.stdout.truncated) == (b"partial", 7, False)
    assert outcome.exit == Exit()


def test_processor_time_that_nobody_counted_is_the_most_that_it_can_have_been() -> None:
    limits = LIMITS.model_copy(update={"cpu": 0.5})
    uncounted = Collector(limits, lambda _name, _data: None)
    for frame in (SEAL, ended(cpu_ms=None, wall_ms=3000), BYE):
        uncounted.add(frame)
    outcome = uncounted.outcome(Cause.EXITED, "")
    assert (outcome.cpu_ms, outcome.wall_ms) == (1500, 3000)
    lost = Collector(limits, lambda _name, _data: None)
    lost.ran_ms = 4000
    outcome = lost.outcome(Cause.LOST, "gone")
    assert (outcome.cpu_ms, outcome.wall_ms) == (2000, 0)


def test_a_total_smaller_than_what_came_is_not_believed() -> None:
    outcome = collect([stdout(b"12345"), ended(stdout_bytes=2), BYE]).outcome(Cause.EXITED, "")
    assert outcome.stdout.total_bytes == 5


def test_no_result_and_a_result_that_was_too_large_are_told_apart() -> None:
    assert collect([ended()]).outcome(Cause.EXITED, "").result_json is None
    outcome = collect([ended(result_truncated=True)]).outcome(Cause.EXITED, "")
    assert (outcome.result_json, outcome.result_truncated) == (None, True)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([tail(b"x")], id="a tail before exit"),
        pytest.param([Frame(FrameType.RESULT, b"x")], id="a result before exit"),
        pytest.param([artifact("a", 1)], id="an artifact before exit"),
        pytest.param([BYE], id="farewell before exit"),
        pytest.param([ended(), ended()], id="two exits"),
        pytest.param([ended(), BYE, BYE], id="two farewells"),
        pytest.param([ended(), BYE, stdout(b"x")], id="output after farewell"),
        pytest.param([ended(), tail(b"x"), stdout(b"x")], id="a head after its tail"),
        pytest.param([ended(), data(b"x")], id="data of no artifact"),
        pytest.param([ended(), artifact("a", 1), data(b"xx")], id="more data than announced"),
        pytest.param([ended(), artifact("a", 2), data(b"x"), BYE], id="farewell inside an artifact"),
        pytest.param([ended(), artifact("a", 2), artifact("b", 2)], id="an artifact inside another"),
        pytest.param([ended(), artifact("a", 1, "too_large"), data(b"x")], id="data of a rejected artifact"),
        pytest.param([ended(), *[artifact("a", 0)] * 3], id="more artifacts than allowed"),
        pytest.param([ended(), artifact("a", 1025)], id="larger artifacts than allowed"),
        pytest.param([ended(), *[artifact("a", 0, "too_large")] * 65], id="more refusals than listed"),
        pytest.param([stdout(b"x" * 1025)], id="more output than kept"),
        pytest.param([stdout(b"x" * 1000), ended(), tail(b"x" * 25)], id="more output in two parts than kept"),
        pytest.param([ended(), *[Frame(FrameType.RESULT, b"x" * 600)] * 2], id="a larger result than kept"),
        pytest.param([Frame(FrameType.HELLO, b'{"wire":1}')], id="a second greeting"),
        pytest.param([ended(), Frame(FrameType.HELLO, b'{"wire":1}')], id="a late greeting"),
        pytest.param([SEAL], id="a second seal"),
        pytest.param([ended(), SEAL], id="a late seal"),
        pytest.param([ended(seal="00" * 32)], id="another seal"),
        pytest.param([ended(seal="")], id="an empty seal"),
        pytest.param([ended(seal="é")], id="a seal that is no hexadecimal"),
        pytest.param([ended(seal=None)], id="no seal"),
    ],
)
def test_what_is_out_of_order_or_too_much_is_refused(frames: list[Frame]) -> None:
    collect(frames[:-1])
    with pytest.raises(ValueError, match=r"\w"):
        collect(frames)


@pytest.mark.parametrize("frame", [stdout(b"x"), ended(), BYE])
def test_nothing_may_come_before_the_seal(frame: Frame) -> None:
    with pytest.raises(ValueError, match="before the seal"):
        Collector(LIMITS, lambda _name, _data: None).add(frame)


EGRESS = [kind for kind in FrameType if kind.name.startswith("EGRESS")]


@pytest.mark.parametrize("kind", EGRESS)
def test_egress_frames_stand_between_seal_and_exit_and_go_to_their_taker(kind: FrameType) -> None:
    taken: list[Frame] = []
    collector = Collector(LIMITS, lambda _name, _data: None, taken.append)
    frame = Frame(kind, bytes(6))
    with pytest.raises(ValueError, match="before the seal"):
        collector.add(frame)
    for one in (SEAL, stdout(b"x"), frame, ended()):
        collector.add(one)
    assert taken == [frame]
    with pytest.raises(ValueError, match="after exit"):
        collector.add(frame)


@pytest.mark.parametrize("kind", EGRESS)
def test_without_egress_its_frames_are_refused(kind: FrameType) -> None:
    with pytest.raises(ValueError, match="without egress"):
        collect([Frame(kind, bytes(6))])


def test_a_forged_exit_leaves_the_end_unknown() -> None:
    """A tool that can write to the wire, as under gVisor, can end its call but not name the end."""
    collector = collect([stdout(b"x")])
    with pytest.raises(ValueError, match="not the runner's"):
        collector.add(ended(seal="ab" * 32))
    assert collector.ended is None
    assert collector.outcome(Cause.LOST, "").exit == Exit()


ANY_FRAME = st.one_of(
    st.builds(
        Frame,
        st.sampled_from([kind for kind in FrameType if kind not in (FrameType.EXIT, FrameType.ARTIFACT)]),
        st.binary(max_size=400),
    ),
    st.just(ended()),
    st.builds(artifact, st.sampled_from(["a", "b"]), st.integers(0, 2000), st.sampled_from([None, "too_large"])),
)


@given(frames=st.lists(ANY_FRAME, max_size=30))
def test_no_sequence_of_frames_makes_more_be_kept_than_the_limits_say(frames: list[Frame]) -> None:
    collector = Collector(LIMITS, lambda _name, _data: None)
    for frame in [SEAL, *frames]:
        try:
            collector.add(frame)
        except ValueError:
            break
    outcome = collector.outcome(Cause.LOST, "")
    assert len(outcome.stdout.head) + len(outcome.stdout.tail) <= 1024
    assert len(outcome.stderr.head) + len(outcome.stderr.tail) <= 1024
    assert len(outcome.result_json or b"") <= 1024
    assert sum(len(one.data) for one in outcome.artifacts) <= 1024
    assert len([one for one in outcome.artifacts if one.rejected is None]) <= 2


def exit_frame(**change: object) -> ExitFrame:
    collector = collect([ended(**change)])
    assert collector.ended is not None
    return collector.ended


@pytest.mark.parametrize(
    ("change", "sandbox_oom_killed", "cause"),
    [
        ({"code": 0}, False, Cause.EXITED),
        ({"code": 0, "oom_kills": 1}, True, Cause.EXITED),
        ({"code": 1, "oom_kills": 1}, False, Cause.OUT_OF_MEMORY),
        ({"code": 1, "oom_kills": 0}, True, Cause.OUT_OF_MEMORY),
        ({"code": 1, "oom_kills": 0}, False, Cause.EXITED),
        ({"code": 137}, False, Cause.EXITED),
        ({"code": 137, "oom_kills": 1}, False, Cause.OUT_OF_MEMORY),
        ({"code": None, "signal": 9}, False, Cause.SIGNALLED),
        ({"code": None, "signal": 9, "oom_kills": 0}, False, Cause.SIGNALLED),
        ({"code": None, "signal": 9, "oom_kills": 1}, False, Cause.OUT_OF_MEMORY),
        ({"code": None, "signal": 9, "oom_kills": 0}, True, Cause.OUT_OF_MEMORY),
        ({"code": None, "signal": 11, "oom_kills": 1}, True, Cause.SIGNALLED),
        ({"cause": "timed_out", "code": None, "signal": 9, "oom_kills": 1}, True, Cause.TIMED_OUT),
        ({"cause": "timed_out", "code": None}, False, Cause.TIMED_OUT),
        ({"cause": "cancelled", "code": 0}, False, Cause.CANCELLED),
        ({"cause": "output_flood", "code": None, "signal": 9}, False, Cause.OUTPUT_FLOOD),
        ({"cause": "out_of_memory", "code": None, "signal": 9}, False, Cause.OUT_OF_MEMORY),
        ({"cause": "too_many_processes", "code": None, "signal": 9}, False, Cause.SIGNALLED),
    ],
)
def test_the_cause_follows_status_and_evidence(
    change: dict[str, object],
    sandbox_oom_killed: bool,  # a column of the table
    cause: Cause,
) -> None:
    assert classify(exit_frame(**change), sandbox_oom_killed=sandbox_oom_killed)[0] is cause


def test_only_a_kill_that_nobody_owned_up_to_needs_evidence() -> None:
    assert killed_for_unknown_reason(exit_frame(code=None, signal=9))
    assert killed_for_unknown_reason(exit_frame(code=137))
    assert not killed_for_unknown_reason(exit_frame(code=None, signal=11))
    assert not killed_for_unknown_reason(exit_frame(cause="timed_out", code=None, signal=9))


def test_a_failure_after_a_kill_for_memory_says_both() -> None:
    _, detail = classify(exit_frame(code=1, oom_kills=1), sandbox_oom_killed=False)
    assert "memory" in detail
    assert "exited with status 1" in detail
