import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.admission.rates import Rate, Rates
from callgate_server.model.spending import Scope

BOT = Scope("acme", "bot")
OTHER = Scope("acme", "other")
RATE = Rate(3, 30)


def test_so_many_may_come_at_once_and_the_next_learns_how_long_to_wait():
    rates = Rates()
    assert [rates.take([(BOT, RATE)], 100.0) for _ in range(3)] == [0, 0, 0]
    assert rates.take([(BOT, RATE)], 100.0) == pytest.approx(10)
    assert rates.take([(BOT, RATE)], 109.9) > 0
    assert rates.take([(BOT, RATE)], 110.0) == 0


def test_a_look_at_the_wait_counts_nothing():
    rates = Rates()
    assert [rates.wait_s([(BOT, RATE)], 100.0) for _ in range(9)] == [0] * 9
    for _ in range(3):
        rates.take([(BOT, RATE)], 100.0)
    assert rates.wait_s([(BOT, RATE)], 100.0) == pytest.approx(10)
    assert len(rates) == 1


def test_one_agents_haste_is_not_anothers():
    rates = Rates()
    for _ in range(3):
        rates.take([(BOT, RATE)], 0.0)
    assert rates.take([(OTHER, RATE)], 0.0) == 0


def test_what_one_scope_refuses_costs_the_other_nothing():
    rates, tight = Rates(), Rate(1, 60)
    assert rates.take([(Scope("acme"), RATE), (BOT, tight)], 0.0) == 0
    for _ in range(5):
        assert rates.take([(Scope("acme"), RATE), (BOT, tight)], 0.0) > 0
    assert [rates.take([(Scope("acme"), RATE)], 0.0) == 0 for _ in range(3)] == [True, True, False]


def test_who_could_call_at_full_rate_again_is_forgotten():
    rates = Rates()
    for number in range(1024):
        rates.take([(Scope("acme", f"a{number}"), RATE)], 0.0)
    assert len(rates) == 1024
    rates.take([(BOT, RATE)], 1000.0)
    assert len(rates) == 1


@given(
    st.integers(1, 20),
    st.floats(0.1, 100),
    st.lists(st.floats(0, 20), min_size=1, max_size=200),
)
def test_never_more_than_twice_the_allowance_in_its_time_and_waiting_helps(calls, per_s, pauses):
    rate, rates, now, taken = Rate(calls, per_s), Rates(), 0.0, []
    for pause in pauses:
        now += pause
        wait_s = rates.take([(BOT, rate)], now)
        if wait_s == 0:
            taken.append(now)
        else:
            assert 0 < wait_s <= per_s
            assert Rates().take([(BOT, rate)], now) == 0
            now += wait_s * 1.000001
            assert rates.take([(BOT, rate)], now) == 0
            taken.append(now)
    for first in taken:
        assert sum(first <= at < first + per_s for at in taken) <= 2 * calls
