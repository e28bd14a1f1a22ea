from dataclasses import replace

import pytest

from callgate_server.model.call import CallRequest
from callgate_server.model.lifecycle import State
from callgate_server.model.verdict import Ruling
from callgate_server.verification import ASKED_AT_MOST, Verification
from support.stages import World, exit_frame, success, tool

LATER = CallRequest("text.echo", b'{"text": "hi"}', "http", asynchronous=True)
# The fakes' schemas want arguments that are texts, so that this one takes any.
LOOK = {"tool": "text.look", "effect": "read"}


class AnySchemas:
    def input_violations(self, tool: object, arguments: object) -> list[object]:
        return []

    def output_violations(self, tool: object, result: object) -> list[object]:
        return []


async def unknown(world: World) -> str:
    """An unsafe call that its gateway did not see to its end."""
    world.sandboxes.frames = [exit_frame(code=3)]
    running = await world.pipeline.start("agent", LATER)
    await running.wait()
    row = world.ledger.rows[running.call_id]
    world.ledger.rows[row.call_id] = replace(row, state=State.UNKNOWN, kept=True, dead="open")
    return running.call_id


def world_of(**changes: object) -> World:
    world = World(tool(effect="unsafe", verify="text.look"), tool(**LOOK))
    world.pipeline = replace(world.pipeline, schemas=AnySchemas())  # type: ignore[arg-type]
    return world


@pytest.mark.parametrize(("happened", "state"), [(True, State.SUCCEEDED), (False, State.FAILED)])
async def test_the_tool_that_can_tell_settles_the_call(*, happened: bool, state: State) -> None:
    async with world_of() as world:
        call_id = await unknown(world)
        world.sandboxes.frames = success({"happened": happened})
        assert await Verification(world.catalog, world.ledger, world.pipeline.start_for).look() == 1
        asked = b"".join(world.sandboxes.opened[-1].received)
    assert world.ledger.rows[call_id].state is state
    assert call_id.encode() in asked
    assert b'"arguments":{"text":"hi"}' in asked


@pytest.mark.parametrize("result", [None, "yes", {"happened": "yes"}, {}])
async def test_a_tool_that_cannot_tell_settles_nothing_and_is_not_asked_for_ever(result: object) -> None:
    async with world_of() as world:
        call_id = await unknown(world)
        world.sandboxes.frames = success(result)
        verification = Verification(world.catalog, world.ledger, world.pipeline.start_for)
        for _ in range(ASKED_AT_MOST + 2):
            assert await verification.look() == 0
    assert world.ledger.rows[call_id].state is State.UNKNOWN
    assert world.journal.count("run") == 1 + ASKED_AT_MOST


async def test_what_policy_does_not_permit_is_not_asked() -> None:
    async with world_of() as world:
        call_id = await unknown(world)
        world.policy.ruling = Ruling.DENY
        assert await Verification(world.catalog, world.ledger, world.pipeline.start_for).look() == 0
    assert world.ledger.rows[call_id].state is State.UNKNOWN


async def test_without_a_tool_that_can_tell_a_person_has_to() -> None:
    async with World(tool(effect="unsafe")) as world:
        await unknown(world)
        assert await Verification(world.catalog, world.ledger, world.pipeline.start_for).look() == 0
    assert world.journal.count("run") == 1


async def test_a_fallback_of_the_tool_that_can_tell_settles_nothing() -> None:
    look = tool(**LOOK, fallback={"constant": {"happened": True}})
    async with World(tool(effect="unsafe", verify="text.look"), look) as world:
        attempts = replace(world.pipeline.attempts, schemas=AnySchemas())  # type: ignore[arg-type]
        world.pipeline = replace(world.pipeline, schemas=AnySchemas(), attempts=attempts)  # type: ignore[arg-type]
        call_id = await unknown(world)
        world.sandboxes.frames = [exit_frame(code=75)]
        assert await Verification(world.catalog, world.ledger, world.pipeline.start_for).look() == 0
        kinds = [end.fallback for end in world.ledger.completions]
    assert kinds[-1] == "constant"
    assert world.ledger.rows[call_id].state is State.UNKNOWN
