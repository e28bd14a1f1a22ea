from hypothesis import given
from hypothesis import strategies as st

from callgate_server.execution.egress import EgressBudget
from callgate_server.execution.egress_budget import Spending
from callgate_server.execution.egress_rules import Why
from callgate_server.model.egress import EgressUsage

BUDGET = EgressBudget(bytes=100, connections=3, requests=2, concurrent=2)


def test_connections_are_bounded_at_once_and_in_all():
    spending = Spending(BUDGET)
    assert [spending.connect(), spending.connect()] == [None, None]
    assert spending.connect() is Why.TOO_MANY_AT_ONCE
    spending.disconnect()
    assert spending.connect() is None
    spending.disconnect()
    assert spending.connect() is Why.CONNECTIONS_SPENT
    assert spending.usage.connections == 3


def test_requests_are_bounded():
    spending = Spending(BUDGET)
    assert [spending.request() for _ in range(4)] == [None, None, Why.REQUESTS_SPENT, Why.REQUESTS_SPENT]


def test_bytes_of_both_directions_share_one_budget():
    spending = Spending(BUDGET)
    assert spending.send(60) is None
    assert spending.receive(40) is None
    assert spending.send(1) is Why.BYTES_SPENT
    assert spending.usage == EgressUsage(0, 0, 60, 40)


def test_what_arrived_too_much_is_counted_all_the_same():
    spending = Spending(BUDGET)
    assert spending.receive(101) is Why.BYTES_SPENT
    assert spending.usage.received_bytes == 101


def test_refusals_are_counted():
    spending = Spending(BUDGET)
    spending.refuse()
    assert spending.usage.refused == 1


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=20))
def test_nothing_is_sent_beyond_the_budget(moves):
    spending = Spending(BUDGET)
    for sends, size in moves:
        refused = spending.send(size) if sends else spending.receive(size)
        used = spending.usage.bytes
        if sends and refused is None:
            assert used <= BUDGET.bytes
        if refused is None:
            assert used <= BUDGET.bytes
