"""Between protobuf messages and the values of `callgate.task` and `callgate.operating`; the other half of `_wire`."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from callgate._wire import decode_json
from callgate.operating import Breaker, Stop, Stopped
from callgate.task import Amounts, NewTask, Task
from callgate_proto.v1 import gateway_pb2 as pb


def task_request(
    name: str, tools: Mapping[str, Mapping[str, Any]], lifetime_s: float, budget: Amounts | None
) -> pb.CreateTaskRequest:
    """Build the request.

    Raises:
        ValueError: a schema that JSON cannot hold.
        TypeError: a schema that JSON has no type for.
    """
    grant = {tool: json.dumps(dict(schema), allow_nan=False).encode() for tool, schema in tools.items()}
    limits = Amounts() if budget is None else budget
    return pb.CreateTaskRequest(
        name=name, grant=pb.Grant(tools_json=grant), lifetime_s=lifetime_s, budget=pb.Budget(**limits.to_json())
    )


def task(message: pb.Task) -> Task:
    """Read a task.

    Raises:
        ValueError: a schema of its grant is not a JSON object.
    """
    return Task(
        task_id=message.task_id,
        name=message.name,
        agent=message.agent,
        tools={tool: _schema(document) for tool, document in message.grant.tools_json.items()},
        budget=_amounts(message.budget),
        spent=_amounts(message.spent),
        created_at=_moment(message, "created_at"),
        expires_at=_moment(message, "expires_at"),
        ended_at=_moment(message, "ended_at"),
    )


def new_task(response: pb.CreateTaskResponse) -> NewTask:
    """Read a task that was just made, with its credential."""
    return NewTask(task(response.task), response.token)


def stop(message: pb.Stopped) -> Stop:
    return Stop(message.agent, message.reason, _moment(message, "at"), message.by)


def stopped(response: pb.StopResponse) -> Stopped:
    return Stopped(stop(response.stopped), response.cancelled)


def breaker(message: pb.Breaker) -> Breaker:
    retry_after_ms = _optional(message, "retry_after_ms")
    return Breaker(message.name, message.state, message.calls, message.failures, message.slow, retry_after_ms)


def _amounts(message: pb.Budget) -> Amounts:
    return Amounts(*(_optional(message, name) for name in ("calls", "cpu_s", "egress_bytes", "cost")))


def _schema(document: bytes) -> dict[str, Any]:
    decoded = decode_json(document)
    if not isinstance(decoded, dict):
        raise ValueError("a schema is not an object")
    return decoded


def _moment(message: Any, name: str) -> datetime | None:  # noqa: ANN401  # one of several with such a field
    stamp = _optional(message, name)
    return None if stamp is None else stamp.ToDatetime(tzinfo=UTC)


def _optional(message: Any, name: str) -> Any:  # noqa: ANN401  # the type is that of the field
    return getattr(message, name) if message.HasField(name) else None
