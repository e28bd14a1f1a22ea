"""The real runner as process 1 of a pid namespace, driven by the real supervisor over pipes."""

import asyncio
import json
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from callgate_server.execution.cancellation import Cancellation
from callgate_server.execution.framing import FrameDecoder, FrameType, encode_call
from callgate_server.execution.supervise import supervise
from callgate_server.model.call import Deadline
from callgate_server.model.manifest import Limits, Run
from callgate_server.model.run import Cause, DeliveredSecret, Job, RunOutcome
from callgate_server.model.sealed import Sealed
from support.names import NAMES
from support.pid1_sandbox import UID, Pid1Sandbox

# Long enough never to be reached by a tool that ends by itself.
AMPLE_S = 60.0

RunTool = Callable[..., Awaitable[RunOutcome]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[Pid1Sandbox]]]:
    started: list[Pid1Sandbox] = []
    (tmp_path / "tools").mkdir(mode=0o755)

    async def one() -> Pid1Sandbox:
        folder = tmp_path / f"sandbox{len(started)}"
        folder.mkdir()
        started.append(await Pid1Sandbox.start(folder, tmp_path / "tools"))
        return started[-1]

    yield one
    for sandbox in started:
        await sandbox.destroy()
        assert sandbox.runner_pid is None


@pytest.fixture
def run_tool(start: Callable[[], Awaitable[Pid1Sandbox]], tmp_path: Path) -> RunTool:
    async def run(
        run: Run,
        *,
        arguments: dict[str, Any] | None = None,
        source: str = "",
        secrets: tuple[DeliveredSecret, ...] = (),
        limits: Limits | None = None,
        seconds: float = AMPLE_S,
        on_output: Callable[[str, bytes], None] = lambda _name, _data: None,
        cancelled: Cancellation | None = None,
    ) -> RunOutcome:
        if source:
            (tmp_path / "tools/tool.py").write_text(source)
        sandbox = await start()
        job = Job(
            run,
            json.dumps(arguments or {}).encode(),
            secrets,
            limits or Limits(pids=512),
            Deadline(time.monotonic() + seconds),
            NAMES,
        )
        outcome = await supervise(
            sandbox, job, clock=time.monotonic, on_output=on_output, cancelled=cancelled or Cancellation()
        )
        assert sandbox.diagnostics == ""
        return outcome

    return run


PYTHON = Run(python="tool:main")


def shell(script: str, **options: Any) -> Run:
    return Run(command=("/bin/sh", "-c", script), **options)


async def test_a_python_tool_gets_its_arguments_and_returns_its_result(run_tool: RunTool) -> None:
    outcome = await run_tool(
        PYTHON,
        arguments={"x": 2, "text": "é"},
        source="import sys\ndef main(x, text):\n    print('hello')\n    print('oops', file=sys.stderr)\n"
        "    return {'double': x * 2, 'text': text, 'rest': sys.stdin.read()}\n",
    )
    assert (outcome.cause, outcome.exit.code) == (Cause.EXITED, 0)
    assert outcome.result_json == '{"double":4,"text":"é","rest":""}'.encode()
    assert (outcome.stdout.head, outcome.stderr.head) == (b"hello\n", b"oops\n")
    assert not outcome.stdout.truncated
    assert outcome.wall_ms > 0
    assert outcome.max_rss_kb > 0


async def test_a_command_gets_its_arguments_and_writes_its_result(run_tool: RunTool) -> None:
    outcome = await run_tool(shell("cat; echo '[1]' >&$CALLGATE_RESULT_FD; exit 7"), arguments={"a": 1})
    assert (outcome.cause, outcome.exit.code) == (Cause.EXITED, 7)
    assert outcome.stdout.head == b'{"a": 1}\n'
    assert outcome.result_json == b"[1]\n"


async def test_standard_output_is_the_result_where_the_manifest_says_so(run_tool: RunTool) -> None:
    outcome = await run_tool(shell("echo '{}'; echo no >&2; ls /proc/self/fd >&2", result="stdout"))
    assert outcome.result_json == b"{}\n"
    assert outcome.stdout.head == b"{}\n"
    assert b"4" not in outcome.stderr.head


async def test_the_environment_is_fixed_and_holds_no_secret(run_tool: RunTool) -> None:
    outcome = await run_tool(
        Run(command=("/usr/bin/env",)), secrets=(DeliveredSecret("key", "stdin", Sealed(b"hunter2hunter2")),)
    )
    assert sorted(outcome.stdout.head.decode().splitlines()) == [
        "CALLGATE_ATTEMPT=3",
        "CALLGATE_CALL_ID=call-1",
        "CALLGATE_IDEMPOTENCY_KEY=key-1",
        "CALLGATE_RESULT_FD=3",
        "HOME=/tmp",
        "LANG=C.UTF-8",
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "TMPDIR=/tmp",
    ]


async def test_the_tool_holds_four_descriptors_and_nothing_of_the_runner(run_tool: RunTool) -> None:
    outcome = await run_tool(
        PYTHON,
        source="import os\ndef main():\n    return [sorted(os.listdir('/proc/self/fd')), os.getcwd(), os.getsid(0) == os.getpid()]\n",
    )
    # The fifth is the listing itself.
    assert json.loads(outcome.result_json or b"") == [["0", "1", "2", "3", "4"], "/tmp", True]


async def test_limits_of_the_process_are_set(run_tool: RunTool) -> None:
    outcome = await run_tool(
        shell(
            "ulimit -n; ulimit -c; umask; cat /proc/self/oom_score_adj; grep -E 'NoNewPrivs|CapEff' /proc/self/status"
        ),
        limits=Limits(open_files=77, pids=512),
    )
    assert outcome.stdout.head.split() == [
        b"77", b"0", b"0077", b"1000", b"CapEff:", b"0000000000000000", b"NoNewPrivs:", b"1",
    ]  # fmt: skip


async def test_a_signal_is_reported_as_one(run_tool: RunTool) -> None:
    outcome = await run_tool(shell("kill -SEGV $$"))
    assert (outcome.cause, outcome.exit.signal, outcome.exit.code) == (Cause.SIGNALLED, 11, None)


async def test_a_kill_without_evidence_is_not_called_out_of_memory(run_tool: RunTool) -> None:
    outcome = await run_tool(shell("kill -KILL $$"))
    assert (outcome.cause, outcome.exit.signal) == (Cause.SIGNALLED, 9)


async def test_a_command_that_cannot_start_fails(run_tool: RunTool) -> None:
    outcome = await run_tool(Run(command=("/usr/bin/nonexistent",)))
    assert (outcome.cause, outcome.exit.code) == (Cause.EXITED, 126)
    assert b"No such file" in outcome.stderr.head


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("raise SystemExit(3)", 3, b""),
        ("raise SystemExit('no good')", 1, b"no good\n"),
        ("raise SystemExit", 0, b""),
        ("raise ValueError('broken')", 1, b"ValueError: broken\n"),
        ("return float('nan')", 1, b"not JSON compliant"),
        ("return {1, 2}", 1, b"not JSON serializable"),
        ("return '\\ud800'", 1, b"surrogates not allowed"),
        ("raise KeyboardInterrupt", 1, b"KeyboardInterrupt"),
        ("import os; os._exit(9)", 9, b""),
        ("import atexit; atexit.register(lambda: print('bye', file=sys.stderr)); return 1", 0, b"bye\n"),
        ("sys.stdout.write('x'); sys.stdout.buffer.write(b'y'); sys.stdout.close(); return 1", 120, b""),
        ("import threading; threading.Thread(target=lambda: sys.stderr.write('late')).start()", 0, b"late"),
    ],
)
async def test_how_a_python_tool_ends_decides_its_status(
    run_tool: RunTool, body: str, status: int, said: bytes
) -> None:
    outcome = await run_tool(PYTHON, source=f"import sys\ndef main():\n    {body}\n")
    assert (outcome.cause, outcome.exit.code) == (Cause.EXITED, status)
    assert said in outcome.stderr.head
    if status:
        assert outcome.result_json is None or status == 120


async def test_a_tool_without_arguments_it_wants_fails_with_a_traceback(run_tool: RunTool) -> None:
    outcome = await run_tool(PYTHON, arguments={"b": 1}, source="def main(a):\n    return a\n")
    assert outcome.exit.code == 1
    assert b"TypeError" in outcome.stderr.head


async def test_the_deadline_kills_and_keeps_what_was_written(run_tool: RunTool) -> None:
    began = time.monotonic()
    outcome = await run_tool(shell("echo begun; sleep 1000 & sleep 1000"), seconds=6.0)
    assert outcome.cause is Cause.TIMED_OUT
    assert outcome.detail == "The tool was killed at its deadline."
    assert outcome.stdout.head == b"begun\n"
    assert time.monotonic() - began < 30


async def test_a_python_tool_at_its_deadline_has_said_its_lines(run_tool: RunTool) -> None:
    outcome = await run_tool(PYTHON, source="def main():\n    print('begun')\n    while True: pass\n", seconds=6.0)
    assert (outcome.cause, outcome.stdout.head) == (Cause.TIMED_OUT, b"begun\n")
    assert outcome.cpu_ms > 100


async def test_large_output_keeps_its_head_and_its_tail(run_tool: RunTool) -> None:
    seen: list[bytes] = []
    outcome = await run_tool(
        shell("seq 1 100000; seq 1 3 >&2"),
        limits=Limits(output_kb=4, pids=512),
        on_output=lambda name, data: seen.append(data) if name == "stdout" else None,
    )
    whole = "".join(f"{number}\n" for number in range(1, 100001)).encode()
    assert outcome.exit.code == 0
    assert outcome.stdout.total_bytes == len(whole)
    assert outcome.stdout.truncated
    assert outcome.stdout.head == whole[:2048]
    assert outcome.stdout.tail == whole[-2048:]
    assert b"".join(seen) == outcome.stdout.head
    assert (outcome.stderr.head, outcome.stderr.truncated) == (b"1\n2\n3\n", False)


async def test_output_of_exactly_the_cap_is_whole(run_tool: RunTool) -> None:
    outcome = await run_tool(shell("head -c 4096 /dev/zero"), limits=Limits(output_kb=4, pids=512))
    assert (len(outcome.stdout.head), outcome.stdout.tail, outcome.stdout.truncated) == (4096, b"", False)


async def test_a_flood_is_killed(run_tool: RunTool) -> None:
    outcome = await run_tool(Run(command=("/bin/cat", "/dev/zero")))
    assert outcome.cause is Cause.OUTPUT_FLOOD
    assert outcome.stdout.truncated
    assert len(outcome.stdout.head) + len(outcome.stdout.tail) == 256 * 1024
    assert outcome.stdout.total_bytes < 64 * 1024 * 1024


async def test_a_result_above_its_cap_is_drained_and_flagged(run_tool: RunTool) -> None:
    outcome = await run_tool(
        PYTHON, source="def main():\n    return 'x' * 5000\n", limits=Limits(result_kb=1, pids=512)
    )
    assert (outcome.exit.code, outcome.result_json, outcome.result_truncated) == (0, None, True)


async def test_a_daemon_that_holds_the_output_does_not_hold_the_call(run_tool: RunTool) -> None:
    outcome = await run_tool(shell("setsid sh -c 'trap \"\" TERM HUP; sleep 987654' & echo done"))
    assert (outcome.cause, outcome.exit.code, outcome.stdout.head) == (Cause.EXITED, 0, b"done\n")
    assert _processes_with(b"987654") == []


def _processes_with(argument: bytes) -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if argument in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


async def test_forged_frames_are_text(run_tool: RunTool) -> None:
    forged = b"\x07\x00\x00\x00\x02{}\x0d\x00\x00\x00\x00"
    outcome = await run_tool(
        PYTHON,
        source=f"import os\ndef main():\n    os.write(1, {forged!r})\n    os.write(2, {forged!r})\n    os.write(3, {forged!r})\n    raise SystemExit(5)\n",
    )
    assert (outcome.cause, outcome.exit.code) == (Cause.EXITED, 5)
    assert outcome.stdout.head == outcome.stderr.head == outcome.result_json == forged


async def test_a_thousand_zombies_are_collected(run_tool: RunTool) -> None:
    outcome = await run_tool(
        PYTHON,
        source="""
import os, time
def main():
    for _ in range(1000):
        if os.fork() == 0:
            if os.fork():
                os._exit(0)
            os._exit(0)
        os.wait()
    until = time.monotonic() + 20
    while time.monotonic() < until:
        left = [name for name in os.listdir('/proc') if name.isdecimal() and int(name) not in (1, os.getpid())]
        if not left:
            return 'clean'
        time.sleep(0.01)
    return left
""",
    )
    assert outcome.result_json == b'"clean"'


async def test_input_that_is_never_read_holds_nothing_up(run_tool: RunTool) -> None:
    outcome = await run_tool(shell("exec sleep 0.1"), arguments={"text": "x" * 1_000_000})
    assert (outcome.cause, outcome.exit.code) == (Cause.EXITED, 0)


async def test_large_input_arrives_whole(run_tool: RunTool) -> None:
    outcome = await run_tool(shell("wc -c"), arguments={"text": "x" * 1_000_000})
    assert outcome.stdout.head == b"1000013\n"


async def test_a_tool_may_close_its_output_and_go_on(run_tool: RunTool) -> None:
    outcome = await run_tool(shell("exec >&- 2>&-; sleep 0.1; echo '7' >&3; exit 6"))
    assert (outcome.exit.code, outcome.result_json) == (6, b"7\n")


async def test_signals_at_the_runner_and_the_own_group_change_nothing(run_tool: RunTool) -> None:
    outcome = await run_tool(
        PYTHON,
        source="""
import os, signal
def main():
    for number in signal.valid_signals():
        os.kill(1, number)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    return 'alive'
""",
    )
    assert (outcome.exit.code, outcome.result_json) == (0, b'"alive"')


async def test_cancelling_kills_and_keeps_what_was_written(run_tool: RunTool) -> None:
    cancelled = Cancellation()
    outcome = await run_tool(
        shell("echo begun; sleep 1000"), on_output=lambda _name, _data: cancelled.set(), cancelled=cancelled
    )
    assert (outcome.cause, outcome.stdout.head) == (Cause.CANCELLED, b"begun\n")
    assert outcome.detail == "The call was cancelled, and the tool killed."
    assert outcome.exit.signal == 9


async def test_a_gateway_that_goes_away_ends_everything(start: Callable[[], Awaitable[Pid1Sandbox]]) -> None:
    sandbox = await start()
    await sandbox.receive()
    await sandbox.send(encode_call(shell("echo begun; sleep 1000"), b"{}", Limits(pids=512), 60_000, NAMES))
    decoder, frames = FrameDecoder(), []
    while len(frames) < 2:
        frames += decoder.feed(await sandbox.receive())
    assert [frame.type for frame in frames] == [FrameType.SEAL, FrameType.STDOUT]
    assert frames[1].payload == b"begun\n"
    sandbox.close_wire()
    assert await sandbox.receive() == b""
    assert (await sandbox.wait_exit(10)).exit_code == 71


async def test_a_gateway_that_does_not_read_keeps_nobody_from_the_deadline(
    start: Callable[[], Awaitable[Pid1Sandbox]],
) -> None:
    sandbox = await start()
    await sandbox.receive()
    run = shell("exec cat /dev/zero")
    await sandbox.send(encode_call(run, b"{}", Limits(output_kb=16384, pids=512), 500, NAMES))
    assert sandbox.runner_pid is not None
    await asyncio.to_thread(_wait_for_child_to_come_and_go, sandbox.runner_pid)
    assert sandbox.runner_pid is not None


def _wait_for_child_to_come_and_go(pid: int) -> None:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for present in (True, False):
        until = time.monotonic() + 30
        while bool(children.read_text()) is not present:
            assert time.monotonic() < until
            time.sleep(0.01)


async def test_a_gateway_that_breaks_the_protocol_ends_everything(start: Callable[[], Awaitable[Pid1Sandbox]]) -> None:
    sandbox = await start()
    await sandbox.receive()
    await sandbox.send(b"\xff\x00\x00\x00\x00")
    assert await sandbox.receive() == b""
    assert (await sandbox.wait_exit(10)).exit_code == 70
    assert "ValueError at " in sandbox.diagnostics


async def test_a_killed_sandbox_is_lost_with_what_it_said(
    start: Callable[[], Awaitable[Pid1Sandbox]],
) -> None:
    sandbox = await start()
    killing: list[asyncio.Task[None]] = []

    def kill(_name: str, _data: bytes) -> None:
        killing.append(asyncio.ensure_future(sandbox.kill()))

    job = Job(shell("echo begun; sleep 1000"), b"{}", (), Limits(pids=512), Deadline(time.monotonic() + AMPLE_S), NAMES)
    outcome = await supervise(sandbox, job, clock=time.monotonic, on_output=kill, cancelled=Cancellation())
    await asyncio.gather(*killing)
    assert (outcome.cause, outcome.stdout.head) == (Cause.LOST, b"begun\n")
    assert "exit status 137" in outcome.detail


async def test_secrets_come_as_files_and_on_standard_input(run_tool: RunTool) -> None:
    outcome = await run_tool(
        PYTHON,
        arguments={"a": 1},
        secrets=(
            DeliveredSecret("pin", "stdin", Sealed("schlüssel".encode())),
            DeliveredSecret("key", "file", Sealed(b"\x00binary\xff")),
        ),
        source="""
import os
def main(a, *, secrets):
    status = os.stat('/run/secrets/key')
    with open('/run/secrets/key', 'rb') as file:
        return [a, secrets, file.read().hex(), oct(status.st_mode), status.st_uid, os.listdir('/run/secrets')]
""",
    )
    assert json.loads(outcome.result_json or b"null") == [
        1, {"pin": "schlüssel"}, b"\x00binary\xff".hex(), oct(stat.S_IFREG | 0o400), UID, ["key"],
    ]  # fmt: skip


async def test_a_command_reads_secrets_from_the_second_line(run_tool: RunTool) -> None:
    outcome = await run_tool(shell("cat"), secrets=(DeliveredSecret("pin", "stdin", Sealed(b"1234")),))
    assert outcome.stdout.head == b'{}\n{"pin":"1234"}\n'


async def test_an_argument_cannot_pose_as_the_secrets(run_tool: RunTool) -> None:
    outcome = await run_tool(
        PYTHON, arguments={"secrets": {"pin": "0"}}, source="def main(secrets):\n    return secrets\n"
    )
    assert (outcome.exit.code, outcome.result_json) == (1, None)


HOSTILE_FILES = """
import os, socket
def main():
    os.chdir('/out')
    os.mkdir('sub'); open('sub/good.txt', 'w').write('good'); open('empty', 'w').close()
    os.symlink('/etc/passwd', 'link'); os.symlink('/', 'folderlink')
    open('one', 'w').write('x'); os.link('one', 'two')
    os.mkfifo('fifo')
    socket.socket(socket.AF_UNIX).bind('socket')
    open('new\\nline', 'w').close(); open(b'\\xff', 'w').close()
    with open('sparse', 'w') as file: os.truncate(file.fileno(), 1 << 40)
    open('secretive', 'w').write('x'); os.chmod('secretive', 0)
    os.makedirs('/'.join(['d'] * 30))
    return os.getcwd()
"""


async def test_only_plain_files_become_artifacts(run_tool: RunTool) -> None:
    outcome = await run_tool(PYTHON, source=HOSTILE_FILES, limits=Limits(artifacts=10, artifacts_kb=64, pids=512))
    assert outcome.exit.code == 0
    assert {a.name: a.data for a in outcome.artifacts if a.rejected is None} == {"sub/good.txt": b"good", "empty": b""}
    assert {a.name: a.rejected for a in outcome.artifacts if a.rejected is not None} == {
        "link": "symbolic_link",
        "folderlink": "symbolic_link",
        "one": "hard_link",
        "two": "hard_link",
        "fifo": "not_a_regular_file",
        "socket": "not_a_regular_file",
        "new\\nline": "bad_name",
        "\\udcff": "bad_name",
        "sparse": "too_large",
        "secretive": "unreadable",
        "/".join(["d"] * 16): "too_deep",
    }


async def test_a_hundred_thousand_files_are_not_all_looked_at(run_tool: RunTool) -> None:
    outcome = await run_tool(
        shell("cd /out && seq 1 100000 | xargs touch"), limits=Limits(artifacts=3, artifacts_kb=64, pids=512)
    )
    assert outcome.cause is Cause.EXITED
    rejected = [artifact.rejected for artifact in outcome.artifacts if artifact.rejected is not None]
    assert len(outcome.artifacts) - len(rejected) == 3
    assert rejected == ["too_many_files"] * 63 + ["not_examined"]


async def test_the_byte_budget_covers_all_files_together(run_tool: RunTool) -> None:
    outcome = await run_tool(
        shell("cd /out && for n in 1 2 3; do head -c 100000 /dev/zero >$n; done"),
        limits=Limits(artifacts=10, artifacts_kb=200, pids=512),
    )
    assert [(a.name, len(a.data), a.rejected) for a in outcome.artifacts] == [
        ("1", 100000, None), ("2", 100000, None), ("3", 0, "too_large"),
    ]  # fmt: skip


async def test_nothing_is_taken_from_a_tool_that_declares_no_artifacts(run_tool: RunTool) -> None:
    outcome = await run_tool(shell("echo x >/out/file"))
    assert outcome.artifacts == ()


async def test_the_tool_cannot_reach_into_the_runner(run_tool: RunTool) -> None:
    outcome = await run_tool(
        PYTHON,
        source="""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def main():
    refused = {}
    for name, attempt in {
        'mem': lambda: open('/proc/1/mem', 'rb+'),
        'fd': lambda: os.listdir('/proc/1/fd'),
        'environ': lambda: open('/proc/1/environ', 'rb'),
        'maps': lambda: open('/proc/1/maps').read(),
        'oom': lambda: open('/proc/1/oom_score_adj', 'w'),
        'cwd': lambda: os.readlink('/proc/1/cwd'),
    }.items():
        try:
            attempt()
            refused[name] = False
        except OSError:
            refused[name] = True
    refused['ptrace'] = libc.ptrace(16, 1, 0, 0) == -1 and ctypes.get_errno() == 1
    return [os.getuid(), refused]
""",
    )
    uid, refused = json.loads(outcome.result_json or b"null")
    assert uid == UID
    assert refused == dict.fromkeys(("mem", "fd", "environ", "maps", "oom", "cwd", "ptrace"), True)


async def test_a_memory_hog_is_killed_where_no_cgroup_does_it(run_tool: RunTool) -> None:
    outcome = await run_tool(
        PYTHON,
        source="import time\ndef main():\n    hog = []\n    while True:\n        hog.append(bytearray(1 << 20))\n        time.sleep(0.002)\n",
        limits=Limits(memory_mb=64, pids=512),
    )
    assert outcome.cause is Cause.OUT_OF_MEMORY


async def test_a_fork_bomb_is_killed_where_no_cgroup_does_it(run_tool: RunTool) -> None:
    outcome = await run_tool(
        PYTHON,
        source="import os, time\ndef main():\n    for _ in range(100):\n        os.fork() or time.sleep(1000)\n    time.sleep(1000)\n",
        limits=Limits(pids=16),
    )
    assert (outcome.cause, outcome.exit.signal) == (Cause.SIGNALLED, 9)
    assert "more processes" in outcome.detail
