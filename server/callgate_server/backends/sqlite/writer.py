"""The one thread that writes the ledger, and its group commit.

Everything that waits when the thread comes round is written in one transaction: one wait for the disk serves
all of it, and nothing waits for the sake of a larger group. Items that share a transaction have a savepoint each, so
that one that cannot be written fails alone. An asker hears of its write only after the commit.

Where the chain ends is read once and then known: no other process writes this file (`files.py`). After any failure
that is forgotten, and the connection is closed and the next group opens a new one: what made writing impossible (a
full disk, a file open to others) ends by itself or by an operator's hand, and the ledger goes on without a restart.
"""

import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

from callgate_server.backends.sqlite import schema
from callgate_server.backends.sqlite.files import LedgerFiles
from callgate_server.backends.sqlite.rows import timestamp
from callgate_server.ledger.chain import Head, Keys, follow
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.strict_json import Json, encode

T = TypeVar("T")
MAX_GROUP: Final = 256
# New calls beyond this are refused; what running calls owe the record is always taken.
MAX_WAITING: Final = 4096
_STORE_FAULTS: Final = (sqlite3.Error, OSError, MemoryError)

_log = logging.getLogger(__name__)


class _MovedOnError(sqlite3.OperationalError):
    """The chain does not end where it was known to end: another program has written to it."""


class Transaction:
    """What one item may do: SQL on the connection, and events at the chain's end."""

    def __init__(self, connection: sqlite3.Connection, keys: Keys, at: datetime, head: Head | None = None) -> None:
        """Without a `head`, that of the file is read."""
        self.connection = connection
        self.keys = keys
        self.at = timestamp(at)
        self.head = _newest(connection) if head is None else head

    def append(self, call_id: str, kind: str, body: dict[str, Json]) -> int:
        """Append an event and return its number."""
        event = follow(self.keys.chain, self.head, self.at, call_id, kind, encode(body).decode())
        try:
            self.connection.execute(
                "INSERT INTO events (seq, at, call_id, kind, body, hash) VALUES (?, ?, ?, ?, ?, ?)",
                (event.seq, event.at, event.call_id, event.kind, event.body, event.hash),
            )
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
                raise  # not its number: something in it is ours to mend
            raise _MovedOnError(str(error)) from error
        self.head = Head(event.seq, event.hash)
        return event.seq


def _newest(connection: sqlite3.Connection) -> Head:
    newest = connection.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    return Head() if newest is None else Head(*newest)


class _Item(NamedTuple):
    work: Callable[[Transaction], Any]
    tell: Callable[[Any], None]


class Writer:
    """Writes items in the order in which they were given. `submit` may be called from any thread."""

    def __init__(self, files: LedgerFiles, keys: Keys, now: Callable[[], datetime]) -> None:
        self._files = files
        self._keys = keys
        self._now = now
        # None, the last that is ever put, ends the thread. This queue waits without a lock of ours.
        self._waiting: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._door = threading.Lock()
        self._closing = False
        self._connection: sqlite3.Connection | None = None
        self._head: Head | None = None
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Transaction], T], tell: Callable[[T | CallError], None], *, owed: bool) -> None:
        """Queue one item. `owed`: a call that is already admitted needs it, so it is taken however many wait.

        Nobody can take it back: who stops waiting does not undo what was asked for. `tell` is called once, in the
        writer's thread, and must neither block nor raise: with the work's result when that is durable, with its
        `CallError`, or with `CallError(audit_unavailable)` when it could not be written.

        Raises:
            CallError: `audit_unavailable` (closed, or too many waiting).
        """
        with self._door:
            if self._closing or (self._waiting.qsize() >= MAX_WAITING and not owed):
                raise unavailable()
            self._waiting.put(_Item(work, tell))

    def close(self) -> None:
        """Write what waits, then stop. Blocks until done. Idempotent."""
        with self._door:
            if not self._closing:
                self._closing = True
                self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            group = self._next_group()
            if last := group[-1] is None:
                group.pop()
            if group:
                self._write([item for item in group if item is not None])
        self._disconnect()

    def _next_group(self) -> list[_Item | None]:
        """Wait for work, and take with it what waits by now."""
        group = [self._waiting.get()]
        with contextlib.suppress(queue.Empty):
            while len(group) < MAX_GROUP:
                group.append(self._waiting.get_nowait())
        return group

    def _write(self, group: list[_Item]) -> None:
        try:
            connection = self._begin()
            transaction = Transaction(connection, self._keys, self._now(), self._head)
        except Exception as fault:  # whatever it is: this thread lives on, and the askers hear of it
            self._disconnect()
            self._fail(group, fault)
            return
        try:
            outcomes = [_attempt(transaction, item.work, shared=len(group) > 1) for item in group]
            if len(group) > 1 or not isinstance(outcomes[0], CallError):  # a lone item took its transaction back
                connection.execute("COMMIT")
        except Exception as fault:  # as above
            remembered = self._head is not None
            self._disconnect()
            if remembered and isinstance(fault, _MovedOnError):
                self._write(group)  # where the chain ends now; what is wrong with it, `verify` says
            else:
                self._write_halves(group, fault)
            return
        self._head = transaction.head
        self._note_success()
        for item, outcome in zip(group, outcomes, strict=True):
            item.tell(outcome)

    def _write_halves(self, group: list[_Item], fault: BaseException) -> None:
        """Find what in a group cannot be written, such as an answer larger than the space left, and write the rest."""
        if len(group) == 1:
            self._fail(group, fault)
            return
        middle = len(group) // 2
        self._write(group[:middle])
        self._write(group[middle:])

    def _fail(self, group: list[_Item], fault: BaseException) -> None:
        # Whatever else fails here: who waits is told first.
        for item in group:
            item.tell(unavailable())
        if not self._failing:
            self._failing = True
            _log.error("the ledger cannot be written, calls are refused: %s", fault, exc_info=fault)

    def _begin(self) -> sqlite3.Connection:
        connection = self._connect()
        connection.execute("BEGIN IMMEDIATE")
        return connection

    def _connect(self) -> sqlite3.Connection:
        self._files.check()
        if self._connection is None:
            self._connection = schema.open_writer(self._files.path)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection, self._head = self._connection, None, None
        if connection is not None:
            # Closing rolls an open transaction back. It may fail for the reason that brought us here.
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _note_success(self) -> None:
        if self._failing:
            _log.warning("the ledger can be written again")
        self._failing = False


def _attempt(transaction: Transaction, work: Callable[[Transaction], Any], *, shared: bool) -> Any:  # noqa: ANN401  # each item's own
    """Do one item and return its result or its refusal; only faults of the store itself reach the group.

    A refused item is undone by its savepoint, and where it has the transaction for itself, with that.
    """
    head, execute = transaction.head, transaction.connection.execute
    if shared:
        execute("SAVEPOINT item")
    try:
        result = work(transaction)
    except CallError as refusal:
        result = refusal
    except sqlite3.IntegrityError as error:
        result = _misuse(error)
    except _STORE_FAULTS:
        raise
    except Exception as error:  # a defect in one item must not take its neighbours along
        result = _misuse(error)
    if isinstance(result, CallError):
        execute("ROLLBACK TO item" if shared else "ROLLBACK")
        transaction.head = head
    if shared:
        execute("RELEASE item")
    return result


def unavailable() -> CallError:
    return CallError(Reason.AUDIT_UNAVAILABLE, "The call cannot be recorded, so it is refused; try again later.")


def _misuse(error: Exception) -> CallError:
    _log.error("the ledger refused an entry", exc_info=error)
    return CallError(Reason.INTERNAL, "The record refused this entry.")
