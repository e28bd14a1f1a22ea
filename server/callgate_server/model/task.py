"""A task with its grant, and a stop: what an agent and an operator have written down about the calls to come."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from callgate_server.model.call import Caller
from callgate_server.model.identifiers import new_call_id
from callgate_server.model.spending import Budget

# Nothing else looks like it: what an identity provider calls a task is told from a task of ours by its form.
TASK_ID: Final = re.compile(r"task-[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Task:
    """A unit of an agent's work.

    `caller` is the agent as it was when the task was made, with the key that it made it with and the task's own id.

    `grant` are the tools that its calls may use, each with a JSON Schema that their arguments must fit as well.
    """

    task_id: str
    caller: Caller
    name: str
    grant: Mapping[str, Mapping[str, Any]]
    budget: Budget
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None = None

    def is_over(self, now: datetime) -> bool:
        return self.ended_at is not None or self.expires_at <= now


@dataclass(frozen=True, slots=True)
class Stop:
    """Every call of an agent, or with an empty `agent` of a whole tenant, is refused."""

    tenant: str
    agent: str
    reason: str
    by: str
    at: datetime


def new_task_id() -> str:
    return f"task-{new_call_id()}"


def is_task_of_ours(name: str | None) -> bool:
    """Whether this names a task that was made here, and is not an identity provider's label."""
    return name is not None and TASK_ID.fullmatch(name) is not None
