from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.model.spending import MILLION, Amounts, Budget, Scope, hour_of, millionths

NOON = datetime(2026, 11, 28, 12, 30, tzinfo=UTC)
amounts = st.builds(Amounts, *[st.integers(-(2**40), 2**40)] * 4)


@given(amounts, amounts)
def test_what_is_given_back_leaves_what_was_there(before, spent):
    assert before + spent + -spent == before


def test_cost_in_tenths_adds_up_exactly():
    assert sum((Amounts(cost=millionths(0.1)) for _ in range(3)), Amounts()).cost == millionths(0.3)
    assert millionths(2.5) == 2.5 * MILLION


@given(st.integers(0, 10**6), st.integers(1, 744))
def test_a_window_holds_its_hour_and_ends_when_the_next_begins(hour, window_h):
    budget = Budget(window_h=window_h)
    start = budget.window_start(hour)
    assert start <= hour < start + window_h
    assert budget.window_start(start + window_h) == start + window_h
    end = budget.window_end(hour)
    assert end is not None
    assert hour_of(end) == start + window_h


def test_a_day_is_a_day_in_utc():
    assert Budget(window_h=24).window_end(hour_of(NOON)) == datetime(2026, 11, 29, tzinfo=UTC)


def test_without_a_window_there_is_one_for_ever():
    assert (Budget().window_start(hour_of(NOON)), Budget().window_end(hour_of(NOON))) == (0, None)


@pytest.mark.parametrize(
    ("scope", "text"),
    [(Scope("acme"), "tenant acme"), (Scope("acme", "bot"), "agent acme/bot"), (Scope("acme", "bot", "t"), "task t")],
)
def test_a_scope_says_whose_it_is(scope, text):
    assert str(scope) == text
