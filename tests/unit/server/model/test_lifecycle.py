import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.model.lifecycle import FINISHED, IN_FLIGHT, MOVES, State, move

STATES = st.sampled_from(State)


def test_every_state_is_in_the_table():
    assert set(MOVES) == set(State)


@given(STATES, STATES)
def test_a_move_is_made_exactly_when_the_table_has_it(current, target):
    if target in MOVES[current]:
        assert move(current, target) is target
    else:
        with pytest.raises(ValueError, match=f"from {current} to {target}"):
            move(current, target)


@given(st.lists(STATES, max_size=12))
def test_no_walk_leaves_an_end_or_returns_to_the_beginning(targets):
    state = State.RECEIVED
    for target in targets:
        try:
            state = move(state, target)
        except ValueError:
            continue
        assert state is not State.RECEIVED
        if state in FINISHED:
            assert all(state not in MOVES or target not in MOVES[state] for target in State)


@pytest.mark.parametrize("state", State)
def test_from_every_state_an_end_can_be_reached(state):
    reached, frontier = {state}, [state]
    while frontier:
        new = MOVES[frontier.pop()] - reached
        reached |= new
        frontier.extend(new)
    assert reached & FINISHED


def test_nothing_runs_without_being_admitted():
    assert {state for state in State if State.RUNNING in MOVES[state]} == {State.ADMITTED}


def test_a_refused_or_finished_call_never_moves_again():
    ends = {State.DENIED, State.REPLAYED, State.SUCCEEDED, State.FAILED, State.TIMED_OUT, State.CANCELLED, State.LOST}
    assert ends == FINISHED


def test_a_call_of_unknown_effect_is_settled_and_never_run_again():
    assert State.ADMITTED not in MOVES[State.UNKNOWN]
    assert State.RUNNING not in MOVES[State.UNKNOWN]
    assert State.ADMITTED in MOVES[State.INTERRUPTED]


def test_a_crash_can_befall_whatever_may_have_had_an_effect():
    for state in (State.ADMITTED, State.RUNNING):
        assert {State.INTERRUPTED, State.UNKNOWN} <= MOVES[state]


def test_what_is_in_flight_has_not_finished():
    assert not IN_FLIGHT & FINISHED
