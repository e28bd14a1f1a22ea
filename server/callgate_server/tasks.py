"""What an agent may do with its tasks: make one with a grant, look at them, end one.

A task's credential is narrower than its agent's: it makes no tasks and administers nothing. It is shown once, and kept
as a keyed digest. Another agent's task answers exactly like one that does not exist.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from callgate_server.admission.authenticate import Authentication
from callgate_server.admission.budgets import Budgets
from callgate_server.admission.stops import StopList
from callgate_server.admission.tasks import (
    ENDED_KEPT,
    PREFIX,
    Compile,
    LiveTask,
    LiveTasks,
    credential_digest,
    refuse_tasks,
    unknown_task,
)
from callgate_server.ledger.register import Register, TaskAccount
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Catalog
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.sealed import Sealed
from callgate_server.model.spending import MILLION, Amounts, Budget, Scope
from callgate_server.model.task import Task, is_task_of_ours, new_task_id

MAX_LISTED: Final = 200
MAX_GRANTED_TOOLS: Final = 64
MAX_LIFETIME_S: Final = 30 * 86_400


@dataclass(frozen=True, slots=True)
class TaskWish:
    """A task as it was asked for; nothing in it is trusted but its form."""

    name: str
    grant: Mapping[str, Mapping[str, Any]]
    lifetime_s: float
    budget: Budget


@dataclass(frozen=True, slots=True)
class Tasks:
    """`most` is how many of one agent's tasks may not be over, `hasten` counts in the rates that its calls have."""

    authentication: Authentication
    catalog: Catalog
    register: Register
    live: LiveTasks
    stops: StopList
    budgets: Budgets
    compiled: Compile
    digest: Callable[[bytes], str]
    most: int
    hasten: Callable[[Caller], None]
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    async def create(self, token: str | None, wish: TaskWish) -> tuple[dict[str, Any], Sealed]:
        """Make a task for the caller, and return it with its credential, which nobody can learn later.

        Raises:
            CallError: `outside_grant` (a task makes none), `stopped`, `invalid_request`, `unknown_tool`, `overloaded`
                (too many that are not over), `rate_limited`, `audit_unavailable`.
        """
        caller = await self.authentication.identify(token)
        refuse_tasks(caller, "make tasks")
        self.stops.refuse(caller)
        self._check(wish)
        task = self._task(caller, wish)
        credential = PREFIX + secrets.token_urlsafe(32)
        live = self._prepared(task, credential_digest(self.digest, credential))
        if self.live.count(caller) >= self.most:
            raise CallError(
                Reason.OVERLOADED, f"This agent has {self.most} tasks that are not over; end one.", retry_after_ms=1000
            )
        self.hasten(caller)
        # Before it is durable, so that many at once cannot be more than may be. Nobody has its credential yet.
        self.live.add(live)
        try:
            await self.register.create_task(task, live.credential)
        except CallError:
            self.live.end(task)
            raise
        except asyncio.CancelledError:
            # Nobody will ever have its credential. Its end is written behind it, should it be written.
            self.live.end(task)
            with contextlib.suppress(CallError):
                await self.register.end_task(task, "given up")
            raise
        return task_document(TaskAccount(task, Amounts())), Sealed(credential.encode())

    async def list(self, token: str | None, limit: int) -> list[dict[str, Any]]:
        """The caller's newest tasks, newest first; of a task's credential its own alone."""
        caller = await self.authentication.identify(token)
        accounts = await self.register.tasks(caller, min(limit, MAX_LISTED))
        return [task_document(account) for account in accounts if _may_see(caller, account.task)]

    async def show(self, token: str | None, task_id: str) -> dict[str, Any]:
        """One task of the caller with what it has spent.

        Raises:
            CallError: `unknown_task`.
        """
        caller = await self.authentication.identify(token)
        return task_document(await self._own(caller, task_id))

    async def end(self, token: str | None, task_id: str) -> dict[str, Any]:
        """End a task: its credential is worthless from then on. What runs of it goes on. One that is over stays so.

        Raises:
            CallError: `unknown_task`, or `audit_unavailable`: if it holds, then until the gateway restarts.
        """
        caller = await self.authentication.identify(token)
        account = await self._own(caller, task_id)
        # Before it is written: whoever asked may leave meanwhile, and no credential outlives its end.
        self._forget(account.task)
        ended = await self.register.end_task(account.task, "asked for")
        return task_document(TaskAccount(ended, account.spent))

    async def expire(self) -> None:
        """Write the end of what is over by now."""
        for task in self.live.expire():
            self._forget(task)
            await self.register.end_task(task, "expired")

    async def load(self) -> tuple[str, ...]:
        """Take over the tasks of before; return the ids of those whose grant cannot be used any more.

        Raises:
            CallError: `audit_unavailable`.
        """
        unusable = []
        for owner in await self.register.ended_tasks(ENDED_KEPT):
            self.live.remember(owner)
        for stored in await self.register.open_tasks():
            try:
                self.live.add(LiveTask.of(stored.task, stored.credential, self.compiled))
            except ValueError:
                unusable.append(stored.task.task_id)
        return tuple(unusable)

    def _check(self, wish: TaskWish) -> None:
        if not 1 <= len(wish.name) <= 200 or not wish.name.isprintable():
            raise _unacceptable("`name` is one line of 1 to 200 printable characters.")
        if not 0 < wish.lifetime_s <= MAX_LIFETIME_S:
            raise _unacceptable(f"`lifetime_s` is more than 0 and at most {MAX_LIFETIME_S} seconds.")
        if not 1 <= len(wish.grant) <= MAX_GRANTED_TOOLS:
            raise _unacceptable(f"`grant` names 1 to {MAX_GRANTED_TOOLS} tools.")
        if any(tool not in self.catalog.tools for tool in wish.grant):
            raise CallError(Reason.UNKNOWN_TOOL, "The grant names a tool that does not exist.")

    def _task(self, caller: Caller, wish: TaskWish) -> Task:
        task_id, now = new_task_id(), self.now()
        owner = replace(caller, task=task_id)
        return Task(task_id, owner, wish.name, wish.grant, wish.budget, now, now + timedelta(seconds=wish.lifetime_s))

    def _prepared(self, task: Task, credential: str) -> LiveTask:
        try:
            return LiveTask.of(task, credential, self.compiled)
        except ValueError as error:
            raise _unacceptable(f"Not acceptable: {error}.") from None

    async def _own(self, caller: Caller, task_id: str) -> TaskAccount:
        account = await self.register.task(caller, task_id)
        if account is None or not _may_see(caller, account.task):
            raise unknown_task()
        return account

    def _forget(self, task: Task) -> None:
        self.live.end(task)
        self.budgets.forget(Scope(task.caller.tenant, task.caller.agent, task.task_id))


def task_document(account: TaskAccount) -> dict[str, Any]:
    """A task in its public JSON shape, without its credential."""
    task = account.task
    return {
        "task_id": task.task_id,
        "name": task.name,
        "agent": task.caller.agent,
        "grant": {"tools": {tool: dict(schema) for tool, schema in task.grant.items()}},
        "budget": _amounts(task.budget),
        "spent": _amounts(account.spent),
        "created_at": task.created_at.isoformat(),
        "expires_at": task.expires_at.isoformat(),
        "ended_at": None if task.ended_at is None else task.ended_at.isoformat(),
    }


def _amounts(amounts: Budget | Amounts) -> dict[str, Any]:
    return {
        "calls": amounts.calls,
        "cpu_s": None if amounts.cpu_us is None else amounts.cpu_us / MILLION,
        "egress_bytes": amounts.egress_bytes,
        "cost": None if amounts.cost is None else amounts.cost / MILLION,
    }


def _may_see(caller: Caller, task: Task) -> bool:
    """A task's credential sees its own task, and none of its agent's others."""
    return not is_task_of_ours(caller.task) or caller.task == task.task_id


def _unacceptable(message: str) -> CallError:
    return CallError(Reason.INVALID_REQUEST, message)
