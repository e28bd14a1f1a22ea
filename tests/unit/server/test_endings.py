import asyncio
from dataclasses import replace

import pytest

from callgate_server.model.call import CallRequest
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.verdict import Ruling
from support.stages import World

REQUEST = CallRequest("text.echo", b'{"text": "hi"}', "http")


async def runs(world: World) -> None:
    async with asyncio.timeout(5):
        while not world.sandboxes.opened:  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(0)


async def test_an_answer_is_in_the_record_before_anybody_gets_it_and_counted_after() -> None:
    async with World() as world:
        running = await world.pipeline.start("agent", REQUEST)
        await running.wait()
        assert world.ledger.completions[-1].call_id == running.call_id
        await running.finished.wait()
    assert [tool for tool, _ in world.watch.ends] == ["text.echo"]


@pytest.mark.parametrize("failing", ["complete:succeeded", "complete:failed"])
async def test_an_end_that_cannot_be_recorded_is_not_told(failing: str) -> None:
    async with World() as world:
        world.ledger.failing = {failing}
        if failing == "complete:failed":
            world.sandboxes.error = CallError(Reason.SANDBOX_UNAVAILABLE, "None.")
        running = await world.pipeline.start("agent", REQUEST)
        with pytest.raises(CallError) as caught:
            await running.wait()
    assert (caught.value.reason, caught.value.call_id) == (Reason.AUDIT_UNAVAILABLE, running.call_id)


async def test_a_refusal_is_recorded_and_carries_the_calls_id() -> None:
    async with World() as world:
        world.policy.ruling = Ruling.DENY
        with pytest.raises(CallError) as caught:
            await world.pipeline.start("agent", replace(REQUEST))
    assert caught.value.call_id in world.ledger.rows
    assert world.watch.refusals == [("text.echo", Reason.POLICY_DENIED)]


@pytest.mark.parametrize("kept", [True, False])
async def test_what_the_end_of_the_gateway_interrupts_stays_open_where_it_is_kept(kept: bool) -> None:
    async with World() as world:
        world.sandboxes.gate = asyncio.Event()
        running = await world.pipeline.start("agent", replace(REQUEST, asynchronous=kept))
        await runs(world)
        assert await world.running.drain(0, 5) == 1
        if kept:
            with pytest.raises(CallError) as caught:
                await running.wait()
            assert caught.value.reason is Reason.DRAINING
        else:
            assert (await running.wait())["state"] == "cancelled"
        row = world.ledger.rows[running.call_id]
        assert (row.state, row.kept) == ((State.RUNNING, True) if kept else (State.CANCELLED, False))


async def test_what_somebody_cancelled_before_the_gateway_ended_is_cancelled() -> None:
    async with World() as world:
        world.sandboxes.gate = asyncio.Event()
        running = await world.pipeline.start("agent", replace(REQUEST, asynchronous=True))
        await runs(world)
        running.cancel()
        assert await world.running.drain(0, 5) == 1
        assert (await running.wait())["state"] == "cancelled"
