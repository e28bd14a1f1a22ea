import sqlite3
from contextlib import closing

import pytest

from callgate_server.backends.sqlite import schema


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "ledger.db"
    path.touch(0o600)
    return path


@pytest.fixture
def connection(path):
    with closing(schema.open_writer(path)) as connection:
        schema.migrate(connection)
        yield connection


def test_every_commit_is_on_the_disk_before_it_returns(connection):
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_the_tables_are_brought_to_this_version_once(connection):
    schema.migrate(connection)
    assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
    schema.refuse_foreign_schema(connection)


def test_a_newer_version_is_refused_and_left_alone(connection):
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    with pytest.raises(ValueError, match="use a newer program"):
        schema.migrate(connection)
    assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION + 1,)
    assert not connection.in_transaction


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TRIGGER events_are_not_edited",
        "DROP INDEX calls_key",
        "CREATE TABLE extra (x)",
        "CREATE TRIGGER quiet AFTER INSERT ON calls BEGIN UPDATE calls SET reason = NULL; END",
        "ALTER TABLE calls ADD COLUMN extra TEXT",
        "CREATE VIEW extra AS SELECT 1",
    ],
)
def test_tables_that_another_program_changed_are_refused(connection, statement):
    connection.execute(statement)
    with pytest.raises(ValueError, match="changed by another program"):
        schema.refuse_foreign_schema(connection)
    with pytest.raises(ValueError, match="changed by another program"):
        schema.migrate(connection)


def test_a_database_of_another_program_is_refused_and_left_alone(path):
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.commit()
    with closing(schema.open_writer(path)) as connection:
        with pytest.raises(ValueError, match="changed by another program"):
            schema.migrate(connection)
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("theirs",)]


def event(connection):
    connection.execute("INSERT INTO events VALUES (1, 'at', 'call', 'kind', '{}', 'hash')")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET body = 'x'",
        "DELETE FROM events",
        "DELETE FROM events WHERE seq = 1",
        "UPDATE events SET seq = 9",
    ],
)
def test_events_are_only_ever_added(connection, statement):
    event(connection)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)


def test_an_event_cannot_be_written_over(connection):
    event(connection)
    with pytest.raises(sqlite3.IntegrityError):
        event(connection)


def test_tables_keep_their_types(connection):
    with pytest.raises(sqlite3.IntegrityError, match="cannot store"):
        connection.execute("INSERT INTO events VALUES (1, 'at', 'call', 'kind', x'00', 'hash')")


def test_a_reader_cannot_write(connection, path):
    with closing(schema.open_reader(path)) as reader:
        assert reader.execute("SELECT count(*) FROM events").fetchone() == (0,)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            event(reader)


def test_a_file_that_is_absent_is_not_made(tmp_path):
    for opened in (schema.open_writer, schema.open_reader):
        with pytest.raises(sqlite3.OperationalError):
            opened(tmp_path / "absent.db")
    assert list(tmp_path.iterdir()) == []


def test_a_path_with_marks_that_mean_something_in_a_uri_is_a_path(tmp_path):
    path = tmp_path / "a?mode=memory#x%41 b.db"
    path.touch(0o600)
    with closing(schema.open_writer(path)) as connection:
        schema.migrate(connection)
    assert path.stat().st_size > 0


def test_damage_is_found(connection, path):
    assert schema.damage(connection, quick=True) is None
    assert schema.damage(connection, quick=False) is None
    for number in range(1, 200):
        connection.execute("INSERT INTO events VALUES (?, 'at', 'call', 'kind', ?, 'hash')", (number, "x" * 500))
    connection.close()
    data = bytearray(path.read_bytes())
    data[40 * 1024 : 44 * 1024] = b"\xa5" * 4096
    path.write_bytes(data)
    with closing(schema.open_reader(path)) as reader:
        assert schema.damage(reader, quick=True) is not None


def test_proving_that_the_disk_takes_a_change_changes_nothing(connection):
    schema.rewrite_version(connection)
    schema.refuse_foreign_schema(connection)
