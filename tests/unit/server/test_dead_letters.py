from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from callgate_server.admission.authenticate import Authentication
from callgate_server.dead_letters import DeadLetters
from callgate_server.model.call import Caller, CallRequest
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.strict_json import Json
from callgate_server.model.task import Stop
from callgate_server.model.verdict import Ruling
from callgate_server.observe.refusals import Refusals
from support.stages import CANARY, World, exit_frame

CALLERS = {
    "own": Caller("acme", "bot", ("developer",)),
    "other": Caller("acme", "other", ("developer",)),
    "boss": Caller("acme", "boss", ("operator",)),
    "rival": Caller("rival", "boss", ("operator",)),
    "task": Caller("acme", "bot", ("operator",), "t1"),
}
# What is recorded of who was refused.
SAID: list[tuple[str, Mapping[str, Json]]] = []
LATER = CallRequest("text.echo", b'{"text": "hi"}', "http", asynchronous=True)


class Tokens:
    async def authenticate(self, token: str) -> Caller | None:
        return CALLERS.get(token)


def administers(caller: Caller, operation: str) -> bool:
    return "operator" in caller.roles


async def dead(world: World) -> tuple[DeadLetters, str]:
    world.sandboxes.frames = [exit_frame(code=3)]
    running = await world.pipeline.start("agent", replace(LATER, arguments_json=b'{"text": "%s"}' % CANARY.encode()))
    await running.wait()
    stops = world.limits.stops
    refusals = Refusals(lambda kind, body: SAID.append((kind, body)))
    letters = DeadLetters(
        Authentication(Tokens()), world.ledger, administers, world.pipeline.redrive, stops.refuse, refusals
    )
    SAID.clear()
    return letters, running.call_id


async def reason(work: object) -> Reason:
    with pytest.raises(CallError) as caught:
        await work  # type: ignore[misc]
    return caught.value.reason


@pytest.mark.parametrize("token", ["own", "boss"])
async def test_its_caller_and_administrators_of_its_tenant_see_a_dead_letter_without_its_arguments(token: str) -> None:
    async with World() as world:
        letters, call_id = await dead(world)
        (listed,), total = await letters.list(token, 10)
        shown = await letters.show(token, call_id)
    assert (listed, total) == (shown, 1)
    assert (shown["call_id"], shown["state"], shown["redrivable"]) == (call_id, "lost", True)
    assert shown["attempts"][0]["reason"] == "sandbox_lost"
    assert CANARY not in repr(shown)


async def there_is_none(letters: DeadLetters, token: str, call_id: str) -> None:
    """Whatever somebody asks about it, there is no such call."""
    for attempt in (
        letters.show(token, call_id),
        letters.redrive(token, call_id),
        letters.discard(token, call_id),
        letters.settle(token, call_id, happened=True),
    ):
        assert await reason(attempt) is Reason.UNKNOWN_CALL


@pytest.mark.parametrize("token", ["other", "rival", "task"])
async def test_for_others_there_is_none(token: str) -> None:
    async with World() as world:
        letters, call_id = await dead(world)
        await there_is_none(letters, token, call_id)
        assert await letters.list(token, 10) == ([], 0)


async def test_a_redriven_one_is_a_new_call_and_a_dead_letter_no_longer() -> None:
    async with World() as world:
        letters, call_id = await dead(world)
        made = await letters.redrive("boss", call_id)
        assert made["follows"] == call_id
        assert await reason(letters.redrive("boss", call_id)) is Reason.UNKNOWN_CALL
        running = world.running.get(made["call_id"])
        if running is not None:
            await running.wait()


async def test_one_that_policy_forbids_by_now_stays_what_it_is() -> None:
    async with World() as world:
        letters, call_id = await dead(world)
        world.policy.ruling = Ruling.DENY
        assert await reason(letters.redrive("own", call_id)) is Reason.POLICY_DENIED
        assert (await letters.show("own", call_id))["redrivable"]


async def test_a_discarded_one_is_gone() -> None:
    async with World() as world:
        letters, call_id = await dead(world)
        await letters.discard("own", call_id)
        assert await letters.list("own", 10) == ([], 0)


@pytest.mark.parametrize(("happened", "state"), [(True, State.SUCCEEDED), (False, State.FAILED)])
async def test_only_an_administrator_says_what_became_of_an_unknown_effect(*, happened: bool, state: State) -> None:
    async with World() as world:
        letters, call_id = await dead(world)
        world.ledger.rows[call_id] = replace(world.ledger.rows[call_id], state=State.UNKNOWN)
        assert await reason(letters.settle("own", call_id, happened=happened)) is Reason.POLICY_DENIED
        settled = await letters.settle("boss", call_id, happened=happened)
    assert settled["state"] == state.value


async def test_its_own_agent_redrives_it_with_the_roles_that_it_has_now() -> None:
    async with World() as world:
        letters, call_id = await dead(world)
        made = await letters.redrive("own", call_id)
        stored = world.ledger.rows[call_id]
        assert world.ledger.rows[made["call_id"]].caller == CALLERS["own"] == replace(stored.caller, task=None)


async def test_who_is_stopped_redrives_discards_and_settles_nothing() -> None:
    async with World() as world:
        letters, call_id = await dead(world)
        world.limits.stops.put(Stop("acme", "", "All of it.", "acme/root", datetime.now(UTC)))
        for attempt in (
            letters.redrive("boss", call_id),
            letters.discard("boss", call_id),
            letters.settle("boss", call_id, happened=True),
        ):
            assert await reason(attempt) is Reason.STOPPED
        assert (await letters.show("boss", call_id))["redrivable"]


@pytest.mark.parametrize("token", ["other", "rival", "task"])
async def test_who_tries_what_it_may_not_leaves_a_trace(token: str) -> None:
    async with World() as world:
        letters, call_id = await dead(world)
        await there_is_none(letters, token, call_id)
        assert await reason(letters.redrive(token, "made up")) is Reason.UNKNOWN_CALL
    assert {kind for kind, _ in SAID} == {"dead_letter_refused"}
    assert [body["operation"] for _, body in SAID] == ["show", "redrive", "discard", "settle"]
    assert {(body["agent"], body["reason"], body["call"]) for _, body in SAID} == {
        (CALLERS[token].agent, "unknown_call", call_id)
    }


async def test_who_settles_without_the_right_leaves_a_trace() -> None:
    async with World() as world:
        letters, call_id = await dead(world)
        assert await reason(letters.settle("own", call_id, happened=True)) is Reason.POLICY_DENIED
    assert [(body["operation"], body["reason"]) for _, body in SAID] == [("settle", "policy_denied")]
