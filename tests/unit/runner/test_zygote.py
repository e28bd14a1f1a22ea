"""A zygote that a process 1 without rights starts: what it keeps, what it refuses to keep, and how it is lost."""

from pathlib import Path
from typing import Any

import pytest

from callgate_runner import zygote
from callgate_server.model.manifest import Run
from support.lane_world import LIMITS, OWN, in_world, lane_frame, payload
from support.pid1_sandbox import FRAMES

# `ask` runs the tool in one more cell and returns its result. `refusal` is what making a cell raises.
ASKS = """
order = Order(payload)
def ask(source):
    one = source.make_cell(soon())
    os.write(one.pipes.stdin, cell.opening([]) + b"{}\\n")
    os.close(one.pipes.stdin)
    said = []
    for fd in one.pipes.ours()[1:]:
        os.set_blocking(fd, True)
        with open(fd, encoding="utf-8") as pipe:
            said.append(pipe.read())
    one.bury()
    return json.loads(said[-1]) if said[-1] else said
def refusal(source, within=20):
    try:
        source.make_cell(soon(within))
    except cell.CellError as error:
        return [type(error).__name__, str(error), error.refused]
"""


def in_lane(folder: Path, body: str, own: str, *, run: Run = OWN, **given: Any) -> Any:
    return in_world(folder, ASKS + body, own=own, payload=payload(lane_frame(run, LIMITS)), **given)


# --- what is kept ------------------------------------------------------------------------------------------------


def test_imports_happen_once_for_all_cells_and_calls_change_nothing_of_them(tmp_path: Path) -> None:
    own = "import os\nmark, count = os.urandom(8).hex(), 0\ndef run():\n    global count\n    count += 1\n    return [mark, count]\n"
    body = "source = Zygote(order, warm=True)\nprint(json.dumps([ask(source) for _ in range(3)]))\n"
    (mark, count), *rest = in_lane(tmp_path, body, own)
    assert count == 1
    assert rest == [[mark, 1]] * 2


def test_without_warmth_nothing_of_the_tool_is_run_before_its_call(tmp_path: Path) -> None:
    own = "import os\nmark = os.urandom(8).hex()\ndef run(): return mark\n"
    body = "source = Zygote(order, warm=False)\nprint(json.dumps([ask(source) for _ in range(3)]))\n"
    assert len(set(in_lane(tmp_path, body, own))) == 3


def test_imports_find_what_they_find_in_a_call(tmp_path: Path) -> None:
    own = (
        "import gc, os, signal, sys\n"
        "def look():\n"
        "    return [dict(os.environ), os.getcwd(), sys.path, sys.argv, sys.dont_write_bytecode, oct(os.umask(0o77)),\n"
        "            [stream.seekable() for stream in (sys.stdin, sys.stdout, sys.stderr)], sys.stdout.isatty(),\n"
        "            [str(signal.getsignal(n)) for n in (2, 10, 13, 15, 17, 25)], gc.isenabled()]\n"
        "once, out = look(), sys.stdout\n"
        "def run():\n"
        "    return [once, look(), out is sys.stdout, sys.stdin.read()]\n"
    )
    warm, cold = (
        in_lane(folder, f"print(json.dumps(ask(Zygote(order, warm={kind}))))\n", own)
        for kind, folder in (("True", tmp_path / "warm"), ("False", tmp_path / "cold"))
        if folder.mkdir() is None
    )
    assert warm[0] == warm[1] == cold[0] == cold[1]
    assert warm[2:] == cold[2:] == [True, ""]


def test_streams_that_imports_remember_are_those_of_the_call(tmp_path: Path) -> None:
    own = (
        "import logging, sys\n"
        "logging.basicConfig(format='%(message)s')\nout = sys.stdout\n"
        "def run():\n    out.write('by the old name')\n    logging.warning('logged')\n    raise SystemExit\n"
    )
    body = "print(json.dumps(ask(Zygote(order, warm=True))))\n"
    assert in_lane(tmp_path, body, own) == ["by the old name", "logged\n", ""]


def test_every_fork_looks_like_one_to_who_asks_for_its_process_id(tmp_path: Path) -> None:
    own = "import os\nat_import = os.getpid()\ndef run(): return [at_import, os.getpid(), os.getppid()]\n"
    body = "source = Zygote(order, warm=True)\nprint(json.dumps([source.pid, ask(source), ask(source)]))\n"
    pid, *found = in_lane(tmp_path, body, own)
    assert pid not in (1, 2)
    assert found == [[pid, 2, 1]] * 2


def test_a_zygote_holds_nothing_of_the_runner(tmp_path: Path) -> None:
    body = (
        "kept = os.pipe()\nos.dup2(kept[0], 700)\nos.environ['TRACE'] = '1'\nsource = Zygote(order, warm=True)\nask(source)\n"
        "place = f'/proc/{source.pid}/fd/'\nown = os.readlink('/proc/self/fd/' + str(kept[0]))\n"
        "links = {int(name): os.readlink(place + name) for name in os.listdir(place)}\n"
        "print(json.dumps([sorted(links), own in links.values(), os.readlink(place + '3')]))\n"
    )
    assert in_lane(tmp_path, body, "def run(): return 1") == [[0, 1, 2, 3, 4, 5], False, "/dev/null"]


def test_a_command_is_not_imported(tmp_path: Path) -> None:
    body = "print(json.dumps(ask(Zygote(order, warm=True))))\n"
    run = Run(command=("/bin/echo", "hello"), result="stdout")
    assert in_lane(tmp_path, body, "raise SystemExit", run=run) == ["hello\n", ""]


# --- what is not kept --------------------------------------------------------------------------------------------

UNSHAREABLE = {
    "a thread": ("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()", "threads"),
    "a descriptor": ("import os\nos.open('/dev/null', os.O_RDONLY)", "descriptors"),
    "a process": ("import os, time\nif os.fork() == 0:\n    time.sleep(60)", "processes"),
    "shared memory": ("import mmap\none = mmap.mmap(-1, 4096)", "shared memory"),
    "a file": ("open('/tmp/cache', 'w').close()", "files"),
    "output": ("print('hello')", "output"),
    "more output than there is room for": ("print('x' * 200_000)", "failure"),
    "a failure": ("raise RuntimeError('not today')", "failure"),
    "an exit": ("raise SystemExit(0)", "failure"),
    "the end of the interpreter": ("import os\nos._exit(0)", "the zygote died"),
    "a crash": ("import ctypes\nctypes.string_at(0)", "the zygote died"),
}


def test_the_reasons_are_those_of_the_description() -> None:
    assert sorted(zygote.COLD) == sorted(FRAMES["cold"])
    assert {reason for _, reason in UNSHAREABLE.values()} | {"a cell was not made in time"} == set(zygote.COLD)


@pytest.mark.parametrize("kind", UNSHAREABLE)
def test_imports_that_calls_would_share_are_not_kept_warm(kind: str, tmp_path: Path) -> None:
    own, reason = UNSHAREABLE[kind]
    body = "print(json.dumps(refusal(Zygote(order, warm=True))))\n"
    assert in_lane(tmp_path, body, f"{own}\ndef run(): return 1\n") == ["Unshareable", reason, False]


def test_imports_that_do_not_come_to_an_end_are_given_up(tmp_path: Path) -> None:
    body = "print(json.dumps(refusal(Zygote(order, warm=True), 0.5)))\n"
    own = "import time\ntime.sleep(60)\ndef run(): return 1\n"
    assert in_lane(tmp_path, body, own) == ["Unshareable", "a cell was not made in time", False]


@pytest.mark.parametrize("dies", [True, False])
def test_after_such_imports_nothing_of_them_is_left_to_the_next_zygote(dies: bool, tmp_path: Path) -> None:
    own = (
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n    os._exit(0)\n"
        "os.wait()\n" + ("os._exit(0)\n" if dies else "time.sleep(60)\n") + "def run(): return 1\n"
    )
    body = (
        "source = Zygote(order, warm=True)\nrefused = refusal(source, 1)[0]\nleft = len(others())\nsource.end()\n"
        "print(json.dumps([refused, left > 0, others()]))\n"
    )
    assert in_lane(tmp_path, body, own) == ["Unshareable", True, []]


def test_what_does_not_die_is_a_fault(tmp_path: Path) -> None:
    body = (
        "source = Zygote(order, warm=True)\nkernel.kill_everything = lambda watched: (None, False)\n"
        "try:\n    source.end()\nexcept cell.CellError as error:\n    print(json.dumps(error.refused))\n"
    )
    assert in_lane(tmp_path, body, "def run(): return 1") is False


# --- how it is lost ----------------------------------------------------------------------------------------------


def test_once_cells_were_made_a_death_is_not_the_imports(tmp_path: Path) -> None:
    body = (
        "source = Zygote(order, warm=True)\nask(source)\nalive = source.is_dead()\n"
        "os.kill(source.pid, signal.SIGKILL)\nprint(json.dumps([alive, refusal(source)]))\n"
    )
    assert in_lane(tmp_path, body, "def run(): return 1") == [False, ["CellError", "the zygote died", False]]


def test_a_death_shows_without_asking_for_a_cell(tmp_path: Path) -> None:
    body = (
        "source = Zygote(order, warm=False)\nos.kill(source.pid, signal.SIGKILL)\nuntil = soon()\n"
        "while not source.is_dead() and time.monotonic() < until:\n    time.sleep(0.01)\n"
        "print(json.dumps(others()))\n"
    )
    assert in_lane(tmp_path, body, "def run(): return 1") == []


def test_a_death_with_the_request_unread_is_told_with_its_last_words(tmp_path: Path) -> None:
    body = (
        "def breaks(*_, **__):\n    raise MemoryError('hunter2')\n"
        "child.set_surroundings = breaks\nsource = Zygote(order, warm=False)\n"
        "print(json.dumps(refusal(source)))\n"
    )
    kind, text, refused = in_lane(tmp_path, body, "def run(): return 1")
    assert (kind, refused) == ("CellError", False)
    assert text.startswith("MemoryError at ")
    assert "hunter2" not in text


@pytest.mark.parametrize(("number", "refused"), [(1, True), (28, True), (11, False)])
def test_a_kernel_that_makes_no_namespaces_is_heard(number: int, refused: bool, tmp_path: Path) -> None:
    body = (
        "def refuses():\n    raise OSError(number, 'clone')\n"
        "namespaces.fork_into_new_namespaces = refuses\nsource = Zygote(order, warm=True)\n"
        "print(json.dumps([refusal(source), source.is_dead()]))\n"
    )
    (kind, text, was_refused), dead = in_lane(tmp_path, body, "def run(): return 1", number=number)
    assert (kind, was_refused, dead) == ("CellError", refused, False)
    assert text.startswith(("PermissionError EPERM at", "OSError ENOSPC at", "BlockingIOError EAGAIN at"))


def test_it_ends_when_the_runner_lets_go_of_it(tmp_path: Path) -> None:
    body = "source = Zygote(order, warm=True)\nask(source)\nsource._channel.close()\nprint(json.dumps(os.waitpid(source.pid, 0)[1]))\n"
    assert in_lane(tmp_path, body, "def run(): return 1") == 0
