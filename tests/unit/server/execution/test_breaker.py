"""The state machine of one breaker: by example, and against a model that remembers everything and is slow."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from callgate_server.execution.breaker import MOVES, Breaker, BreakerRules, Permit, Refused, State, Why

RULES = BreakerRules(window=4, min_calls=2, failure_rate=0.5, slow_s=1.0, slow_rate=1.0, open_s=10, probes=2)


def permit(breaker: Breaker, now: float = 0) -> Permit:
    answer = breaker.ask(now)
    assert isinstance(answer, Permit)
    return answer


def refusal(breaker: Breaker, now: float = 0) -> float:
    answer = breaker.ask(now)
    assert isinstance(answer, Refused)
    return answer.retry_after_s


def opened(rules: BreakerRules = RULES, now: float = 0) -> Breaker:
    breaker = Breaker(rules, now)
    for _ in range(rules.min_calls):
        breaker.fail(permit(breaker, now), now, 0)
    assert breaker.state is State.OPEN
    return breaker


def half_open(rules: BreakerRules = RULES) -> tuple[Breaker, list[Permit]]:
    """A breaker at second 10, with all its probes under way."""
    breaker = opened(rules)
    return breaker, [permit(breaker, 10) for _ in range(rules.probes)]


def test_it_stays_closed_below_the_least_number_of_calls():
    breaker = Breaker(RULES, 0)
    breaker.fail(permit(breaker), 0, 0)
    assert breaker.state is State.CLOSED
    breaker.succeed(permit(breaker), 0, 0)
    assert (breaker.state, breaker.why) == (State.OPEN, Why.FAILURES)


def test_only_the_last_calls_count():
    rules = BreakerRules(window=4, min_calls=4, failure_rate=0.5)
    breaker = Breaker(rules, 0)
    for _ in range(4):
        breaker.succeed(permit(breaker), 0, 0)
    breaker.fail(permit(breaker), 0, 0)
    for _ in range(4):
        breaker.succeed(permit(breaker), 0, 0)
    breaker.fail(permit(breaker), 0, 0)
    assert breaker.state is State.CLOSED
    breaker.fail(permit(breaker), 0, 0)
    assert breaker.state is State.OPEN


def test_calls_that_succeed_slowly_open_it_too():
    breaker = Breaker(RULES, 0)
    breaker.succeed(permit(breaker), 0, 1.0)
    breaker.succeed(permit(breaker), 0, 0.999)
    assert breaker.state is State.CLOSED
    for _ in range(4):
        breaker.succeed(permit(breaker), 0, 5)
    assert (breaker.state, breaker.why) == (State.OPEN, Why.SLOWNESS)


def test_without_a_limit_nothing_is_slow():
    breaker = Breaker(BreakerRules(window=4, min_calls=1, slow_rate=0.01), 0)
    breaker.succeed(permit(breaker), 0, 1e9)
    assert breaker.state is State.CLOSED
    assert breaker.view(20).slow == 0


def test_while_it_is_open_everybody_is_refused_and_told_for_how_long():
    breaker = opened(now=100)
    assert refusal(breaker, 100) == 10
    assert refusal(breaker, 107.5) == 2.5


def test_after_a_time_so_many_probes_go_through_and_the_others_are_refused_at_once():
    breaker = opened()
    probes = [permit(breaker, 10), permit(breaker, 10)]
    assert breaker.state is State.HALF_OPEN
    assert all(one.probe for one in probes)
    assert refusal(breaker, 10) <= 1
    breaker.succeed(probes[0], 11, 0)
    assert refusal(breaker, 11) <= 1, "a probe that has ended makes no room for a third"
    breaker.succeed(probes[1], 12, 0)
    assert (breaker.state, breaker.why) == (State.CLOSED, Why.RECOVERED)
    assert breaker.view(20).calls == 0, "what was before does not count any more"


def test_probes_that_fail_open_it_again_for_the_whole_time():
    breaker, probes = half_open()
    breaker.fail(probes[0], 12, 0)
    assert breaker.state is State.OPEN, "the other probe could not change that"
    assert refusal(breaker, 12) == 10
    breaker.succeed(probes[1], 13, 0)
    assert breaker.state is State.OPEN


def test_probes_that_are_slow_open_it_again():
    breaker, probes = half_open()
    breaker.succeed(probes[0], 12, 2)
    assert breaker.state is State.HALF_OPEN
    breaker.succeed(probes[1], 12, 2)
    assert (breaker.state, breaker.why) == (State.OPEN, Why.SLOWNESS)


def test_where_most_may_fail_one_failed_probe_is_not_the_end():
    breaker, probes = half_open(BreakerRules(window=4, min_calls=2, failure_rate=0.75, probes=3, open_s=10))
    breaker.fail(probes[0], 10, 0)
    breaker.fail(probes[1], 10, 0)
    assert breaker.state is State.HALF_OPEN
    breaker.succeed(probes[2], 10, 0)
    assert breaker.state is State.CLOSED


def test_more_probes_than_the_window_is_wide_all_count():
    breaker, probes = half_open(BreakerRules(window=1, min_calls=1, failure_rate=1.0, probes=3, open_s=10))
    breaker.fail(probes[0], 10, 0)
    breaker.fail(probes[1], 10, 0)
    assert breaker.state is State.HALF_OPEN
    breaker.fail(probes[2], 10, 0)
    assert breaker.state is State.OPEN


def test_a_cancelled_probe_gives_its_permit_back():
    breaker, probes = half_open()
    refusal(breaker, 10)
    breaker.cancel(probes[0])
    another = permit(breaker, 10)
    refusal(breaker, 10)
    breaker.succeed(another, 11, 0)
    breaker.succeed(probes[1], 11, 0)
    assert breaker.state is State.CLOSED


def test_a_probe_counts_once_and_not_after_its_permit_was_given_back():
    breaker, probes = half_open()
    breaker.cancel(probes[0])
    breaker.succeed(probes[0], 11, 0)
    breaker.succeed(probes[1], 11, 0)
    breaker.succeed(probes[1], 11, 0)
    assert breaker.state is State.HALF_OPEN


def test_a_late_result_of_an_earlier_phase_counts_for_nothing():
    breaker = Breaker(RULES, 0)
    late = [permit(breaker) for _ in range(8)]
    for one in late[:2]:
        breaker.fail(one, 0, 0)
    probes = [permit(breaker, 10), permit(breaker, 10)]
    breaker.fail(late[2], 10, 0)
    breaker.succeed(late[3], 10, 0)
    breaker.cancel(late[4])
    assert breaker.state is State.HALF_OPEN
    refusal(breaker, 10)
    for one in probes:
        breaker.succeed(one, 11, 0)
    for one in late[5:]:
        breaker.fail(one, 12, 0)
    assert breaker.state is State.CLOSED
    assert breaker.view(20).calls == 0


def test_opened_by_hand_it_stays_open_until_it_is_closed_by_hand():
    breaker = Breaker(RULES, 0)
    under_way = permit(breaker)
    breaker.force_open(5)
    assert refusal(breaker, 5) == refusal(breaker, 1e9) == RULES.open_s
    breaker.succeed(under_way, 6, 0)
    breaker.force_open(7)
    assert (breaker.state, breaker.why, breaker.view(20).since) == (State.FORCED_OPEN, Why.OPENED_BY_HAND, 5)
    breaker.close(8)
    assert (breaker.state, breaker.why) == (State.CLOSED, Why.CLOSED_BY_HAND)
    permit(breaker, 8)


@pytest.mark.parametrize("make", [opened, lambda: half_open()[0]])
def test_closed_by_hand_it_counts_anew(make):
    breaker = make()
    breaker.close(20)
    breaker.close(21)
    assert (breaker.state, breaker.view(20).since, breaker.view(20).calls) == (State.CLOSED, 20, 0)
    breaker.fail(permit(breaker, 21), 21, 0)
    assert breaker.state is State.CLOSED


def test_the_view_tells_what_counts_now():
    rules = BreakerRules(window=4, min_calls=4, slow_s=1)
    breaker = Breaker(rules, 3)
    breaker.fail(permit(breaker), 3, 2)
    breaker.succeed(permit(breaker), 3, 0)
    view = breaker.view(3)
    assert (view.state, view.why, view.since) == (State.CLOSED, None, 3)
    assert (view.calls, view.failures, view.slow, view.probing) == (2, 1, 1, 0)
    assert half_open()[0].view(10).probing == 2


def test_the_view_tells_how_long_it_stays_open_by_itself():
    breaker = opened(now=100)
    assert [breaker.view(now).retry_after_s for now in (100, 107.5, 110, 300)] == [10, 2.5, 0, 0]
    assert Breaker(RULES, 0).view(3).retry_after_s is None
    assert half_open()[0].view(10).retry_after_s is None
    breaker.force_open(101)
    assert breaker.view(102).retry_after_s is None, "it stays so until it is closed by hand"


@pytest.mark.parametrize(
    "fields",
    [
        {"window": 4, "min_calls": 5},
        {"min_calls": 0},
        {"failure_rate": 0.0},
        {"failure_rate": 1.1},
        {"slow_rate": 0.0},
        {"probes": 0},
        {"open_s": 0},
        {"slow_s": 0},
    ],
)
def test_rules_by_which_it_would_never_open_or_never_close_are_refused(fields):
    with pytest.raises(ValueError, match="`"):
        BreakerRules(**fields)


def test_every_state_can_be_left_by_hand():
    assert {state for state, why in MOVES if why is Why.OPENED_BY_HAND} == set(State) - {State.FORCED_OPEN}
    assert {state for state, why in MOVES if why is Why.CLOSED_BY_HAND} == set(State) - {State.CLOSED}


# --- against a model -----------------------------------------------------------------------------------------------


@dataclass
class Call:
    """A permit of the breaker and, for the model, the phase that it was given in."""

    permit: Permit
    phase: int


@dataclass
class Phase:
    state: State
    began: float
    given: int = 0
    given_back: int = 0
    ended: list[tuple[bool, bool]] = field(default_factory=list)


class BreakerModel(RuleBasedStateMachine):
    """The model keeps every phase and every outcome, and works each answer out from the whole story."""

    calls = Bundle("calls")

    @initialize(
        window=st.integers(1, 6),
        least=st.integers(1, 6),
        failure_rate=st.sampled_from([0.2, 0.5, 0.75, 1.0]),
        slow_rate=st.sampled_from([0.3, 1.0]),
        probes=st.integers(1, 4),
    )
    def begin(self, window: int, least: int, failure_rate: float, slow_rate: float, probes: int) -> None:
        self.rules = BreakerRules(
            window=window, min_calls=min(least, window), failure_rate=failure_rate, slow_s=2.0, slow_rate=slow_rate,
            open_s=10, probes=probes,
        )  # fmt: skip
        self.now = 1000.0
        self.breaker = Breaker(self.rules, self.now)
        self.phases = [Phase(State.CLOSED, self.now)]

    def enter(self, state: State) -> None:
        self.phases.append(Phase(state, self.now))

    @property
    def phase(self) -> Phase:
        return self.phases[-1]

    @rule(seconds=st.sampled_from([0.0, 0.5, 4.0, 9.75, 10.0, 300.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=calls)
    def ask(self):
        answer = self.breaker.ask(self.now)
        if self.phase.state is State.OPEN and self.now >= self.phase.began + self.rules.open_s:
            self.enter(State.HALF_OPEN)
        phase = self.phase
        room = phase.given - phase.given_back < self.rules.probes
        allowed = phase.state is State.CLOSED or (phase.state is State.HALF_OPEN and room)
        assert isinstance(answer, Permit) == allowed
        if isinstance(answer, Refused):
            assert 0 < answer.retry_after_s <= self.rules.open_s
            return multiple()
        assert answer.probe == (phase.state is State.HALF_OPEN)
        phase.given += 1
        return Call(answer, len(self.phases) - 1)

    @rule(call=consumes(calls), failed=st.booleans(), slow=st.booleans())
    def end(self, call: Call, failed: bool, slow: bool) -> None:
        duration_s = 2.0 if slow else 1.99
        if failed:
            self.breaker.fail(call.permit, self.now, duration_s)
        else:
            self.breaker.succeed(call.permit, self.now, duration_s)
        if self.phases[call.phase] is not self.phase:
            return
        self.phase.ended.append((failed, slow))
        if self.phase.state is State.CLOSED:
            counted = self.phase.ended[-self.rules.window :]
            if len(counted) >= self.rules.min_calls and self.too_many(counted, len(counted)):
                self.enter(State.OPEN)
        elif self.too_many(self.phase.ended, self.rules.probes):
            self.enter(State.OPEN)
        elif len(self.phase.ended) == self.rules.probes:
            self.enter(State.CLOSED)

    def too_many(self, ended: list[tuple[bool, bool]], of: int) -> bool:
        failures, slow = (sum(column) for column in zip(*ended, strict=True))
        return failures / of >= self.rules.failure_rate or slow / of >= self.rules.slow_rate

    @rule(call=consumes(calls))
    def cancel(self, call: Call) -> None:
        self.breaker.cancel(call.permit)
        self.phases[call.phase].given_back += 1

    @rule()
    def open_by_hand(self) -> None:
        self.breaker.force_open(self.now)
        if self.phase.state is not State.FORCED_OPEN:
            self.enter(State.FORCED_OPEN)

    @rule()
    def close_by_hand(self) -> None:
        self.breaker.close(self.now)
        if self.phase.state is not State.CLOSED:
            self.enter(State.CLOSED)

    @invariant()
    def agrees_with_the_model(self) -> None:
        view = self.breaker.view(self.now)
        assert view.state is self.phase.state
        assert self.breaker.phase == len(self.phases) - 1
        assert math.isclose(view.since, self.phase.began)
        width = self.rules.window if view.state is State.CLOSED else self.rules.probes
        counted = self.phase.ended[-width:]
        assert (view.calls, view.failures, view.slow) == (
            len(counted),
            sum(failed for failed, _ in counted),
            sum(slow for _, slow in counted),
        )
        left_s = max(0.0, self.phase.began + self.rules.open_s - self.now)
        assert view.retry_after_s == (left_s if view.state is State.OPEN else None)
        if view.state is State.HALF_OPEN:
            assert view.probing + view.calls <= self.rules.probes


BreakerModel.TestCase.settings = settings(max_examples=300, stateful_step_count=60)
TestBreakerModel = BreakerModel.TestCase
