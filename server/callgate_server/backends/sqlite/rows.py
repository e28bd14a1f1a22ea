"""A call as a row, and its fingerprint.

The fingerprint covers every column; the event that last changed the row holds it. So a row that was edited,
removed or put back to an earlier state by hand does not match its events.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from operator import attrgetter
from typing import Final

from callgate_server.ledger.chain import Keys, keyed_hash
from callgate_server.ledger.store import StoredCall
from callgate_server.model.call import Caller
from callgate_server.model.errors import Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.strict_json import decode, encode


@dataclass(frozen=True, slots=True)
class CallRow:
    """The columns of `calls`, but for `last_seq`, which says where to find the fingerprint.

    From `parcel` on they are of calls that the gateway carries on by itself, and empty for all others. `parcel` are the
    sealed arguments, `approval` the group that was asked, `dead` whether it is a dead letter and what became of that,
    `follows` the call that this one repeats.
    """

    call_id: str
    tenant: str
    agent: str
    task: str | None
    roles: str
    tool: str
    version: str
    policies: str
    received_at: str
    boot: str
    state: str
    effect: str = ""
    reason: str | None = None
    message: str = ""
    arguments_digest: str = ""
    key_digest: str | None = None
    holds_key: int = 0
    finished_at: str | None = None
    answer: bytes | None = None
    parcel: bytes | None = None
    priority: int | None = None
    attempt: int | None = None
    approval: str | None = None
    decided_by: str | None = None
    decided_at: str | None = None
    expires_at: str | None = None
    dead: str | None = None
    follows: str | None = None


COLUMNS: Final = tuple(field.name for field in fields(CallRow))
SELECT: Final = "SELECT " + ", ".join(COLUMNS) + " FROM calls"  # noqa: S608  # names of our own columns
# A list is no place for outputs: they are as large as a tool may make them.
SELECT_WITHOUT_ANSWER: Final = SELECT.replace(", answer", ", NULL").replace(
    ", parcel", ", iif(parcel IS NULL, NULL, x'')"
)
_INSERT: Final = (
    f"INSERT INTO calls ({', '.join(COLUMNS)}, last_seq) "  # noqa: S608  # names of our own columns
    f"VALUES ({', '.join('?' * (len(COLUMNS) + 1))})"
)
# What the end of a call changes. A column that stays is not named: each index on it would be written again.
_ENDED: Final = ("state", "reason", "message", "holds_key", "finished_at", "answer")
_UPDATE: Final = (
    f"UPDATE calls SET {', '.join(f'{name} = ?' for name in (*_ENDED, 'last_seq'))} "  # noqa: S608  # as above
    "WHERE call_id = ?"
)
# What each step of a call that the gateway carries changes.
_CARRIED: Final = (*_ENDED, "version", "effect", "boot", "policies", *COLUMNS[COLUMNS.index("parcel") :])
_UPDATE_CARRIED: Final = (
    f"UPDATE calls SET {', '.join(f'{name} = ?' for name in (*_CARRIED, 'last_seq'))} "  # noqa: S608  # as above
    "WHERE call_id = ?"
)
_values: Final = attrgetter(*COLUMNS)
_ended_values: Final = attrgetter(*_ENDED)
_carried_values: Final = attrgetter(*_CARRIED)
_ANSWER: Final = COLUMNS.index("answer")
_PARCEL: Final = COLUMNS.index("parcel")


def fingerprint(keys: Keys, row: CallRow) -> str:
    """Keyed hash of everything in the row."""
    # The answer and the parcel by their own hashes: they are bytes, and may be large.
    answer = None if row.answer is None else keyed_hash(keys.row, row.answer)
    values = list(_values(row))
    values[_ANSWER] = None
    if row.parcel is not None:
        values[_PARCEL] = keyed_hash(keys.row, row.parcel)
    carried = values[_PARCEL:]
    # Rows from before these columns were there have the fingerprint that they were given then.
    return keyed_hash(
        keys.row, encode([*values[:_PARCEL], answer, *(carried if carried.count(None) < len(carried) else ())])
    )


def insert(connection: sqlite3.Connection, row: CallRow, last_seq: int) -> None:
    connection.execute(_INSERT, (*_values(row), last_seq))


def end(connection: sqlite3.Connection, row: CallRow, last_seq: int) -> None:
    """Write the end of a call, or what is let go of after it, into its row, which is otherwise as it was read.

    Raises:
        ValueError: there is no such row.
    """
    _changed(connection.execute(_UPDATE, (*_ended_values(row), last_seq, row.call_id)))


def carry(connection: sqlite3.Connection, row: CallRow, last_seq: int) -> None:
    """Write a step of a call that the gateway carries into its row.

    Raises:
        ValueError: there is no such row.
    """
    _changed(connection.execute(_UPDATE_CARRIED, (*_carried_values(row), last_seq, row.call_id)))


def _changed(update: sqlite3.Cursor) -> None:
    if update.rowcount != 1:
        raise ValueError("a change of a call that is not in the record")


def read(connection: sqlite3.Connection, call_id: str) -> CallRow | None:
    found = connection.execute(SELECT + " WHERE call_id = ?", (call_id,)).fetchone()
    return None if found is None else CallRow(*found)


def read_key_holder(
    connection: sqlite3.Connection, tenant: str, agent: str, tool: str, key_digest: str
) -> CallRow | None:
    found = connection.execute(
        SELECT + " WHERE tenant = ? AND agent = ? AND tool = ? AND key_digest = ? AND holds_key = 1",
        (tenant, agent, tool, key_digest),
    ).fetchone()
    return None if found is None else CallRow(*found)


def read_last_good(connection: sqlite3.Connection, like: StoredCall, since: str) -> CallRow | None:
    """The newest success since then of the same caller with the same tool, version and arguments; no fallback."""
    found = connection.execute(
        SELECT
        + " WHERE tenant = ? AND agent = ? AND tool = ? AND arguments_digest = ? AND finished_at >= ? AND version = ?"
        + " AND state = 'succeeded' AND reason IS NULL AND answer IS NOT NULL ORDER BY finished_at DESC LIMIT 1",
        (like.caller.tenant, like.caller.agent, like.tool, like.arguments_digest, since, like.version),
    ).fetchone()
    return None if found is None else CallRow(*found)


def read_open(connection: sqlite3.Connection, boot: str) -> list[CallRow]:
    """Calls in the middle of their way that another life of the gateway claimed."""
    found = connection.execute(
        SELECT + " WHERE state IN ('admitted', 'awaiting_approval', 'running') AND boot != ?", (boot,)
    ).fetchall()
    return [CallRow(*values) for values in found]


def read_expired(connection: sqlite3.Connection, before: str, most: int) -> list[CallRow]:
    """Calls that ended before then and still hold a key or an answer, without it, oldest first.

    A call whose effect is unknown keeps its key until somebody settles it, and a dead letter all it has.
    """
    found = connection.execute(
        SELECT_WITHOUT_ANSWER
        + " WHERE finished_at < ? AND (holds_key = 1 OR answer IS NOT NULL) AND state != 'unknown'"
        + " AND dead IS NOT 'open'"
        + " ORDER BY finished_at LIMIT ?",
        (before, most),
    ).fetchall()
    return [CallRow(*values) for values in found]


def read_recent(
    connection: sqlite3.Connection, tenant: str, agent: str, limit: int, task: str | None = None
) -> list[CallRow]:
    """The newest calls of an agent, or of one of its tasks, newest first, without their answers."""
    found = connection.execute(
        SELECT_WITHOUT_ANSWER
        + " WHERE tenant = ? AND agent = ? AND task IS coalesce(?, task)"
        + " ORDER BY received_at DESC, call_id DESC LIMIT ?",
        (tenant, agent, task, max(0, limit)),
    ).fetchall()
    return [CallRow(*values) for values in found]


def to_stored(row: CallRow) -> StoredCall:
    """Decode a row.

    Raises:
        ValueError: somebody wrote what we never write.
    """
    return StoredCall(
        call_id=row.call_id,
        caller=Caller(row.tenant, row.agent, names_of(row.roles), row.task),
        tool=row.tool,
        version=row.version,
        state=State(row.state),
        arguments_digest=row.arguments_digest,
        reason=None if row.reason is None else Reason(row.reason),
        message=row.message,
        policies=names_of(row.policies),
        received_at=datetime.fromisoformat(row.received_at),
        finished_at=None if row.finished_at is None else datetime.fromisoformat(row.finished_at),
        answer_json=row.answer,
        effect=row.effect,
        kept=row.parcel is not None,
        priority=row.priority,
        attempt=row.attempt,
        approval=row.approval,
        decided_by=row.decided_by,
        decided_at=None if row.decided_at is None else datetime.fromisoformat(row.decided_at),
        expires_at=None if row.expires_at is None else datetime.fromisoformat(row.expires_at),
        dead=row.dead,
        follows=row.follows,
    )


def timestamp(at: datetime) -> str:
    """ISO 8601 in UTC with microseconds: as text it sorts as in time.

    Raises:
        ValueError: it has no time zone.
    """
    if at.tzinfo is None:
        raise ValueError("a time without a time zone")
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def names(values: Sequence[str]) -> str:
    return encode(list(values)).decode()


def names_of(text: str) -> tuple[str, ...]:
    decoded = decode(text.encode())
    if not isinstance(decoded, list) or not all(isinstance(name, str) for name in decoded):
        raise ValueError("a list of names is damaged")
    return tuple(str(name) for name in decoded)
