"""What callers have spent, as rows. They are counters beside the chain: no event binds them."""

import sqlite3
from collections.abc import Iterable
from dataclasses import astuple
from typing import Final

from callgate_server.model.spending import Amounts, Charge, Scope

_ADD: Final = """
    INSERT INTO spending (tenant, agent, task, hour, calls, cpu_us, egress_bytes, cost) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET calls = calls + excluded.calls, cpu_us = cpu_us + excluded.cpu_us,
        egress_bytes = egress_bytes + excluded.egress_bytes, cost = cost + excluded.cost"""
_SELECT: Final = "SELECT tenant, agent, task, hour, calls, cpu_us, egress_bytes, cost FROM spending "
_SINCE: Final = (
    _SELECT + "WHERE (task = '' AND hour >= ?) OR task IN (SELECT task_id FROM tasks WHERE ended_at IS NULL)"  # noqa: S608  # text of our own
)
_OF_TASK: Final = _SELECT + "WHERE tenant = ? AND agent = ? AND task = ?"


def charge(connection: sqlite3.Connection, charges: Iterable[Charge]) -> None:
    """Add to what is spent."""
    for each in charges:
        scope, amounts = each.scope, astuple(each.amounts)
        connection.execute(
            _ADD,
            (scope.tenant, scope.agent, scope.task, each.hour, *amounts),
        )


def read_since(connection: sqlite3.Connection, hour: int) -> list[Charge]:
    """What was spent from this hour on, and by every task that has not ended."""
    return [_charge(*values) for values in connection.execute(_SINCE, (hour,))]


def read_task(connection: sqlite3.Connection, scope: Scope) -> Amounts:
    """What a task has spent."""
    found = connection.execute(_OF_TASK, (scope.tenant, scope.agent, scope.task))
    return sum((_charge(*values).amounts for values in found), Amounts())


def forget(connection: sqlite3.Connection, before: int) -> None:
    """Forget what was spent in windows that are long over."""
    connection.execute("DELETE FROM spending WHERE task = '' AND hour < ?", (before,))


def _charge(
    tenant: str, agent: str, task: str, hour: int, calls: int, cpu_us: int, egress_bytes: int, cost: int
) -> Charge:
    return Charge(Scope(tenant, agent, task), hour, Amounts(calls, cpu_us, egress_bytes, cost))
