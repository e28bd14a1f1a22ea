import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.execution.retrying import (
    LONGEST_PAUSE_S,
    MOST,
    REFILL_S,
    REMEMBERED,
    RESERVE,
    SHARE,
    RetryBudgets,
    mends,
    pause_s,
)
from callgate_server.model.errors import Reason
from callgate_server.model.manifest import Effect

steps = st.lists(st.tuples(st.sampled_from(["call", "retry"]), st.floats(0, 5)), max_size=400)


@pytest.mark.parametrize("effect", ["read", "idempotent", "unsafe"])
@pytest.mark.parametrize("reason", [Reason.SANDBOX_UNAVAILABLE, Reason.SECRETS_UNAVAILABLE])
def test_what_never_started_is_tried_again_whatever_its_effect(reason: Reason, effect: Effect) -> None:
    assert mends(reason, effect, started=False)


@pytest.mark.parametrize("reason", list(Reason))
def test_what_is_unsafe_is_never_started_twice(reason: Reason) -> None:
    assert not mends(reason, "unsafe", started=True)


def test_of_what_was_started_only_what_another_attempt_can_mend_is_tried_again() -> None:
    mended = {Reason.TOOL_UNAVAILABLE, Reason.SANDBOX_LOST}
    assert {reason for reason in Reason if mends(reason, "read", started=True)} == mended
    assert {reason for reason in Reason if mends(reason, "idempotent", started=True)} == mended


@given(st.floats(0.01, 60), st.integers(1, 5), st.floats(0, 1))
def test_a_pause_is_jittered_below_a_ceiling_that_doubles(backoff_s: float, failures: int, chance: float) -> None:
    pause, ceiling = pause_s(backoff_s, failures, chance), pause_s(backoff_s, failures, 1.0)
    assert 0 <= pause <= ceiling <= LONGEST_PAUSE_S
    assert ceiling == min(LONGEST_PAUSE_S, backoff_s * 2 ** (failures - 1))


@given(steps)
def test_retries_are_a_share_of_the_calls_and_a_reserve_that_time_fills(script: list[tuple[str, float]]) -> None:
    budgets, now, calls, retries = RetryBudgets(), 0.0, 0, 0
    for step, passed in script:
        now += passed
        if step == "call":
            budgets.called("acme", "a.b", now)
            calls += 1
        else:
            retries += budgets.take("acme", "a.b", now)
    assert retries <= RESERVE + now * RESERVE / REFILL_S + calls * SHARE + 1e-6


@given(steps)
def test_old_calls_do_not_pay_for_more_than_a_burst(script: list[tuple[str, float]]) -> None:
    budgets, now = RetryBudgets(), 0.0
    for step, passed in script:
        now += passed
        if step == "call":
            budgets.called("acme", "a.b", now)
    assert sum(budgets.take("acme", "a.b", now) for _ in range(100)) <= MOST


def test_an_empty_reserve_comes_back_with_time() -> None:
    budgets = RetryBudgets()
    assert [budgets.take("acme", "a.b", 0.0) for _ in range(6)] == [True] * 5 + [False]
    assert not budgets.take("acme", "a.b", REFILL_S / RESERVE / 2)
    assert [budgets.take("acme", "a.b", REFILL_S * 3) for _ in range(6)] == [True] * 5 + [False]


def test_each_tenant_and_each_tool_has_a_budget_of_its_own() -> None:
    budgets = RetryBudgets()
    while budgets.take("acme", "a.b", 0.0):
        continue
    assert budgets.take("rival", "a.b", 0.0)
    assert budgets.take("acme", "a.c", 0.0)


def test_only_so_many_are_remembered() -> None:
    budgets = RetryBudgets()
    while budgets.take("acme", "first", 0.0):
        continue
    for number in range(REMEMBERED):
        budgets.called("acme", f"tool{number}", 0.0)
    assert budgets.take("acme", "first", 0.0)
