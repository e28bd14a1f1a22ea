import json
from typing import Any

import pytest

from callgate_proto.v1 import gateway_pb2 as pb
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.spending import Budget
from callgate_server.tasks import TaskWish
from callgate_server.transports.wire_tasks import task_to_proto, wish_from_json, wish_from_proto
from support.edge import TASK

SCHEMA = {"properties": {"n": {"const": 2**53 + 1}}}
WISH = TaskWish("tidy up", {"text.echo": SCHEMA, "text.diff": {}}, 60.0, Budget(3, 1_500_000, 0, None))
JSON: dict[str, Any] = {
    "name": "tidy up",
    "grant": {"tools": {"text.echo": SCHEMA, "text.diff": {}}},
    "lifetime_s": 60,
    "budget": {"calls": 3, "cpu_s": 1.5, "egress_bytes": 0},
}


def reason(decode: Any, wish: Any) -> Reason:
    with pytest.raises(CallError) as refused:
        decode(wish)
    return refused.value.reason


def test_both_wires_say_the_same() -> None:
    message = pb.CreateTaskRequest(
        name="tidy up",
        grant=pb.Grant(tools_json={"text.echo": json.dumps(SCHEMA).encode(), "text.diff": b""}),
        lifetime_s=60,
        budget=pb.Budget(calls=3, cpu_s=1.5, egress_bytes=0),
    )
    assert wish_from_json(JSON) == wish_from_proto(message) == WISH


def test_a_budget_that_is_left_out_bounds_nothing() -> None:
    without = {key: value for key, value in JSON.items() if key != "budget"}
    assert wish_from_json(without).budget == wish_from_proto(pb.CreateTaskRequest()).budget == Budget()


@pytest.mark.parametrize(
    "changes",
    [
        {"name": 5},
        {"grant": None},
        {"grant": {"tools": []}},
        {"grant": {"tools": {}, "more": 1}},
        {"grant": {"tools": {"a.b": True}}},
        {"lifetime_s": None},
        {"lifetime_s": "60"},
        {"lifetime_s": True},
        {"lifetime_s": float("nan")},
        {"budget": []},
        {"budget": {"seconds": 1}},
        {"budget": {"calls": 1.5}},
        {"budget": {"calls": -1}},
        {"budget": {"calls": 2**53 + 1}},
        {"budget": {"cost": -0.5}},
        {"budget": {"cpu_s": 1e10}},
    ],
)
def test_what_has_not_the_form_is_refused(changes: dict[str, Any]) -> None:
    assert reason(wish_from_json, JSON | changes) is Reason.INVALID_REQUEST


@pytest.mark.parametrize(
    "message",
    [
        pb.CreateTaskRequest(grant=pb.Grant(tools_json={"a.b": b"{"})),
        pb.CreateTaskRequest(grant=pb.Grant(tools_json={"a.b": b"true"})),
        pb.CreateTaskRequest(grant=pb.Grant(tools_json={"a.b": b'{"a":1,"a":2}'})),
        pb.CreateTaskRequest(budget=pb.Budget(calls=-1)),
        pb.CreateTaskRequest(budget=pb.Budget(cpu_s=float("inf"))),
    ],
)
def test_what_has_not_the_form_in_protobuf_is_refused(message: pb.CreateTaskRequest) -> None:
    assert reason(wish_from_proto, message) is Reason.INVALID_REQUEST


def test_a_task_is_the_same_as_a_message() -> None:
    message = task_to_proto(TASK)
    assert (message.task_id, message.name, message.agent) == (TASK["task_id"], "tidy up", "bot")
    assert json.loads(message.grant.tools_json["text.echo"]) == {"required": ["n"]}
    assert (message.budget.calls, message.budget.HasField("egress_bytes"), message.spent.cpu_s) == (3, False, 0.25)
    assert message.spent.HasField("egress_bytes")
    assert not message.HasField("ended_at")
    assert message.expires_at.seconds - message.created_at.seconds == 3600
