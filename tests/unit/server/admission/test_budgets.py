import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.admission.budgets import Budgets
from callgate_server.model.spending import MILLION, Amounts, Budget, Charge, Scope

BOT, ACME, TASK = Scope("acme", "bot"), Scope("acme"), Scope("acme", "bot", "t1")
ONE = Amounts(calls=1)


def test_so_many_calls_and_the_refusal_has_the_figures_and_the_end():
    budgets, daily = Budgets(), [(BOT, Budget(calls=2, window_h=24))]
    assert [budgets.reserve(daily, ONE, 48) for _ in range(2)] == [None, None]
    assert budgets.reserve(daily, ONE, 71) == (
        "The budget of agent acme/bot is used up: 2 of 2 calls until 1970-01-04T00:00:00+00:00."
    )
    assert budgets.reserve(daily, ONE, 72) is None


def test_cost_is_refused_before_it_is_spent():
    budgets, bounds = Budgets(), [(TASK, Budget(cost=10 * MILLION))]
    assert budgets.reserve(bounds, Amounts(1, cost=8 * MILLION), 0) is None
    refused = budgets.reserve(bounds, Amounts(1, cost=int(2.5 * MILLION)), 0)
    assert refused == (
        "The budget of task t1 is used up: 8 of 10 units of cost, and this call costs 2.5, of this task."
    )
    assert budgets.reserve(bounds, Amounts(1), 0) is None


@pytest.mark.parametrize(
    ("budget", "used", "words"),
    [
        (Budget(cpu_us=2 * MILLION), Amounts(cpu_us=int(2.5 * MILLION)), "2.5 of 2 seconds of processor time"),
        (Budget(egress_bytes=100), Amounts(egress_bytes=100), "100 of 100 bytes of egress"),
    ],
)
def test_what_is_known_at_the_end_refuses_the_next_call(budget, used, words):
    budgets = Budgets()
    assert budgets.reserve([(BOT, budget)], ONE, 0) is None
    budgets.add([(BOT, budget)], used, 0)
    assert words in (budgets.reserve([(BOT, budget)], ONE, 0) or "")


def test_what_one_budget_refuses_costs_the_other_nothing():
    budgets = Budgets()
    both = [(ACME, Budget(calls=5)), (BOT, Budget(calls=1))]
    assert budgets.reserve(both, ONE, 0) is None
    assert budgets.reserve(both, ONE, 0) is not None
    assert budgets.spent(ACME) == ONE


def test_of_an_earlier_window_nothing_is_counted_any_more():
    budgets, daily = Budgets(), [(BOT, Budget(calls=1, window_h=24))]
    budgets.reserve(daily, ONE, 23)
    budgets.reserve(daily, ONE, 24)
    budgets.add(daily, -ONE, 23)
    assert budgets.spent(BOT) == ONE


def test_a_clock_that_is_set_back_gives_nobody_a_new_window():
    budgets, daily = Budgets(), [(BOT, Budget(calls=1, window_h=24))]
    budgets.reserve(daily, ONE, 48)
    assert budgets.reserve(daily, ONE, 3) is not None


def test_what_was_spent_before_is_taken_over_as_far_as_it_is_of_this_window():
    budgets, daily = Budgets(), Budget(calls=10, window_h=24)
    charges = [Charge(BOT, hour, Amounts(calls=3)) for hour in (40, 48, 50)]
    budgets.load([*((charge, daily) for charge in charges), (Charge(TASK, 0, ONE), Budget())], now=50)
    assert (budgets.spent(BOT).calls, budgets.spent(TASK).calls) == (6, 1)


def test_a_task_that_is_over_is_forgotten_and_not_made_anew():
    budgets = Budgets()
    budgets.reserve([(TASK, Budget())], ONE, 0)
    budgets.forget(TASK)
    budgets.add([(TASK, Budget())], ONE, 0)
    assert len(budgets) == 0


def test_windows_that_are_over_are_not_kept():
    budgets = Budgets()
    for number in range(1024):
        budgets.reserve([(Scope("acme", f"a{number}"), Budget(calls=1, window_h=1))], ONE, 5)
    budgets.reserve([(BOT, Budget(calls=1, window_h=1))], ONE, 6)
    assert len(budgets) == 1


@given(st.integers(0, 30), st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 3)), max_size=60))
def test_never_more_is_spent_than_may_be_whatever_is_given_back(most, steps):
    budgets, held = Budgets(), 0
    bounds = [(ACME, Budget(calls=most, cost=most)), (BOT, Budget(calls=most))]
    reserved: list[Amounts] = []
    for give_back, calls, cost in steps:
        if give_back and reserved:
            budgets.add(bounds, -reserved.pop(), 0)
        else:
            wanted = Amounts(calls=calls, cost=cost)
            if budgets.reserve(bounds, wanted, 0) is None:
                reserved.append(wanted)
        held = sum(amounts.calls for amounts in reserved)
        assert budgets.spent(ACME).calls == budgets.spent(BOT).calls == held <= most
        assert budgets.spent(ACME).cost <= most
