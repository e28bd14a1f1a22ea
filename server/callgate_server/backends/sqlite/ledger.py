"""The embedded ledger: one SQLite file behind the contract of `ledger/store.py`.

Decides how the contract's calls reach the writer thread and the readers, and what must hold before the file is
used at all. What a call writes is `entries.py`, how it gets to the disk `writer.py`.
"""

import asyncio
import contextlib
import logging
import queue
import secrets
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

from callgate_server.backends.sqlite import carried, entries, parcels, register, rows, schema
from callgate_server.backends.sqlite.audit import verify_file
from callgate_server.backends.sqlite.files import LedgerFiles
from callgate_server.backends.sqlite.register import SqliteRegister
from callgate_server.backends.sqlite.rows import CallRow
from callgate_server.backends.sqlite.spool import Spool
from callgate_server.backends.sqlite.writer import Transaction, Writer, unavailable
from callgate_server.backends.threads import full_pool
from callgate_server.ledger.chain import Event, Keys, check, keyed_hash
from callgate_server.ledger.store import (
    Beginning,
    ChainReport,
    Completion,
    Intent,
    Keeping,
    OpenLease,
    Parcel,
    Refusal,
    Step,
    StoredCall,
)
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import IN_FLIGHT, State
from callgate_server.model.sealed import Sealed
from callgate_server.model.spending import Charge
from callgate_server.model.strict_json import Json
from callgate_server.model.task import is_task_of_ours

T = TypeVar("T")
MAX_LISTED: Final = 1000
# Few enough that a call's intent never waits long behind them.
EXPIRED_AT_ONCE: Final = 16
_READERS: Final = 2

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
        self._now = now
        # Names this life of the gateway in the rows it claims: rows of another life have nobody to end them.
        self._boot = secrets.token_hex(8)
        self._spool = Spool.open(files.path.with_name(files.path.name + ".spool"), self._keys.spool)
        self._writer = Writer(files, self._keys, now)
        self._readers = full_pool(_READERS, "ledger-reader")
        self._idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        for _ in range(_READERS):
            self._idle.put(_tried_reader(files.path))
        # Rows of calls that run, as they were written: their ends are made of these, whatever the file says meanwhile.
        self._begun: dict[str, CallRow] = {}
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

    @property
    def register(self) -> SqliteRegister:
        """The tasks, the stops and the spending that are in the same file."""
        return SqliteRegister(self._write, self._read)

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

    async def claim(self, intent: Intent, keeping: Keeping | None = None) -> StoredCall | None:
        key_digest = None if intent.idempotency_key is None else self._key_digest(intent.idempotency_key)
        parcel = None if keeping is None else parcels.seal(self._keys.parcel, intent.call_id, keeping.parcel)
        row = await self._write(
            lambda transaction: entries.claim(transaction, intent, key_digest, self._boot, keeping, parcel), owed=False
        )
        if row.call_id != intent.call_id:
            return self._stored(row)
        if keeping is None:
            self._begun[row.call_id] = row
        return None

    async def parcel(self, call_id: str) -> Parcel | None:
        row = await self._read(lambda connection: rows.read(connection, call_id))
        if row is None or row.parcel is None:
            return None
        try:
            return parcels.unseal(self._keys.parcel, call_id, row.parcel)
        except ValueError as error:
            _log.exception("what is kept of call %s was changed by somebody", call_id)
            raise CallError(Reason.NOT_POSSIBLE, "What was kept of this call cannot be read any more.") from error

    async def begin(self, beginning: Beginning) -> None:
        row = await self._write(lambda transaction: carried.begin(transaction, beginning, self._boot), owed=True)
        self._begun[row.call_id] = row

    async def decide(self, call_id: str, by: str, *, approve: bool, charges: tuple[Charge, ...] = ()) -> StoredCall:
        return await self._changed(
            partial(carried.decide, call_id=call_id, by=by, now=self._now(), approve=approve, charges=charges)
        )

    async def waiting(self) -> list[StoredCall]:
        found = await self._read(carried.read_waiting)
        stored = ((self._stored(row), last_seq) for row, last_seq in found)
        return [
            replace(call, changed_seq=last_seq)
            for call, last_seq in stored
            # The end of one may wait in the spool.
            if call is not None and call.state in IN_FLIGHT
        ]

    async def approvals(self, tenant: str, groups: Collection[str], limit: int) -> list[StoredCall]:
        most = min(limit, MAX_LISTED)
        return self._all_stored(
            await self._read(partial(carried.read_approvals, tenant=tenant, groups=groups, most=most))
        )

    async def dead_letters(self, tenant: str, agent: str | None, limit: int) -> tuple[list[StoredCall], int]:
        most = min(limit, MAX_LISTED)
        found, total = await self._read(partial(carried.read_dead, tenant=tenant, agent=agent, most=most))
        return self._all_stored(found), total

    async def census(self) -> Mapping[str, int]:
        return await self._read(carried.read_census)

    async def unknown(self, limit: int) -> list[StoredCall]:
        return self._all_stored(
            await self._read(partial(carried.read_unknown, keys=self._keys, most=min(limit, MAX_LISTED)))
        )

    async def discard(self, call_id: str, by: str) -> StoredCall:
        return await self._changed(lambda transaction: entries.bury(transaction, call_id, "discarded", {"by": by}))

    async def settle(self, call_id: str, state: State, by: str) -> StoredCall:
        return await self._changed(partial(carried.settle_by_hand, call_id=call_id, state=state, by=by))

    async def steps(self, call_id: str) -> list[Step]:
        return await self._read(partial(carried.read_steps, call_id=call_id))

    async def note(self, call_id: str, kind: str, body: Mapping[str, Json]) -> None:
        await self._write(lambda transaction: entries.note(transaction, call_id, kind, dict(body)), owed=True)

    async def remark(self, kind: str, body: Mapping[str, Json]) -> None:
        await self._write(lambda transaction: entries.remark(transaction, kind, dict(body)), owed=True)

    async def replayed(self, original: StoredCall, call_id: str, caller: Caller, at: datetime) -> None:
        await self._write(
            lambda transaction: entries.replay(transaction, original, call_id, caller, at, self._boot), owed=False
        )

    async def complete(self, completion: Completion) -> None:
        """See `Ledger`. Where the record cannot be written, the outcome is durable in the spool until it can."""
        row = self._begun.pop(completion.call_id, None)
        try:
            await self._write(lambda transaction: entries.complete(transaction, completion, row), owed=True)
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

    async def expire_dead(self, before: datetime) -> int:
        """Give up a bite of the dead letters that nobody looked at since then; return how many it were.

        Raises:
            CallError: `audit_unavailable`.
        """
        work = partial(entries.expire_dead, before=before, most=EXPIRED_AT_ONCE)
        return await self._write(work, owed=False)

    async def find(self, caller: Caller, tool: str, idempotency_key: str) -> StoredCall | None:
        key_digest = self._key_digest(idempotency_key)
        return self._stored(
            await self._read(
                lambda connection: rows.read_key_holder(connection, caller.tenant, caller.agent, tool, key_digest)
            )
        )

    async def last_good(self, like: StoredCall, since: datetime) -> StoredCall | None:
        return self._stored(
            await self._read(lambda connection: rows.read_last_good(connection, like, rows.timestamp(since)))
        )

    async def get(self, call_id: str) -> StoredCall | None:
        return self._stored(await self._read(lambda connection: rows.read(connection, call_id)))

    async def recent(self, caller: Caller, limit: int) -> list[StoredCall]:
        """See `Ledger`. `answer_json` is left out: a list is no place for outputs of any size."""
        task = caller.task if is_task_of_ours(caller.task) else None
        found = await self._read(
            lambda connection: rows.read_recent(connection, caller.tenant, caller.agent, min(limit, MAX_LISTED), task)
        )
        return [replace(stored, answer_json=None) for stored in self._all_stored(found)]

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

    async def _changed(self, work: Callable[[Transaction], CallRow]) -> StoredCall:
        """Write a change and return the call as it is then."""
        stored = self._stored(await self._write(work, owed=False))
        if stored is None:
            raise unavailable()
        return stored

    def _all_stored(self, found: Iterable[CallRow]) -> list[StoredCall]:
        return [stored for row in found if (stored := self._stored(row)) is not None]

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
        loop = asyncio.get_running_loop()
        written: asyncio.Future[T] = loop.create_future()
        self._writer.submit(work, partial(_tell, loop, written), owed=owed)
        return await written

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


def _tell(loop: asyncio.AbstractEventLoop, written: asyncio.Future[T], outcome: T | CallError) -> None:
    """Hand over to the loop, from another thread, what became of a write."""
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(_settle, written, outcome)


def _settle(written: asyncio.Future[T], outcome: T | CallError) -> None:
    if written.done():  # whoever asked has stopped waiting
        return
    if isinstance(outcome, CallError):
        written.set_exception(outcome)
    else:
        written.set_result(outcome)


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
            forged = register.fault(connection, keys)
            if forged is not None:
                raise ValueError(f"{path}: {forged}; restore it from a backup or start a new one elsewhere")
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
        Transaction(connection, keys, now).append(entries.NO_CALL, entries.GENESIS, {"version": schema.VERSION})
        _log.warning("a new, empty ledger was started")
    elif check(keys.chain, [Event(*first)]).fault is not None:
        raise ValueError("the ledger was sealed with another key: restore the key file that belongs to it")
    connection.execute("COMMIT")
