"""What binds the row of a call to the record: the last event that changed it holds the row's fingerprint.

A row may be edited by somebody who has the file and not the key. The next change of such a row must not make it
good: it is asked here first, by whoever changes one that only the file knows.
"""

import logging
import sqlite3
from typing import Any, Final

from callgate_server.backends.sqlite.rows import COLUMNS, CallRow, fingerprint
from callgate_server.ledger.chain import Keys
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.strict_json import Json, decode

# Kinds of event that carry a fingerprint; a note has any other name.
OF_STATE: Final = frozenset(
    (
        *("refused", "intent", "replayed", "outcome", "settled", "retried", "expired"),
        *("began", "approved", "denied", "requeued", "redriven", "discarded"),
    )
)
KINDS: Final = ", ".join(f"'{kind}'" for kind in sorted(OF_STATE))
# The rows of calls, each with the event that it points to, and whether that is the last one that changed it.
ROWS: Final = f"""
    SELECT {", ".join(f"calls.{name}" for name in COLUMNS)}, events.kind, events.body,
        calls.last_seq = (SELECT max(seq) FROM events WHERE call_id = calls.call_id AND kind IN ({KINDS}))
    FROM calls LEFT JOIN events ON events.seq = calls.last_seq AND events.call_id = calls.call_id"""  # noqa: S608  # names of our own

_log = logging.getLogger(__name__)


def row_fault(keys: Keys, found: tuple[Any, ...]) -> str | None:
    """What is wrong with one of `ROWS`, or None."""
    *values, kind, body, newest = found
    row = CallRow(*values)
    if kind is None or not newest or kind not in OF_STATE:
        return f"call {row.call_id} does not point to the last event that changed it"
    if _fingerprint_in(body) != fingerprint(keys, row):
        return f"call {row.call_id} was changed after it was recorded"
    return None


def edited(connection: sqlite3.Connection, keys: Keys, call_id: str) -> bool:
    """Whether a call's row is not as it was recorded."""
    found = connection.execute(ROWS + " WHERE calls.call_id = ?", (call_id,)).fetchone()
    fault = "its row was removed" if found is None else row_fault(keys, found)
    if fault is not None:
        _log.error("the record was changed by another program: %s", fault)
    return fault is not None


def refuse_edited(connection: sqlite3.Connection, keys: Keys, call_id: str) -> None:
    """Nothing is begun for whom somebody wrote into the file.

    Raises:
        CallError: `not_possible`.
    """
    if edited(connection, keys, call_id):
        raise CallError(
            Reason.NOT_POSSIBLE,
            "The record of this call was changed by another program; `callgated audit verify` says more.",
        )


def _fingerprint_in(body: str) -> Json:
    try:
        said = decode(body.encode())
    except ValueError:
        return None
    return said.get("row") if isinstance(said, dict) else None
