"""A runner that is a lane, spoken to over its wire: sessions, and everything that ends it."""

import json
from pathlib import Path

import pytest

from callgate_runner import wire
from callgate_server.execution.framing import FrameType, decode_exit, decode_hello, encode_cancel, encode_secret
from callgate_server.model.manifest import Run
from callgate_server.model.sealed import Sealed
from support.lane_world import LIMITS, LaneProcess, call_frame, lane_frame, lane_process

HELLO, SEAL, EXIT, RESULT, BYE = (
    FrameType.HELLO, FrameType.SEAL, FrameType.EXIT, FrameType.RESULT, FrameType.BYE
)  # fmt: skip
BROKE, GONE, REFUSED = 70, 71, 72
PIN = encode_secret("pin", "file", Sealed(b"1234"))
WORD = encode_secret("word", "stdin", Sealed(b"hunter2"))
# Does what it is told, and says what is there.
TOOL = """
import os, time
def run(act="", secrets=None):
    found = {"pid": os.getpid(), "files": sorted(os.listdir("/run/secrets") + os.listdir("/tmp")), "secrets": secrets}
    exec(act)
    return found
"""


def opened(lane: LaneProcess, order: bytes | None = None) -> None:
    assert lane.kinds(HELLO) == [HELLO]
    lane.send(order or lane_frame())
    assert lane.kinds(HELLO) == [HELLO]


def session(lane: LaneProcess, act: str = "", *before: bytes, deadline_s: float = 20) -> tuple[str, object]:
    """Make a call; return the cause of its end and the result."""
    lane.send(*before, call_frame({"act": act}, deadline_s=deadline_s))
    return account(lane)


def account(lane: LaneProcess) -> tuple[str, object]:
    frames = lane.until(BYE)
    assert frames[0].type is SEAL
    ended = next(decode_exit(frame.payload) for frame in frames if frame.type is EXIT)
    assert ended.seal == frames[0].payload.hex()
    result = b"".join(frame.payload for frame in frames if frame.type is RESULT)
    return ended.cause, json.loads(result) if result else None


# --- sessions ----------------------------------------------------------------------------------------------------


def test_call_after_call_each_has_a_sandbox_of_its_own(tmp_path: Path) -> None:
    with lane_process(tmp_path, own=TOOL) as lane:
        opened(lane)
        for _ in range(3):
            cause, found = session(lane, "open('/tmp/trace', 'w').close()", PIN, WORD)
            assert (cause, found) == ("ended", {"pid": 2, "files": ["pin"], "secrets": {"word": "hunter2"}})
            assert lane.kinds(HELLO) == [HELLO]
            # The next has none of the secrets that the one before had.
            assert session(lane) == ("ended", {"pid": 2, "files": [], "secrets": {}})
            assert lane.kinds(HELLO) == [HELLO]
        lane.close_wire()
        assert lane.ended() == (GONE, "")


@pytest.mark.parametrize("act", ["raise SystemExit(3)", "1 / 0", "os._exit(7)"])
def test_a_tool_that_fails_by_itself_ends_nothing(act: str, tmp_path: Path) -> None:
    with lane_process(tmp_path, own=TOOL) as lane:
        opened(lane)
        assert session(lane, act) == ("ended", None)
        assert lane.kinds(HELLO) == [HELLO]
        assert session(lane)[0] == "ended"


def test_commands_have_lanes_too(tmp_path: Path) -> None:
    run = Run(command=("/bin/sh", "-c", "read line; echo $line; ls /run/secrets"), result="stdout")
    with lane_process(tmp_path) as lane:
        opened(lane, lane_frame(run))
        for number in range(3):
            lane.send(PIN, call_frame({"n": number}, run))
            frames = lane.until(BYE)
            assert b"".join(frame.payload for frame in frames if frame.type is RESULT) == b'{"n": %d}\npin\n' % number
            assert lane.kinds(HELLO) == [HELLO]


def test_what_the_first_imports_left_is_not_there_in_any_call(tmp_path: Path) -> None:
    own = (
        "import os, time\n"
        "if os.path.exists('/proc/self') and os.fork() == 0:\n    time.sleep(60)\n"
        "def run(act): return os.path.exists('/proc/self')\n"
    )
    said = "ends = zygote.Zygote.end\ndef end(source):\n    ends(source)\n    assert others() == [], others()\nzygote.Zygote.end = end\n"
    with lane_process(tmp_path, own=own, before=said) as lane:
        assert [decode_hello(frame.payload) for frame in lane.until(HELLO)] == [None]
        lane.send(lane_frame())
        for _ in range(2):
            assert [decode_hello(frame.payload) for frame in lane.until(HELLO)] == ["processes"]
            assert session(lane) == ("ended", False)


# --- irregular ends ------------------------------------------------------------------------------------------------

IRREGULAR = {
    "a signal": ("os.kill(2, 9)", "ended"),
    "a process left behind": ("os.fork() or time.sleep(60)", "ended"),
    "the deadline": ("time.sleep(60)", "timed_out"),
    "a flood": ("while True: os.write(1, bytes(65536))", "output_flood"),
}


@pytest.mark.parametrize("kind", IRREGULAR)
def test_the_call_is_accounted_for_and_the_lane_ends(kind: str, tmp_path: Path) -> None:
    act, cause = IRREGULAR[kind]
    limits = LIMITS.model_copy(update={"output_kb": 1})
    with lane_process(tmp_path, own=TOOL) as lane:
        opened(lane, lane_frame(limits=limits))
        deadline_s = 1 if cause == "timed_out" else 20
        lane.send(call_frame({"act": act}, limits=limits, deadline_s=deadline_s))
        assert account(lane)[0] == cause
        assert lane.kinds(HELLO) == []
        assert lane.ended() == (0, "")


def test_a_cancelled_call_is_the_lanes_last(tmp_path: Path) -> None:
    with lane_process(tmp_path, own=TOOL) as lane:
        opened(lane)
        lane.send(call_frame({"act": "print('begun', flush=True); time.sleep(60)"}))
        begun = lane.kinds(FrameType.STDOUT)
        assert begun == [SEAL, FrameType.STDOUT]
        lane.send(encode_cancel())
        ended = next(frame for frame in lane.until(BYE) if frame.type is EXIT)
        assert decode_exit(ended.payload).cause == "cancelled"
        assert lane.kinds(HELLO) == []
        assert lane.ended() == (0, "")


def test_a_kill_for_memory_ends_the_lane_even_if_the_tool_goes_on(tmp_path: Path) -> None:
    # Asked at the begin and at the end of each call: during the second, somebody is killed.
    counts = "counted = iter([3, 3, 3])\nlimits.oom_kills = lambda: next(counted, 4)\n"
    with lane_process(tmp_path, own=TOOL, before=counts) as lane:
        opened(lane)
        assert session(lane)[0] == "ended"
        assert lane.kinds(HELLO) == [HELLO]
        assert session(lane)[0] == "ended"
        assert lane.kinds(HELLO) == []
        assert lane.ended() == (0, "")


@pytest.mark.parametrize("victim", ["source.pid", "source.pid + 1"])
def test_what_dies_in_an_idle_lane_ends_it_at_once(victim: str, tmp_path: Path) -> None:
    kills = (
        "import threading\nopens = lane._open\n"
        "def opened(order):\n"
        "    source, one, cold = opens(order)\n"
        f"    victim = one._pid if {victim!r} != 'source.pid' else source.pid\n"
        "    threading.Timer(0.3, os.kill, (victim, signal.SIGKILL)).start()\n"
        "    return source, one, cold\n"
        "lane._open = opened\n"
        # Not by the next look, which does not come.
        "lane._TICK_S = 3600\n"
    )
    with lane_process(tmp_path, own=TOOL, before=kills) as lane:
        opened(lane)
        status, said = lane.ended()
        assert status == BROKE
        assert said.startswith("callgate_runner: RuntimeError at ")


def test_a_cell_that_cannot_be_made_after_a_call_ends_the_lane(tmp_path: Path) -> None:
    fails = (
        "makes = zygote.Zygote.make_cell\nmade = []\n"
        "def make(source, until):\n"
        "    if made:\n        raise cell.CellError('the zygote died')\n"
        "    made.append(1)\n    return makes(source, until)\n"
        "zygote.Zygote.make_cell = make\n"
    )
    with lane_process(tmp_path, own=TOOL, before=fails) as lane:
        opened(lane)
        assert session(lane)[0] == "ended"
        assert lane.kinds(HELLO) == []
        assert lane.ended() == (BROKE, "callgate_runner: the zygote died\n")


def test_a_lane_that_nobody_uses_ends_by_itself(tmp_path: Path) -> None:
    with lane_process(tmp_path, own=TOOL, before="lane._TICK_S = 0.1\n") as lane:
        opened(lane, lane_frame(idle_s=1))
        assert session(lane)[0] == "ended"
        assert lane.kinds(HELLO) == [HELLO]
        assert lane.kinds(HELLO) == []
        assert lane.ended() == (GONE, "")


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("memory_mb", 65), ("pids", 17), ("open_files", 65), ("artifacts", 3)],
)
def test_a_call_of_other_limits_is_refused_before_anything_runs(name: str, value: int, tmp_path: Path) -> None:
    with lane_process(tmp_path, own=TOOL) as lane:
        opened(lane)
        lane.send(call_frame(limits=LIMITS.model_copy(update={name: value})))
        assert lane.kinds(HELLO) == []
        assert lane.ended()[0] == BROKE


@pytest.mark.parametrize("run", [Run(python="own:other"), Run(python="os:system"), Run(command=("/bin/true",))])
def test_a_call_of_another_tool_is_refused_before_anything_runs(run: Run, tmp_path: Path) -> None:
    with lane_process(tmp_path, own=TOOL) as lane:
        opened(lane)
        lane.send(call_frame(run=run))
        assert lane.kinds(HELLO) == []
        assert lane.ended()[0] == BROKE


@pytest.mark.parametrize(
    "frames",
    [
        [encode_cancel()],
        [PIN, encode_cancel()],
        [lane_frame()],
        [call_frame(), call_frame()],
        [call_frame(), PIN],
        [wire.HEADER.pack(wire.SECRET, 6) + b"\0\0\0\2{}"],
        [wire.HEADER.pack(99, 0)],
    ],
)
def test_frames_out_of_order_end_the_lane(frames: list[bytes], tmp_path: Path) -> None:
    with lane_process(tmp_path, own=TOOL) as lane:
        opened(lane)
        lane.send(*frames)
        assert lane.kinds(HELLO) == []
        assert lane.ended()[0] == BROKE


@pytest.mark.parametrize("order", [lane_frame() + call_frame(), lane_frame() + lane_frame(), lane_frame() + PIN])
def test_nothing_may_follow_the_order_before_it_is_answered(order: bytes, tmp_path: Path) -> None:
    with lane_process(tmp_path, own=TOOL) as lane:
        assert lane.kinds(HELLO) == [HELLO]
        lane.send(order)
        assert lane.kinds(HELLO) == []
        assert lane.ended()[0] == BROKE


def test_a_lane_without_a_cgroup_for_its_limits_is_refused(tmp_path: Path) -> None:
    with lane_process(tmp_path, own=TOOL, cgroup=False) as lane:
        assert lane.kinds(HELLO) == [HELLO]
        lane.send(lane_frame())
        assert lane.kinds(HELLO) == []
        assert lane.ended() == (REFUSED, "callgate_runner: no cgroup holds the limits of a lane\n")


@pytest.mark.parametrize(("number", "status"), [(1, REFUSED), (38, REFUSED), (11, BROKE), (12, BROKE)])
def test_a_host_that_refuses_is_told_from_one_that_is_out_of_something(
    number: int, status: int, tmp_path: Path
) -> None:
    refuses = f"def refuses(*_, **__):\n    raise OSError({number}, 'x')\nnamespaces.mount_empty = refuses\n"
    with lane_process(tmp_path, own=TOOL, before=refuses) as lane:
        assert lane.kinds(HELLO) == [HELLO]
        lane.send(lane_frame())
        assert lane.kinds(HELLO) == []
        found, said = lane.ended()
        assert found == status
        assert " at " in said
