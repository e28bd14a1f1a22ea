"""What the OpenAPI document says of tasks, stops and breakers. Description only, as in `documents.py`."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from callgate_server.tasks import MAX_LIFETIME_S
from callgate_server.transports.wire_tasks import MAX_AMOUNT, MAX_COUNT


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GrantDocument(_Document):
    """What a task's calls may do at most, whatever its agent may."""

    tools: Annotated[
        dict[str, dict[str, Any]],
        Field(
            description="The tools, each with a JSON Schema that arguments must fit as well; {} is any. "
            "It is a part of 2020-12: no `if`, `not`, `$ref` and the like."
        ),
    ]


class BudgetBody(_Document):
    """What a task may spend at most. What is left out is not bounded."""

    calls: Annotated[int | None, Field(ge=0, le=MAX_COUNT)] = None
    cpu_s: Annotated[float | None, Field(ge=0, le=MAX_AMOUNT)] = None
    egress_bytes: Annotated[int | None, Field(ge=0, le=MAX_COUNT)] = None
    cost: Annotated[float | None, Field(ge=0, le=MAX_AMOUNT)] = None


class TaskBody(_Document):
    """A new task."""

    name: Annotated[str, Field(min_length=1, max_length=200, description="One line for people.")]
    grant: GrantDocument
    lifetime_s: Annotated[float, Field(gt=0, le=MAX_LIFETIME_S, description="Seconds until it ends by itself.")]
    budget: BudgetBody = BudgetBody()


class AmountsDocument(_Document):
    calls: int | None
    cpu_s: float | None
    egress_bytes: int | None
    cost: float | None


class TaskDocument(_Document):
    """A task with what it has spent. Processor time and egress are counted when a call has ended."""

    task_id: str
    name: str
    agent: str
    grant: GrantDocument
    budget: AmountsDocument
    spent: AmountsDocument
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None


class NewTaskDocument(_Document):
    """A task with its credential, which is shown this once."""

    task: TaskDocument
    token: str


class TasksDocument(_Document):
    tasks: list[TaskDocument]


class StopBody(_Document):
    """Whom to stop; an empty agent is the whole tenant."""

    agent: str
    reason: Annotated[str, Field(max_length=200)] = ""


class ResumeBody(_Document):
    """Whom to let go on; an empty agent is the whole tenant."""

    agent: str


class ResumedDocument(_Document):
    resumed: str


class StopDocument(_Document):
    agent: str
    reason: str
    at: datetime
    by: str


class StoppedDocument(_Document):
    """A stop, and how many calls it cancelled."""

    stopped: StopDocument
    cancelled: int


class StopsDocument(_Document):
    stops: list[StopDocument]


class BreakerBody(_Document):
    """Which breaker, and whether to open it until it is closed by hand, or to close it."""

    name: str
    open: bool


class BreakerDocument(_Document):
    """A circuit breaker; calls, failures and slow calls are those of its window."""

    name: str
    state: Literal["closed", "half_open", "open", "forced_open"]
    calls: int
    failures: int
    slow: int
    retry_after_ms: Annotated[
        int | None,
        Field(ge=0, description="Of an open one: how long until calls try it again by themselves. Null otherwise."),
    ]


class BreakersDocument(_Document):
    breakers: list[BreakerDocument]
