"""A task: a unit of an agent's work with a grant that narrows its calls, a budget, and a credential of its own.

Example:
    >>> Task(task_id="t1", name="compare", agent="bot", tools={"text.diff": {}}, budget=Amounts(calls=3)).is_over
    False
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much of each; None is no bound. `cost` is in units of the gateway's operator."""

    calls: int | None = None
    cpu_s: float | None = None
    egress_bytes: int | None = None
    cost: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Task:
    """`tools` is the grant: each tool with a JSON Schema that arguments must fit as well."""

    task_id: str
    name: str = ""
    agent: str = ""
    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    budget: Amounts = Amounts()
    spent: Amounts = Amounts()
    created_at: datetime | None = None
    expires_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def is_over(self) -> bool:
        """Whether it was ended, or its time has passed by this machine's clock."""
        return self.ended_at is not None or (self.expires_at is not None and self.expires_at <= datetime.now(UTC))

    def to_json(self) -> dict[str, Any]:
        """Return the public JSON document."""
        return {
            "task_id": self.task_id,
            "name": self.name,
            "agent": self.agent,
            "grant": {"tools": {tool: dict(schema) for tool, schema in self.tools.items()}},
            "budget": self.budget.to_json(),
            "spent": self.spent.to_json(),
            "created_at": _moment(self.created_at),
            "expires_at": _moment(self.expires_at),
            "ended_at": _moment(self.ended_at),
        }


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task that was just made. `token` is its credential: the gateway shows it this once."""

    task: Task
    token: str = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the public JSON document, with the credential."""
        return {"task": self.task.to_json(), "token": self.token}


def _moment(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
