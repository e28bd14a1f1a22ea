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
    assert tenants(fairness.in_turn(of("acme", "rival", "new"), {})) == ["new", "rival", "acme"]


def test_a_tenant_that_neither_holds_nor_wants_anything_is_forgotten() -> None:
    fairness = Fairness()
    for tenant in ("acme", "rival"):
        fairness.served(tenant)
    fairness.in_turn(of("rival"), {})
    assert tenants(fairness.in_turn(of("rival", "acme"), {})) == ["acme", "rival"]


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
