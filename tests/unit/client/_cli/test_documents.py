import json

import pytest

from callgate import (
    Accepted,
    Answer,
    Answered,
    Approval,
    CallRefused,
    CallSummary,
    DeadLetter,
    DeadLetters,
    Failure,
    GatewayUnreachable,
    Tool,
)
from callgate._cli.documents import Documents, Envelopes

ANSWER = Answer("c1", "a.b", "1.0.0", "succeeded", result=1)


def test_exactly_the_document_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    Documents().state(ANSWER)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == ANSWER.to_json()
    assert shown.err == ""


def test_events_are_lines_and_the_answer_is_the_last_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Documents(lines=True)
    screen.event(Accepted(0, "c1"))
    screen.event(Answered(1, ANSWER))
    screen.state(ANSWER)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["accepted", "answer"]
    assert lines[1]["answer"] == ANSWER.to_json()


def test_a_stream_that_was_cancelled_still_ends_with_what_became_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Documents(lines=True)
    screen.event(Accepted(0, "c1"))
    screen.state(ANSWER)
    assert json.loads(capsys.readouterr().out.splitlines()[1]) == ANSWER.to_json()


def test_errors_are_documents_too(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (CallRefused(Failure("r", "C", "m")), GatewayUnreachable("m", target="h:1")):
        if isinstance(error, CallRefused):
            Documents().refusal(error, takes="for people")
        else:
            Documents().unreachable(error)
        shown = capsys.readouterr()
        assert json.loads(shown.out) == error.to_json()
        assert shown.err == ""


def test_lists_are_objects(capsys: pytest.CaptureFixture[str]) -> None:
    call, tool = CallSummary("c1", "a.b", "1.0.0", "running"), Tool("a.b", "1.0.0", "s", "read")
    Documents().calls([call])
    assert json.loads(capsys.readouterr().out) == {"calls": [call.to_json()]}
    Documents().tools([tool])
    assert json.loads(capsys.readouterr().out) == {"tools": [tool.to_json()]}
    Documents().tool(tool)
    assert json.loads(capsys.readouterr().out) == tool.to_json()


def test_remarks_do_not_mix_with_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    Documents().note("A remark.")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "A remark.\n")


def test_a_model_gets_the_envelope_and_a_person_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer("c1", "a.b", "1.0.0", "succeeded", result="\x1b[2J", nonce="12ab")
    Envelopes().state(answer)
    shown = capsys.readouterr()
    assert shown.out == answer.envelope()
    assert "\x1b" not in shown.out
    assert shown.err.startswith("succeeded")


def test_a_call_without_an_answer_has_no_envelope(capsys: pytest.CaptureFixture[str]) -> None:
    Envelopes().state(CallSummary("c1", "a.b", "1.0.0", "running"))
    assert capsys.readouterr().out == ""


def test_approvals_and_dead_letters_are_documents(capsys: pytest.CaptureFixture[str]) -> None:
    approval = Approval("c1", "a.b", "1.0.0", "waiting", "d", arguments={"n": 1})
    letter = DeadLetter("c1", "a.b", "1.0.0", "failed")
    call = CallSummary("c1", "a.b", "1.0.0", "failed")
    screen = Documents()
    assert screen.judged(approval)
    assert capsys.readouterr().out == ""
    for show, expected in (
        (lambda: screen.approvals([approval]), {"approvals": [approval.to_json()]}),
        (lambda: screen.approval(approval), approval.to_json()),
        (lambda: screen.decided(approval), approval.to_json()),
        (lambda: screen.dead_letters(DeadLetters((letter,), 7)), {"dead_letters": [letter.to_json()], "total": 7}),
        (lambda: screen.dead_letter(letter), letter.to_json()),
        (lambda: screen.settled("Settled.", call), call.to_json()),
    ):
        show()
        shown = capsys.readouterr()
        assert json.loads(shown.out) == expected
        assert shown.err == ""
