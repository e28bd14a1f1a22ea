"""A lane's runner without an engine: in a pid namespace and a root of its own, made as for `pid1_sandbox.py`.

What runs there is process 1, has no rights, and may make namespaces: what a lane needs of its host. There is no cgroup
and no filter around it; the cells inside get the real one. Needs root. Nothing of it happens in the tests' process.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from callgate_server.backends.docker.spec import confinement
from callgate_server.execution.framing import HEADER, Frame, FrameDecoder, FrameType, encode_call, encode_lane
from callgate_server.execution.sandbox import Confinement, Shape
from callgate_server.model.manifest import Limits, Run
from support.pid1_sandbox import SETUP, UID, UNSHARE

RUNNER = Path(__file__).parents[2] / "sandbox_images/base"
LIMITS = Limits(memory_mb=64, pids=16, scratch_mb=4, scratch_files=64, open_files=64, artifacts=2, artifacts_kb=64)
OWN = Run(python="own:run")
_INTERPRETER = ("/usr/bin/python3", "-I", "-S", "-c")
_PRELUDE = """
import json, os, signal, sys, time
sys.path.insert(0, "/opt/callgate/runner")
from callgate_runner import artifacts, cell, child, kernel, lane, leftovers, limits, namespaces, python_tool, run, wire, zygote
from callgate_runner.call import Call
from callgate_runner.order import Order
from callgate_runner.zygote import Zygote
def soon(seconds=20):
    return time.monotonic() + seconds
def others():
    return sorted(int(name) for name in os.listdir("/proc") if name.isdecimal() and name != "1")
"""
# The world has no cgroup, which a lane refuses.
_LANE = """
limits.Watch.needed = property(lambda _: False)
from callgate_runner.main import main
main()
"""


def lane_frame(run: Run = OWN, limits: Limits = LIMITS, *, idle_s: int = 60) -> bytes:
    """The order of a lane as the gateway sends it, with the real filter and, but for user and cgroups, the real mounts."""
    whole = confinement(Shape.of("sha256:" + "0" * 64, None, limits, "fork"))
    here = tuple(
        replace(mount, options=mount.options.replace("id=65532", f"id={UID}"))
        for mount in whole.mounts
        if not mount.path.startswith("/sys")
    )
    return encode_lane(run, limits, Confinement(here, whole.filters), idle_s)


def call_frame(
    arguments: Mapping[str, Any] | None = None, run: Run = OWN, limits: Limits = LIMITS, *, deadline_s: float = 20
) -> bytes:
    return encode_call(run, json.dumps(arguments or {}).encode(), limits, int(deadline_s * 1000))


def payload(frame: bytes) -> bytes:
    return frame[HEADER.size :]


def in_world(folder: Path, body: str, *, own: str = "", **given: Any) -> Any:
    """Run `body` as process 1; return what it printed, which is JSON.

    `own` is the source of the tools' module; `given` are names that the body finds.
    """
    values = "".join(f"{name} = {value!r}\n" for name, value in given.items())
    command = _command(folder, own, _PRELUDE + values + body)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class LaneProcess:
    """A runner that is asked to be a lane, and the gateway's end of its wire."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._to, self._from = process.stdin, process.stdout
        self._frames = FrameDecoder()
        self._heard: list[Frame] = []

    def send(self, *frames: bytes) -> None:
        self._to.write(b"".join(frames))
        self._to.flush()

    def until(self, last: FrameType) -> list[Frame]:
        """Return the frames that come, to the first of this type, or to the end of the wire."""
        found: list[Frame] = []
        while not found or found[-1].type is not last:
            if self._heard:
                found.append(self._heard.pop(0))
                continue
            data = self._from.read1(65536)
            if not data:
                break
            self._heard += self._frames.feed(data)
        return found

    def kinds(self, last: FrameType) -> list[FrameType]:
        return [frame.type for frame in self.until(last)]

    def close_wire(self) -> None:
        self._to.close()

    def ended(self) -> tuple[int, str]:
        """Wait until it ends by itself; return its status and what it said to the operator."""
        status = self._process.wait(20)
        assert self._process.stderr is not None
        return status, self._process.stderr.read().decode()


@contextmanager
def lane_process(folder: Path, *, own: str = "", before: str = "", cgroup: bool = True) -> Iterator[LaneProcess]:
    """Start a runner; `before` is what is done in it first. Without `cgroup`, it sees that it has none."""
    program = _PRELUDE + before + (_LANE if cgroup else "from callgate_runner.main import main\nmain()")
    process = subprocess.Popen(
        _command(folder, own, program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        try:
            yield LaneProcess(process)
        finally:
            # Its process 1 ends with its wire, and unshare with that.
            process.stdin.close() if process.stdin else None
            process.wait(20)


def _command(folder: Path, own: str, program: str) -> Sequence[str]:
    root, tools = folder / "root", folder / "tools"
    root.mkdir()
    tools.mkdir()
    (tools / "own.py").write_text(own)
    tools.chmod(0o755)
    setup = ("sh", "-c", SETUP, "setup", str(root), str(RUNNER), str(tools), str(UID))
    return (*UNSHARE, *setup, *_INTERPRETER, program)
