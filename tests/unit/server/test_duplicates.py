import asyncio

import pytest

from callgate_server.execution.running import Accepted, Answered
from callgate_server.model.call import CallRequest
from callgate_server.model.errors import CallError, Reason
from support.stages import World


def request(**changes: object) -> CallRequest:
    return CallRequest("text.echo", b'{"text":"hi"}', "http", idempotency_key="k", **changes)  # type: ignore[arg-type]


async def refused(world: World, asked: CallRequest) -> CallError:
    with pytest.raises(CallError) as caught:
        await (await world.pipeline.start("agent", asked)).wait()
    return caught.value


async def test_a_duplicate_of_a_running_call_waits_for_it_and_gets_its_answer_flagged() -> None:
    async with World() as world:
        world.sandboxes.gate = asyncio.Event()
        first = await world.pipeline.start("agent", request())
        second = await world.pipeline.start("agent", request())
        # It can be asked for by the id of the call that it waits for; its own is not in the record yet.
        assert second.claimed_id == first.call_id != second.call_id
        assert not second.ended
        world.sandboxes.gate.set()
        answer, joined = await first.wait(), await second.wait()
        events = [event async for event in second.events()]
    assert joined == {**answer, "replayed": True}
    assert events == [Accepted(0, first.call_id), Answered(1, joined)]
    assert world.journal.count("run") == 1
    assert world.journal.count("replayed") == 1


async def test_the_deadline_of_a_duplicate_ends_its_waiting_and_nothing_else() -> None:
    async with World() as world:
        world.sandboxes.gate = asyncio.Event()
        first = await world.pipeline.start("agent", request())
        error = await refused(world, request(deadline_ms=20))
        assert error.reason is Reason.CALL_IN_FLIGHT
        assert first.call_id in error.message
        assert error.retry_after_ms is not None
        assert not first.ended
        world.sandboxes.gate.set()
        assert (await first.wait())["state"] == "succeeded"


async def test_to_cancel_a_duplicate_is_not_to_cancel_the_call_it_waits_for() -> None:
    async with World() as world:
        world.sandboxes.gate = asyncio.Event()
        first = await world.pipeline.start("agent", request())
        second = await world.pipeline.start("agent", request())
        second.cancel()
        world.sandboxes.gate.set()
        assert (await second.wait())["state"] == (await first.wait())["state"] == "succeeded"


async def test_a_duplicate_of_a_call_that_never_starts_is_refused_like_it_under_an_id_of_its_own() -> None:
    async with World() as world:
        world.sandboxes.turn = asyncio.Event()
        first = await world.pipeline.start("agent", request())
        second = await world.pipeline.start("agent", request())
        world.sandboxes.error = CallError(Reason.SANDBOX_UNAVAILABLE, "down", retry_after_ms=5)
        world.sandboxes.turn.set()
        errors = []
        for running in (first, second):
            with pytest.raises(CallError) as caught:
                await running.wait()
            errors.append(caught.value)
    assert [(error.reason, error.message, error.retry_after_ms) for error in errors] == [
        (Reason.SANDBOX_UNAVAILABLE, "down", 5)
    ] * 2
    assert [error.call_id for error in errors] == [first.call_id, second.call_id]


async def test_a_cancelled_call_answers_its_duplicates_too() -> None:
    async with World() as world:
        world.sandboxes.gate = asyncio.Event()
        first = await world.pipeline.start("agent", request())
        second = await world.pipeline.start("agent", request())
        first.cancel()
        assert (await second.wait())["state"] == "cancelled"


async def test_not_any_number_may_wait() -> None:
    async with World(waiting=1) as world:
        world.sandboxes.gate = asyncio.Event()
        first = await world.pipeline.start("agent", request())
        second = await world.pipeline.start("agent", request())
        assert (await refused(world, request())).reason is Reason.OVERLOADED
        world.sandboxes.gate.set()
        await asyncio.gather(first.wait(), second.wait())


async def test_an_answer_that_cannot_be_recorded_as_replayed_is_not_given() -> None:
    async with World() as world:
        await (await world.pipeline.start("agent", request())).wait()
        world.ledger.failing = {"replayed"}
        assert (await refused(world, request())).reason is Reason.AUDIT_UNAVAILABLE
