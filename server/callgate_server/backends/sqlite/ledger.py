"""The embedded ledger: one SQLite file behind the contract of `ledger/store.py`.

Decides how the contract's calls reach the writer thread and the readers, and what must hold before the file is
used at all. What a call writes is `entries.py`, how it gets to the disk `writer.py`.
"""

import asyncio
import logging
import queue
import secrets
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

from callgate_server.backends.sqlite import entries, rows, schema
from callgate_server.backends.sqlite.audit import verify_file
from callgate_server.backends.sqlite.files import LedgerFiles
from callgate_server.backends.sqlite.rows import CallRow
from callgate_server.backends.sqlite.spool import Spool
from callgate_server.backends.sqlite.writer import Transaction, Writer, unavailable
from callgate_server.backends.threads import full_pool
from callgate_server.ledger.chain import Event, Keys, check, keyed_hash
from callgate_server.ledger.store import ChainReport, Completion, Intent, OpenLease, Refusal, StoredCall
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import IN_FLIGHT
from callgate_server.model.sealed import Sealed
from callgate_server.model.strict_json import Json

T = TypeVar("T")
MAX_LISTED: Final = 1000
# Few enough that a call's intent never waits long behind them.
EXPIRED_AT_ONCE: Final = 64
_READERS: Final = 2
_GENESIS_KIND: Final = "genesis"

_log = logging.getLogger(__name__)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class SqliteLedger:
    """Implements `Ledger`. Make one with `open`, end it with `close`.

    A write that was asked for is carried out, even if whoever asked stops waiting for it.
    """

    def __init__(self, files: LedgerFiles, key: Sealed, now: Callable[[], datetime]) -> None:
        self._files = files
        self._key = key
        self._keys = Keys.derive(key)
        # Names this life of the gateway in the rows it claims: rows of another life have nobody to end them.
        self._boot = secrets.token_hex(8)
        self._spool = Spool.open(files.path.with_name(files.path.name + ".spool"), self._keys.spool)
        self._writer = Writer(files, self._keys, now)
        self._readers = full_pool(_READERS, "ledger-reader")
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        for _ in range(_READERS):
            self._idle.put(_tried_reader(files.path))
        self._closed = False

    @classmethod
    def open(cls, path: Path, key: Sealed, *, now: Callable[[], datetime] = _utc_now) -> Self:
        """Take the ledger at `path` for this process, making it when there is none. Blocks: the file is checked.

        Raises:
            PermissionError: the file or its folder is open to others.
            BlockingIOError: another gateway holds it.
            ValueError: it is damaged, of a newer version, changed by another program, or sealed with another key.
            OSError: it cannot be read or written.
        """
        files = LedgerFiles.hold(path)
        try:
            _prepare(path, Keys.derive(key), now())
            return cls(files, key, now)
        except BaseException:
            files.release()
            raise

    async def close(self) -> None:
        """Write what waits, then let go of the file. Idempotent."""
        if self._closed:
            return
        await self.move_spooled()
        self._closed = True
        await asyncio.to_thread(self._readers.shutdown)
        while not self._idle.empty():
            self._idle.get_nowait().close()
        # Last: who closes the database last folds the log into it, and a reader cannot.
        await asyncio.to_thread(self._writer.close)
        self._spool.close()
        self._files.release()

    def digest(self, data: bytes) -> str:
        return keyed_hash(self._keys.value, data)

    async def refuse(self, refusal: Refusal) -> None:
        await self._write(lambda transaction: entries.refuse(transaction, refusal, self._boot), owed=False)

    async def claim(self, intent: Intent) -> StoredCall | None:
        key_digest = None if intent.idempotency_key is None else self._key_digest(intent.idempotency_key)
        holder = await self._write(
            lambda transaction: entries.claim(transaction, intent, key_digest, self._boot), owed=False
        )
        return self._stored(holder)

    async def note(self, call_id: str, kind: str, body: Mapping[str, Json]) -> None:
        await self._write(lambda transaction: entries.note(transaction, call_id, kind, dict(body)), owed=True)

    async def replayed(self, original: StoredCall, call_id: str, caller: Caller, at: datetime) -> None:
        await self._write(
            lambda transaction: entries.replay(transaction, original, call_id, caller, at, self._boot), owed=False
        )

    async def complete(self, completion: Completion) -> None:
        """See `Ledger`. Where the record cannot be written, the outcome is durable in the spool until it can."""
        try:
            await self._write(lambda transaction: entries.complete(transaction, completion), owed=True)
        except CallError as refusal:
            if refusal.reason is not Reason.AUDIT_UNAVAILABLE or self._closed:
                raise
            await asyncio.to_thread(self._spool_or_refuse, completion)

    async def move_spooled(self) -> None:
        """Move the outcomes that wait in the spool to the record, as far as it takes them now."""
        for completion in self._spool.waiting():
            try:
                await self._write(partial(entries.complete_late, completion=completion), owed=True)
                await asyncio.to_thread(self._spool.moved, completion.call_id)
            except (CallError, OSError):
                return  # the next round tries again, and the record's state is visible as such
            _log.warning("an outcome was moved from the spool to the record: call %s", completion.call_id)

    async def settle_orphans(self) -> list[OpenLease]:
        """End what an earlier life of this gateway left unfinished; return every lease that is still open.

        A call that may be run twice becomes `interrupted`, any other `unknown`. Both keep their keys: the first for
        its next attempt, the second so that there is none. Call it once, before the first call is taken, and note
        `secret_revoked` for each lease revoked.

        Raises:
            CallError: `audit_unavailable`.
        """
        # First: a call whose outcome is known was not interrupted, even where there is no room yet to write it.
        await self.move_spooled()
        ended = {completion.call_id for completion in self._spool.waiting()}
        return await self._write(lambda transaction: entries.settle(transaction, self._boot, ended), owed=True)

    async def expire(self, before: datetime) -> int:
        """Forget a bite of the keys and answers of calls that ended before then; return how many it were.

        Raises:
            CallError: `audit_unavailable`.
        """
        return await self._write(lambda transaction: entries.expire(transaction, before, EXPIRED_AT_ONCE), owed=False)

    async def find(self, caller: Caller, tool: str, idempotency_key: str) -> StoredCall | None:
        key_digest = self._key_digest(idempotency_key)
        return self._stored(
            await self._read(
                lambda connection: rows.read_key_holder(connection, caller.tenant, caller.agent, tool, key_digest)
            )
        )

    async def get(self, call_id: str) -> StoredCall | None:
        return self._stored(await self._read(lambda connection: rows.read(connection, call_id)))

    async def recent(self, caller: Caller, limit: int) -> list[StoredCall]:
        """See `Ledger`. `answer_json` is left out: a list is no place for outputs of any size."""
        found = await self._read(
            lambda connection: rows.read_recent(connection, caller.tenant, caller.agent, min(limit, MAX_LISTED))
        )
        return [replace(stored, answer_json=None) for row in found if (stored := self._stored(row)) is not None]

    async def verify(self) -> ChainReport:
        return await self._in_reader(lambda: verify_file(self._files.path, self._key))

    async def probe(self) -> None:
        """Prove that the record can be written now, without changing what it says.

        Raises:
            CallError: `audit_unavailable`.
        """
        await self._write(lambda transaction: schema.rewrite_version(transaction.connection), owed=False)

    def _spool_or_refuse(self, completion: Completion) -> None:
        try:
            self._spool.keep(completion)
        except (OSError, ValueError) as fault:
            _log.exception("the outcome of call %s is neither in the record nor in the spool", completion.call_id)
            raise unavailable() from fault
        _log.warning("an outcome waits in the spool until the record can be written: call %s", completion.call_id)

    def _stored(self, row: CallRow | None) -> StoredCall | None:
        """Decode a row, as it will be when what waits in the spool is in it."""
        stored = _stored(row)
        late = None if stored is None else self._spool.find(stored.call_id)
        if stored is None or late is None or stored.state not in IN_FLIGHT:
            return stored
        return replace(stored, state=late.state, reason=late.reason, message=late.message, answer_json=late.answer_json)

    def _key_digest(self, idempotency_key: str) -> str:
        # A caller's text: it is recognised again and never written.
        return keyed_hash(self._keys.idempotency, idempotency_key.encode("utf-8", "surrogatepass"))

    async def _write(self, work: Callable[[Transaction], T], *, owed: bool) -> T:
        return await asyncio.wrap_future(self._writer.submit(work, owed=owed))

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        return await self._in_reader(lambda: self._query(query))

    async def _in_reader(self, work: Callable[[], T]) -> T:
        if self._closed:
            raise unavailable()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, work)
        except (sqlite3.Error, OSError, MemoryError) as fault:
            raise unavailable() from fault

    def _query(self, query: Callable[[sqlite3.Connection], T]) -> T:
        self._files.check()
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = schema.open_reader(self._files.path)
        try:
            result = query(connection)
        except BaseException:
            connection.close()
            raise
        self._idle.put(connection)
        return result


def _tried_reader(path: Path) -> sqlite3.Connection:
    """Connect a reader that has read: the index of the log, without which nobody reads, needs room while it is made."""
    reader = schema.open_reader(path)
    reader.execute("SELECT 1 FROM events LIMIT 1").fetchone()
    return reader


def _stored(row: CallRow | None) -> StoredCall | None:
    try:
        return None if row is None else rows.to_stored(row)
    except ValueError as error:
        # Somebody wrote what we never write: it is no record of anything.
        raise unavailable() from error


def _prepare(path: Path, keys: Keys, now: datetime) -> None:
    """Check the file and bring its tables up to date, before anything is read from it or added to it."""
    try:
        connection = schema.open_writer(path)
        try:
            found = schema.damage(connection, quick=True)
            if found is not None:
                raise ValueError(f"{path} is damaged ({found}); restore it from a backup or start a new one elsewhere")
            schema.migrate(connection)
            _seal(connection, keys, now)
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        raise OSError(f"{path} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"{path} is damaged ({error}); restore it from a backup or start a new one elsewhere"
        ) from error


def _seal(connection: sqlite3.Connection, keys: Keys, now: datetime) -> None:
    """Write the first event of a new ledger, or see that the first event of an old one was made with this key."""
    connection.execute("BEGIN IMMEDIATE")
    first = connection.execute("SELECT seq, at, call_id, kind, body, hash FROM events WHERE seq = 1").fetchone()
    if first is None:
        if connection.execute("SELECT 1 FROM calls LIMIT 1").fetchone() is not None:
            raise ValueError("the ledger has calls but no first event: events were removed; restore it from a backup")
        Transaction(connection, keys, now).append("", _GENESIS_KIND, {"version": schema.VERSION})
        _log.warning("a new, empty ledger was started")
    elif check(keys.chain, [Event(*first)]).fault is not None:
        raise ValueError("the ledger was sealed with another key: restore the key file that belongs to it")
    connection.execute("COMMIT")
