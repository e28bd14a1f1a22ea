import pytest

from callgate_server.execution.job import Captured, Cause, RunOutcome, judge
from callgate_server.model.answer import Exit
from callgate_server.model.errors import Reason
from callgate_server.model.lifecycle import State


@pytest.mark.parametrize("cause", list(Cause))
def test_only_exit_status_zero_is_a_success(cause: Cause) -> None:
    for code in (None, 0, 1):
        state, reason = judge(RunOutcome(cause, "", exit=Exit(code=code)))
        assert (state is State.SUCCEEDED) == (cause is Cause.EXITED and code == 0)
        assert (reason is None) == (state is State.SUCCEEDED)


@pytest.mark.parametrize(
    ("cause", "state", "reason"),
    [
        (Cause.EXITED, State.FAILED, Reason.TOOL_FAILED),
        (Cause.SIGNALLED, State.FAILED, Reason.TOOL_FAILED),
        (Cause.OUT_OF_MEMORY, State.FAILED, Reason.OUT_OF_MEMORY),
        (Cause.OUTPUT_FLOOD, State.FAILED, Reason.OUTPUT_FLOOD),
        (Cause.TIMED_OUT, State.TIMED_OUT, Reason.TIMED_OUT),
        (Cause.CANCELLED, State.CANCELLED, Reason.CANCELLED),
        (Cause.LOST, State.LOST, Reason.SANDBOX_LOST),
    ],
)
def test_every_end_has_a_state_and_a_reason(cause: Cause, state: State, reason: Reason) -> None:
    assert judge(RunOutcome(cause, "", exit=Exit(code=1))) == (state, reason)


def test_a_stream_is_truncated_when_less_is_kept_than_came() -> None:
    assert Captured(b"ab", b"c", 4).truncated
    assert not Captured(b"ab", b"", 2).truncated
