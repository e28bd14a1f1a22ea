from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from callgate_server.backends.sqlite import rows, schema
from callgate_server.backends.sqlite.rows import COLUMNS, CallRow, fingerprint, names, names_of, timestamp, to_stored
from callgate_server.ledger.chain import Keys, keyed_hash
from callgate_server.model.errors import Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.sealed import Sealed
from callgate_server.model.strict_json import encode

KEYS = Keys.derive(Sealed(b"k" * 32))
ROW = CallRow(
    call_id="c1",
    tenant="acme",
    agent="bot",
    task="t1",
    roles='["analyst"]',
    tool="a.b",
    version="1.0.0",
    policies='["p1"]',
    received_at="2026-01-01T00:00:00.000000+00:00",
    boot="boot",
    state="failed",
    effect="read",
    reason="tool_failed",
    message="It failed.",
    arguments_digest="digest",
    key_digest="key",
    holds_key=1,
    finished_at="2026-01-01T00:00:01.000000+00:00",
    answer=b"{}",
)


@pytest.fixture
def connection(tmp_path):
    path = tmp_path / "ledger.db"
    path.touch(0o600)
    connection = schema.open_writer(path)
    schema.migrate(connection)
    yield connection
    connection.close()


@pytest.mark.parametrize("column", [field.name for field in fields(CallRow)])
def test_the_fingerprint_covers_every_column(column):
    old = getattr(ROW, column)
    other = b"other" if column == "parcel" else {bytes: b"other", int: 0}.get(type(old), "other")
    assert fingerprint(KEYS, replace(ROW, **{column: other})) != fingerprint(KEYS, ROW)
    assert fingerprint(KEYS, replace(ROW)) == fingerprint(KEYS, ROW)


def test_a_row_without_anything_carried_has_the_fingerprint_it_had_before_there_was_such_a_thing():
    before = [getattr(ROW, column) for column in COLUMNS[: COLUMNS.index("parcel")]]
    answer = None if ROW.answer is None else keyed_hash(KEYS.row, ROW.answer)
    before[COLUMNS.index("answer")] = None
    assert fingerprint(KEYS, ROW) == keyed_hash(KEYS.row, encode([*before, answer]))


def test_what_is_carried_stays_in_its_column():
    carried = [replace(ROW, **{column: "x"}) for column in ("approval", "decided_by", "dead", "follows")]
    assert len({fingerprint(KEYS, row) for row in carried}) == len(carried)


def test_no_answer_is_not_an_empty_answer():
    assert fingerprint(KEYS, replace(ROW, answer=None)) != fingerprint(KEYS, replace(ROW, answer=b""))


def test_the_columns_are_those_of_the_table(connection):
    columns = {name for (_, name, *_) in connection.execute("PRAGMA table_info(calls)")}
    assert columns == {*rows.COLUMNS, "last_seq"}


def test_a_row_comes_back_as_it_was_written(connection):
    rows.insert(connection, ROW, 7)
    assert rows.read(connection, "c1") == ROW
    changed = replace(ROW, state="succeeded", answer=None)
    rows.end(connection, changed, 8)
    assert rows.read(connection, "c1") == changed
    assert rows.read(connection, "other") is None


def test_a_key_is_found_for_its_holder_alone(connection):
    rows.insert(connection, ROW, 1)
    rows.insert(connection, replace(ROW, call_id="c2", holds_key=0), 2)
    assert rows.read_key_holder(connection, "acme", "bot", "a.b", "key") == ROW
    for other in [("x", "bot", "a.b", "key"), ("acme", "x", "a.b", "key"), ("acme", "bot", "x", "key")]:
        assert rows.read_key_holder(connection, *other) is None


def test_two_calls_cannot_hold_one_key(connection):
    rows.insert(connection, ROW, 1)
    with pytest.raises(Exception, match="UNIQUE"):
        rows.insert(connection, replace(ROW, call_id="c2"), 2)


def test_the_newest_calls_come_first_and_without_answers(connection):
    for number in range(5):
        at = f"2026-01-01T00:00:0{number}.000000+00:00"
        rows.insert(connection, replace(ROW, call_id=f"c{number}", holds_key=0, received_at=at), number)
    found = rows.read_recent(connection, "acme", "bot", 3)
    assert [row.call_id for row in found] == ["c4", "c3", "c2"]
    assert {row.answer for row in found} == {None}
    assert rows.read_recent(connection, "other", "bot", 3) == []
    assert rows.read_recent(connection, "acme", "bot", -1) == []


def test_a_row_becomes_a_call():
    call = to_stored(ROW)
    assert (call.state, call.reason) == (State.FAILED, Reason.TOOL_FAILED)
    assert (call.caller.tenant, call.caller.agent, call.caller.roles, call.caller.task) == (
        "acme",
        "bot",
        ("analyst",),
        "t1",
    )
    assert call.finished_at == datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert (call.policies, call.answer_json) == (("p1",), b"{}")


@pytest.mark.parametrize(
    "change", [{"state": "done"}, {"reason": "why"}, {"roles": "{}"}, {"policies": "[1]"}, {"received_at": "then"}]
)
def test_what_we_never_write_is_not_read(change):
    with pytest.raises(ValueError, match=r".+"):
        to_stored(replace(ROW, **change))


def test_times_sort_as_text_whatever_their_zone():
    early = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=5)))
    late = datetime(2026, 1, 1, 7, 0, 0, 1, tzinfo=UTC)
    assert timestamp(early) == "2026-01-01T07:00:00.000000+00:00" < timestamp(late)
    with pytest.raises(ValueError, match="time zone"):
        timestamp(datetime(2026, 1, 1))  # noqa: DTZ001  # that is the point


def test_names_survive():
    assert names_of(names(("a", "b"))) == ("a", "b")
    assert names_of(names(())) == ()
