"""Tasks and stops in the ledger's file: their rows, the events that bind them, and what a check of both finds.

The event of each change holds the keyed hash of the row as it is then. The grant itself is in the row alone: it may
hold a caller's values, and the record is for names, digests and reasons. A ledger with another task or stop than these
events have is not opened: whoever can write into the file must not widen a grant or lift a stop by that.
"""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

from callgate_server.backends.sqlite import spending
from callgate_server.backends.sqlite.entries import NO_CALL
from callgate_server.backends.sqlite.rows import names, names_of, timestamp
from callgate_server.backends.sqlite.writer import Transaction
from callgate_server.ledger.chain import Keys, keyed_hash
from callgate_server.ledger.register import StoredTask, TaskAccount
from callgate_server.model.call import Caller
from callgate_server.model.spending import Budget, Charge, Scope
from callgate_server.model.strict_json import Json, decode, encode
from callgate_server.model.task import Stop, Task

T = TypeVar("T")
_EVENTS: Final = """
    SELECT kind, body FROM events WHERE call_id = '' AND kind IN ('task_created', 'task_ended', 'stopped', 'resumed')
    ORDER BY seq"""
# Backwards: a task that ends was mostly made not long ago.
_MADE: Final = """
    SELECT body FROM events WHERE call_id = '' AND kind = 'task_created' AND instr(body, ?) ORDER BY seq DESC"""


class Write(Protocol):
    async def __call__(self, work: Callable[[Transaction], T], *, owed: bool) -> T: ...


class Read(Protocol):
    async def __call__(self, query: Callable[[sqlite3.Connection], T]) -> T: ...


@dataclass(frozen=True, slots=True)
class TaskRow:
    """The columns of `tasks` in their order."""

    task_id: str
    tenant: str
    agent: str
    roles: str
    name: str
    granted: str
    budget: str
    credential: str
    created_at: str
    expires_at: str
    ended_at: str | None
    made_with: str | None = None

    @classmethod
    def of(cls, task: Task, credential: str) -> "TaskRow":
        budget = task.budget
        return cls(
            task.task_id,
            task.caller.tenant,
            task.caller.agent,
            names(task.caller.roles),
            task.name,
            encode(dict(task.grant)).decode(),
            encode([budget.calls, budget.cpu_us, budget.egress_bytes, budget.cost]).decode(),
            credential,
            timestamp(task.created_at),
            timestamp(task.expires_at),
            None if task.ended_at is None else timestamp(task.ended_at),
            task.caller.key,
        )

    def to_task(self) -> Task:
        """Decode a row.

        Raises:
            ValueError: somebody wrote what we never write.
        """
        grant, budget = decode(self.granted.encode()), decode(self.budget.encode())
        if not isinstance(grant, dict) or not isinstance(budget, list):
            raise ValueError("a task's row is damaged")
        schemas: dict[str, dict[str, Any]] = {tool: _schema(schema) for tool, schema in grant.items()}
        return Task(
            self.task_id,
            Caller(self.tenant, self.agent, names_of(self.roles), self.task_id, self.made_with),
            self.name,
            schemas,
            Budget(*(None if bound is None else int(str(bound)) for bound in budget)),
            datetime.fromisoformat(self.created_at),
            datetime.fromisoformat(self.expires_at),
            None if self.ended_at is None else datetime.fromisoformat(self.ended_at),
        )

    @property
    def scope(self) -> Scope:
        return Scope(self.tenant, self.agent, self.task_id)


@dataclass(frozen=True, slots=True)
class StopRow:
    """The columns of `stops` in their order."""

    tenant: str
    agent: str
    reason: str
    stopped_by: str
    stopped_at: str

    @classmethod
    def of(cls, stop: Stop) -> "StopRow":
        return cls(stop.tenant, stop.agent, stop.reason, stop.by, timestamp(stop.at))

    def to_stop(self) -> Stop:
        return Stop(self.tenant, self.agent, self.reason, self.stopped_by, datetime.fromisoformat(self.stopped_at))


_TASKS: Final = f"SELECT {', '.join(field.name for field in fields(TaskRow))} FROM tasks"  # noqa: S608  # our own names
_STOPS: Final = f"SELECT {', '.join(field.name for field in fields(StopRow))} FROM stops"  # noqa: S608  # our own names
# Nothing but what an index has: grants are large, and of no use any more.
ENDED: Final = "SELECT tenant, agent, task_id FROM tasks WHERE ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT ?"
_NEW_TASK: Final = f"INSERT INTO tasks VALUES ({', '.join('?' * len(fields(TaskRow)))})"  # noqa: S608  # marks
_NEW_STOP: Final = f"INSERT OR REPLACE INTO stops VALUES ({', '.join('?' * len(fields(StopRow)))})"  # noqa: S608  # marks


class SqliteRegister:
    """Implements `ledger.register.Register` over the ledger's own writer and readers."""

    def __init__(self, write: Write, read: Read) -> None:
        self._write = write
        self._read = read

    async def create_task(self, task: Task, credential: str) -> None:
        await self._write(lambda transaction: create_task(transaction, task, credential), owed=False)

    async def end_task(self, task: Task, why: str) -> Task:
        return await self._write(lambda transaction: end_task(transaction, task.task_id, why), owed=True)

    async def task(self, owner: Caller, task_id: str) -> TaskAccount | None:
        return await self._read(lambda connection: _own_task(connection, owner, task_id))

    async def tasks(self, owner: Caller, limit: int) -> list[TaskAccount]:
        return await self._read(lambda connection: _own_tasks(connection, owner, limit))

    async def stop(self, stop: Stop) -> None:
        await self._write(lambda transaction: put_stop(transaction, stop), owed=True)

    async def resume(self, tenant: str, agent: str, by: str) -> bool:
        return await self._write(lambda transaction: lift_stop(transaction, tenant, agent, by), owed=True)

    async def open_tasks(self) -> list[StoredTask]:
        return await self._read(_open_tasks)

    async def ended_tasks(self, limit: int) -> list[Caller]:
        return await self._read(lambda connection: _ended_tasks(connection, limit))

    async def stops(self) -> list[Stop]:
        return await self._read(lambda connection: [StopRow(*row).to_stop() for row in connection.execute(_STOPS)])

    async def spending(self, since_hour: int) -> list[Charge]:
        await self._write(lambda transaction: spending.forget(transaction.connection, since_hour), owed=False)
        return await self._read(lambda connection: spending.read_since(connection, since_hour))


def create_task(transaction: Transaction, task: Task, credential: str) -> None:
    row = TaskRow.of(task, credential)
    transaction.connection.execute(_NEW_TASK, astuple(row))
    body: dict[str, Json] = {
        "task_id": row.task_id,
        "tenant": row.tenant,
        "agent": row.agent,
        "roles": list(task.caller.roles),
        "key": row.made_with,
        "tools": [*sorted(task.grant)],
        "expires_at": row.expires_at,
        "row": _fingerprint(transaction.keys, row),
    }
    transaction.append(NO_CALL, "task_created", body)


def end_task(transaction: Transaction, task_id: str, why: str) -> Task:
    """Write the end of a task.

    Raises:
        ValueError: there is no such task.
    """
    row = _read_task(transaction.connection, task_id)
    if row is None:
        raise ValueError("the end of a task that is not in the record")
    if row.ended_at is None:
        # What somebody else has edited has no fingerprint any more.
        bound = _as_made(transaction, row)
        row = replace(row, ended_at=transaction.at)
        transaction.connection.execute("UPDATE tasks SET ended_at = ? WHERE task_id = ?", (row.ended_at, task_id))
        fingerprint = _fingerprint(transaction.keys, row) if bound else None
        body: dict[str, Json] = {"task_id": task_id, "why": why, "row": fingerprint}
        transaction.append(NO_CALL, "task_ended", body)
    return row.to_task()


def put_stop(transaction: Transaction, stop: Stop) -> None:
    row = StopRow.of(stop)
    transaction.connection.execute(_NEW_STOP, astuple(row))
    body: dict[str, Json] = {
        "tenant": row.tenant,
        "agent": row.agent,
        "by": row.stopped_by,
        "row": _fingerprint(transaction.keys, row),
    }
    transaction.append(NO_CALL, "stopped", body)


def lift_stop(transaction: Transaction, tenant: str, agent: str, by: str) -> bool:
    lifted = transaction.connection.execute("DELETE FROM stops WHERE tenant = ? AND agent = ?", (tenant, agent))
    if not lifted.rowcount:
        return False
    transaction.append(NO_CALL, "resumed", {"tenant": tenant, "agent": agent, "by": by})
    return True


def fault(connection: sqlite3.Connection, keys: Keys) -> str | None:
    """The first task or stop that is not as its last event has it, or None."""
    expected = _expected(connection)
    for name, row in _rows(connection):
        if expected.pop(name, None) != _fingerprint(keys, row):
            return f"{name} was changed after it was recorded"
    missing = next(iter(expected), None)
    return None if missing is None else f"{missing} was removed"


def _expected(connection: sqlite3.Connection) -> dict[str, Json]:
    """The fingerprint that each row must have, by the row's name."""
    expected: dict[str, Json] = {}
    for kind, text in connection.execute(_EVENTS):
        body = decode(text.encode())
        if not isinstance(body, dict):
            continue
        if kind in ("task_created", "task_ended"):
            expected[f"task {body.get('task_id')}"] = body.get("row")
        elif kind == "stopped":
            expected[_stop_name(body.get("tenant"), body.get("agent"))] = body.get("row")
        else:
            expected.pop(_stop_name(body.get("tenant"), body.get("agent")), None)
    return expected


def _as_made(transaction: Transaction, row: TaskRow) -> bool:
    """Whether the row of an open task is as its event has it."""
    for (text,) in transaction.connection.execute(_MADE, (row.task_id,)):
        body = decode(text.encode())
        if isinstance(body, dict) and body.get("task_id") == row.task_id:
            return body.get("row") == _fingerprint(transaction.keys, row)
    return False


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[str, TaskRow | StopRow]]:
    for values in connection.execute(_TASKS):
        yield f"task {values[0]}", TaskRow(*values)
    for values in connection.execute(_STOPS):
        yield _stop_name(values[0], values[1]), StopRow(*values)


def _stop_name(tenant: Json, agent: Json) -> str:
    return f"the stop of {tenant}/{agent}" if agent else f"the stop of {tenant}"


def _fingerprint(keys: Keys, row: TaskRow | StopRow) -> str:
    """Keyed hash of everything in the row, and of which table it is in."""
    values = astuple(row)
    if isinstance(row, TaskRow) and row.made_with is None:
        values = values[:-1]  # rows from before this column was there have the fingerprint that they were given then
    return keyed_hash(keys.row, encode([type(row).__name__, *values]))


def _read_task(connection: sqlite3.Connection, task_id: str) -> TaskRow | None:
    found = connection.execute(_TASKS + " WHERE task_id = ?", (task_id,)).fetchone()
    return None if found is None else TaskRow(*found)


def _own_task(connection: sqlite3.Connection, owner: Caller, task_id: str) -> TaskAccount | None:
    row = _read_task(connection, task_id)
    if row is None or (row.tenant, row.agent) != (owner.tenant, owner.agent):
        return None
    return TaskAccount(row.to_task(), spending.read_task(connection, row.scope))


def _own_tasks(connection: sqlite3.Connection, owner: Caller, limit: int) -> list[TaskAccount]:
    found = connection.execute(
        _TASKS + " WHERE tenant = ? AND agent = ? ORDER BY created_at DESC, task_id DESC LIMIT ?",
        (owner.tenant, owner.agent, max(0, limit)),
    ).fetchall()
    rows = [TaskRow(*values) for values in found]
    return [TaskAccount(row.to_task(), spending.read_task(connection, row.scope)) for row in rows]


def _open_tasks(connection: sqlite3.Connection) -> list[StoredTask]:
    rows = [TaskRow(*values) for values in connection.execute(_TASKS + " WHERE ended_at IS NULL")]
    return [StoredTask(row.to_task(), row.credential) for row in rows]


def _ended_tasks(connection: sqlite3.Connection, limit: int) -> list[Caller]:
    found = connection.execute(ENDED, (limit,)).fetchall()
    return [Caller(tenant, agent, (), task_id) for tenant, agent, task_id in reversed(found)]


def _schema(value: Json) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a task's row is damaged")  # it is text that somebody wrote
    return value
