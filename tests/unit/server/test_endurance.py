import asyncio
from dataclasses import replace
from typing import Any

import pytest

from callgate_runner import wire
from callgate_server.admission.bounds import Bounds, BoundTable
from callgate_server.model.call import CallRequest
from callgate_server.model.catalog import Tool
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.spending import Amounts, Budget
from support.stages import World, exit_frame, success, tool

UNAVAILABLE = [exit_frame(code=75), wire.encode(wire.BYE, b"")]
LOST = success("done", b"hello\n")[:-1]
SECRETS = [{"name": "key", "from": "kv/data/{tenant}/app#key", "deliver": "file"}]
TWICE = {"retry": {"attempts": 2, "backoff_s": 0.01}}
THRICE = {"retry": {"attempts": 3, "backoff_s": 0.01}}
NOT_NOW = CallError(Reason.SANDBOX_UNAVAILABLE, "No sandbox.")


def request(**changes: object) -> CallRequest:
    return CallRequest("text.echo", b'{"text":"hi"}', "http", **changes)  # type: ignore[arg-type]


async def answered(world: World) -> dict[str, Any]:
    return dict(await (await world.pipeline.start("agent", request())).wait())


def declared(**changes: object) -> Tool:
    return tool(**(THRICE | changes))


async def test_what_a_tool_cannot_do_for_now_is_tried_again_until_it_can() -> None:
    async with World(declared(effect="idempotent")) as world:
        world.sandboxes.first = [list(UNAVAILABLE), list(UNAVAILABLE)]
        answer = await answered(world)
    assert (answer["state"], answer["attempt"], answer["result"]) == ("succeeded", 3, "done")
    assert world.watch.retries == [("text.echo", Reason.TOOL_UNAVAILABLE)] * 2
    assert world.watch.ends[0][1].value == "succeeded"


async def test_no_more_attempts_are_made_than_declared() -> None:
    async with World(tool(**TWICE)) as world:
        world.sandboxes.first = [list(UNAVAILABLE)] * 3
        answer = await answered(world)
    assert (answer["state"], answer["error"]["reason"], answer["attempt"]) == ("failed", "tool_unavailable", 2)
    assert "75" in answer["error"]["message"]
    assert len(world.sandboxes.opened) == 2


async def test_without_a_declaration_there_is_one_attempt() -> None:
    async with World() as world:
        world.sandboxes.first = [list(UNAVAILABLE)]
        answer = await answered(world)
    assert (answer["attempt"], len(world.sandboxes.opened)) == (1, 1)


async def test_a_lost_sandbox_is_replaced_for_a_tool_that_may_run_twice() -> None:
    async with World(declared()) as world:
        world.sandboxes.first = [list(LOST)]
        answer = await answered(world)
    assert (answer["state"], answer["attempt"]) == ("succeeded", 2)


@pytest.mark.parametrize("frames", [UNAVAILABLE, LOST])
async def test_an_unsafe_tool_is_started_once(frames: list[bytes]) -> None:
    async with World(declared(effect="unsafe")) as world:
        world.sandboxes.first = [list(frames)]
        answer = await answered(world)
    assert answer["state"] in ("failed", "lost")
    assert world.journal.count("run") == 1


async def test_an_unsafe_tool_that_never_started_is_tried_again() -> None:
    async with World(declared(effect="unsafe")) as world:
        world.sandboxes.errors = [NOT_NOW, NOT_NOW]
        answer = await answered(world)
    assert (answer["state"], answer["attempt"], world.journal.count("run")) == ("succeeded", 3, 1)


async def test_a_failure_that_the_tool_reports_is_its_answer() -> None:
    async with World(declared()) as world:
        world.sandboxes.first = [[exit_frame(code=1), wire.encode(wire.BYE, b"")]]
        answer = await answered(world)
    assert (answer["error"]["reason"], answer["attempt"]) == ("tool_failed", 1)


async def test_each_attempt_is_cleaned_up_and_recorded_before_the_next_begins() -> None:
    async with World(declared(secrets=SECRETS)) as world:
        world.sandboxes.first = [list(UNAVAILABLE)]
        running = await world.pipeline.start("agent", request())
        await running.wait()
        await running.finished.wait()
    order = [step for step in world.journal if step in ("lease", "acquire", "revoke", "destroy", "note:attempt_failed")]
    first, second = order[:5], order[5:]
    assert set(first[:4]) == {"lease", "acquire", "revoke", "destroy"}
    assert (first[4], set(second)) == ("note:attempt_failed", {"lease", "acquire", "revoke", "destroy"})
    noted = [body for kind, body in world.ledger.noted if kind == "attempt_failed"]
    assert noted == [{"attempt": 1, "state": "failed", "reason": "tool_unavailable", "sandbox": "fake-1"}]


async def test_each_attempt_is_told_its_number_and_the_same_key() -> None:
    async with World(declared()) as world:
        world.sandboxes.first = [list(UNAVAILABLE)]
        await answered(world)
    heads = [wire.split_head(bytes(sandbox.received[0]))[0] for sandbox in world.sandboxes.opened]
    assert [head["attempt"] for head in heads] == [1, 2]
    assert len({head["idempotency_key"] for head in heads}) == 1


async def test_what_is_shown_live_goes_on_with_growing_numbers() -> None:
    async with World(declared()) as world:
        world.sandboxes.first = [list(LOST)]
        running = await world.pipeline.start("agent", request())
        await running.wait()
        events = [event async for event in running.events()]
    assert [event.seq for event in events] == list(range(len(events)))
    assert [event.text for event in events if hasattr(event, "text")] == ["hello\n", "hello\n"]


async def test_a_cancelled_call_waits_for_no_attempt() -> None:
    async with World(tool(retry={"attempts": 5, "backoff_s": 60})) as world:
        endurance = replace(world.endurance, chance=lambda: 0.5)
        fallbacks = replace(world.pipeline.attempts, endurance=endurance)
        pipeline = replace(world.pipeline, attempts=fallbacks)
        world.sandboxes.first = [list(UNAVAILABLE)]
        running = await pipeline.start("agent", request())
        async with asyncio.timeout(5):
            while not world.watch.retries:  # noqa: ASYNC110  # what is watched has no event
                await asyncio.sleep(0.001)
        running.cancel()
        async with asyncio.timeout(5):
            answer = await running.wait()
    assert (answer["state"], answer["error"]["reason"], answer["attempt"]) == ("cancelled", "cancelled", 1)
    assert len(world.sandboxes.opened) == 1


async def test_no_attempt_is_awaited_past_the_deadline() -> None:
    async with World(tool(retry={"attempts": 5, "backoff_s": 60}), max_s=2) as world:
        endurance = replace(world.endurance, chance=lambda: 0.9)
        pipeline = replace(world.pipeline, attempts=replace(world.pipeline.attempts, endurance=endurance))
        world.sandboxes.first = [list(UNAVAILABLE)]
        answer = await (await pipeline.start("agent", request())).wait()
    assert (answer["error"]["reason"], answer["attempt"]) == ("tool_unavailable", 1)


async def test_many_failing_calls_are_hardly_retried() -> None:
    async with World(declared(breaker=False)) as world:
        world.sandboxes.frames = list(UNAVAILABLE)
        for _ in range(20):
            await answered(world)
    assert 5 <= len(world.watch.retries) <= 5 + 20 * 0.2 + 5


def gone(**usage: object) -> list[bytes]:
    return [exit_frame(code=75, **usage), wire.encode(wire.BYE, b"")]


async def test_the_usage_is_that_of_all_attempts() -> None:
    bounds = BoundTable(per_agent=Bounds(budget=Budget(calls=9, window_h=24)))
    async with World(declared(egress=[{"host": "api.example.com"}]), bounds=bounds) as world:
        world.sandboxes.first = [gone(cpu_ms=40.0, max_rss_kb=5000, wall_ms=90.0), gone(cpu_ms=20.0)]
        usage = (await answered(world))["usage"]
    assert (usage["cpu_ms"], usage["max_rss_kb"], usage["wall_ms"]) == (61.0, 5000, 2.0)
    assert usage["egress_bytes"] == 3 * (10 + 32)
    assert [charge.amounts for charge in world.ledger.completions[0].charges] == [Amounts(0, 61_000, 126)]


async def test_what_falls_back_after_an_attempt_that_never_started_says_what_those_before_used() -> None:
    async with World(declared(fallback={"constant": {"rate": 1}}, egress=[{"host": "api.example.com"}])) as world:
        world.sandboxes.first = [gone(cpu_ms=40.0), gone(cpu_ms=20.0)]
        world.sandboxes.errors = [None, None, NOT_NOW]
        answer = await answered(world)
    assert answer["fallback"]["error"]["reason"] == "sandbox_unavailable"
    assert (answer["usage"]["cpu_ms"], answer["usage"]["egress_bytes"]) == (60.0, 84)


@pytest.mark.parametrize("cpu_ms", [40.0, None])
async def test_a_call_cancelled_between_attempts_says_what_those_before_used(cpu_ms: float | None) -> None:
    async with World(tool(retry={"attempts": 5, "backoff_s": 60})) as world:
        endurance = replace(world.endurance, chance=lambda: 0.5)
        pipeline = replace(world.pipeline, attempts=replace(world.pipeline.attempts, endurance=endurance))
        world.sandboxes.first = [] if cpu_ms is None else [gone(cpu_ms=cpu_ms)]
        world.sandboxes.errors = [NOT_NOW] if cpu_ms is None else []
        running = await pipeline.start("agent", request())
        async with asyncio.timeout(5):
            while not world.watch.retries:  # noqa: ASYNC110  # what is watched has no event
                await asyncio.sleep(0.001)
        running.cancel()
        answer = await running.wait()
    assert (answer["state"], answer["usage"]["cpu_ms"]) == ("cancelled", cpu_ms or 0.0)


async def test_where_a_failed_attempt_cannot_be_recorded_its_answer_stands() -> None:
    async with World(declared()) as world:
        world.sandboxes.first = [list(UNAVAILABLE)]
        world.ledger.failing.add("note:attempt_failed")
        answer = await answered(world)
    assert (answer["error"]["reason"], answer["attempt"]) == ("tool_unavailable", 1)
    assert world.journal.count("run") == 1
