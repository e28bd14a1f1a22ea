"""The parts of a run that need no process 1; the whole is in tests/integration/test_runner_as_pid1.py."""

import os
import signal
from pathlib import Path

import pytest

from callgate_runner import artifacts, run, wire
from callgate_runner.call import Call
from callgate_runner.capture import HeadAndTail
from callgate_server.execution.collect import Collector
from callgate_server.execution.framing import HEADER, FrameDecoder, encode_call
from callgate_server.model.manifest import Limits, Run
from callgate_server.model.run import Cause
from support.names import NAMES

SEAL = bytes(wire.SEAL_BYTES)
ENDED = (
    b'{"seal":"'
    + SEAL.hex().encode()
    + b'","cause":"ended","code":0,"signal":null,"oom_kills":null,"stdout_bytes":0,"stderr_bytes":0,'
    b'"result_truncated":false,"cpu_ms":0,"wall_ms":0,"max_rss_kb":0}'
)


def a_call(limits: Limits) -> Call:
    return Call(encode_call(Run(command=("/bin/true",)), b"{}", limits, 1000, NAMES)[HEADER.size :])


@pytest.mark.parametrize(
    ("status", "expected"), [(0, (0, None)), (3 << 8, (3, None)), (signal.SIGKILL, (None, 9)), (139, (None, 11))]
)
def test_a_wait_status_is_a_code_or_a_signal(status: int, expected: tuple[int | None, int | None]) -> None:
    assert run._code_and_signal(status) == expected


@pytest.mark.parametrize(("written", "kind"), [(100_000, wire.STDOUT), (200_001, wire.STDOUT_TAIL)])
def test_the_rest_of_a_stream_is_a_tail_only_after_a_gap(written: int, kind: int) -> None:
    stream = HeadAndTail(200_000)
    head = stream.feed(b"x" * written)
    frames = list(FrameDecoder().feed(b"".join(run._rest(stream, wire.STDOUT, wire.STDOUT_TAIL))))
    assert {int(frame.type) for frame in frames} <= {kind}
    assert len(head) + sum(len(frame.payload) for frame in frames) == min(written, 200_000)


def test_artifacts_arrive_as_the_gateway_expects_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "ARTIFACTS_FOLDER", str(tmp_path))
    (tmp_path / "big").write_bytes(os.urandom(150_000))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "link").symlink_to("big")
    (tmp_path / ("ü" * 100)).write_bytes(b"x")
    limits = Limits(artifacts=5, artifacts_kb=200)
    collector = Collector(limits, lambda _name, _data: None)
    folder = artifacts.open_folder()
    assert folder is not None
    files = b"".join(run._artifact_frames(folder, a_call(limits)))
    os.close(folder)
    stream = wire.encode(wire.SEAL, SEAL) + wire.encode(wire.EXIT, ENDED) + files
    for frame in FrameDecoder().feed(stream + wire.encode(wire.BYE, b"")):
        collector.add(frame)
    outcome = collector.outcome(Cause.EXITED, "")
    assert collector.complete
    assert [(one.name, one.data, one.rejected) for one in outcome.artifacts] == [
        ("big", (tmp_path / "big").read_bytes(), None),
        ("empty", b"", None),
        ("link", b"", "symbolic_link"),
        ("ü" * 100, b"x", None),
    ]
