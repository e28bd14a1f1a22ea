from dataclasses import replace
from datetime import UTC, datetime

import pytest

from callgate_server.ledger.claims import holds_key, in_flight, may_run_again, replayable
from callgate_server.ledger.store import StoredCall
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import IN_FLIGHT, State
from callgate_server.model.strict_json import MAX_DEPTH, encode


def holder(state=State.SUCCEEDED, answer=b'{"result":1,"replayed":false}'):
    now = datetime.now(UTC)
    return StoredCall("c1", Caller("acme", "bot"), "a.b", "1.0.0", state, "digest", None, "", (), now, now, answer)


def never_started():
    return replace(holder(State.FAILED, None), reason=Reason.SANDBOX_UNAVAILABLE, message="No sandbox.")


def refused(call, digest="digest"):
    with pytest.raises(CallError) as refusal:
        replayable(call, digest)
    return refusal.value


def test_the_same_arguments_get_the_stored_answer_flagged():
    assert replayable(holder(), "digest") == {"result": 1, "replayed": True}


@pytest.mark.parametrize("state", [State.FAILED, State.TIMED_OUT, State.LOST, State.CANCELLED])
def test_an_answer_of_a_failed_run_is_replayed_as_well(state):
    assert replayable(holder(state), "digest")["replayed"] is True


@pytest.mark.parametrize("state", [State.RUNNING, State.SUCCEEDED, State.UNKNOWN])
def test_other_arguments_are_a_conflict_whatever_became_of_the_first_call(state):
    answer = b"{}" if state is State.SUCCEEDED else None
    assert refused(holder(state, answer), "other").reason is Reason.IDEMPOTENCY_CONFLICT


@pytest.mark.parametrize("state", sorted(IN_FLIGHT))
def test_a_call_that_has_not_ended_is_in_flight(state):
    error = refused(holder(state, None))
    assert error.reason is Reason.CALL_IN_FLIGHT
    assert error.retry_after_ms


def test_a_call_whose_effect_is_unknown_is_not_run_again():
    assert refused(holder(State.UNKNOWN, None)).reason is Reason.EFFECT_UNKNOWN


def test_what_an_unknown_effect_means_is_said_with_what_to_do():
    message = refused(holder(State.UNKNOWN, None)).message
    assert "c1" in message
    assert "new key" in message


def test_a_call_that_ended_between_two_looks_is_refused_for_the_reason_it_was_refused_for():
    error = refused(never_started())
    assert (error.reason, error.message) == (Reason.SANDBOX_UNAVAILABLE, "No sandbox.")


def test_only_the_same_call_is_waited_for_and_only_while_it_has_not_ended():
    assert [in_flight(holder(state, None), "digest") for state in sorted(IN_FLIGHT)] == [True] * len(IN_FLIGHT)
    assert not in_flight(holder(State.RUNNING, None), "other")
    assert not any(in_flight(holder(state), "digest") for state in State if state not in IN_FLIGHT)


@pytest.mark.parametrize("state", sorted(State))
def test_a_key_passes_on_only_from_an_interrupted_call_with_the_same_arguments(state):
    assert may_run_again(state, "digest", "digest") is (state is State.INTERRUPTED)
    assert not may_run_again(state, "digest", "other")


def test_an_answer_with_a_result_of_the_full_depth_can_be_replayed():
    nested = 1
    for _ in range(MAX_DEPTH):
        nested = [nested]
    assert replayable(holder(answer=encode({"result": nested})), "digest")["result"] == nested


@pytest.mark.parametrize("state", [*sorted(IN_FLIGHT), State.UNKNOWN, State.INTERRUPTED])
def test_a_key_is_held_while_the_call_may_have_an_effect_nobody_knows(state):
    assert holds_key(state, answered=False)


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.TIMED_OUT, State.CANCELLED, State.LOST])
def test_a_key_is_held_for_an_answer_and_given_back_where_nothing_ran(state):
    assert holds_key(state, answered=True)
    assert not holds_key(state, answered=False)


@pytest.mark.parametrize("state", [State.DENIED, State.REPLAYED])
def test_a_refused_and_a_replayed_call_hold_no_key(state):
    assert not holds_key(state, answered=False)
    assert not holds_key(state, answered=True)


def test_what_was_found_out_to_have_taken_effect_is_not_run_again_and_has_no_answer():
    refusal = refused(holder(State.SUCCEEDED, None))
    assert refusal.reason is Reason.EFFECT_UNKNOWN
    assert "took effect" in refusal.message
    assert "c1" in refusal.message
