"""Tables of the embedded ledger, and opening a database so that they can be trusted.

The number in `user_version` is the version of the tables. An older one is brought forward step by step, a newer
one is refused. Whatever else is in the schema was put there by somebody else and is refused as well: a trigger
or a view can make a table say anything.
"""

import sqlite3
from pathlib import Path
from typing import Final

# Each entry brings the tables one version forward; entries are never edited once released.
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE calls (
            call_id TEXT PRIMARY KEY,
            tenant TEXT NOT NULL,
            agent TEXT NOT NULL,
            task TEXT,
            roles TEXT NOT NULL,
            tool TEXT NOT NULL,
            version TEXT NOT NULL,
            policies TEXT NOT NULL,
            received_at TEXT NOT NULL,
            boot TEXT NOT NULL,
            state TEXT NOT NULL,
            effect TEXT NOT NULL,
            reason TEXT,
            message TEXT NOT NULL,
            arguments_digest TEXT NOT NULL,
            key_digest TEXT,
            holds_key INTEGER NOT NULL,
            finished_at TEXT,
            last_seq INTEGER NOT NULL,
            answer BLOB
        ) STRICT""",
        """CREATE UNIQUE INDEX calls_key ON calls (tenant, agent, tool, key_digest)
            WHERE key_digest IS NOT NULL AND holds_key = 1""",
        "CREATE INDEX calls_recent ON calls (tenant, agent, received_at, call_id)",
        """CREATE INDEX calls_open ON calls (boot)
            WHERE state IN ('admitted', 'awaiting_approval', 'running')""",
        """CREATE TABLE events (
            seq INTEGER PRIMARY KEY,
            at TEXT NOT NULL,
            call_id TEXT NOT NULL,
            kind TEXT NOT NULL,
            body TEXT NOT NULL,
            hash TEXT NOT NULL
        ) STRICT""",
        "CREATE INDEX events_call ON events (call_id, seq)",
        "CREATE INDEX events_lease ON events (call_id, kind) WHERE kind IN ('secret_leased', 'secret_revoked')",
        """CREATE TRIGGER events_are_not_edited BEFORE UPDATE ON events
            BEGIN SELECT RAISE(ABORT, 'events are append-only'); END""",
        """CREATE TRIGGER events_are_not_removed BEFORE DELETE ON events
            BEGIN SELECT RAISE(ABORT, 'events are append-only'); END""",
    ),
    (
        """CREATE INDEX calls_kept ON calls (finished_at)
            WHERE (holds_key = 1 OR answer IS NOT NULL) AND state != 'unknown' AND finished_at IS NOT NULL""",
    ),
    (
        # What a call has that the gateway carries on by itself: its sealed arguments, and how far it is.
        "ALTER TABLE calls ADD COLUMN parcel BLOB",
        "ALTER TABLE calls ADD COLUMN priority INTEGER",
        "ALTER TABLE calls ADD COLUMN attempt INTEGER",
        "ALTER TABLE calls ADD COLUMN approval TEXT",
        "ALTER TABLE calls ADD COLUMN decided_by TEXT",
        "ALTER TABLE calls ADD COLUMN decided_at TEXT",
        "ALTER TABLE calls ADD COLUMN expires_at TEXT",
        "ALTER TABLE calls ADD COLUMN dead TEXT",
        "ALTER TABLE calls ADD COLUMN follows TEXT",
        "CREATE INDEX calls_approval ON calls (tenant, approval, received_at) WHERE approval IS NOT NULL",
        "CREATE INDEX calls_dead ON calls (tenant, finished_at) WHERE dead IS NOT NULL",
    ),
    (
        # A success with a reason is a fallback: the reason is why its own tool failed.
        """CREATE INDEX calls_good ON calls (tenant, agent, tool, arguments_digest, finished_at)
            WHERE state = 'succeeded' AND reason IS NULL AND answer IS NOT NULL""",
    ),
    (
        # Tasks with their grants, and stops: each row is bound by its last event.
        """CREATE TABLE tasks (
            task_id TEXT PRIMARY KEY,
            tenant TEXT NOT NULL,
            agent TEXT NOT NULL,
            roles TEXT NOT NULL,
            name TEXT NOT NULL,
            granted TEXT NOT NULL,
            budget TEXT NOT NULL,
            credential TEXT NOT NULL,
            created_at TEXT NOT NULL,
            expires_at TEXT NOT NULL,
            ended_at TEXT
        ) STRICT""",
        "CREATE INDEX tasks_of_an_agent ON tasks (tenant, agent, created_at)",
        """CREATE TABLE stops (
            tenant TEXT NOT NULL,
            agent TEXT NOT NULL,
            reason TEXT NOT NULL,
            stopped_by TEXT NOT NULL,
            stopped_at TEXT NOT NULL,
            PRIMARY KEY (tenant, agent)
        ) STRICT, WITHOUT ROWID""",
        # What was spent, by hour since the epoch; of a task, which has one budget for its life, hour 0.
        """CREATE TABLE spending (
            tenant TEXT NOT NULL,
            agent TEXT NOT NULL,
            task TEXT NOT NULL,
            hour INTEGER NOT NULL,
            calls INTEGER NOT NULL,
            cpu_us INTEGER NOT NULL,
            egress_bytes INTEGER NOT NULL,
            cost INTEGER NOT NULL,
            PRIMARY KEY (tenant, agent, task, hour)
        ) STRICT, WITHOUT ROWID""",
    ),
    (
        # The id of the API key that a task was made with, if it was one; and all that is asked of tasks that are over.
        "ALTER TABLE tasks ADD COLUMN made_with TEXT",
        "CREATE INDEX tasks_ended ON tasks (ended_at, tenant, agent, task_id) WHERE ended_at IS NOT NULL",
    ),
)
VERSION: Final = len(MIGRATIONS)


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the existing file for writing: WAL, and every commit on the disk before it returns.

    Raises:
        sqlite3.Error: it cannot be opened or is not a database.
    """
    connection = _connect(path, "rw")
    try:
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise sqlite3.OperationalError("the file system does not support write-ahead logging")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Open the existing file for reading only.

    Raises:
        sqlite3.Error: it cannot be opened.
    """
    connection = _connect(path, "ro")
    connection.execute("PRAGMA query_only = ON")
    return connection


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to this version, all or nothing.

    Raises:
        ValueError: they are of a newer version, or not ours.
        sqlite3.Error: they cannot be read or written.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        _apply(connection)
        refuse_foreign_schema(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def refuse_foreign_schema(connection: sqlite3.Connection) -> None:
    """See that the tables are exactly ours.

    Raises:
        ValueError: the version or the schema differs.
    """
    if _version(connection) != VERSION:
        raise ValueError(f"the ledger has version {_version(connection)}, this program knows {VERSION}")
    reference = sqlite3.connect(":memory:", isolation_level=None)
    try:
        _apply(reference)
        expected = _schema(reference)
    finally:
        reference.close()
    if _schema(connection) != expected:
        raise ValueError("the tables of the ledger were changed by another program; restore it from a backup")


def rewrite_version(connection: sqlite3.Connection) -> None:
    """Write what already stands there: proves that the disk takes a change, and changes nothing."""
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _apply(connection: sqlite3.Connection) -> None:
    version = _version(connection)
    if version > VERSION:
        raise ValueError(f"the ledger has version {version}, this program knows {VERSION}: use a newer program")
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        for statement in statements:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")


def damage(connection: sqlite3.Connection, *, quick: bool) -> str | None:
    """What SQLite's own check finds broken, or None. The quick one skips the indexes' content."""
    statement = "PRAGMA quick_check(1)" if quick else "PRAGMA integrity_check(1)"
    found = str(connection.execute(statement).fetchone()[0])
    return None if found == "ok" else found


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # isolation_level None: transactions are opened and closed by us and never by the driver's guess.
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=5, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        # The pages that a call touches are few, and the system has the rest: more would be the same pages twice.
        connection.execute("PRAGMA cache_size = -512")
    except BaseException:
        connection.close()
        raise
    return connection


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _schema(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    return connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name").fetchall()
