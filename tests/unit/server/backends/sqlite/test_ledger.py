import asyncio
import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from callgate_server.backends.sqlite import entries
from callgate_server.backends.sqlite.audit import events
from callgate_server.backends.sqlite.files import load_or_create_key
from callgate_server.backends.sqlite.ledger import EXPIRED_AT_ONCE, SqliteLedger
from callgate_server.ledger.store import OpenLease
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.sealed import Sealed
from support.records import ANSWER, CALLER, intent, never_started, refusal, success


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "ledger.db"


@pytest.fixture
def key(tmp_path):
    return load_or_create_key(tmp_path / "key")


@pytest.fixture
async def ledger(path, key):
    ledger = SqliteLedger.open(path, key)
    yield ledger
    await ledger.close()


async def reason(awaitable):
    with pytest.raises(CallError) as refused:
        await awaitable
    return refused.value.reason


async def test_the_life_of_a_call(ledger):
    new = intent("k")
    assert await ledger.claim(new) is None
    running = await ledger.get(new.call_id)
    assert (running.state, running.answer_json, running.caller) == (State.RUNNING, None, CALLER)
    await ledger.complete(success(new.call_id))
    ended = await ledger.find(CALLER, "a.b", "k")
    assert (ended.call_id, ended.state, ended.answer_json) == (new.call_id, State.SUCCEEDED, ANSWER)
    assert ended.received_at == new.received_at
    assert ended.finished_at >= new.received_at
    await ledger.replayed(ended, "again", CALLER, datetime.now(UTC))
    assert (await ledger.get("again")).state is State.REPLAYED
    assert (await ledger.find(CALLER, "a.b", "k")).call_id == new.call_id
    assert (await ledger.verify()).fault is None


async def test_fifty_claims_of_one_key_at_once_have_one_winner(ledger):
    intents = [intent("k") for _ in range(50)]
    holders = await asyncio.gather(*(ledger.claim(new) for new in intents))
    (winner,) = [new.call_id for new, holder in zip(intents, holders, strict=True) if holder is None]
    assert {holder.call_id for holder in holders if holder is not None} == {winner}


async def test_a_key_is_found_by_its_owner_alone(ledger):
    await ledger.claim(intent("k"))
    assert await ledger.find(Caller("other", "bot"), "a.b", "k") is None
    assert await ledger.find(Caller("acme", "other"), "a.b", "k") is None
    assert await ledger.find(CALLER, "c.d", "k") is None
    assert await ledger.find(CALLER, "a.b", "other") is None
    assert await ledger.find(CALLER, "a.b", "\ud800") is None


async def test_a_refused_call_holds_no_key_and_is_listed(ledger):
    refused = refusal()
    await ledger.refuse(refused)
    stored = await ledger.get(refused.call_id)
    assert (stored.state, stored.reason, stored.policies) == (State.DENIED, Reason.POLICY_DENIED, ("p1",))
    assert [call.call_id for call in await ledger.recent(CALLER, 10)] == [refused.call_id]


async def test_a_list_is_the_callers_own_newest_first_and_without_answers(ledger):
    mine = [intent() for _ in range(4)]
    for new in mine:
        await ledger.claim(new)
        await ledger.complete(success(new.call_id))
    await ledger.claim(intent(caller=Caller("other", "bot")))
    await ledger.claim(intent(caller=Caller("acme", "other")))
    listed = await ledger.recent(CALLER, 3)
    assert [call.call_id for call in listed] == [new.call_id for new in reversed(mine)][:3]
    assert {call.answer_json for call in listed} == {None}


async def test_the_record_says_which_sandbox_a_call_had(ledger, path):
    new = intent()
    await ledger.claim(new)
    await ledger.complete(replace(success(new.call_id), sandbox="c0ffee"))
    (outcome,) = [event for event in events(path) if event.kind == "outcome"]
    assert json.loads(outcome.body)["sandbox"] == "c0ffee"


async def test_an_unknown_call_is_none(ledger):
    assert await ledger.get("absent") is None


async def test_what_breaks_the_rules_is_refused_and_leaves_the_record_whole(ledger):
    new = intent()
    await ledger.claim(new)
    assert await reason(ledger.claim(new)) is Reason.INTERNAL
    assert await reason(ledger.complete(success("absent"))) is Reason.INTERNAL
    assert await reason(ledger.note("absent", "secret_leased", {})) is Reason.INTERNAL
    assert await reason(ledger.note(new.call_id, "outcome", {})) is Reason.INTERNAL
    assert await reason(ledger.note(new.call_id, "note", {"x": float("nan")})) is Reason.INTERNAL
    await ledger.complete(success(new.call_id))
    assert await reason(ledger.complete(never_started(new.call_id))) is Reason.INTERNAL
    assert (await ledger.get(new.call_id)).state is State.SUCCEEDED
    assert (await ledger.verify()).fault is None


async def test_a_write_is_carried_out_even_if_nobody_waits_for_it(ledger):
    new = intent()
    asking = asyncio.create_task(ledger.claim(new))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await ledger.note(new.call_id, "note", {})
    assert (await ledger.get(new.call_id)).state is State.RUNNING


async def test_what_a_dead_gateway_left_is_settled_at_the_next_start(path, key):
    dead = SqliteLedger.open(path, key)
    harmless, unsafe = intent("k1"), intent("k2", effect="unsafe")
    await dead.claim(harmless)
    await dead.note(harmless.call_id, "secret_leased", {"lease_id": "L1"})
    await dead.claim(unsafe)
    await dead.close()
    ledger = SqliteLedger.open(path, key)
    mine = intent()
    await ledger.claim(mine)
    assert await ledger.settle_orphans() == [OpenLease(harmless.call_id, "L1")]
    states = [(await ledger.get(new.call_id)).state for new in (harmless, unsafe, mine)]
    assert states == [State.INTERRUPTED, State.UNKNOWN, State.RUNNING]
    again = intent("k1")
    assert await ledger.claim(again) is None
    assert (await ledger.find(CALLER, "a.b", "k1")).call_id == again.call_id
    assert (await ledger.find(CALLER, "a.b", "k2")).call_id == unsafe.call_id
    await ledger.note(harmless.call_id, "secret_revoked", {"lease_id": "L1"})
    assert await ledger.settle_orphans() == []
    assert (await ledger.verify()).fault is None
    await ledger.close()


async def test_an_outcome_that_the_record_still_cannot_take_at_the_next_start_is_not_lost(path, key, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    dead = SqliteLedger.open(path, key)
    ended = intent("k", effect="unsafe")
    await dead.claim(ended)
    with monkeypatch.context() as patch:
        # Large outcomes find no room, and what is small does.
        patch.setattr(entries, "complete", full)
        patch.setattr(entries, "complete_late", full)
        await dead.complete(success(ended.call_id))
        await dead.close()
        ledger = SqliteLedger.open(path, key)
        await ledger.settle_orphans()
        assert (await ledger.find(CALLER, "a.b", "k")).state is State.SUCCEEDED
    await ledger.move_spooled()
    outcome = [event.kind for event in events(path) if event.call_id == ended.call_id]
    assert outcome == ["intent", "outcome"]
    assert (await ledger.find(CALLER, "a.b", "k")).answer_json == ANSWER
    await ledger.close()


async def test_what_was_kept_long_enough_is_forgotten_bite_by_bite_and_the_record_stays_whole(ledger):
    ended = [intent(f"k{number}") for number in range(EXPIRED_AT_ONCE + 1)]
    for new in ended:
        await ledger.claim(new)
        await ledger.complete(success(new.call_id))
    later = datetime.now(UTC) + timedelta(hours=1)
    assert await ledger.expire(datetime.now(UTC) - timedelta(hours=1)) == 0
    assert [await ledger.expire(later) for _ in range(3)] == [EXPIRED_AT_ONCE, 1, 0]
    assert await ledger.find(CALLER, "a.b", "k0") is None
    assert (await ledger.get(ended[0].call_id)).state is State.SUCCEEDED
    assert (await ledger.verify()).fault is None


async def test_the_chain_goes_on_over_restarts(path, key):
    for _ in range(3):
        ledger = SqliteLedger.open(path, key)
        await ledger.refuse(refusal())
        await ledger.close()
    ledger = SqliteLedger.open(path, key)
    report = await ledger.verify()
    assert (report.events, report.fault) == (4, None)
    await ledger.close()


async def test_a_second_gateway_is_refused_and_the_first_goes_on(ledger, path, key):
    with pytest.raises(BlockingIOError, match="another gateway holds"):
        SqliteLedger.open(path, key)
    await ledger.claim(intent())


async def test_a_closed_ledger_refuses_everything(path, key):
    ledger = SqliteLedger.open(path, key)
    await ledger.close()
    await ledger.close()
    for asked in (ledger.claim(intent()), ledger.get("c"), ledger.recent(CALLER, 1), ledger.verify(), ledger.probe()):
        assert await reason(asked) is Reason.AUDIT_UNAVAILABLE


async def test_a_ledger_sealed_with_another_key_is_refused(path, key, ledger):
    await ledger.close()
    with pytest.raises(ValueError, match="another key"):
        SqliteLedger.open(path, Sealed(b"x" * 32))
    await SqliteLedger.open(path, key).close()


async def test_a_ledger_whose_events_were_removed_does_not_start_anew(path, key, ledger):
    await ledger.claim(intent())
    await ledger.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        (guard,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'events_are_not_removed'").fetchone()
        connection.execute("DROP TRIGGER events_are_not_removed")
        connection.execute("DELETE FROM events")
        connection.execute(guard)
    with pytest.raises(ValueError, match="events were removed"):
        SqliteLedger.open(path, key)


async def test_a_row_that_we_never_write_is_no_record_of_anything(path, key, ledger):
    new = intent()
    await ledger.claim(new)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE calls SET state = 'done'")
    assert await reason(ledger.get(new.call_id)) is Reason.AUDIT_UNAVAILABLE
    assert new.call_id in (await ledger.verify()).fault


async def test_reads_are_refused_while_the_file_is_open_to_others(path, ledger):
    new = intent()
    await ledger.claim(new)
    path.chmod(0o604)
    assert await reason(ledger.get(new.call_id)) is Reason.AUDIT_UNAVAILABLE
    assert await reason(ledger.probe()) is Reason.AUDIT_UNAVAILABLE
    path.chmod(0o600)
    await ledger.probe()
    assert await ledger.get(new.call_id) is not None


async def test_a_probe_says_nothing_in_the_record(ledger):
    before = await ledger.verify()
    await ledger.probe()
    assert await ledger.verify() == before


async def test_a_digest_is_keyed(tmp_path, ledger):
    other = SqliteLedger.open(tmp_path / "other" / "ledger.db", Sealed(b"x" * 32))
    assert ledger.digest(b"x") == ledger.digest(b"x") != other.digest(b"x")
    assert len(ledger.digest(b"x")) == 64
    await other.close()


async def test_a_remark_is_durable_and_one_that_cannot_be_written_says_so(path, ledger):
    await ledger.remark("breaker_changed", {"breaker": "engine"})
    assert [event.kind for event in events(path)] == ["genesis", "breaker_changed"]
    path.chmod(0o644)
    assert await reason(ledger.remark("breaker_changed", {})) is Reason.AUDIT_UNAVAILABLE
    path.chmod(0o600)


async def test_the_last_good_answer_is_the_newest_success_of_the_same_call_and_no_fallback(ledger):
    calls = [intent() for _ in range(4)]
    for made in calls:
        assert await ledger.claim(made) is None
    await ledger.complete(success(calls[0].call_id, b'{"result":1}'))
    await ledger.complete(success(calls[1].call_id, b'{"result":2}'))
    fallback = replace(success(calls[2].call_id, b'{"result":3}'), reason=Reason.TOOL_UNAVAILABLE, fallback="constant")
    await ledger.complete(fallback)
    like = await ledger.get(calls[3].call_id)
    past = datetime.now(UTC) - timedelta(hours=1)
    assert (await ledger.last_good(like, past)).answer_json == b'{"result":2}'
    assert await ledger.last_good(like, datetime.now(UTC) + timedelta(hours=1)) is None
    for other in (
        replace(like, caller=Caller("rival", like.caller.agent)),
        replace(like, caller=Caller(like.caller.tenant, "another")),
        replace(like, tool="c.d"),
        replace(like, version="2.0.0"),
        replace(like, arguments_digest="other"),
    ):
        assert await ledger.last_good(other, past) is None
    told = [json.loads(event.body) for event in events(ledger._files.path) if event.call_id == calls[2].call_id]
    assert (told[-1]["fallback"], told[-1]["reason"], told[-1]["state"]) == (
        "constant", "tool_unavailable", "succeeded",
    )  # fmt: skip
    assert (await ledger.verify()).fault is None
