from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import grpc
import pytest

from callgate_proto.v1 import gateway_pb2 as pb
from support.edge import BREAKER, STOP, TASK, edge, grpc_stub, metadata


async def code(awaitable: Awaitable[Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await awaitable
    return refused.value.code()


async def test_a_task_is_made_listed_shown_and_ended() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        grant = pb.Grant(tools_json={"text.echo": b'{"required":["n"]}'})
        wish = pb.CreateTaskRequest(name="tidy up", grant=grant, lifetime_s=60, budget=pb.Budget(calls=3))
        made = await stub.CreateTask(wish, metadata=metadata())
        listed = await stub.ListTasks(pb.ListTasksRequest(), metadata=metadata())
        shown = await stub.GetTask(pb.GetTaskRequest(task_id=str(TASK["task_id"])), metadata=metadata())
        ended = await stub.EndTask(pb.EndTaskRequest(task_id=str(TASK["task_id"])), metadata=metadata())
        [asked] = world.gate.tasks.wishes  # type: ignore[union-attr]
    assert made.token == "cgt_secret"
    assert made.task == shown.task == listed.tasks[0]
    assert made.task.task_id == TASK["task_id"]
    assert ended.task.HasField("ended_at")
    assert (asked.grant, asked.budget.calls, asked.lifetime_s) == ({"text.echo": {"required": ["n"]}}, 3, 60)


async def test_another_task_is_none_and_a_wish_without_form_is_refused() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        unknown = await code(stub.GetTask(pb.GetTaskRequest(task_id="x"), metadata=metadata()))
        grant = pb.Grant(tools_json={"text.echo": b"{"})
        malformed = await code(stub.CreateTask(pb.CreateTaskRequest(grant=grant), metadata=metadata()))
        negative = await code(stub.ListTasks(pb.ListTasksRequest(limit=-1), metadata=metadata()))
    assert (unknown, malformed, negative) == (
        grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INVALID_ARGUMENT,
    )  # fmt: skip


async def test_an_agent_is_stopped_and_goes_on() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        stopped = await stub.Stop(pb.StopRequest(agent="other", reason="it loops"), metadata=metadata())
        listed = await stub.ListStops(pb.ListStopsRequest(), metadata=metadata())
        await stub.Resume(pb.ResumeRequest(agent="other"), metadata=metadata())
        denied = await code(stub.Stop(pb.StopRequest(), metadata=metadata()))
        asked = world.gate.stops.asked  # type: ignore[union-attr]
    assert (stopped.cancelled, stopped.stopped.agent, stopped.stopped.reason) == (2, "other", "it loops")
    assert (listed.stops[0].by, listed.stops[0].at.ToJsonString()) == (STOP["by"], "2026-03-04T05:06:07Z")
    assert asked == [("stop", "other", "it loops"), ("resume", "other")]
    assert denied is grpc.StatusCode.PERMISSION_DENIED


async def test_a_breaker_is_set_by_its_name() -> None:
    async with edge() as world, grpc_stub(world) as stub:
        listed = await stub.ListBreakers(pb.ListBreakersRequest(), metadata=metadata())
        opened = await stub.SetBreaker(pb.SetBreakerRequest(name="engine", open=True), metadata=metadata())
    (shown,) = listed.breakers
    assert (shown.name, shown.failures, shown.retry_after_ms) == (BREAKER["name"], 2, 12_300)
    assert (opened.breaker.name, opened.breaker.state) == ("engine", "forced_open")
    assert not opened.breaker.HasField("retry_after_ms")


async def test_a_gate_without_them_says_so() -> None:
    async with edge() as world:
        world.gate = replace(world.gate, tasks=None, stops=None, breakers=None)
        async with grpc_stub(world) as stub:
            found = [
                await code(stub.ListTasks(pb.ListTasksRequest(), metadata=metadata())),
                await code(stub.ListStops(pb.ListStopsRequest(), metadata=metadata())),
                await code(stub.ListBreakers(pb.ListBreakersRequest(), metadata=metadata())),
            ]
    assert found == [grpc.StatusCode.FAILED_PRECONDITION] * 3
