from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.admission.limits import Ceilings, Concurrency, DeadlineRule
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason


def caller(tenant):
    return Caller(tenant, "bot")


def refused(concurrency, tenant):
    with pytest.raises(CallError) as refusal, concurrency.slot(caller(tenant)):
        pass
    assert refusal.value.reason is Reason.OVERLOADED
    assert refusal.value.retry_after_ms
    return refusal.value.message


def test_a_full_gateway_says_so_at_once():
    concurrency = Concurrency(Ceilings(calls=2, calls_per_tenant=2))
    with concurrency.slot(caller("a")), concurrency.slot(caller("b")):
        assert "at capacity" in refused(concurrency, "c")
        assert concurrency.running == 2
    assert concurrency.running == 0


def test_one_tenant_cannot_take_all_places():
    concurrency = Concurrency(Ceilings(calls=3, calls_per_tenant=1))
    with concurrency.slot(caller("a")):
        assert "tenant" in refused(concurrency, "a")
        with concurrency.slot(caller("b")):
            assert concurrency.running == 2
    with concurrency.slot(caller("a")):
        assert concurrency.running == 1


def test_a_place_is_given_back_when_the_call_fails():
    concurrency = Concurrency(Ceilings(calls=1, calls_per_tenant=1))
    with pytest.raises(RuntimeError), concurrency.slot(caller("a")):
        raise RuntimeError
    with concurrency.slot(caller("a")):
        assert concurrency.running == 1


def test_without_places_nobody_is_let_in():
    assert refused(Concurrency(Ceilings(calls=0, calls_per_tenant=5)), "a")
    assert refused(Concurrency(Ceilings(calls=5, calls_per_tenant=0)), "a")


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(0, 6), st.integers(0, 6))
def test_never_more_than_the_ceilings(tenants, calls, per_tenant):
    concurrency = Concurrency(Ceilings(calls, per_tenant))
    inside = []
    with ExitStack() as stack:
        for tenant in tenants:
            room = len(inside) < calls and inside.count(tenant) < per_tenant
            try:
                stack.enter_context(concurrency.slot(caller(tenant)))
                inside.append(tenant)
            except CallError:
                assert not room
            else:
                assert room
            assert concurrency.running == len(inside)
    assert concurrency.running == 0


@pytest.mark.parametrize(
    ("client_ms", "manifest_s", "server_s", "expected_s"),
    [
        (None, 30, 60, 30),
        (None, 90, 60, 60),
        (2500, 30, 60, 2.5),
        (90_000, 30, 60, 30),
        (0, 30, 60, 0),
        (-5, 30, 60, 0),
    ],
)
def test_the_smallest_wish_is_the_deadline(client_ms, manifest_s, server_s, expected_s):
    deadline = DeadlineRule(max_s=server_s).deadline(1000.0, client_ms, manifest_s)
    assert deadline.remaining_s(1000.0) == expected_s
