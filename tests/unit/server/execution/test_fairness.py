from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from callgate_server.execution.fairness import Fairness

NAMES = st.sampled_from(["acme", "rival", "third"])


@dataclass(frozen=True)
class Call:
    tenant: str
    number: int = 0


def of(*tenants: str) -> list[Call]:
    return [Call(tenant, number) for number, tenant in enumerate(tenants)]


def tenants(calls: list[Call]) -> list[str]:
    return [call.tenant for call in calls]


def test_calls_of_one_tenant_keep_their_order() -> None:
    calls = of("acme", "acme", "acme")
    assert Fairness().in_turn(calls, {"acme": 5}) == calls


def test_who_holds_fewer_comes_first_until_all_have_equally_many() -> None:
    calls = of("acme", "acme", "rival", "rival", "rival")
    assert tenants(Fairness().in_turn(calls, {"acme": 2})) == ["rival", "rival", "acme", "rival", "acme"]


def test_of_those_that_hold_as_many_who_was_served_longest_ago_comes_first() -> None:
    fairness = Fairness()
    for tenant in ("rival", "acme"):
        fairness.served(tenant)
    assert tenants(fairness.in_turn(of("acme", "rival", "new"), {})) == ["rival", "acme", "new"]


def test_a_tenant_that_pauses_comes_back_behind_those_that_wait() -> None:
    fairness = Fairness()
    for tenant in ("acme", "rival"):
        fairness.served(tenant)
    fairness.in_turn(of("rival"), {})
    assert tenants(fairness.in_turn(of("acme", "rival"), {})) == ["rival", "acme"]


def test_tenants_that_pause_between_their_calls_keep_nobody_waiting_for_ever() -> None:
    """Two that ask for one thing at a time and pause a little, and one with a backlog: each has its turns."""
    fairness, served = Fairness(), Counter[str]()
    back_at = {"one": 0, "two": 0}
    for now in range(300):
        there = [*(tenant for tenant, at in back_at.items() if at <= now), *["backlog"] * 50]
        next_one = fairness.in_turn(of(*there), {})[0].tenant
        fairness.served(next_one)
        served[next_one] += 1
        back_at.update({next_one: now + 2} if next_one in back_at else {})
    assert min(served.values()) >= 50


@given(st.lists(NAMES, max_size=20), st.dictionaries(NAMES, st.integers(0, 5)), st.lists(NAMES, max_size=5))
def test_everybody_has_one_turn_and_a_tenants_own_keep_their_order(
    names: list[str], held: dict[str, int], served: list[str]
) -> None:
    fairness = Fairness()
    for name in served:
        fairness.served(name)
    calls = of(*names)
    turns = fairness.in_turn(calls, held)
    assert sorted(turns, key=lambda call: call.number) == calls
    for name in set(names):
        assert [call for call in turns if call.tenant == name] == [call for call in calls if call.tenant == name]
