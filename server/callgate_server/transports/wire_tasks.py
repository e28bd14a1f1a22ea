"""Tasks on the wires: a wish from JSON or protobuf, and a task's document as a message. See `wire.py`.

Form only: what a grant may hold, and how long a task may live, is decided in `tasks.py`.
"""

from collections.abc import Mapping
from typing import Any, Final

from callgate_proto.v1 import gateway_pb2
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.spending import Budget, millionths
from callgate_server.model.strict_json import Json, decode, encode
from callgate_server.tasks import TaskWish
from callgate_server.transports.wire import timestamp

WISH_KEYS: Final = frozenset(("name", "grant", "lifetime_s", "budget"))
_BUDGET_KEYS: Final = frozenset(("calls", "cpu_s", "egress_bytes", "cost"))
MAX_COUNT: Final = 2**53
MAX_AMOUNT: Final = 1e9


def wish_from_json(fields: Mapping[str, Json]) -> TaskWish:
    """Decode the body of `POST /v1/tasks`, whose keys are known.

    Raises:
        CallError: `invalid_request`.
    """
    name, grant = fields.get("name"), fields.get("grant")
    if not isinstance(name, str):
        raise _malformed("The body needs `name`, a text.")
    if not isinstance(grant, dict) or set(grant) != {"tools"} or not isinstance(grant["tools"], dict):
        raise _malformed('The body needs `grant`, like {"tools": {"text.diff": {}}}.')
    tools = {tool: _schema(schema) for tool, schema in grant["tools"].items()}
    budget = fields.get("budget", {})
    if not isinstance(budget, dict) or not _BUDGET_KEYS.issuperset(budget):
        raise _malformed(f"`budget` is an object of {', '.join(sorted(_BUDGET_KEYS))}.")
    lifetime_s = _number("lifetime_s", fields.get("lifetime_s"))
    if lifetime_s is None:
        raise _malformed("The body needs `lifetime_s`, a number of seconds.")
    return TaskWish(name, tools, lifetime_s, _budget(budget))


def wish_from_proto(request: gateway_pb2.CreateTaskRequest) -> TaskWish:
    """Decode a `CreateTaskRequest`.

    Raises:
        CallError: `invalid_request`.
    """
    tools: dict[str, Mapping[str, Any]] = {}
    for tool, document in request.grant.tools_json.items():
        try:
            tools[tool] = _schema(decode(document or b"{}"))
        except ValueError as error:
            raise _malformed(f"A schema of the grant is not acceptable JSON: {error}.") from None
    limits = request.budget
    budget: dict[str, Json] = {key: getattr(limits, key) for key in _BUDGET_KEYS if limits.HasField(key)}
    return TaskWish(request.name, tools, request.lifetime_s, _budget(budget))


def task_to_proto(document: Mapping[str, Any]) -> gateway_pb2.Task:
    return gateway_pb2.Task(
        task_id=document["task_id"],
        name=document["name"],
        agent=document["agent"],
        grant=gateway_pb2.Grant(
            tools_json={tool: encode(schema) for tool, schema in document["grant"]["tools"].items()}
        ),
        budget=gateway_pb2.Budget(**document["budget"]),
        spent=gateway_pb2.Budget(**document["spent"]),
        created_at=timestamp(document["created_at"]),
        expires_at=timestamp(document["expires_at"]),
        ended_at=timestamp(document["ended_at"]),
    )


def _budget(fields: Mapping[str, Json]) -> Budget:
    cpu_s, cost = _number("cpu_s", fields.get("cpu_s")), _number("cost", fields.get("cost"))
    return Budget(
        calls=_count("calls", fields.get("calls")),
        cpu_us=None if cpu_s is None else millionths(cpu_s),
        egress_bytes=_count("egress_bytes", fields.get("egress_bytes")),
        cost=None if cost is None else millionths(cost),
    )


def _schema(value: Json) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _malformed("A grant has a JSON Schema, an object, for each tool.")
    return value


def _number(name: str, value: Json) -> float | None:
    if value is None:
        return None
    # Not a number fails every comparison, and so this one.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_AMOUNT:
        raise _malformed(f"`{name}` must be a number from 0 to 1000000000.")
    return float(value)


def _count(name: str, value: Json) -> int | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON knows one kind of number: 5.0 is a whole one
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
        raise _malformed(f"`{name}` must be a whole number from 0 to 2^53.")
    return value


def _malformed(message: str) -> CallError:
    return CallError(Reason.INVALID_REQUEST, message)
