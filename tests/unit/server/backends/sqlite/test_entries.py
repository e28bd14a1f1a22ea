from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from callgate_server.backends.sqlite import entries, rows, schema
from callgate_server.backends.sqlite.binding import OF_STATE
from callgate_server.backends.sqlite.writer import Transaction
from callgate_server.ledger.chain import Keys
from callgate_server.ledger.store import Completion, OpenLease
from callgate_server.model.call import Caller
from callgate_server.model.errors import Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.sealed import Sealed
from callgate_server.model.strict_json import decode
from support.records import CALLER, intent, never_started, refusal, success

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


def events(transaction, call_id):
    found = transaction.connection.execute("SELECT kind, body FROM events WHERE call_id = ? ORDER BY seq", (call_id,))
    return [(kind, decode(body.encode())) for kind, body in found]


def claimed(transaction, *, boot="boot", key=None, **changes):
    new = intent(key, **changes)
    assert entries.claim(transaction, new, key, boot).call_id == new.call_id
    return new.call_id


def test_an_intent_is_a_running_row_and_an_event_that_says_why_it_was_allowed(transaction):
    call_id = claimed(transaction)
    ((kind, body),) = events(transaction, call_id)
    assert row(transaction, call_id).state == State.RUNNING
    assert kind == "intent"
    assert (
        body
        | {
            "state": "running",
            "tenant": "acme",
            "agent": "bot",
            "roles": ["analyst"],
            "task": "task-1",
            "tool": "a.b",
            "version": "1.0.0",
            "tool_digest": "sha256:tool",
            "decision_id": "decision",
            "policies": ["p1", "p2"],
            "policy_version": "v1",
            "arguments": {"x": "hmac:1"},
            "arguments_digest": "digest",
            "effect": "read",
            "transport": "http",
        }
        == body
    )


def test_a_refusal_is_a_row_and_an_event(transaction):
    refused = refusal()
    entries.refuse(transaction, refused, "boot")
    ((kind, body),) = events(transaction, refused.call_id)
    assert (kind, body["reason"], body["policies"]) == ("refused", "policy_denied", ["p1"])
    assert row(transaction, refused.call_id).state == State.DENIED


def test_the_second_claim_of_a_key_gets_the_holder_and_writes_nothing(transaction):
    first = claimed(transaction, key="k")
    second = intent("k")
    holder = entries.claim(transaction, second, "k", "boot")
    assert holder.call_id == first
    assert rows.read(transaction.connection, second.call_id) is None
    assert events(transaction, second.call_id) == []


@pytest.mark.parametrize(
    "other",
    [{"caller": Caller("other", "bot")}, {"caller": Caller("acme", "other")}, {"tool": "c.d"}, {"key": "other"}],
)
def test_a_key_belongs_to_tenant_agent_and_tool(transaction, other):
    claimed(transaction, key="k")
    claimed(transaction, **({"key": "k"} | other))


def test_calls_without_a_key_never_meet(transaction):
    assert claimed(transaction) != claimed(transaction)


def test_an_end_keeps_the_answer_and_the_key(transaction):
    call_id = claimed(transaction, key="k")
    entries.complete(transaction, success(call_id))
    ended = row(transaction, call_id)
    assert (ended.state, ended.answer, ended.holds_key) == (State.SUCCEEDED, b'{"result":42}', 1)
    assert "42" not in str(events(transaction, call_id)[-1][1]["answer"])


def test_a_call_whose_tool_never_started_gives_its_key_back(transaction):
    call_id = claimed(transaction, key="k")
    entries.complete(transaction, never_started(call_id))
    assert row(transaction, call_id).holds_key == 0
    claimed(transaction, key="k")


def test_a_call_without_a_key_does_not_come_to_hold_one(transaction):
    call_id = claimed(transaction)
    entries.complete(transaction, success(call_id))
    assert row(transaction, call_id).holds_key == 0


@pytest.mark.parametrize("state", [State.RUNNING, State.ADMITTED, State.DENIED, State.REPLAYED, State.RECEIVED])
def test_states_move_only_as_the_table_allows(transaction, state):
    call_id = claimed(transaction)
    with pytest.raises(ValueError, match="cannot go from running"):
        entries.complete(transaction, Completion(call_id, state, None, "", None))


def test_a_call_ends_once(transaction):
    call_id = claimed(transaction)
    entries.complete(transaction, success(call_id))
    with pytest.raises(ValueError, match="cannot go from succeeded"):
        entries.complete(transaction, never_started(call_id))


def test_a_call_that_is_not_in_the_record_has_no_end_and_no_notes(transaction):
    with pytest.raises(ValueError, match="not in the record"):
        entries.complete(transaction, success("absent"))
    with pytest.raises(ValueError, match="not in the record"):
        entries.note(transaction, "absent", "secret_leased", {})


@pytest.mark.parametrize("kind", sorted(OF_STATE))
def test_a_note_cannot_pass_for_a_change_of_state(transaction, kind):
    call_id = claimed(transaction)
    with pytest.raises(ValueError, match="belongs to a change of state"):
        entries.note(transaction, call_id, kind, {"row": "x"})


def test_a_replay_is_a_row_of_its_own_that_names_the_original(transaction):
    call_id = claimed(transaction, key="k")
    entries.complete(transaction, success(call_id))
    original = rows.to_stored(row(transaction, call_id))
    entries.replay(transaction, original, "again", CALLER, AT, "boot")
    replayed = row(transaction, "again")
    assert (replayed.state, replayed.answer, replayed.holds_key) == (State.REPLAYED, None, 0)
    assert events(transaction, "again")[0][1]["original"] == call_id


@pytest.mark.parametrize(
    ("effect", "state", "reason", "keeps_key"),
    [
        ("read", State.INTERRUPTED, Reason.INTERRUPTED, 1),
        ("idempotent", State.INTERRUPTED, Reason.INTERRUPTED, 1),
        ("unsafe", State.UNKNOWN, Reason.EFFECT_UNKNOWN, 1),
        ("", State.UNKNOWN, Reason.EFFECT_UNKNOWN, 1),
    ],
)
def test_what_a_dead_gateway_left_running_is_settled_by_its_effect(transaction, effect, state, reason, keeps_key):
    call_id = claimed(transaction, boot="dead", key="k", effect=effect)
    entries.settle(transaction, "alive")
    settled = row(transaction, call_id)
    assert (settled.state, settled.reason, settled.holds_key) == (state, reason, keeps_key)
    assert [kind for kind, _ in events(transaction, call_id)] == ["intent", "settled"]


def test_a_call_whose_outcome_waits_for_room_is_left_for_it(transaction):
    ended, running = (claimed(transaction, boot="dead", effect="unsafe") for _ in range(2))
    entries.settle(transaction, "alive", {ended})
    assert [row(transaction, call_id).state for call_id in (ended, running)] == [State.RUNNING, State.UNKNOWN]
    entries.complete_late(transaction, success(ended))
    assert row(transaction, ended).state == State.SUCCEEDED


def test_an_interrupted_call_hands_its_key_to_the_next_attempt_and_each_names_the_other(transaction):
    first = claimed(transaction, boot="dead", key="k")
    entries.settle(transaction, "alive")
    second = claimed(transaction, key="k")
    assert [row(transaction, call_id).holds_key for call_id in (first, second)] == [0, 1]
    assert row(transaction, first).state == State.INTERRUPTED
    assert events(transaction, first)[-1] == ("retried", events(transaction, first)[-1][1] | {"by": second})
    assert events(transaction, second)[0][1]["retry_of"] == first
    assert "retry_of" not in events(transaction, first)[0][1]


def test_an_interrupted_call_keeps_its_key_from_other_arguments(transaction):
    first = claimed(transaction, boot="dead", key="k")
    entries.settle(transaction, "alive")
    other = replace(intent("k"), arguments_digest="other")
    holder = entries.claim(transaction, other, "k", "alive")
    assert holder.call_id == first
    assert row(transaction, first).holds_key == 1


def test_a_call_whose_effect_is_unknown_hands_its_key_to_nobody(transaction):
    first = claimed(transaction, boot="dead", key="k", effect="unsafe")
    entries.settle(transaction, "alive")
    holder = entries.claim(transaction, intent("k"), "k", "alive")
    assert holder.call_id == first


def test_an_end_that_comes_late_is_written_once_and_changes_no_other(transaction):
    call_id = claimed(transaction)
    entries.complete_late(transaction, success(call_id))
    entries.complete_late(transaction, never_started(call_id))
    entries.complete_late(transaction, success("absent"))
    assert row(transaction, call_id).state == State.SUCCEEDED
    assert [kind for kind, _ in events(transaction, call_id)] == ["intent", "outcome"]


AFTER = AT + timedelta(seconds=1)


def test_what_was_kept_long_enough_loses_its_key_and_its_answer_but_not_its_row(transaction):
    keyed, keyless = claimed(transaction, key="k"), claimed(transaction)
    for call_id in (keyed, keyless):
        entries.complete(transaction, success(call_id))
    assert entries.expire(transaction, AT, 9) == 0
    assert entries.expire(transaction, AFTER, 9) == 2
    for call_id in (keyed, keyless):
        kept = row(transaction, call_id)
        assert (kept.state, kept.holds_key, kept.answer) == (State.SUCCEEDED, 0, None)
        assert [kind for kind, _ in events(transaction, call_id)] == ["intent", "outcome", "expired"]
    assert entries.expire(transaction, AFTER, 9) == 0
    claimed(transaction, key="k")


def test_no_more_is_forgotten_at_once_than_was_asked_for(transaction):
    for _ in range(5):
        entries.complete(transaction, success(claimed(transaction)))
    assert [entries.expire(transaction, AFTER, 2) for _ in range(4)] == [2, 2, 1, 0]


def test_what_runs_or_is_not_settled_is_not_forgotten_and_what_was_interrupted_is(transaction):
    unknown = claimed(transaction, boot="dead", key="u", effect="unsafe")
    interrupted = claimed(transaction, boot="dead", key="i")
    entries.settle(transaction, "alive")
    running = claimed(transaction, boot="alive", key="r")
    assert entries.expire(transaction, AFTER, 9) == 1
    assert [row(transaction, call_id).holds_key for call_id in (unknown, interrupted, running)] == [1, 0, 1]


def test_what_is_to_be_forgotten_is_found_by_an_index(transaction):
    seen = []
    transaction.connection.set_trace_callback(seen.append)
    entries.expire(transaction, AFTER, 9)
    transaction.connection.set_trace_callback(None)
    (query,) = [statement for statement in seen if "finished_at <" in statement]
    (step,) = transaction.connection.execute("EXPLAIN QUERY PLAN " + query).fetchall()
    assert "calls_kept" in step[-1]


def test_what_this_gateway_runs_and_what_has_ended_is_not_settled(transaction):
    mine, ended = claimed(transaction, boot="alive"), claimed(transaction, boot="dead")
    entries.complete(transaction, success(ended))
    entries.settle(transaction, "alive")
    assert row(transaction, mine).state == State.RUNNING
    assert row(transaction, ended).state == State.SUCCEEDED


def test_leases_that_were_not_revoked_are_listed(transaction):
    first, second = claimed(transaction, boot="dead"), claimed(transaction)
    entries.complete(transaction, success(second))
    for call_id, kind, lease_id in [
        (first, "secret_leased", "L1"),
        (first, "secret_leased", "L2"),
        (first, "secret_revoked", "L1"),
        (second, "secret_leased", "L3"),
    ]:
        entries.note(transaction, call_id, kind, {"lease_id": lease_id})
    # In no order: two ids of one millisecond have none.
    assert {*entries.settle(transaction, "alive")} == {OpenLease(first, "L2"), OpenLease(second, "L3")}
    entries.note(transaction, first, "secret_revoked", {"lease_id": "L2"})
    entries.note(transaction, second, "secret_revoked", {"lease_id": "L3"})
    assert entries.settle(transaction, "alive") == []


def test_a_remark_is_an_event_of_no_call(transaction):
    entries.remark(transaction, "breaker_changed", {"breaker": "engine"})
    assert events(transaction, "") == [("breaker_changed", {"breaker": "engine"})]
    assert entries.settle(transaction, "another") == []


@pytest.mark.parametrize("kind", ["genesis", "outcome", "refused", "secret_leased", "secret_revoked"])
def test_a_remark_cannot_pass_for_something_else(transaction, kind):
    with pytest.raises(ValueError, match="not for remarks"):
        entries.remark(transaction, kind, {"row": "x", "lease_id": "L1"})
