import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from callgate_runner import kernel

RUNNER = Path(__file__).parents[3] / "sandbox_images/base"


def in_a_process_of_its_own(body: str) -> str:
    program = f"import sys; sys.path.insert(0, {str(RUNNER)!r})\nimport os, signal, time\nfrom callgate_runner import kernel\n{body}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_nobody_but_process_one_kills_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    with pytest.raises(RuntimeError, match="process 1"):
        kernel.kill_everything(1)
    assert sent == []


def test_process_one_kills_until_no_child_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    rounds = iter([(None, True), (9, True), (None, False)])
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(kernel, "reap", lambda _watched: next(rounds))
    assert kernel.kill_everything(42) == (9, True)
    assert sent == [(-1, signal.SIGKILL)] * 3


def test_what_the_kernel_does_not_let_die_is_not_waited_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_DEATH_WAIT_S", 0.05)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    monkeypatch.setattr(kernel, "reap", lambda _watched: (None, True))
    assert kernel.kill_everything(42) == (None, False)


def test_dead_children_are_collected_and_the_watched_one_told_apart() -> None:
    said = in_a_process_of_its_own(
        "first, second = os.fork() or os._exit(3), os.fork() or os._exit(4)\n"
        "statuses = []\n"
        "left = True\n"
        "while left:\n"
        "    status, left = kernel.reap(second)\n"
        "    statuses += [] if status is None else [os.waitstatus_to_exitcode(status)]\n"
        "print(statuses, kernel.children_usage()[1] > 0)\n"
    )
    assert said == "[4] True\n"


def test_the_death_of_a_child_wakes_the_loop_and_other_signals_are_ignored() -> None:
    said = in_a_process_of_its_own(
        "import select\n"
        "waking = kernel.ignore_signals()\n"
        "os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGINT)\n"
        "quiet = select.select([waking], [], [], 0)[0]\n"
        "os.fork() or os._exit(0)\n"
        "print(quiet, select.select([waking], [], [], 20)[0] == [waking])\n"
    )
    assert said == "[] True\n"


def test_a_child_hears_signals_again() -> None:
    said = in_a_process_of_its_own(
        "kernel.ignore_signals()\n"
        "kernel.default_signals()\n"
        "silent = [n for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN]\n"
        "print(silent, signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n"
    )
    assert said == "[] set()\n"


def test_the_process_can_be_closed_to_its_siblings_and_opened_again() -> None:
    said = in_a_process_of_its_own(
        "owners = []\n"
        "os.setresuid(61533, 61533, 61533) if os.getuid() == 0 else None\n"
        "for dumpable in (False, True):\n"
        "    kernel.set_dumpable(dumpable=dumpable)\n"
        "    owners.append(os.stat('/proc/self/mem').st_uid == os.getuid())\n"
        "print(owners)\n"
    )
    assert said == "[False, True]\n"


def test_privileges_cannot_be_gained() -> None:
    said = in_a_process_of_its_own(
        "kernel.set_no_new_privs()\nprint([l for l in open('/proc/self/status') if 'NoNewPrivs' in l])\n"
    )
    assert said == "['NoNewPrivs:\\t1\\n']\n"
