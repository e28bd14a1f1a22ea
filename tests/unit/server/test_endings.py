from dataclasses import replace

import pytest

from callgate_server.model.call import CallRequest
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.verdict import Ruling
from support.stages import World

REQUEST = CallRequest("text.echo", b'{"text": "hi"}', "http")


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
