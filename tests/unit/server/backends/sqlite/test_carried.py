from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from callgate_server.backends.sqlite import carried, entries, rows, schema, spending
from callgate_server.backends.sqlite.writer import Transaction
from callgate_server.ledger.chain import Keys
from callgate_server.ledger.store import Completion
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.sealed import Sealed
from callgate_server.model.spending import Amounts, Charge, Scope
from callgate_server.model.strict_json import decode
from support.records import ANSWER, CALLER, beginning, failure, intent, keeping, success

KEYS = Keys.derive(Sealed(b"k" * 32))
AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def transaction(tmp_path):
    path = tmp_path / "ledger.db"
    path.touch(0o600)
    connection = schema.open_writer(path)
    schema.migrate(connection)
    yield Transaction(connection, KEYS, AT)
    connection.close()


def row(transaction, call_id):
    found = rows.read(transaction.connection, call_id)
    assert found is not None
    return found


def kinds(transaction, call_id):
    found = transaction.connection.execute("SELECT kind FROM events WHERE call_id = ? ORDER BY seq", (call_id,))
    return [kind for (kind,) in found]


def last_body(transaction, call_id):
    (body,) = transaction.connection.execute(
        "SELECT body FROM events WHERE call_id = ? ORDER BY seq DESC LIMIT 1", (call_id,)
    ).fetchone()
    return decode(body.encode())


def kept(transaction, approval=None, *, effect="read", boot="boot", **changes):
    new = intent(effect=effect)
    assert entries.claim(transaction, new, None, boot, keeping(approval, **changes), b"sealed").call_id == new.call_id
    return new.call_id


def begun(transaction, *, effect="read", boot="boot"):
    call_id = kept(transaction, effect=effect, boot=boot)
    carried.begin(transaction, beginning(call_id, effect), boot)
    return call_id


def refused(work, *args, **options):
    with pytest.raises(CallError) as caught:
        work(*args, **options)
    return caught.value.reason


def test_a_kept_call_waits_for_its_turn_or_for_an_approval(transaction):
    turn, approval = kept(transaction), kept(transaction, "finance")
    assert row(transaction, turn).state == State.ADMITTED
    assert row(transaction, approval).state == State.AWAITING_APPROVAL
    assert (row(transaction, approval).approval, row(transaction, approval).attempt) == ("finance", 1)
    assert [call.call_id for call, _ in carried.read_waiting(transaction.connection)] == [turn, approval]


def test_the_turn_of_a_call_is_an_event_that_says_who_allowed_it_now(transaction):
    call_id = begun(transaction, boot="later")
    assert (row(transaction, call_id).state, row(transaction, call_id).boot) == (State.RUNNING, "later")
    assert kinds(transaction, call_id) == ["intent", "began"]
    assert last_body(transaction, call_id)["policies"] == ["p3"]
    assert carried.read_waiting(transaction.connection) == []


def test_the_record_says_which_tool_ran_and_what_running_it_twice_would_do(transaction):
    call_id = kept(transaction, effect="idempotent")
    newer = replace(beginning(call_id, "unsafe"), version="2.0.0", tool_digest="sha256:newer")
    carried.begin(transaction, newer, "dead")
    assert (row(transaction, call_id).version, row(transaction, call_id).effect) == ("2.0.0", "unsafe")
    assert last_body(transaction, call_id)["tool_digest"] == "sha256:newer"
    entries.settle(transaction, "alive")
    assert row(transaction, call_id).state == State.UNKNOWN


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED])
@pytest.mark.parametrize("waited_for", [True, False])
def test_what_was_settled_is_in_the_record_as_it_was_written(transaction, state, waited_for):
    if waited_for:
        new = intent(effect="unsafe")
        entries.claim(transaction, new, None, "dead")
        call_id = new.call_id
    else:
        call_id = begun(transaction, effect="unsafe", boot="dead")
    entries.settle(transaction, "alive")
    assert carried.settle_by_hand(transaction, call_id, state, "acme/boss") == row(transaction, call_id)
    assert last_body(transaction, call_id)["row"] == rows.fingerprint(KEYS, row(transaction, call_id))


def test_only_what_waits_for_its_turn_is_begun(transaction):
    call_id, asked = begun(transaction), kept(transaction, "finance")
    assert refused(carried.begin, transaction, beginning(call_id), "boot") is Reason.NOT_POSSIBLE
    assert refused(carried.begin, transaction, beginning(asked), "boot") is Reason.NOT_POSSIBLE
    assert refused(carried.begin, transaction, beginning("c-absent"), "boot") is Reason.NOT_POSSIBLE


def test_an_approval_is_given_once_and_by_name(transaction):
    call_id = kept(transaction, "finance")
    decided = carried.decide(transaction, call_id, "acme/boss", AT, approve=True)
    assert (decided.state, decided.decided_by) == (State.ADMITTED, "acme/boss")
    assert decided == row(transaction, call_id)
    assert kinds(transaction, call_id) == ["intent", "approved"]
    for approve in (True, False):
        assert refused(carried.decide, transaction, call_id, "acme/x", AT, approve=approve) is Reason.NOT_POSSIBLE


def test_a_denied_call_has_ended_and_nothing_of_it_is_kept(transaction):
    call_id = kept(transaction, "finance")
    decided = carried.decide(transaction, call_id, "acme/boss", AT, approve=False)
    assert (decided.state, decided.reason) == (State.DENIED, Reason.APPROVAL_DENIED)
    assert row(transaction, call_id).parcel is None
    assert "acme/boss" in decided.message


@pytest.mark.parametrize(("approve", "left"), [(True, 1), (False, 0)])
def test_what_a_call_has_reserved_is_given_back_with_its_denial(transaction, approve, left):
    reserved = Charge(Scope("acme", "bot"), 7, Amounts(calls=1))
    call_id = kept(transaction, "finance")
    spending.charge(transaction.connection, [reserved])
    back = replace(reserved, amounts=-reserved.amounts)
    carried.decide(transaction, call_id, "acme/boss", AT, approve=approve, charges=[back])
    assert spending.read_since(transaction.connection, 0) == [replace(reserved, amounts=Amounts(calls=left))]


def test_after_its_time_no_approval_is_taken(transaction):
    call_id = kept(transaction, "finance", expires_at=AT)
    assert refused(carried.decide, transaction, call_id, "acme/boss", AT, approve=True) is Reason.NOT_POSSIBLE
    assert row(transaction, call_id).state == State.AWAITING_APPROVAL


def test_what_failed_for_good_is_a_dead_letter_and_keeps_what_it_needs(transaction):
    call_id = begun(transaction)
    entries.complete(transaction, failure(call_id))
    found = row(transaction, call_id)
    assert (found.state, found.dead, found.parcel) == (State.FAILED, "open", b"sealed")
    listed, total = carried.read_dead(transaction.connection, "acme", None, 5)
    assert [call.call_id for call in listed] == [call_id]
    assert total == 1
    assert carried.read_dead(transaction.connection, "acme", "other", 5) == ([], 0)
    assert carried.read_dead(transaction.connection, "rival", None, 5) == ([], 0)


def test_what_succeeded_was_cancelled_or_denied_is_none_and_nothing_of_it_is_kept(transaction):
    succeeded, cancelled, denied = begun(transaction), kept(transaction), kept(transaction)
    entries.complete(transaction, success(succeeded))
    entries.complete(transaction, Completion(cancelled, State.CANCELLED, Reason.CANCELLED, "", ANSWER))
    entries.complete(transaction, Completion(denied, State.DENIED, Reason.POLICY_DENIED, "", None))
    for call_id in (succeeded, cancelled, denied):
        assert (row(transaction, call_id).dead, row(transaction, call_id).parcel) == (None, None)


def test_a_call_that_a_client_waited_for_is_no_dead_letter_unless_its_effect_is_unknown(transaction):
    failed, unknown = intent(), intent(effect="unsafe")
    for new in (failed, unknown):
        entries.claim(transaction, new, None, "dead")
    entries.complete(transaction, failure(failed.call_id))
    entries.settle(transaction, "alive")
    listed, _ = carried.read_dead(transaction.connection, "acme", "bot", 5)
    assert [call.call_id for call in listed] == [unknown.call_id]
    assert listed[0].parcel is None


def test_a_dead_letter_is_redriven_once_and_the_two_name_each_other(transaction):
    dead = begun(transaction)
    entries.complete(transaction, failure(dead))
    new = intent()
    again = keeping(redrives=dead, redriven_by="acme/boss")
    assert entries.claim(transaction, new, None, "boot", again, b"sealed").call_id == new.call_id
    assert (row(transaction, dead).dead, row(transaction, dead).parcel) == ("redriven", None)
    assert row(transaction, new.call_id).follows == dead
    assert last_body(transaction, dead) | {"by": "acme/boss", "as": new.call_id} == last_body(transaction, dead)
    assert refused(entries.claim, transaction, intent(), None, "boot", again, b"s") is Reason.NOT_POSSIBLE


def test_who_has_redriven_a_call_denies_it_and_does_not_approve_it(transaction):
    dead = begun(transaction)
    entries.complete(transaction, failure(dead))
    new = intent()
    again = keeping("finance", redrives=dead, redriven_by="acme/boss")
    entries.claim(transaction, new, None, "boot", again, b"sealed")
    assert refused(carried.decide, transaction, new.call_id, "acme/boss", AT, approve=True) is Reason.POLICY_DENIED
    assert row(transaction, new.call_id).state == State.AWAITING_APPROVAL
    assert carried.decide(transaction, new.call_id, "acme/chief", AT, approve=True).state == State.ADMITTED


def test_what_somebody_may_have_to_look_at_is_counted(transaction):
    kept(transaction)
    kept(transaction, "finance")
    entries.complete(transaction, failure(begun(transaction)))
    census = carried.read_census(transaction.connection)
    assert census == {"admitted": 1, "awaiting_approval": 1, "dead_letters": 1}


def test_a_dead_letter_is_given_up_once(transaction):
    dead = begun(transaction)
    entries.complete(transaction, failure(dead))
    entries.bury(transaction, dead, "discarded", {"by": "acme/boss"})
    assert (row(transaction, dead).dead, row(transaction, dead).parcel) == ("discarded", None)
    assert refused(entries.bury, transaction, dead, "discarded", {"by": "x"}) is Reason.NOT_POSSIBLE


def test_dead_letters_are_not_forgotten_with_their_answers(transaction):
    dead = begun(transaction)
    entries.complete(transaction, failure(dead))
    assert entries.expire(transaction, AT + timedelta(days=1), 5) == 0
    entries.bury(transaction, dead, "discarded", {"by": "acme/boss"})
    assert entries.expire(transaction, AT + timedelta(days=1), 5) == 1


def test_dead_letters_that_nobody_looks_at_are_given_up_but_for_unknown_effects(transaction):
    dead, unknown = begun(transaction), begun(transaction, effect="unsafe", boot="dead")
    entries.complete(transaction, failure(dead))
    entries.settle(transaction, "boot")
    assert entries.expire_dead(transaction, AT, 5) == 0
    assert entries.expire_dead(transaction, AT + timedelta(days=1), 5) == 1
    assert (row(transaction, dead).dead, row(transaction, dead).parcel) == ("discarded", None)
    assert row(transaction, unknown).dead == "open"
    assert last_body(transaction, dead)["by"] == "time"


def test_what_waits_goes_on_waiting_in_the_next_life_of_the_gateway(transaction):
    turn, approval = kept(transaction, boot="dead"), kept(transaction, "finance", boot="dead", effect="unsafe")
    entries.settle(transaction, "alive")
    assert row(transaction, turn).state == State.ADMITTED
    assert row(transaction, approval).state == State.AWAITING_APPROVAL


@pytest.mark.parametrize("effect", ["read", "idempotent"])
def test_what_ran_when_its_gateway_died_waits_for_its_turn_again_where_that_is_safe(transaction, effect):
    call_id = begun(transaction, effect=effect, boot="dead")
    entries.settle(transaction, "alive")
    found = row(transaction, call_id)
    assert (found.state, found.attempt, found.reason, found.finished_at) == (State.ADMITTED, 2, None, None)
    assert kinds(transaction, call_id)[-2:] == ["settled", "requeued"]
    steps = carried.read_steps(transaction.connection, call_id)
    assert [(step.attempt, step.state, step.reason) for step in steps] == [(1, "interrupted", "interrupted")]


def test_an_unsafe_call_that_ran_is_a_dead_letter_and_never_begun_again(transaction):
    call_id = begun(transaction, effect="unsafe", boot="dead")
    entries.settle(transaction, "alive")
    found = row(transaction, call_id)
    assert (found.state, found.dead, found.parcel) == (State.UNKNOWN, "open", b"sealed")
    assert carried.read_waiting(transaction.connection) == []


def test_a_call_whose_gateway_dies_each_time_is_begun_a_bounded_number_of_times(transaction):
    call_id = begun(transaction, boot="life-1")
    for life in range(2, 2 + entries.BEGUN_AT_MOST):
        entries.settle(transaction, f"life-{life}")
        if row(transaction, call_id).state == State.ADMITTED:
            carried.begin(transaction, beginning(call_id), f"life-{life}")
    found = row(transaction, call_id)
    assert (found.state, found.reason, found.dead) == (State.FAILED, Reason.INTERRUPTED, "open")
    attempts = [step.attempt for step in carried.read_steps(transaction.connection, call_id)]
    assert max(attempts) == entries.BEGUN_AT_MOST


@pytest.mark.parametrize(("state", "reason"), [(State.SUCCEEDED, None), (State.FAILED, Reason.EFFECT_UNKNOWN)])
def test_what_became_of_an_unknown_effect_is_settled_by_name(transaction, state, reason):
    call_id = begun(transaction, effect="unsafe", boot="dead")
    entries.settle(transaction, "alive")
    settled = carried.settle_by_hand(transaction, call_id, state, "acme/boss")
    assert (settled.state, settled.reason) == (state, reason)
    assert "acme/boss" in settled.message
    assert refused(carried.settle_by_hand, transaction, call_id, state, "acme/x") is Reason.NOT_POSSIBLE


@pytest.mark.parametrize(("state", "keeps"), [(State.SUCCEEDED, 1), (State.FAILED, 0)])
def test_what_took_effect_keeps_its_key_and_what_did_not_gives_it_back(transaction, state, keeps):
    new = intent("key", effect="unsafe")
    entries.claim(transaction, new, "key", "dead")
    entries.settle(transaction, "alive")
    assert carried.settle_by_hand(transaction, new.call_id, state, "acme/boss").holds_key == keeps
    holder = entries.claim(transaction, intent("key", effect="unsafe"), "key", "alive")
    assert (holder.call_id == new.call_id) is bool(keeps)


def test_approvals_are_listed_for_their_groups_with_what_waits_first(transaction):
    decided, waiting, other = (kept(transaction, group) for group in ("finance", "finance", "security"))
    carried.decide(transaction, decided, "acme/boss", AT, approve=True)
    found = carried.read_approvals(transaction.connection, "acme", ("finance", "sales"), 5)
    assert [call.call_id for call in found] == [waiting, decided]
    assert {call.call_id for call in carried.read_approvals(transaction.connection, "acme", ("security",), 5)} == {
        other
    }
    assert carried.read_approvals(transaction.connection, "rival", ("finance",), 5) == []
    assert CALLER.tenant == "acme"


def test_what_a_list_shows_holds_nothing_that_is_sealed(transaction):
    kept(transaction, "finance")
    ((call, _),) = carried.read_waiting(transaction.connection)
    assert call.parcel == b""
    assert replace(call, parcel=None).answer is None
