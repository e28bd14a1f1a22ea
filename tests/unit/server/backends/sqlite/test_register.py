import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from callgate_server.backends.sqlite import register, schema
from callgate_server.backends.sqlite.audit import events, verify_file
from callgate_server.backends.sqlite.files import load_or_create_key
from callgate_server.backends.sqlite.ledger import SqliteLedger
from callgate_server.ledger.register import StoredTask
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.spending import Amounts, Budget, Charge, Scope
from callgate_server.model.strict_json import decode
from callgate_server.model.task import Stop, Task, new_task_id
from support.records import intent, success

BOT = Caller("acme", "bot", ("developer", "analyst"))
SECRET = "sk-live-grant-value"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
def key(tmp_path):
    return load_or_create_key(tmp_path / "key")


@pytest.fixture
async def ledger(path, key):
    ledger = SqliteLedger.open(path, key)
    yield ledger
    await ledger.close()


def task(caller: Caller = BOT, **changes) -> Task:
    task_id, now = new_task_id(), datetime.now(UTC)
    made = Task(
        task_id,
        replace(caller, task=task_id),
        "tidy up",
        {"text.diff": {"properties": {"before": {"const": SECRET}}}},
        Budget(calls=3, cost=5),
        now,
        now + timedelta(hours=1),
    )
    return replace(made, **changes)


def stop(agent="bot") -> Stop:
    return Stop("acme", agent, "it loops", "root", datetime.now(UTC))


def tamper(path, statement, *values):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


async def test_a_task_is_read_as_it_was_written(ledger):
    made = task()
    await ledger.register.create_task(made, "digest")
    assert await ledger.register.open_tasks() == [StoredTask(made, "digest")]
    account = await ledger.register.task(BOT, made.task_id)
    assert (account.task, account.spent) == (made, Amounts())


async def test_a_task_remembers_the_key_that_made_it_and_so_does_the_record(ledger, path):
    made = task(replace(BOT, key="0123456789ab"))
    await ledger.register.create_task(made, "digest")
    [stored] = await ledger.register.open_tasks()
    assert stored.task.caller.key == "0123456789ab"
    [event] = events(path, after=1)
    assert decode(event.body.encode())["key"] == "0123456789ab"


async def test_a_task_of_before_keys_were_remembered_is_as_it_was(path, key):
    ledger = SqliteLedger.open(path, key)
    made = task()
    await ledger.register.create_task(made, "digest")
    await ledger.close()
    for statement in (
        "DROP INDEX tasks_ended",
        "ALTER TABLE tasks DROP COLUMN made_with",
        f"PRAGMA user_version = {schema.VERSION - 1}",
    ):
        tamper(path, statement)
    ledger = SqliteLedger.open(path, key)
    [stored] = await ledger.register.open_tasks()
    assert (stored.task, stored.task.caller.key) == (made, None)
    await ledger.register.end_task(made, "asked for")
    await ledger.close()
    assert verify_file(path, key).fault is None
    tamper(path, "UPDATE tasks SET made_with = 'x'")
    assert verify_file(path, key).fault == f"task {made.task_id} was changed after it was recorded"


async def test_another_agents_task_is_like_none(ledger):
    made = task()
    await ledger.register.create_task(made, "digest")
    for other in (Caller("rival", "bot"), Caller("acme", "other")):
        assert await ledger.register.task(other, made.task_id) is None
        assert await ledger.register.tasks(other, 10) == []
    assert await ledger.register.task(BOT, new_task_id()) is None


async def test_the_newest_tasks_come_first_and_no_more_than_asked_for(ledger):
    made = [task(created_at=datetime(2026, 1, day, tzinfo=UTC)) for day in (1, 2, 3)]
    for each in made:
        await ledger.register.create_task(each, "digest")
    assert [account.task for account in await ledger.register.tasks(BOT, 2)] == [made[2], made[1]]


async def test_a_task_ends_once_and_stays_ended(ledger, path):
    made = task()
    await ledger.register.create_task(made, "digest")
    ended = await ledger.register.end_task(made, "asked for")
    assert await ledger.register.end_task(made, "expired") == ended
    assert ended.ended_at is not None
    assert await ledger.register.open_tasks() == []
    assert await ledger.register.ended_tasks(5) == [replace(made.caller, roles=())]
    assert [event.kind for event in events(path, after=1)] == ["task_created", "task_ended"]


async def test_of_tasks_that_ended_is_read_whose_they_were_and_no_grant(ledger, path):
    made = [task(), task(), task()]
    for each in made:
        await ledger.register.create_task(each, "digest")
        await ledger.register.end_task(each, "asked for")
    tamper(path, "UPDATE tasks SET granted = 'no JSON'")
    owners = [Caller("acme", "bot", (), each.task_id) for each in made]
    assert await ledger.register.ended_tasks(2) == owners[1:]
    with closing(sqlite3.connect(path)) as connection:
        [(*_, plan)] = connection.execute(f"EXPLAIN QUERY PLAN {register.ENDED}", (2,)).fetchall()
    assert "USING COVERING INDEX tasks_ended" in plan


async def test_what_calls_spent_is_written_with_them_and_shown_with_the_task(ledger):
    made = task()
    await ledger.register.create_task(made, "digest")
    scope = Scope("acme", "bot", made.task_id)
    begun = replace(intent(), charges=(Charge(scope, 0, Amounts(calls=1, cost=7)),))
    await ledger.claim(begun)
    await ledger.complete(replace(success(begun.call_id), charges=(Charge(scope, 0, Amounts(cpu_us=5)),)))
    account = await ledger.register.task(BOT, made.task_id)
    assert account.spent == Amounts(1, 5, 0, 7)
    assert await ledger.register.spending(0) == [Charge(scope, 0, account.spent)]


async def test_a_claim_that_is_not_won_spends_nothing(ledger):
    charges = (Charge(Scope("acme", "bot"), 7, Amounts(calls=1)),)
    for _ in range(2):
        await ledger.claim(replace(intent("k"), charges=charges))
    assert await ledger.register.spending(0) == list(charges)


async def test_stops_are_kept_until_they_are_lifted(ledger, path):
    first, second = stop(), stop("")
    await ledger.register.stop(first)
    await ledger.register.stop(second)
    assert await ledger.register.stops() == [second, first]
    assert await ledger.register.resume("acme", "bot", "root")
    assert not await ledger.register.resume("acme", "bot", "root")
    assert not await ledger.register.resume("rival", "", "root")
    assert await ledger.register.stops() == [second]
    assert [event.kind for event in events(path, after=1)] == ["stopped", "stopped", "resumed"]


async def test_a_stop_over_a_stop_replaces_it(ledger, path, key):
    await ledger.register.stop(stop())
    newer = replace(stop(), reason="another")
    await ledger.register.stop(newer)
    assert await ledger.register.stops() == [newer]
    assert (await ledger.verify()).fault is None


async def test_the_record_says_who_may_what_and_no_value_of_a_grant(ledger, path):
    made = task()
    await ledger.register.create_task(made, "digest")
    [event] = events(path, after=1)
    body = decode(event.body.encode())
    assert (body["task_id"], body["agent"], body["tools"]) == (made.task_id, "bot", ["text.diff"])
    assert SECRET not in event.body
    assert "tidy" not in event.body


async def test_what_cannot_be_written_is_refused(ledger, path):
    path.chmod(0o644)
    with pytest.raises(CallError) as refused:
        await ledger.register.create_task(task(), "digest")
    path.chmod(0o600)
    assert refused.value.reason is Reason.AUDIT_UNAVAILABLE
    assert await ledger.register.open_tasks() == []


@pytest.fixture
async def filled(path, key):
    ledger = SqliteLedger.open(path, key)
    made, gone = task(replace(BOT, key="0123456789ab")), task()
    await ledger.register.create_task(made, "digest")
    await ledger.register.create_task(gone, "digest")
    await ledger.register.end_task(gone, "asked for")
    await ledger.register.stop(stop())
    await ledger.register.stop(stop("other"))
    await ledger.register.resume("acme", "other", "root")
    await ledger.close()
    return made


async def test_an_untouched_record_is_whole(filled, path, key):
    assert verify_file(path, key).fault is None


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE tasks SET granted = '{\"python.run\":{}}' WHERE ended_at IS NULL", "task .* was changed"),
        ("UPDATE tasks SET ended_at = NULL", "task .* was changed"),
        ("UPDATE tasks SET credential = 'forged'", "task .* was changed"),
        ("UPDATE tasks SET made_with = NULL", "task .* was changed"),
        ("UPDATE tasks SET expires_at = '2099-01-01T00:00:00.000000+00:00'", "task .* was changed"),
        ("DELETE FROM tasks WHERE ended_at IS NULL", "task .* was removed"),
        ("DELETE FROM stops", "the stop of acme/bot was removed"),
        ("UPDATE stops SET agent = 'nobody'", "the stop of acme/nobody was changed"),
        (
            "INSERT INTO stops VALUES ('acme', 'other', '', 'root', '2026-01-01T00:00:00.000000+00:00')",
            "the stop of acme/other was changed",
        ),
    ],
)
async def test_what_somebody_edits_is_noticed(filled, path, key, statement, fault):
    tamper(path, statement)
    found = verify_file(path, key).fault
    assert found is not None
    assert re.search(fault, found)
    with pytest.raises(ValueError, match=fault):
        SqliteLedger.open(path, key)


@pytest.mark.parametrize("column", ["granted", "budget", "credential", "expires_at", "agent"])
async def test_an_edited_task_is_not_made_good_by_its_end(ledger, path, key, column):
    made, other = task(), task()
    await ledger.register.create_task(made, "digest")
    await ledger.register.create_task(other, "digest")
    edited = {"granted": '{"python.run":{}}', "budget": "[1,2,3,4]"}.get(column, "2099-01-01T00:00:00.000000+00:00")
    tamper(path, f"UPDATE tasks SET {column} = ? WHERE task_id = ?", edited, made.task_id)  # noqa: S608  # our own
    await ledger.register.end_task(made, "asked for")
    await ledger.register.end_task(other, "asked for")
    assert verify_file(path, key).fault == f"task {made.task_id} was changed after it was recorded"


async def test_a_task_that_nobody_made_is_noticed(filled, path, key):
    tamper(
        path,
        "INSERT INTO tasks SELECT 'task-x', tenant, agent, roles, name, granted, budget, credential, created_at, "
        "expires_at, ended_at, made_with FROM tasks LIMIT 1",
    )
    assert verify_file(path, key).fault == "task task-x was changed after it was recorded"


@pytest.mark.parametrize("kind", ["task_created", "task_ended", "stopped", "resumed"])
async def test_a_remark_cannot_pass_for_an_event_that_binds_a_row(ledger, kind):
    with pytest.raises(CallError) as refused:
        await ledger.remark(kind, {"task_id": "x", "row": "y"})
    assert refused.value.reason is Reason.INTERNAL


async def test_a_row_that_we_never_write_is_no_task(path, key, ledger):
    await ledger.register.create_task(task(), "digest")
    tamper(path, "UPDATE tasks SET granted = '[]'")
    with pytest.raises(ValueError, match="damaged"):
        await ledger.register.open_tasks()
