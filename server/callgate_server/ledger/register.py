"""What is durable beside calls: tasks with their grants, and stops. One implementation per store, in `backends/`.

Every method that writes returns only after the write is durable, and raises `CallError(audit_unavailable)` where that
cannot be. Each making and each end is an event of the chain, and binds the row: a grant that somebody edits is noticed.
"""

from dataclasses import dataclass
from typing import Protocol

from callgate_server.model.call import Caller
from callgate_server.model.spending import Amounts, Charge
from callgate_server.model.task import Stop, Task


@dataclass(frozen=True, slots=True)
class TaskAccount:
    """A task and what it has spent."""

    task: Task
    spent: Amounts


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task and the keyed digest of its credential."""

    task: Task
    credential: str


class Register(Protocol):
    async def create_task(self, task: Task, credential: str) -> None:
        """Write a new task. `credential` is a keyed digest."""

    async def end_task(self, task: Task, why: str) -> Task:
        """Write the end of a task and return it as it is then; one that has ended stays as it is."""

    async def task(self, owner: Caller, task_id: str) -> TaskAccount | None:
        """The agent's task with this id."""

    async def tasks(self, owner: Caller, limit: int) -> list[TaskAccount]:
        """The agent's newest tasks, newest first."""

    async def stop(self, stop: Stop) -> None:
        """Write a stop over whatever stop was there."""

    async def resume(self, tenant: str, agent: str, by: str) -> bool:
        """Remove a stop; return whether there was one."""

    async def open_tasks(self) -> list[StoredTask]:
        """Every task that has not ended."""

    async def ended_tasks(self, limit: int) -> list[Caller]:
        """The tasks that ended last, the last of them at the end: each its agent, without roles, within it."""

    async def stops(self) -> list[Stop]:
        """Every stop."""

    async def spending(self, since_hour: int) -> list[Charge]:
        """What was spent from this hour on, and by each task that has not ended. Forgets what is older."""
