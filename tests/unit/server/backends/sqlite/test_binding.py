import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from callgate_server.backends.sqlite.audit import verify_file
from callgate_server.backends.sqlite.files import load_or_create_key
from callgate_server.backends.sqlite.ledger import SqliteLedger
from callgate_server.ledger.store import Completion
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.sealed import Sealed
from support.records import ANSWER, beginning, failure, intent, keeping, success

LATER = datetime.now(UTC) + timedelta(days=1)


class Record:
    """A ledger with calls in every place where a change may find them, and somebody who edits the file beside it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.db"
        self.key: Sealed = load_or_create_key(folder / "key")
        self.open()

    def open(self) -> None:
        self.ledger = SqliteLedger.open(self.path, self.key)

    async def restart(self) -> None:
        await self.ledger.close()
        self.open()

    def edit(self, column: str, value: object, call_id: str) -> None:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            changed = connection.execute(f"UPDATE calls SET {column} = ? WHERE call_id = ?", (value, call_id))  # noqa: S608
            assert changed.rowcount == 1

    def fault(self) -> str | None:
        return verify_file(self.path, self.key).fault


@pytest.fixture
async def record(tmp_path):
    made = Record(tmp_path)
    yield made
    await made.ledger.close()


async def running(record: Record) -> str:
    new = intent("key")
    assert await record.ledger.claim(new) is None
    return new.call_id


async def ended(record: Record) -> str:
    call_id = await running(record)
    await record.ledger.complete(success(call_id))
    return call_id


async def left_running(record: Record) -> str:
    call_id = await running(record)
    await record.restart()
    return call_id


async def interrupted(record: Record) -> str:
    call_id = await left_running(record)
    await record.ledger.settle_orphans()
    return call_id


async def unknown(record: Record) -> str:
    new = intent(effect="unsafe")
    await record.ledger.claim(new)
    await record.restart()
    await record.ledger.settle_orphans()
    return new.call_id


async def kept(record: Record, group: str | None = None) -> str:
    new = intent()
    assert await record.ledger.claim(new, keeping(group)) is None
    return new.call_id


async def asked(record: Record) -> str:
    return await kept(record, "finance")


async def begun(record: Record) -> str:
    call_id = await kept(record)
    await record.ledger.begin(beginning(call_id))
    return call_id


async def dead(record: Record) -> str:
    call_id = await begun(record)
    await record.ledger.complete(failure(call_id))
    return call_id


async def complete(record: Record, call_id: str) -> None:
    await record.ledger.complete(success(call_id))


async def settle(record: Record, _call_id: str) -> None:
    await record.ledger.settle_orphans()


async def expire(record: Record, _call_id: str) -> None:
    assert await record.ledger.expire(LATER) == 1


async def retry(record: Record, _call_id: str) -> None:
    assert await record.ledger.claim(intent("key")) is None


async def discard(record: Record, call_id: str) -> None:
    await record.ledger.discard(call_id, "acme/boss")


async def by_hand(record: Record, call_id: str) -> None:
    await record.ledger.settle(call_id, State.SUCCEEDED, "acme/boss")


async def give_up(record: Record, call_id: str) -> None:
    end = Completion(call_id, State.DENIED, Reason.APPROVAL_EXPIRED, "", None)
    await record.ledger.complete(end)


CHANGES = [
    (running, complete),
    (begun, complete),
    (left_running, complete),
    (left_running, settle),
    (interrupted, retry),
    (ended, expire),
    (dead, discard),
    (unknown, by_hand),
    (asked, give_up),
]
NAMES = [f"{before.__name__}-{change.__name__}" for before, change in CHANGES]


@pytest.mark.parametrize(("before", "change"), CHANGES, ids=NAMES)
async def test_a_change_binds_the_row_to_its_event(record, before: Callable, change: Callable):
    call_id = await before(record)
    await change(record, call_id)
    assert record.fault() is None


@pytest.mark.parametrize(("column", "value"), [("roles", '["admin"]'), ("received_at", "2026-01-01T00:00:00+00:00")])
@pytest.mark.parametrize(("before", "change"), CHANGES, ids=NAMES)
async def test_an_edited_row_is_not_made_good_by_its_next_change(
    record, before: Callable, change: Callable, column: str, value: str
):
    call_id = await before(record)
    record.edit(column, value, call_id)
    assert call_id in record.fault()
    await change(record, call_id)
    assert call_id in record.fault()


async def test_a_row_that_was_put_back_is_not_made_good_by_its_next_change(record):
    call_id = await ended(record)
    with closing(sqlite3.connect(record.path, isolation_level=None)) as connection:
        connection.execute(
            "UPDATE calls SET state = 'running', finished_at = NULL, answer = NULL, last_seq = 2 WHERE call_id = ?",
            (call_id,),
        )
    await record.ledger.complete(success(call_id))
    assert call_id in record.fault()


async def test_nothing_is_begun_or_approved_for_whom_somebody_wrote_into_the_file(record, caplog):
    waiting, question = await kept(record), await asked(record)
    for call_id in (waiting, question):
        record.edit("agent", "another", call_id)
    with pytest.raises(CallError) as begin:
        await record.ledger.begin(beginning(waiting))
    with pytest.raises(CallError) as decide:
        await record.ledger.decide(question, "acme/boss", approve=True)
    for refusal in (begin.value, decide.value):
        assert refusal.reason is Reason.NOT_POSSIBLE
        assert "audit verify" in refusal.message
    assert "changed by another program" in caplog.text
    assert (await record.ledger.get(waiting)).state is State.ADMITTED
    assert (await record.ledger.get(question)).state is State.AWAITING_APPROVAL


async def test_no_new_call_is_made_of_an_edited_one(record):
    letter, doubt = await dead(record), await unknown(record)
    record.edit("roles", '["admin"]', letter)
    again = keeping(redrives=letter, redriven_by="acme/boss")
    with pytest.raises(CallError) as refusal:
        await record.ledger.claim(intent(), again)
    assert refusal.value.reason is Reason.NOT_POSSIBLE
    assert (await record.ledger.get(letter)).dead == "open"
    record.edit("parcel", b"x", doubt)
    assert await record.ledger.unknown(10) == []


async def test_the_end_of_a_call_says_what_was_claimed_and_not_what_the_file_says_meanwhile(record):
    call_id = await running(record)
    record.edit("holds_key", 0, call_id)
    await record.ledger.complete(success(call_id))
    stored = await record.ledger.get(call_id)
    assert stored.answer_json == ANSWER
    assert await record.ledger.claim(intent("key")) is not None
    assert record.fault() is None


async def test_a_call_whose_row_was_removed_ends_in_no_row(record):
    call_id = await running(record)
    with closing(sqlite3.connect(record.path, isolation_level=None)) as connection:
        connection.execute("DELETE FROM calls")
    with pytest.raises(CallError) as refusal:
        await record.ledger.complete(success(call_id))
    assert refusal.value.reason is Reason.INTERNAL
    assert record.fault() == f"call {call_id} was removed"
