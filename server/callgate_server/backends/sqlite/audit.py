"""Reading the record: is it whole, and what does it say. Works on a ledger that a gateway is writing, or on a copy.

Three things are checked in one snapshot: SQLite's own structure, the chain of events, and the row of every call, task
and stop against the last event that changed it. What was spent is counted beside the chain, and not checked. A cut tail
leaves rows without events or, where rows were cut too, needs an expected head.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

from callgate_server.backends.sqlite import register, schema
from callgate_server.backends.sqlite.binding import KINDS, ROWS, row_fault
from callgate_server.backends.sqlite.files import check_readable
from callgate_server.ledger.chain import Event, Head, Keys, check
from callgate_server.ledger.store import ChainReport
from callgate_server.model.sealed import Sealed

_EVENTS: Final = "SELECT seq, at, call_id, kind, body, hash FROM events"
_ROWLESS: Final = f"""
    SELECT call_id FROM events WHERE kind IN ({KINDS})
    AND NOT EXISTS (SELECT 1 FROM calls WHERE calls.call_id = events.call_id) LIMIT 1"""  # noqa: S608  # names of our own


def verify_file(path: Path, key: Sealed, expected: Head | None = None) -> ChainReport:
    """Check the whole record and report the first fault.

    Raises:
        OSError: the file is absent, open to others or cannot be read.
    """
    check_readable(path)
    try:
        with closing(schema.open_reader(path)) as connection:
            return _verify(connection, Keys.derive(key), expected)
    except sqlite3.OperationalError as error:
        raise OSError(f"{path} cannot be read: {error}") from error
    except sqlite3.DatabaseError as error:
        return ChainReport(0, Head().hash, f"the file is damaged: {error}")


def events(path: Path, *, after: int = 0) -> Iterator[Event]:
    """The events after number `after`, oldest first.

    Raises:
        OSError: the file is absent, open to others, damaged or cannot be read.
    """
    check_readable(path)
    try:
        with closing(schema.open_reader(path)) as connection:
            for values in connection.execute(_EVENTS + " WHERE seq > ? ORDER BY seq", (after,)):
                yield Event(*values)
    except sqlite3.Error as error:
        raise OSError(f"{path} cannot be read: {error}") from error


def tail(path: Path, limit: int) -> list[Event]:
    """The newest events, oldest of them first, at most `limit`.

    Raises:
        OSError: the file is absent, open to others, damaged or cannot be read.
    """
    check_readable(path)
    try:
        with closing(schema.open_reader(path)) as connection:
            newest = connection.execute(_EVENTS + " ORDER BY seq DESC LIMIT ?", (max(0, limit),)).fetchall()
    except sqlite3.Error as error:
        raise OSError(f"{path} cannot be read: {error}") from error
    return [Event(*values) for values in reversed(newest)]


def _verify(connection: sqlite3.Connection, keys: Keys, expected: Head | None) -> ChainReport:
    connection.execute("BEGIN")
    damaged = schema.damage(connection, quick=False)
    if damaged is not None:
        return ChainReport(0, Head().hash, f"the file is damaged: {damaged}")
    try:
        schema.refuse_foreign_schema(connection)
    except ValueError as error:
        return ChainReport(0, Head().hash, str(error))
    report = check(keys.chain, (Event(*values) for values in connection.execute(_EVENTS + " ORDER BY seq")), expected)
    if report.fault is not None:
        return report
    if report.events == 0:
        return replace(report, fault="the record has no first event: its events were removed")
    return replace(report, fault=_row_fault(connection, keys) or register.fault(connection, keys))


def _row_fault(connection: sqlite3.Connection, keys: Keys) -> str | None:
    for found in connection.execute(ROWS + " ORDER BY calls.rowid"):
        if (fault := row_fault(keys, found)) is not None:
            return fault
    rowless = connection.execute(_ROWLESS).fetchone()
    return None if rowless is None else f"call {rowless[0]} was removed"
