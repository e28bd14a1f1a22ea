import io
import sys
from datetime import UTC, datetime, timedelta

import pytest

from callgate import (
    Answer,
    Approval,
    Artifact,
    CallApproval,
    CallRefused,
    CallSummary,
    DeadLetter,
    DeadLetters,
    Exit,
    Failure,
    Limits,
    Output,
    OutputChunk,
    Tool,
    Usage,
    Violation,
    Waiting,
)
from callgate._cli.screen import Screen, describe
from callgate.task import Amounts, Task
from callgate.types import Fallback

CALL_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
TOO_LATE = Failure("timed_out", "DEADLINE_EXCEEDED", "Killed at its deadline.")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make both outputs an 80-column terminal. Called in a test's body: capturing undoes what fixtures do to them."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    both = Terminal()
    monkeypatch.setattr(sys, "stdout", both)
    monkeypatch.setattr(sys, "stderr", both)
    return both


def answer(**changes: object) -> Answer:
    values = {"call_id": CALL_ID, "tool": "a.b", "version": "1.0.0", "state": "succeeded", **changes}
    return Answer(**values)  # type: ignore[arg-type]  # a table of changes


def test_output_goes_where_the_tool_wrote_it(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().state(answer(stdout=Output("out\n", None, 4), stderr=Output("err\n", None, 4), usage=Usage(wall_ms=1234)))
    shown = capsys.readouterr()
    assert shown.out == "out\n"
    assert shown.err == f"err\nsucceeded in 1.2 s · call {CALL_ID}\n"


def test_a_result_is_shown_where_nothing_was_printed(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().state(answer(result={"a": [1]}))
    assert capsys.readouterr().out == '{\n  "a": [\n    1\n  ]\n}\n'


def test_a_result_beside_output_is_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().state(answer(result=1, stdout=Output("out", None, 3)))
    shown = capsys.readouterr()
    assert shown.out == "out"
    assert "result in --json" in shown.err


def test_a_failure_says_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    failure = Failure("tool_failed", "UNKNOWN", "The tool ended with exit code 3.")
    Screen().state(answer(state="failed", error=failure, exit=Exit(code=3)))
    Screen().state(answer(state="timed_out", error=TOO_LATE, exit=Exit(signal=9)))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("failed (tool_failed, exit code 3) in 0 ms")
    assert lines[1] == "The tool ended with exit code 3."
    assert lines[2].startswith("timed_out (signal 9) in 0 ms")


def test_replay_and_truncation_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().state(answer(replayed=True, stdout=Output("x", None, 5000, truncated=True)))
    assert "replayed, nothing ran now · stdout truncated from 5 KiB" in capsys.readouterr().err


def test_artifacts_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    taken = Artifact("a.png", 3 * 1024 * 1024)
    left = Artifact("b\x1b[2J", 0, rejected="not a regular file")
    Screen().state(answer(artifacts=(taken, left)))
    assert capsys.readouterr().err.splitlines()[1:] == [
        "artifact a.png, 3.0 MiB",
        "artifact not taken: b\\x1b[2J: not a regular file",
    ]


def test_streamed_output_is_not_shown_twice(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.event(OutputChunk(1, "stdout", "head"))
    screen.event(OutputChunk(2, "stderr", "err"))
    screen.event(OutputChunk(3, "a stream of tomorrow", "x"))
    screen.state(answer(stdout=Output("head\n[… 9 bytes omitted …]\ntail", None, 17, truncated=True)))
    shown = capsys.readouterr()
    assert shown.out == "head\n[… 9 bytes omitted …]\ntail"
    assert shown.err.count("err") == 1


def test_nothing_from_a_tool_reaches_the_terminal_as_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    evil = "\x1b]0;evil\x07\x9b2J[bold red]markup[/] :boom:"
    refusal = CallRefused(
        Failure(evil, "C", evil), violations=[Violation(evil, evil, evil)], policies=[evil], call_id=evil
    )
    screen = Screen()
    screen.event(OutputChunk(1, "stdout", evil))
    screen.state(
        Answer(evil, evil, evil, evil, error=Failure(evil, evil, evil), stdout=Output(evil, None, 9), result=evil)
    )
    screen.state(Answer(evil, evil, evil, "succeeded", result={evil: evil}, artifacts=(Artifact(evil),)))
    screen.state(CallSummary(evil, evil, evil, evil, Failure(evil, evil, evil)))
    screen.calls([CallSummary(evil, evil, evil, evil)])
    tool = Tool(evil, evil, evil, evil, evil, {"properties": {evil: {"type": evil, "description": evil}}})
    screen.tools([tool])
    screen.tool(tool)
    screen.refusal(refusal, takes=evil)
    screen.note(evil)
    screen.event(Waiting(1, evil, evil, evil))
    approval = Approval(
        evil, evil, evil, "waiting", evil, evil, evil, evil, evil, evil, evil, (evil,), evil, {evil: evil}
    )
    screen.approvals([approval])
    screen.approval(approval)
    screen.decided(approval)
    letter = DeadLetter(evil, evil, evil, evil, evil, evil, evil, Failure(evil, evil, evil), evil)
    screen.dead_letters(DeadLetters((letter,), 1))
    screen.dead_letter(letter)
    shown = terminal.getvalue()
    assert "\x1b]" not in shown
    assert "\x9b" not in shown
    assert "\x07" not in shown
    # Word wrapping may have broken it, nothing may have read it.
    assert "[bold red]markup[/]" in " ".join(shown.split())


def test_a_refusal_says_why_and_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    refusal = CallRefused(
        Failure("invalid_arguments", "INVALID_ARGUMENT", "The arguments do not fit."),
        violations=[Violation("/code", "type", "must be text"), Violation("", "required", "lacks `n`")],
        policies=["p1", "p2"],
        call_id=CALL_ID,
    )
    Screen().refusal(refusal, takes="code (string, required)")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "refused: invalid_arguments",
        "  The arguments do not fit.",
        "  /code must be text",
        "  the arguments lacks `n`",
        "  decided by: p1, p2",
        "  it takes: code (string, required)",
        "  next: Show what a tool takes: callgate tools NAME",
        f"  call {CALL_ID}",
    ]


def test_a_retryable_refusal_says_when(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().refusal(CallRefused(Failure("overloaded", "C", "Full.", retryable=True, retry_after_ms=1500)))
    assert "next: Try again in 1.5 s." in capsys.readouterr().err


def test_lists_fit_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    received = datetime.now(UTC) - timedelta(hours=3)
    Screen().calls([CallSummary(CALL_ID, "webhooks.sign", "1.0.0", "timed_out", TOO_LATE, received)])
    Screen().tools([Tool("webhooks.sign", "1.0.0", "Sign a payload with the tenant's webhook key. " * 4, "read")])
    Screen().state(answer(replayed=True, stdout=Output("x", None, 5000, truncated=True)))
    waiting = CallApproval("finance", datetime.now(UTC) + timedelta(hours=3))
    Screen().calls([CallSummary(CALL_ID, "webhooks.sign", "1.0.0", "awaiting_approval", None, received)])
    Screen().state(
        CallSummary(CALL_ID, "webhooks.sign", "1.0.0", "awaiting_approval", None, received, approval=waiting)
    )
    Screen().approval(Approval(CALL_ID, "webhooks.sign", "1.0.0", "waiting", "sha256:" + "0" * 64, purpose="x" * 200))
    Screen().approvals([Approval(CALL_ID, "webhooks.sign", "1.0.0", "waiting", "d", agent="a" * 30)])
    letter = DeadLetter(CALL_ID, "webhooks.sign", "1.0.0", "unknown", "acme", "a", None, TOO_LATE, "unsafe", received)
    Screen().dead_letters(DeadLetters((letter,), 1))
    lines = terminal.getvalue().splitlines()
    assert all(len(line.replace("\x1b[0m", "").replace("\x1b[1m", "").replace("\x1b[2m", "")) <= 80 for line in lines)
    assert any(CALL_ID in line and "3h" in line for line in lines)


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_lists_show_whole_ids_however_narrow_the_terminal_is(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    terminal = use_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    now = datetime.now(UTC)
    task_id = f"task-{CALL_ID}"
    Screen().calls([CallSummary(CALL_ID, "webhooks.sign", "1.0.0", "awaiting_approval", None, now)])
    Screen().approvals([Approval(CALL_ID, "webhooks.sign", "1.0.0", "waiting", "d", agent="a" * 30, requested_at=now)])
    letter = DeadLetter(CALL_ID, "webhooks.sign", "1.0.0", "unknown", "acme", "a", None, TOO_LATE, "unsafe", now)
    Screen().dead_letters(DeadLetters((letter,), 1))
    Screen().tasks([Task(task_id, "compare many texts", "bot", {}, Amounts(20), Amounts(3), now, now)])
    lines = terminal.getvalue().splitlines()
    assert len([line for line in lines if line.startswith(CALL_ID)]) == 3
    assert len([line for line in lines if line.startswith(task_id)]) == 1
    assert all(word in "".join(lines) for word in ("awaiting", "waiting", "timed_out", "3 of 20", "over"))


def test_lines_are_not_wrapped_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().note("word " * 40)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_colour_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    Screen().state(answer())
    assert "\x1b[32msucceeded" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    Screen().state(answer())
    assert "\x1b" not in sys.stderr.getvalue()  # type: ignore[attr-defined]  # set just above


def test_empty_lists_say_what_that_means(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().calls([])
    Screen().tools([])
    assert capsys.readouterr().err.splitlines()[0] == "No calls yet."


def test_a_tool_is_shown_with_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    schema = {"properties": {"code": {"type": "string", "description": "The program."}}, "required": ["code"]}
    limits = Limits(wall_s=30, cpu=1, memory_mb=256, pids=64)
    Screen().tool(Tool("python.run", "1.0.0", "Run Python.", "unsafe", "container", schema, limits=limits))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "python.run 1.0.0"
    assert "at most 30 s, 256 MiB, 1 cpu, 64 processes" in lines
    assert lines[-1].split() == ["code", "string", "required", "The", "program."]


@pytest.mark.parametrize("schema", [{}, {"properties": []}, {"properties": {"a": True}, "required": "a"}])
def test_an_unusual_schema_is_described_as_far_as_it_goes(schema: dict[str, object]) -> None:
    assert all(described == ("any", "", "") for described in describe(schema).values())


def test_alternatives_of_a_type_are_listed() -> None:
    assert describe({"properties": {"a": {"type": ["string", "null"]}}}) == {"a": ("string or null", "", "")}


def test_a_call_that_waits_says_for_what_and_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    approval = CallApproval("finance", datetime.now(UTC) + timedelta(hours=2, minutes=1))
    Screen().state(CallSummary(CALL_ID, "a.b", "1.0.0", "awaiting_approval", approval=approval, task="t1"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("  waits for an approval by finance, until ")
    assert lines[1].endswith("(in 2h)")
    assert lines[2:] == ["  task t1", f"  call {CALL_ID}", f"  next: callgate follow {CALL_ID}"]


def test_a_call_says_which_attempt_it_is_what_it_follows_and_who_decided(capsys: pytest.CaptureFixture[str]) -> None:
    decided = CallApproval("finance", decided_by="acme/boss")
    Screen().state(CallSummary(CALL_ID, "a.b", "1.0.0", "admitted", approval=decided, attempt=2, follows="c0"))
    shown = capsys.readouterr().err
    assert shown.startswith("admitted · a.b")
    for fact in ("waits for its turn", "decided by acme/boss, for finance", "attempt 2", "follows call c0"):
        assert fact in shown


@pytest.mark.parametrize(
    "reason",
    [
        *("rate_limited", "budget_exceeded", "loop_stopped", "stopped", "unknown_task", "task_ended"),
        *("outside_grant", "approval_required", "approval_denied", "approval_expired", "approval_void", "not_possible"),
    ],
)
def test_a_refusal_that_a_person_can_do_something_about_says_what(
    capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    Screen().refusal(CallRefused(Failure(reason, "C", "No.")))
    assert "  next: " in capsys.readouterr().err


def test_a_fallback_is_said_plainly_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    error = Failure("timed_out", "DEADLINE_EXCEEDED", "Killed at its deadline.")
    Screen().state(answer(attempt=2, fallback=Fallback("last_good", error, "a.b", "c9", 90.0)))
    shown = capsys.readouterr().err
    assert "attempt 2" in shown
    assert "fallback (last_good of a.b, 90.0 s old, call c9), not the tool's own result: timed_out" in shown
