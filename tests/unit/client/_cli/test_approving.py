import fcntl
import os
import pty
import subprocess
import sys
import termios
import time

import pytest

from support.command_line import document, run
from support.fake_desk import Call
from support.fake_gateway import FakeGateway

EVIL = '{"note": "ok\\n}\\ndigest     sha256:forged\\nApprove a.b as shown above? [y/N]: \\u001b[2J\\u202e[red]x[/]"}'


def waiting(commands: FakeGateway, text: str = EVIL) -> Call:
    assert run("call", "demo.guarded", "--args-file", "-", "--purpose", "a\nb\x1b[2J", text=text).exit_code == 75
    return commands.calls[-1]


def digest_of(call: Call) -> str:
    assert call.approval is not None
    return call.approval.digest


def _own_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def on_terminal(*arguments: str, typed: bytes, after: bytes = b"[y/N]") -> tuple[int, str]:
    """Run the program on a terminal of 80 columns, and type once `after` was shown for the last time."""
    ours, theirs = pty.openpty()
    program = [sys.executable, "-c", "import sys; from callgate.cli import main; sys.exit(main())", *arguments]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    # On a terminal of its own: keys are signals only there.
    with subprocess.Popen(
        program, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, preexec_fn=_own_terminal
    ) as running:
        os.close(theirs)
        shown, answered = b"", False
        try:
            while piece := os.read(ours, 65536):
                shown += piece
                if not answered and shown.rstrip().endswith(after + b":"):
                    time.sleep(0.2)
                    os.write(ours, typed)
                    answered = True
        except OSError:
            pass
        running.wait(timeout=30)
    os.close(ours)
    return running.returncode, shown.decode()


def test_approvals_are_listed_and_shown(commands: FakeGateway) -> None:
    call = waiting(commands)
    assert call.id in run("approvals").stdout
    shown = run("approvals", call.id)
    assert f"callgate approve {call.id}" in shown.stderr
    assert f"digest     {digest_of(call)}" in shown.stdout.splitlines()
    assert 'purpose    | "a\\nb\\u001b[2J"' in shown.stdout
    assert not {"\x1b", "\u202e"} & set(shown.stdout + shown.stderr)
    unknown = run("approvals", "no-such-call")
    assert (unknown.exit_code, "next: List what waits for you: callgate approvals" in unknown.stderr) == (3, True)
    assert document("approvals")["approvals"][0]["arguments"] is None
    assert document("approvals", call.id)["arguments"]["note"].startswith("ok")


def test_what_was_decided_is_listed_only_where_that_is_asked_for(commands: FakeGateway) -> None:
    decided, waits = waiting(commands), waiting(commands)
    run("deny", decided.id, "--digest", digest_of(decided))
    assert decided.id not in run("approvals").stdout
    assert waits.id in run("approvals").stdout
    assert [one["call_id"] for one in document("approvals")["approvals"]] == [waits.id]
    listed = run("approvals", "--all").stdout
    assert decided.id in listed
    assert "denied" in listed
    assert waits.id in listed


@pytest.mark.parametrize(("command", "state"), [("approve", "approved"), ("deny", "denied")])
def test_a_digest_decides_without_a_question(commands: FakeGateway, command: str, state: str) -> None:
    call = waiting(commands)
    assert run(command, call.id, "--digest", "sha256:other").exit_code == 3
    result = run(command, call.id, "--digest", digest_of(call))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith(state)
    again = document(command, call.id, "--yes")
    assert again["error"]["reason"] == "not_possible"


def test_yes_decides_what_is_shown(commands: FakeGateway) -> None:
    call = waiting(commands)
    assert document("approve", call.id, "--yes")["state"] == "approved"


@pytest.mark.parametrize("options", [[], ["--json"], ["--digest", "d", "--yes"], ["--digest", ""]])
def test_where_nobody_can_be_asked_nothing_is_sent(commands: FakeGateway, options: list[str]) -> None:
    for command in ("approve", "deny"):
        assert run(command, "c1", *options).exit_code == 2
    assert commands.metadata == []


def test_a_person_is_asked_about_what_was_shown(commands: FakeGateway) -> None:
    call = waiting(commands)
    status, shown = on_terminal("approve", call.id, typed=b"n\n")
    assert (status, call.waits_for_approval) == (1, True)
    assert "Nothing was decided." in shown
    status, shown = on_terminal("approve", call.id, typed=b"y\n")
    assert (status, call.waits_for_approval) == (0, False)
    lines = shown.splitlines()
    assert len([line for line in lines if line.startswith("digest")]) == 1
    assert len([line for line in lines if line.startswith("Approve demo.guarded")]) == 1
    assert not any(line.startswith("Approve a.b") for line in lines)


def test_interrupting_the_question_decides_nothing(commands: FakeGateway) -> None:
    call = waiting(commands)
    for key, expected in ((b"\x03", 130), (b"\x04", 1)):
        status, shown = on_terminal("approve", call.id, typed=key)
        assert (status, call.waits_for_approval) == (expected, True)
        assert "Nothing was decided." in shown


def test_nobody_is_asked_about_what_does_not_fit(commands: FakeGateway) -> None:
    call = waiting(commands, '{"a": "' + "x" * 100_000 + '"}')
    status, shown = on_terminal("approve", call.id, typed=b"y\n")
    assert (status, call.waits_for_approval) == (1, True)
    assert "[y/N]" not in shown
    assert "--digest" in shown
