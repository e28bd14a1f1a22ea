"""One cell, made by a zygote without imports: the steps in their order, what each that fails does, and how it ends."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from callgate_runner import cell
from callgate_runner.cell import CellError, complaint, opening
from callgate_server.execution.framing import encode_secret
from callgate_server.model.manifest import Limits, Run
from callgate_server.model.sealed import Sealed
from support.lane_world import LIMITS, OWN, in_world, lane_frame, payload

# Makes cells as a lane does. `finish` gives a cell its call, waits for the tool's end and returns what it said.
MAKES = """
import _socket, errno, resource, struct
order = Order(payload)
def made(within=20):
    source = Zygote(order, warm=False)
    return source, source.make_cell(soon(within))
def finish(one, arguments=b"{}\\n", secrets=()):
    os.set_blocking(one.pipes.stdin, True)
    os.write(one.pipes.stdin, cell.opening({}, list(secrets)) + arguments)
    os.close(one.pipes.stdin)
    said = []
    for fd in one.pipes.ours()[1:]:
        os.set_blocking(fd, True)
        with open(fd, encoding="utf-8") as pipe:
            said.append(pipe.read())
    return [wait(one), *said]
def wait(one):
    until = soon()
    while one.ended() is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    return one.ended()
"""


def with_cells(folder: Path, body: str, *, run: Run = OWN, limits: Limits = LIMITS, own: str = "", **given: Any) -> Any:
    return in_world(folder, MAKES + body, own=own, payload=payload(lane_frame(run, limits)), **given)


# --- what is said in place of a cell ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.ENOSPC, errno.EUSERS])
def test_a_kernel_that_will_not_is_told_from_one_that_cannot_now(number: int) -> None:
    heard = CellError.heard(complaint(OSError(number, "hunter2")))
    assert heard.refused
    assert errno.errorcode[number] in str(heard)
    assert "hunter2" not in str(heard)


@pytest.mark.parametrize(
    "error", [OSError(errno.EAGAIN, ""), OSError(errno.ENOMEM, ""), OSError(), ValueError(), MemoryError()]
)
def test_other_faults_are_no_refusal(error: Exception) -> None:
    heard = CellError.heard(complaint(error))
    assert not heard.refused
    assert str(heard).startswith(type(error).__name__)


@pytest.mark.parametrize("said", [b"", b"\xff\xfe", b"refuse", b"what is this"])
def test_words_that_are_no_complaint_are_no_refusal(said: bytes) -> None:
    assert not CellError.heard(said).refused


def test_a_complaint_fits_into_the_news() -> None:
    assert len(complaint(type("E" * 4096, (Exception,), {})())) == cell.MOST_NEWS


# --- steps -----------------------------------------------------------------------------------------------------

STEPS = [
    "cell._take_descriptors",
    "kernel.set_dumpable",
    "child.volunteer_for_oom",
    "namespaces.map_own_ids",
    "kernel.set_dumpable",
    "os.chdir",
    "namespaces.make_everything_read_only",
    *["namespaces.mount_empty"] * 5,
    "namespaces.raise_loopback",
    "kernel.set_no_new_privs",
    "namespaces.drop_every_capability",
    "child.limit",
    "namespaces.Filter.install",
    "artifacts.open_folder",
    "cell._hand_over",
    "child.limit",
    "os.fork",
    "kernel.default_signals",
    "cell._wait_for_the_tool",
]
CAN_FAIL = sorted({step for step in STEPS if step not in ("cell._take_descriptors", "cell._wait_for_the_tool")})
_PATCH = """
def place_of(step):
    *path, name = step.split(".")
    owner = globals()[path[0]]
    for one in path[1:]:
        owner = getattr(owner, one)
    return owner, name
"""


def test_the_steps_are_those_and_in_this_order(tmp_path: Path) -> None:
    body = _PATCH + (
        "noted, notes = os.pipe()\nos.dup2(notes, 900)\n"
        "closes = os.closerange\nos.closerange = lambda low, high: closes(low, min(high, 900))\n"
        "def noting(step, act):\n"
        "    def does(*arguments, **named):\n"
        "        if inside:\n            os.write(900, (step + ' ').encode())\n"
        "        return act(*arguments, **named)\n"
        "    return does\n"
        "inside = False\nlives = zygote.live\n"
        "def live(*arguments):\n    global inside\n    inside = True\n    lives(*arguments)\n"
        "zygote.live = live\n"
        "becomes = cell._become_the_tool\n"
        "def become(*arguments):\n    global inside\n    inside = False\n    becomes(*arguments)\n"
        "cell._become_the_tool = become\n"
        "for step in dict.fromkeys(steps):\n"
        "    owner, name = place_of(step)\n    setattr(owner, name, noting(step, getattr(owner, name)))\n"
        "source, one = made()\n"
        "os.set_blocking(noted, False)\nuntil = soon()\nfound = ''\n"
        "while not found.endswith(steps[-1] + ' '):\n"
        "    assert time.monotonic() < until, found\n"
        "    try:\n        found += os.read(noted, 65536).decode()\n    except BlockingIOError:\n        time.sleep(0.01)\n"
        "print(json.dumps(found.split()))\n"
    )
    assert with_cells(tmp_path, body, own="def run(): return 1", steps=STEPS) == STEPS


@pytest.mark.parametrize("number", [errno.EPERM, errno.EAGAIN])
@pytest.mark.parametrize("step", CAN_FAIL)
def test_a_step_that_fails_ends_the_cell_before_there_is_a_tool(step: str, number: int, tmp_path: Path) -> None:
    body = _PATCH + (
        "lives = zygote.live\n"
        "def fails(*_, **__):\n    raise OSError(number, 'hunter2')\n"
        "def live(*arguments):\n"
        "    owner, name = place_of(step)\n    setattr(owner, name, fails)\n    lives(*arguments)\n"
        "zygote.live = live\n"
        "source = Zygote(order, warm=False)\n"
        "try:\n    source.make_cell(soon())\nexcept cell.CellError as error:\n"
        "    print(json.dumps([str(error), error.refused, others() == [source.pid]]))\n"
    )
    text, refused, alone = with_cells(tmp_path, body, own="def run(): return 1", step=step, number=number)
    assert errno.errorcode[number] in text
    assert "hunter2" not in text
    assert refused == (number == errno.EPERM)
    assert alone


def test_a_cell_whose_process_1_dies_before_it_is_ready_is_none(tmp_path: Path) -> None:
    body = (
        "child.limit = lambda *_: os._exit(9)\n"
        "try:\n    made()\nexcept cell.CellError as error:\n    print(json.dumps([str(error), error.refused]))\n"
    )
    assert with_cells(tmp_path, body) == [f"a cell's process 1 died, wait status {9 << 8}", False]


def test_a_cell_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    body = (
        "child.limit = lambda *_: time.sleep(60)\n"
        "try:\n    made(0.5)\nexcept cell.CellError as error:\n    print(json.dumps(str(error)))\n"
    )
    assert with_cells(tmp_path, body) == "a cell was not made in time"


# --- the tool ----------------------------------------------------------------------------------------------------


def test_the_tool_has_its_arguments_and_its_end_is_told(tmp_path: Path) -> None:
    own = "import sys\ndef run(a):\n    print('out')\n    print('err', file=sys.stderr)\n    return a + 1\n"
    body = (
        "_, one = made()\nfound = finish(one, b'{\"a\": 41}\\n')\nended = one.end()\nusage = one.usage()\n"
        "print(json.dumps([found, one.left_nothing, ended, one.bury(), one.is_dead(), usage[0] > 0, usage[1] > 1000]))\n"
    )
    found, left_nothing, ended, buried, dead, worked, had_memory = with_cells(tmp_path, body, own=own)
    assert found == [0, "out\n", "err\n", "42"]
    assert (left_nothing, ended) == (True, [0, True])
    assert (buried, dead, worked, had_memory) == (True, True, True, True)


def test_what_is_open_in_the_tool_are_its_own_four_descriptors(tmp_path: Path) -> None:
    own = (
        "import os\n"
        "def run():\n"
        "    found = []\n"
        "    for fd in range(2048):\n"
        "        try:\n            os.fstat(fd)\n            found.append(fd)\n        except OSError:\n            pass\n"
        "    return found\n"
    )
    body = "os.dup2(0, 777)\n_, one = made()\nprint(json.dumps(finish(one)))\n"
    assert with_cells(tmp_path, body, own=own) == [0, "", "", "[0,1,2,3]"]


def test_a_command_is_executed_with_the_same_confinement(tmp_path: Path) -> None:
    script = (
        "read line; echo $line; cat /run/secrets/pin; echo; pwd; umask; ulimit -n; ulimit -c; echo $$ $PPID;"
        " ls -A /proc | wc -l; env | sort; touch /usr/x 2>/dev/null || echo read-only"
    )
    body = "_, one = made()\nprint(json.dumps(finish(one, b'{\"a\":1}\\n', [secret])))\n"
    secret = payload(encode_secret("pin", "file", Sealed(b"1234")))
    run = Run(command=("/bin/sh", "-c", script), result="stdout")
    status, said, errors = with_cells(tmp_path, body, run=run, secret=secret)
    assert (status, errors) == (0, "")
    assert said.splitlines() == [
        '{"a":1}', "1234", "/tmp", "0077", "64", "0", "2 1", "0",
        "HOME=/tmp", "LANG=C.UTF-8", "PATH=/usr/local/bin:/usr/bin:/bin", "PWD=/tmp", "TMPDIR=/tmp", "read-only",
    ]  # fmt: skip


def test_a_command_hears_signals_and_one_that_is_not_there_says_so(tmp_path: Path) -> None:
    run = Run(command=("/nonexistent/program",), result="stdout")
    body = "_, one = made()\nprint(json.dumps(finish(one)))\n"
    status, said, errors = with_cells(tmp_path, body, run=run)
    assert (os.waitstatus_to_exitcode(status), said) == (126, "")
    assert "FileNotFoundError" in errors
    (tmp_path / "second").mkdir()
    run = Run(command=("/bin/sh", "-c", "kill -PIPE $$; echo deaf"), result="stdout")
    assert with_cells(tmp_path / "second", body, run=run) == [signal.SIGPIPE, "", ""]


def test_secrets_are_in_their_files_before_the_tool_begins_and_not_in_its_input(tmp_path: Path) -> None:
    own = (
        "import os, sys\n"
        "def run(secrets):\n"
        "    names = sorted(os.listdir('/run/secrets'))\n"
        "    modes = {oct(os.stat('/run/secrets/' + name).st_mode & 0o777) for name in names}\n"
        "    return [{name: open('/run/secrets/' + name).read() for name in names}, sorted(modes), secrets]\n"
    )
    secrets = [payload(encode_secret(name, "file", Sealed(b"of " + name.encode()))) for name in ("one", "two")]
    body = '_, one = made()\nprint(json.dumps(json.loads(finish(one, b\'{}\\n{"three": "3"}\\n\', secrets)[3])))\n'
    assert with_cells(tmp_path, body, own=own, secrets=secrets) == [
        {"one": "of one", "two": "of two"},
        ["0o400"],
        {"three": "3"},
    ]


def test_an_opening_says_how_long_it_is_and_each_of_its_parts() -> None:
    assert opening({}, []) == b"\0\0\0\x06" + b"\0\0\0\x02{}"
    secrets = b"\0\0\0\x02ab" + b"\0\0\0\x01c"
    assert opening({"A": "b"}, [b"ab", b"c"]) == b"\0\0\0\x18" + b'\0\0\0\x09{"A":"b"}' + secrets


def test_a_lane_that_ends_before_the_call_began_starts_no_tool(tmp_path: Path) -> None:
    own = "def run(): print('ran')"
    body = (
        "_, one = made()\nos.write(one.pipes.stdin, b'\\0\\0')\nos.close(one.pipes.stdin)\nstatus = wait(one)\n"
        "print(json.dumps([os.waitstatus_to_exitcode(status), os.read(one.pipes.stdout, 99).decode(),"
        " os.read(one.pipes.stderr, 9999).decode()]))\n"
    )
    status, said, errors = with_cells(tmp_path, body, own=own)
    assert (status, said) == (126, "")
    assert "EOFError: the lane ended before the call began" in errors


# --- ends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "status"),
    [("return 1", 0), ("raise SystemExit(3)", 3 << 8), ("os.abort()", signal.SIGABRT), ("os.kill(2, 9)", 9)],
)
def test_the_status_is_the_tools_own(act: str, status: int, tmp_path: Path) -> None:
    body = "_, one = made()\nfound = finish(one)\nprint(json.dumps([found[0] & ~128, one.left_nothing, one.bury()]))\n"
    assert with_cells(tmp_path, body, own=f"import os\ndef run():\n    {act}\n") == [status, True, True]


def test_who_is_left_behind_is_told_and_killed(tmp_path: Path) -> None:
    own = "import os, time\ndef run():\n    if os.fork() == 0:\n        time.sleep(60)\n    return 1\n"
    body = (
        "source, one = made()\nos.write(one.pipes.stdin, cell.opening({}, []) + b'{}\\n')\nos.close(one.pipes.stdin)\n"
        "found = [wait(one), one.left_nothing, one.end(), one.bury(), others() == [source.pid]]\n"
        "print(json.dumps(found))\n"
    )
    assert with_cells(tmp_path, body, own=own) == [0, False, [0, True], True, True]


def test_an_end_from_outside_kills_everything_in_the_cell(tmp_path: Path) -> None:
    own = "import os, time\ndef run():\n    os.fork()\n    print('x', flush=True)\n    time.sleep(60)\n"
    body = (
        "source, one = made()\nos.write(one.pipes.stdin, cell.opening({}, []) + b'{}\\n')\nos.close(one.pipes.stdin)\n"
        "os.set_blocking(one.pipes.stdout, True)\nos.read(one.pipes.stdout, 2)\nbefore = one.ended()\n"
        "print(json.dumps([before, one.end(), one.left_nothing, one.usage()[1] > 1000, others() == [source.pid]]))\n"
    )
    assert with_cells(tmp_path, body, own=own) == [None, [signal.SIGKILL, True], False, True, True]


def test_a_process_1_that_is_killed_ends_the_tool_with_its_status(tmp_path: Path) -> None:
    body = "_, one = made()\none.kill()\nprint(json.dumps([wait(one), one.left_nothing, one.end(), one.bury()]))\n"
    assert with_cells(tmp_path, body) == [9, False, [9, True], True]


@pytest.mark.parametrize(
    "breaks",
    [
        "cell._wait_for_the_tool = lambda pid: os._exit(0)\n",
        # It complains instead of reporting, and its words are taken for no report.
        "def fails():\n    raise OSError(1, 'x')\nkernel.children_usage = fails\n",
    ],
)
def test_an_end_without_a_report_is_a_fault_and_never_an_end_of_the_tool(breaks: str, tmp_path: Path) -> None:
    body = breaks + (
        "_, one = made()\n"
        "try:\n    os.write(one.pipes.stdin, cell.opening({}, []) + b'{}\\n')\nexcept BrokenPipeError:\n    pass\n"
        "os.close(one.pipes.stdin)\n"
        "try:\n    found = wait(one)\nexcept RuntimeError as error:\n    found = [str(error), one.left_nothing]\n"
        "print(json.dumps(found))\n"
    )
    text, left_nothing = with_cells(tmp_path, body, own="def run(): return 1")
    assert "without a report" in text
    assert left_nothing is False


def test_signals_from_inside_do_nothing_to_process_1_whatever_the_imports_set(tmp_path: Path) -> None:
    own = (
        "import os, signal\n"
        "for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):\n"
        "    signal.signal(number, lambda *_: os._exit(0))\n"
        "def run():\n"
        "    for number in (*range(1, 32), 40, 64):\n        os.kill(1, number)\n"
        "    return signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL\n"
    )
    body = (
        "source = Zygote(order, warm=True)\none = source.make_cell(soon())\n"
        "print(json.dumps([finish(one), one.left_nothing]))\n"
    )
    assert with_cells(tmp_path, body, own=own) == [[0, "", "", "true"], True]


# --- artifacts ---------------------------------------------------------------------------------------------------


def test_the_folder_of_artifacts_is_handed_over_once(tmp_path: Path) -> None:
    own = "def run(): open('/out/one', 'w').write('x')"
    body = (
        "_, one = made()\nfinish(one)\none.end()\nfolder = one.output_folder()\n"
        "print(json.dumps([os.listdir(folder), one.output_folder(), one.bury(), os.listdir('/out')]))\n"
    )
    assert with_cells(tmp_path, body, own=own) == [["one"], None, True, []]


def test_a_folder_that_the_tool_made_unreadable_is_none(tmp_path: Path) -> None:
    own = "import os\ndef run(): os.chmod('/out', 0)"
    body = "_, one = made()\nfinish(one)\none.end()\nprint(json.dumps([one.output_folder(), one.bury()]))\n"
    assert with_cells(tmp_path, body, own=own) == [None, True]


def test_without_artifacts_there_is_no_folder(tmp_path: Path) -> None:
    limits = LIMITS.model_copy(update={"artifacts": 0})
    body = "_, one = made()\nfound = finish(one)\nprint(json.dumps([found[3], one.output_folder()]))\n"
    own = "def run():\n    try:\n        open('/out/one', 'w')\n    except OSError:\n        return 'no room'\n"
    assert with_cells(tmp_path, body, own=own, limits=limits) == ['"no room"', None]


def test_nothing_stays_open_in_the_runner_after_a_cell(tmp_path: Path) -> None:
    body = (
        "source, one = made()\nfinish(one)\none.bury()\nbefore = len(os.listdir('/proc/self/fd'))\n"
        "for _ in range(5):\n    one = source.make_cell(soon())\n    finish(one)\n    one.bury()\n"
        "print(json.dumps([len(os.listdir('/proc/self/fd')) - before, others() == [source.pid]]))\n"
    )
    assert with_cells(tmp_path, body, own="def run(): return 1") == [0, True]
