import sqlite3
from contextlib import closing

import pytest

from callgate_server.backends.sqlite import schema
from callgate_server.backends.sqlite.audit import events, tail, verify_file
from callgate_server.backends.sqlite.files import load_or_create_key
from callgate_server.backends.sqlite.ledger import SqliteLedger
from callgate_server.ledger.chain import Head
from callgate_server.model.sealed import Sealed
from support.records import intent, never_started, refusal, success


@pytest.fixture
async def record(tmp_path):
    """A finished ledger: its path, its key, and the ids of a success, a failure and a refusal."""
    path, key = tmp_path / "ledger.db", load_or_create_key(tmp_path / "key")
    ledger = SqliteLedger.open(path, key)
    good, bad, refused = intent("k"), intent(), refusal()
    await ledger.claim(good)
    await ledger.note(good.call_id, "secret_leased", {"lease_id": "L1"})
    await ledger.complete(success(good.call_id))
    await ledger.note(good.call_id, "secret_revoked", {"lease_id": "L1"})
    await ledger.claim(bad)
    await ledger.complete(never_started(bad.call_id))
    await ledger.refuse(refused)
    await ledger.close()
    return path, key, (good.call_id, bad.call_id, refused.call_id)


def tamper(path, *statements):
    """Write as somebody who has the file and not the key, past the triggers."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        guards = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in guards:
            connection.execute(f"DROP TRIGGER {name}")
        for statement, parameters in statements:
            assert connection.execute(statement, parameters).rowcount != 0
        for _, sql in guards:
            connection.execute(sql)


def test_an_untouched_record_holds(record):
    path, key, _ = record
    report = verify_file(path, key)
    assert (report.events, report.fault) == (8, None)
    assert verify_file(path, key, Head(report.events, report.head)).fault is None


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("state", "failed"),
        ("reason", "policy_denied"),
        ("answer", b'{"result":43}'),
        ("answer", None),
        ("tenant", "other"),
        ("agent", "other"),
        ("tool", "c.d"),
        ("policies", "[]"),
        ("message", "x"),
        ("holds_key", 0),
        ("key_digest", None),
        ("effect", "unsafe"),
        ("finished_at", None),
        ("boot", "x"),
        ("arguments_digest", "x"),
        ("received_at", "2020-01-01T00:00:00.000000+00:00"),
    ],
)
def test_a_changed_row_is_found(record, column, value):
    path, key, (good, *_) = record
    tamper(path, (f"UPDATE calls SET {column} = ? WHERE call_id = ?", (value, good)))  # noqa: S608
    assert verify_file(path, key).fault == f"call {good} was changed after it was recorded"


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_removed_row_is_found(record, which):
    path, key, ids = record
    tamper(path, ("DELETE FROM calls WHERE call_id = ?", (ids[which],)))
    assert verify_file(path, key).fault == f"call {ids[which]} was removed"


def test_a_row_that_nobody_recorded_is_found(record):
    path, key, _ = record
    columns = "tenant, agent, task, roles, tool, version, policies, received_at, boot, state, effect, message"
    columns += ", arguments_digest, holds_key"
    forge = f"INSERT INTO calls (call_id, last_seq, {columns}) SELECT 'forged', 2, {columns} FROM calls LIMIT 1"  # noqa: S608
    tamper(path, (forge, ()))
    assert "forged" in str(verify_file(path, key).fault)


@pytest.mark.parametrize("seq", [2, 3, 5, 1, 99])
def test_a_row_put_back_to_an_earlier_event_is_found(record, seq):
    path, key, (good, *_) = record
    tamper(path, ("UPDATE calls SET last_seq = ? WHERE call_id = ?", (seq, good)))
    assert verify_file(path, key).fault == f"call {good} does not point to the last event that changed it"


@pytest.mark.parametrize("seq", range(1, 9))
@pytest.mark.parametrize("column", ["at", "call_id", "kind", "body", "hash"])
def test_a_changed_event_is_found(record, seq, column):
    path, key, _ = record
    tamper(path, (f"UPDATE events SET {column} = 'x' WHERE seq = ?", (seq,)))  # noqa: S608
    report = verify_file(path, key)
    assert report.fault is not None
    assert report.events == seq - 1


@pytest.mark.parametrize("seq", range(1, 9))
def test_a_removed_event_is_found_even_the_last(record, seq):
    path, key, _ = record
    tamper(path, ("DELETE FROM events WHERE seq = ?", (seq,)))
    assert verify_file(path, key).fault is not None


def test_events_that_changed_places_are_found(record):
    path, key, _ = record
    tamper(
        path,
        ("UPDATE events SET seq = -seq WHERE seq IN (3, 4)", ()),
        ("UPDATE events SET seq = 7 + seq WHERE seq < 0", ()),
    )
    assert verify_file(path, key).fault is not None


def test_a_tail_cut_together_with_its_rows_is_found_by_an_expected_head(record):
    path, key, (*_, refused) = record
    report = verify_file(path, key)
    tamper(path, ("DELETE FROM events WHERE seq = 8", ()), ("DELETE FROM calls WHERE call_id = ?", (refused,)))
    assert verify_file(path, key).fault is None
    assert "tail was cut off" in str(verify_file(path, key, Head(report.events, report.head)).fault)


def test_an_emptied_record_is_found(record):
    path, key, _ = record
    tamper(path, ("DELETE FROM events", ()), ("DELETE FROM calls", ()))
    assert "no first event" in str(verify_file(path, key).fault)


def test_another_key_does_not_verify(record):
    path, _, _ = record
    assert verify_file(path, Sealed(b"x" * 32)).fault is not None


def test_added_triggers_and_views_are_found(record):
    path, key, _ = record
    tamper(path, ("CREATE TRIGGER quiet AFTER INSERT ON calls BEGIN SELECT 1; END", ()))
    assert "changed by another program" in str(verify_file(path, key).fault)


def test_a_damaged_file_is_a_fault_and_not_a_crash(record):
    path, key, _ = record
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xa5" * 64
    path.write_bytes(data)
    assert "damaged" in str(verify_file(path, key).fault)
    path.write_bytes(b"not a database" * 1000)
    assert "damaged" in str(verify_file(path, key).fault)


def test_a_missing_file_or_one_open_to_others_is_said_so(record, tmp_path):
    path, key, _ = record
    with pytest.raises(FileNotFoundError):
        verify_file(tmp_path / "absent.db", key)
    path.chmod(0o644)
    for look in (lambda: verify_file(path, key), lambda: tail(path, 1), lambda: list(events(path))):
        with pytest.raises(PermissionError, match="chmod 600"):
            look()


async def test_it_works_while_a_gateway_writes_and_after_it_left(tmp_path):
    path, key = tmp_path / "ledger.db", load_or_create_key(tmp_path / "key")
    ledger = SqliteLedger.open(path, key)
    await ledger.claim(intent())
    assert verify_file(path, key) == await ledger.verify()
    assert verify_file(path, key).events == 2
    await ledger.close()
    assert verify_file(path, key).events == 2


def test_looking_leaves_nothing_that_others_can_read(record):
    path, key, _ = record
    verify_file(path, key)
    assert {item.stat().st_mode & 0o077 for item in path.parent.iterdir()} == {0}


def test_events_are_listed_in_order_from_anywhere(record):
    path, _, (good, *_) = record
    listed = list(events(path))
    assert [event.seq for event in listed] == list(range(1, 9))
    assert [event.kind for event in listed] == [
        "genesis", "intent", "secret_leased", "outcome", "secret_revoked", "intent", "outcome", "refused",
    ]  # fmt: skip
    assert list(events(path, after=6)) == listed[6:]
    assert {event.call_id for event in listed[1:5]} == {good}
    assert tail(path, 3) == listed[-3:]
    assert tail(path, 0) == []
    assert tail(path, 1000) == listed


def test_a_file_that_is_no_ledger_is_not_listed(tmp_path):
    path = tmp_path / "ledger.db"
    path.touch(0o600)
    schema.open_writer(path).close()
    with pytest.raises(OSError, match="cannot be read"):
        tail(path, 1)
    with pytest.raises(OSError, match="cannot be read"):
        list(events(path))


async def test_remarks_are_part_of_the_chain_and_belong_to_no_call(tmp_path):
    path, key = tmp_path / "ledger.db", load_or_create_key(tmp_path / "key")
    ledger = SqliteLedger.open(path, key)
    for state in ("open", "half_open"):
        await ledger.remark("breaker_changed", {"breaker": "engine", "to": state})
    await ledger.close()
    assert verify_file(path, key).fault is None
    assert [(event.call_id, event.kind) for event in events(path, after=1)] == [("", "breaker_changed")] * 2
    body = "UPDATE events SET body = ? WHERE kind = 'breaker_changed'"
    tamper(path, (body, ('{"breaker":"engine","to":"closed"}',)))
    assert "does not follow" in verify_file(path, key).fault


async def test_a_remark_that_is_removed_is_missed(tmp_path):
    path, key = tmp_path / "ledger.db", load_or_create_key(tmp_path / "key")
    ledger = SqliteLedger.open(path, key)
    await ledger.remark("breaker_changed", {"breaker": "engine"})
    await ledger.refuse(refusal())
    await ledger.close()
    tamper(path, ("DELETE FROM events WHERE kind = 'breaker_changed'", ()))
    assert "is missing" in verify_file(path, key).fault
