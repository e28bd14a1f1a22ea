import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.admission.loops import LoopGuard, LoopRule, SameCall
from callgate_server.model.errors import Reason

CALL = SameCall("acme", "bot", "python.run", "d1")
OTHERS = [
    SameCall("rival", "bot", "python.run", "d1"),
    SameCall("acme", "other", "python.run", "d1"),
    SameCall("acme", "bot", "text.diff", "d1"),
    SameCall("acme", "bot", "python.run", "d2"),
]


def fail(guard: LoopGuard, times: int, *, at: float = 0.0, call: SameCall = CALL) -> None:
    for _ in range(times):
        guard.failed(call, Reason.TOOL_FAILED, at)


def test_so_many_failures_are_a_loop_and_it_says_which_and_for_how_long():
    guard = LoopGuard(LoopRule(3, 60))
    fail(guard, 2)
    assert guard.found(CALL, 1) is None
    guard.failed(CALL, Reason.TIMED_OUT, 10)
    found = guard.found(CALL, 20)
    assert found is not None
    assert (found.reason, found.failures, found.over_in_s) == (Reason.TIMED_OUT, 3, pytest.approx(40))


def test_it_is_over_after_the_time_and_then_one_more_failure_goes_on_with_it():
    guard = LoopGuard(LoopRule(3, 60))
    for at in (0, 10, 20):
        fail(guard, 1, at=at)
    assert guard.found(CALL, 59.9) is not None
    assert guard.found(CALL, 60.1) is None
    fail(guard, 1, at=61)
    assert guard.found(CALL, 62) is not None


def test_a_success_forgets_it():
    guard = LoopGuard(LoopRule(2, 60))
    fail(guard, 2)
    guard.succeeded(CALL)
    assert guard.found(CALL, 0) is None
    assert len(guard) == 0


@pytest.mark.parametrize("other", OTHERS)
def test_another_call_is_not_the_same(other):
    guard = LoopGuard(LoopRule(2, 60))
    fail(guard, 2)
    assert guard.found(other, 0) is None


def test_without_a_rule_nothing_is_remembered():
    guard = LoopGuard(None)
    fail(guard, 100)
    assert guard.found(CALL, 0) is None
    assert len(guard) == 0


@given(st.lists(st.integers(0, 50), max_size=300))
def test_what_is_remembered_is_bounded(numbers):
    guard = LoopGuard(LoopRule(2, 60), most=10)
    for at, number in enumerate(numbers):
        fail(guard, 5, at=at, call=SameCall("acme", "bot", "t.t", str(number)))
    assert len(guard) <= 10
    if numbers:
        assert guard.found(SameCall("acme", "bot", "t.t", str(numbers[-1])), len(numbers) - 1) is not None
