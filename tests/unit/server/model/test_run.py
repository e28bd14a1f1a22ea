import pytest

from callgate_server.model import run
from callgate_server.model.answer import Exit
from callgate_server.model.errors import REASONS, Reason
from callgate_server.model.lifecycle import MOVES, State
from callgate_server.model.run import Captured, Cause, RunOutcome


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("code", [None, 0, 1, 137, 255])
def test_only_a_process_that_exited_with_zero_succeeded(cause, code):
    state, reason = run.judge(RunOutcome(cause, "", Exit(code=code)))
    assert (state is State.SUCCEEDED) == (cause is Cause.EXITED and code == 0)
    assert (reason is None) == (state is State.SUCCEEDED)


@pytest.mark.parametrize("cause", Cause)
def test_every_end_is_one_that_a_running_call_can_have_and_that_answers(cause):
    state, reason = run.judge(RunOutcome(cause, "", Exit(code=1)))
    assert state in MOVES[State.RUNNING]
    assert reason is not None
    assert REASONS[reason].http == 200


def test_each_cause_keeps_its_name():
    assert run.judge(RunOutcome(Cause.OUT_OF_MEMORY, ""))[1] is Reason.OUT_OF_MEMORY
    assert run.judge(RunOutcome(Cause.OUTPUT_FLOOD, ""))[1] is Reason.OUTPUT_FLOOD
    assert run.judge(RunOutcome(Cause.TIMED_OUT, "")) == (State.TIMED_OUT, Reason.TIMED_OUT)
    assert run.judge(RunOutcome(Cause.CANCELLED, "")) == (State.CANCELLED, Reason.CANCELLED)
    assert run.judge(RunOutcome(Cause.LOST, "")) == (State.LOST, Reason.SANDBOX_LOST)


def test_output_is_truncated_exactly_when_bytes_are_missing():
    assert not Captured(b"ab", b"cd", 4).truncated
    assert Captured(b"ab", b"cd", 5).truncated
    assert not Captured().truncated


def test_status_75_says_that_it_could_not_be_done_for_now():
    assert run.judge(RunOutcome(Cause.EXITED, "", Exit(code=75))) == (State.FAILED, Reason.TOOL_UNAVAILABLE)
    assert run.judge(RunOutcome(Cause.EXITED, "", Exit(code=74))) == (State.FAILED, Reason.TOOL_FAILED)
