import itertools
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from callgate_server.execution.pool_policy import (
    REPLACE_AFTER_S,
    Bounds,
    Drop,
    Full,
    Give,
    Order,
    Peak,
    PoolPolicy,
    Start,
)
from callgate_server.execution.sandbox import Shape
from callgate_server.model.manifest import Limits

SMALL = Shape.of("sha256:" + "a" * 64, None, Limits(memory_mb=64))
LARGE = Shape.of("sha256:" + "b" * 64, None, Limits(memory_mb=512, cpu=2))
NEVER = 1e9


def bounds(**changes: float) -> Bounds:
    values: dict[str, float] = {
        "sandboxes": 8, "waiting": 16, "starts": 4, "refills": 1, "per_shape": 4, "spare": 0, "memory_mb": 4096,
        "cpus": 64, "idle_s": 60,
    }  # fmt: skip
    return Bounds(**(values | changes))  # type: ignore[arg-type]


def orders(policy: PoolPolicy, now: float = 0) -> list[Order]:
    return list(policy.orders(now))


def stocked(count: int, *, shape: Shape = SMALL, **changes: float) -> PoolPolicy:
    """A policy with `count` sandboxes ready, numbered from 1."""
    policy = PoolPolicy(bounds(spare=count, per_shape=count, refills=count, starts=max(4, count), **changes), [shape])
    assert orders(policy) == [Start(shape)] * count
    for number in range(1, count + 1):
        policy.started(shape, number)
    assert orders(policy) == []
    return policy


# --- giving ----------------------------------------------------------------------------------------------------


def test_a_call_gets_what_is_ready_at_once_and_the_oldest_first() -> None:
    policy = stocked(2)
    policy.arrive("a", "acme", SMALL, NEVER, 0)
    assert orders(policy) == [Give("a", 1)]
    policy.arrive("b", "acme", SMALL, NEVER, 0)
    assert orders(policy) == [Give("b", 2)]


def test_a_call_gets_only_its_own_shape() -> None:
    policy = stocked(2)
    policy.arrive("a", "acme", LARGE, NEVER, 0)
    assert orders(policy) == [Start(LARGE)]


def test_who_waits_is_served_by_deadline_and_not_by_arrival() -> None:
    policy = PoolPolicy(bounds(starts=1, per_shape=0))
    for call, deadline in (("late", 30), ("early", 10), ("middle", 20)):
        policy.arrive(call, "acme", SMALL, deadline, 0)
    served = []
    assert orders(policy) == [Start(SMALL)]
    for number in range(3):
        policy.started(SMALL, number)
        served += [order.call for order in orders(policy) if isinstance(order, Give)]
    assert served == ["early", "middle", "late"]


def test_equal_deadlines_are_served_in_the_order_of_arrival() -> None:
    policy = PoolPolicy(bounds(per_shape=0))
    for call in ("first", "second"):
        policy.arrive(call, "acme", SMALL, 10, 0)
    assert orders(policy) == [Start(SMALL)] * 2
    policy.started(SMALL, 1)
    assert orders(policy) == [Give("first", 1)]


def test_calls_hold_no_more_sandboxes_than_they_may() -> None:
    policy = stocked(3, sandboxes=2)
    for call in ("a", "b", "c"):
        policy.arrive(call, "acme", SMALL, NEVER, 0)
    assert orders(policy) == [Give("a", 1), Give("b", 2)]
    policy.ended("a")
    assert orders(policy) == [Give("c", 3)]


def test_a_call_beyond_those_that_may_wait_is_told_when_to_come_back() -> None:
    policy = PoolPolicy(bounds(waiting=1))
    policy.arrive("a", "acme", SMALL, NEVER, 0)
    with pytest.raises(Full) as full:
        policy.arrive("b", "acme", SMALL, NEVER, 0)
    assert 0.5 <= full.value.retry_after_s <= 30
    policy.leave("a")
    policy.arrive("b", "acme", SMALL, NEVER, 0)


@pytest.mark.parametrize(("interval", "advice"), [(0.1, (0.5, 2)), (2, (10, 25)), (20, (30, 30))])
def test_the_advice_when_to_come_back_follows_the_pace(interval: float, advice: tuple[float, float]) -> None:
    policy = PoolPolicy(bounds(waiting=200, starts=1, per_shape=0, sandboxes=500))
    for number in range(50):
        policy.arrive(str(number), "acme", SMALL, NEVER, 0)
    for number in range(40):
        orders(policy, number * interval)
        policy.started(SMALL, number)
    orders(policy, 40 * interval)
    assert advice[0] <= policy.retry_after_s() <= advice[1]


def test_the_same_call_is_not_served_twice() -> None:
    policy = stocked(1)
    policy.arrive("a", "acme", SMALL, NEVER, 0)
    with pytest.raises(ValueError, match="already"):
        policy.arrive("a", "acme", SMALL, NEVER, 0)
    orders(policy)
    with pytest.raises(ValueError, match="already"):
        policy.arrive("a", "acme", SMALL, NEVER, 0)


def test_who_left_is_not_served() -> None:
    policy = PoolPolicy(bounds(per_shape=0))
    policy.arrive("a", "acme", SMALL, NEVER, 0)
    assert orders(policy) == [Start(SMALL)]
    policy.leave("a")
    policy.started(SMALL, 1)
    assert orders(policy) == [Drop(1)]


def test_a_call_that_was_given_a_dead_one_waits_again_in_its_place() -> None:
    policy = stocked(1)
    policy.arrive("a", "acme", SMALL, 10, 0)
    assert orders(policy) == [Give("a", 1)]
    policy.arrive("b", "acme", SMALL, 20, 0)
    policy.refused("a", 10)
    assert orders(policy) == [Start(SMALL)] * 2
    policy.started(SMALL, 2)
    assert orders(policy) == [Give("a", 2)]


@pytest.mark.parametrize("sandboxes", [1, 4])
def test_a_tenant_with_short_deadlines_delays_another_by_one_turn(sandboxes: int) -> None:
    """Each call takes a second; one tenant has 64 of them in flight all the time, the other one has one."""
    policy = PoolPolicy(bounds(sandboxes=sandboxes, waiting=100, per_shape=0))
    held: set[str] = set()
    calls = itertools.count(1)
    for now in range(4):
        for call in held:
            policy.ended(call)
        held.clear()
        while policy.waiting < 64:
            policy.arrive(f"many-{next(calls)}", "many", SMALL, now + 3, now)
        if now == 1:
            policy.arrive("one", "one", SMALL, now + 30, now)
        while todo := orders(policy, now):
            held |= {order.call for order in todo if isinstance(order, Give)}
            for order in todo:
                if isinstance(order, Start):
                    policy.started(order.shape, next(calls))
        if "one" in held:
            break
    assert now <= 2


def test_tenants_that_want_all_sandboxes_get_equally_many() -> None:
    policy = stocked(6, waiting=100, sandboxes=6)
    for number in range(12):
        policy.arrive(f"a{number}", "acme", SMALL, 10 + number, 0)
        policy.arrive(f"b{number}", "rival", SMALL, 900 + number, 0)
    given = [order.call for order in orders(policy) if isinstance(order, Give)]
    assert given == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_sandbox_is_started_for_the_tenant_that_has_none() -> None:
    policy = stocked(2, sandboxes=3)
    for number in range(4):
        policy.arrive(f"a{number}", "acme", SMALL, 10, 0)
    assert orders(policy) == [Give("a0", 1), Give("a1", 2), Start(SMALL)]
    policy.arrive("b", "rival", LARGE, 900, 0)
    policy.started(SMALL, 3)
    policy.ended("a0")
    assert orders(policy) == [Give("a2", 3), Start(LARGE)]


# --- starting for calls ------------------------------------------------------------------------------------------


def test_no_more_is_started_at_once_than_may_be() -> None:
    policy = PoolPolicy(bounds(starts=2, per_shape=0))
    for number in range(5):
        policy.arrive(str(number), "acme", SMALL, NEVER, 0)
    assert orders(policy) == [Start(SMALL)] * 2
    assert orders(policy) == []


def test_what_is_coming_already_is_not_started_again() -> None:
    policy = PoolPolicy(bounds(spare=1), [SMALL])
    assert orders(policy) == [Start(SMALL)]
    policy.arrive("a", "acme", SMALL, NEVER, 0)
    assert orders(policy) == []


def test_nothing_is_started_for_a_call_that_could_not_hold_it() -> None:
    policy = stocked(1, sandboxes=1)
    policy.arrive("a", "acme", SMALL, NEVER, 0)
    orders(policy)
    policy.arrive("b", "acme", LARGE, NEVER, 0)
    assert orders(policy, 0.01) == []
    policy.ended("a")
    assert Start(LARGE) in orders(policy, 0.01)


def test_a_failed_start_is_told_to_the_earliest_that_waits_for_its_shape() -> None:
    policy = PoolPolicy(bounds(per_shape=0))
    policy.arrive("large", "acme", LARGE, 5, 0)
    policy.arrive("late", "acme", SMALL, 30, 0)
    policy.arrive("early", "acme", SMALL, 10, 0)
    orders(policy)
    assert policy.failed(SMALL, 0) == "early"
    assert policy.waiting == 2


# --- starting ahead ----------------------------------------------------------------------------------------------


def test_without_demand_only_spares_are_kept_ready() -> None:
    policy = PoolPolicy(bounds(spare=1, refills=4), [SMALL, LARGE])
    assert orders(policy) == [Start(SMALL), Start(LARGE)]


def test_a_shape_that_was_never_announced_has_no_spare() -> None:
    policy = PoolPolicy(bounds(spare=1, idle_s=1))
    policy.arrive("a", "acme", SMALL, NEVER, 0)
    assert orders(policy) == [Start(SMALL)]
    policy.started(SMALL, 1)
    orders(policy)
    policy.ended("a")
    assert orders(policy, 100) == []


def test_as_many_are_kept_ready_as_came_in_the_busiest_second() -> None:
    policy = PoolPolicy(bounds(refills=4, per_shape=8))
    for number in range(3):
        policy.arrive(str(number), "acme", SMALL, NEVER, 0)
    assert orders(policy) == [Start(SMALL)] * 3
    for number in range(3):
        policy.started(SMALL, number)
    assert len([order for order in orders(policy, 0.5) if isinstance(order, Give)]) == 3
    assert orders(policy, 1) == [Start(SMALL)] * 3


def test_no_more_than_the_most_of_a_shape_are_kept_ready() -> None:
    policy = PoolPolicy(bounds(refills=4, per_shape=2))
    for number in range(6):
        policy.arrive(str(number), "acme", SMALL, NEVER, 0)
        policy.leave(str(number))
    assert orders(policy, 1) == [Start(SMALL)] * 2


def test_what_is_kept_ready_stays_within_the_budget_and_is_shared_out_in_turns() -> None:
    by_memory = PoolPolicy(bounds(spare=4, refills=4, memory_mb=512 + 3 * 64), [SMALL, LARGE])
    assert Counter(orders(by_memory)) == {Start(SMALL): 3, Start(LARGE): 1}
    by_cpus = PoolPolicy(bounds(spare=4, refills=4, cpus=3), [LARGE, SMALL])
    assert Counter(orders(by_cpus)) == {Start(LARGE): 1, Start(SMALL): 1}


def test_replacing_waits_a_moment_for_the_call_but_a_stream_of_calls_does_not_put_it_off() -> None:
    policy = stocked(3)
    policy.arrive("a", "acme", SMALL, NEVER, 10)
    assert orders(policy, 10) == [Give("a", 1)]
    policy.arrive("b", "acme", SMALL, NEVER, 10 + REPLACE_AFTER_S / 2)
    assert orders(policy, 10 + REPLACE_AFTER_S / 2) == [Give("b", 2)]
    assert policy.look_again_at(10 + REPLACE_AFTER_S / 2) == 10 + REPLACE_AFTER_S
    assert orders(policy, 10 + REPLACE_AFTER_S) == [Start(SMALL)] * 2


def test_starting_ahead_keeps_its_own_bound_and_steps_back_for_calls() -> None:
    policy = PoolPolicy(bounds(spare=4, refills=1, starts=3), [SMALL])
    policy.arrive("a", "acme", LARGE, NEVER, 0)
    assert orders(policy) == [Start(LARGE)]
    policy.started(LARGE, 1)
    assert orders(policy) == [Give("a", 1)]
    assert orders(policy, 1) == [Start(SMALL)]


def test_starting_ahead_pauses_longer_after_every_failure() -> None:
    policy = PoolPolicy(bounds(spare=1), [SMALL])
    now, pauses = 0.0, []
    for _ in range(9):
        assert orders(policy, now) == [Start(SMALL)]
        assert policy.failed(SMALL, now) is None
        assert orders(policy, now) == []
        again = policy.look_again_at(now)
        pauses.append(again - now)
        now = again
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.5, 30)


def test_a_dead_one_is_forgotten_and_replaced() -> None:
    policy = stocked(1)
    policy.died(SMALL, 1)
    assert orders(policy) == [Start(SMALL)]


def test_what_nobody_used_goes_when_the_demand_is_forgotten() -> None:
    policy = PoolPolicy(bounds(idle_s=60, refills=4))
    for number in range(2):
        policy.arrive(str(number), "acme", SMALL, NEVER, 0.5)
        policy.leave(str(number))
    assert orders(policy, 1) == [Start(SMALL)] * 2
    policy.started(SMALL, 1)
    policy.started(SMALL, 2)
    assert orders(policy, 60) == []
    assert policy.look_again_at(60) == 61
    assert orders(policy, 61) == [Drop(1), Drop(2)]


def test_closing_drops_what_is_ready_and_starts_nothing() -> None:
    policy = stocked(2)
    policy.close()
    assert orders(policy) == [Drop(1), Drop(2)]
    assert orders(policy, 1000) == []


@pytest.mark.parametrize(
    ("arrivals", "now", "value"),
    [
        ([], 0, 0),
        ([0.1, 0.2, 0.9], 0.9, 3),
        ([0.1, 0.2, 1.1], 1.1, 2),
        ([0.1, 1.1, 1.2, 1.3, 2.0], 2, 3),
        ([0.1, 0.2, 5.0], 10.9, 2),
        ([0.1, 0.2, 5.0], 11.1, 1),
        ([0.1, 0.2, 5.0], 16.1, 0),
    ],
)
def test_the_peak_is_the_busiest_second_of_the_window(arrivals: list[float], now: float, value: int) -> None:
    peak = Peak()
    for arrival in arrivals:
        peak.arrived(arrival)
    assert peak.value(now, 10) == value


# --- any sequence of events ----------------------------------------------------------------------------------------

SHAPES = (SMALL, LARGE)
BOUNDS = bounds(sandboxes=5, waiting=8, starts=3, refills=2, per_shape=3, spare=1, memory_mb=1200, cpus=6, idle_s=4)


class AnySequence(RuleBasedStateMachine):
    """Whatever happens in whatever order: bounds hold, nothing is given twice, nobody is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = PoolPolicy(BOUNDS, [SMALL])
        self.now = 0.0
        self.calls = 0
        self.numbers = 0
        self.closed = False
        self.waiting: dict[str, tuple[float, str, Shape]] = {}
        self.held: dict[str, int] = {}
        self.ready: dict[int, Shape] = {}
        self.starting: Counter[Shape] = Counter()
        self.gone: set[int] = set()

    def obey(self) -> None:
        for order in self.policy.orders(self.now):
            match order:
                case Give(call, number):
                    deadline, tenant, shape = self.waiting.pop(call)
                    assert self.ready.pop(number) == shape
                    rest = [d for d, t, s in self.waiting.values() if (t, s) == (tenant, shape)]
                    assert deadline <= min(rest, default=deadline), "a later deadline was served first"
                    self.held[call] = number
                case Start(shape):
                    assert not self.closed
                    self.starting[shape] += 1
                case Drop(number):
                    del self.ready[number]
                    self.gone.add(number)

    @rule(shape=st.sampled_from(SHAPES), tenant=st.sampled_from(["acme", "rival"]), patience=st.floats(0.1, 20))
    def arrive(self, shape: Shape, tenant: str, patience: float) -> None:
        self.calls += 1
        call = f"call-{self.calls}"
        try:
            self.policy.arrive(call, tenant, shape, self.now + patience, self.now)
        except Full:
            # A call that was given a dead one waits again, however many do.
            assert len(self.waiting) >= BOUNDS.waiting
            return
        self.waiting[call] = (self.now + patience, tenant, shape)
        self.obey()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[call]
        self.policy.leave(call)
        self.obey()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), dead=st.booleans())
    def end(self, data: st.DataObject, dead: bool) -> None:
        call = data.draw(st.sampled_from(sorted(self.held)))
        self.gone.add(self.held.pop(call))
        self.policy.ended(call)
        self.obey()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(sorted(self.held)))
        self.gone.add(self.held.pop(call))
        had = self.policy._held[call]
        self.waiting[call] = (self.now + 1, had.tenant, had.shape)
        self.policy.refused(call, self.now + 1)
        self.obey()

    @precondition(lambda self: self.starting.total())
    @rule(data=st.data(), fails=st.booleans())
    def started(self, data: st.DataObject, fails: bool) -> None:
        shape = data.draw(st.sampled_from([shape for shape in SHAPES if self.starting[shape]]))
        self.starting[shape] -= 1
        if fails:
            told = self.policy.failed(shape, self.now)
            if told is not None:
                assert self.waiting.pop(told)[2] == shape
        else:
            self.numbers += 1
            self.ready[self.numbers] = shape
            self.policy.started(shape, self.numbers)
        self.obey()

    @precondition(lambda self: self.ready)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.ready)))
        self.policy.died(self.ready.pop(number), number)
        self.obey()

    @rule(seconds=st.floats(0.01, 10))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.obey()

    @rule()
    def close(self) -> None:
        self.closed = True
        self.policy.close()
        self.obey()

    @invariant()
    def bounds_hold(self) -> None:
        assert len(self.held) <= BOUNDS.sandboxes
        # A call that was given a dead one waits again: the bound is on those that wait and those that hold together.
        assert len(self.waiting) + len(self.held) <= BOUNDS.waiting + BOUNDS.sandboxes
        assert self.starting.total() <= BOUNDS.starts
        assert (self.policy.waiting, self.policy.held) == (len(self.waiting), len(self.held))
        assert self.policy.starting == self.starting.total()
        assert sum(self.policy.ready().values()) == len(self.ready)
        # Ready beyond what is kept ahead is only what calls wait for and may not hold yet.
        assert len(self.ready) <= 2 * BOUNDS.per_shape + BOUNDS.starts

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if self.closed or len(self.held) >= BOUNDS.sandboxes:
            return
        fitting = Counter(self.ready.values())
        for _, _, shape in self.waiting.values():
            assert not fitting[shape], "a call waits beside a sandbox that is ready for it"
        if self.waiting:
            assert self.starting.total(), "calls wait, and nothing is being started"

    @invariant()
    def nothing_that_is_gone_comes_back(self) -> None:
        assert not self.gone & self.ready.keys()
        assert not self.gone & set(self.held.values())


AnySequence.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
test_any_sequence_of_events = AnySequence.TestCase
