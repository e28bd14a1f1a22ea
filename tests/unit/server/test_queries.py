import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest

from callgate_server.admission.authenticate import Authentication
from callgate_server.admission.authorize import Administration, Operation
from callgate_server.model.call import Caller, CallRequest
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.strict_json import Json
from callgate_server.model.verdict import Ruling, Verdict
from callgate_server.queries import Figures, Queries
from support.stages import Rulings, Tokens, World, tool

REQUEST = CallRequest("text.echo", b'{"text":"hi"}', "http")


def queries(world: World) -> Queries:
    return Queries(
        Authentication(Tokens()), world.catalog, world.policy, world.ledger, world.running, world.limits.tasks
    )


async def refused(awaitable: object) -> CallError:
    with pytest.raises(CallError) as caught:
        await awaitable  # type: ignore[misc]
    return caught.value


async def test_a_caller_sees_only_tools_it_could_be_allowed_to_call() -> None:
    async with World() as world:
        assert [shown["tool"] for shown in await queries(world).tools("agent")] == ["text.echo"]
        world.policy.ruling = Ruling.DENY
        assert await queries(world).tools("agent") == []


async def test_a_hidden_tool_answers_like_one_that_does_not_exist() -> None:
    async with World() as world:
        world.policy.ruling = Ruling.DENY
        hidden = await refused(queries(world).tool("agent", "text.echo"))
        absent = await refused(queries(world).tool("agent", "no.tool"))
    assert (hidden.reason, hidden.message) == (absent.reason, absent.message) == (Reason.UNKNOWN_TOOL, absent.message)


async def test_another_tenants_call_answers_like_one_that_does_not_exist() -> None:
    async with World() as world:
        answer = await (await world.pipeline.start("agent", REQUEST)).wait()
        assert await queries(world).call("agent", answer["call_id"]) == answer
        foreign = await refused(queries(world).call("other", answer["call_id"]))
        absent = await refused(queries(world).call("other", "01890000-0000-7000-8000-000000000000"))
        foreign_cancel = await refused(queries(world).cancel("other", answer["call_id"]))
    assert foreign.reason is foreign_cancel.reason is absent.reason is Reason.UNKNOWN_CALL
    assert foreign.message == foreign_cancel.message == absent.message


async def test_a_stored_answer_is_not_shown_to_who_may_no_longer_call_the_tool() -> None:
    async with World() as world:
        answer = await (await world.pipeline.start("agent", REQUEST)).wait()
        world.policy.ruling = Ruling.DENY
        assert (await refused(queries(world).call("agent", answer["call_id"]))).reason is Reason.UNKNOWN_CALL


async def test_a_running_call_shows_how_far_it_is_and_can_be_cancelled() -> None:
    async with World() as world:
        world.sandboxes.gate = asyncio.Event()
        running = await world.pipeline.start("agent", REQUEST)
        assert (await queries(world).call("agent", running.call_id))["state"] == "running"
        ended = await queries(world).cancel("agent", running.call_id)
        assert ended["state"] == "cancelled"
        assert await queries(world).cancel("agent", running.call_id) == ended


async def test_calls_are_listed_newest_first_with_refusals_and_only_ones_own() -> None:
    async with World(tool()) as world:
        done = await (await world.pipeline.start("agent", REQUEST)).wait()
        world.policy.ruling = Ruling.DENY
        await refused(world.pipeline.start("agent", REQUEST))
        listed = await queries(world).calls("agent", 10)
        assert [call["state"] for call in listed] == ["denied", "succeeded"]
        assert listed[0]["error"]["reason"] == "policy_denied"
        assert listed[1]["call_id"] == done["call_id"]
        assert await queries(world).calls("other", 10) == []


async def test_every_query_needs_a_credential() -> None:
    async with World() as world:
        q = queries(world)
        for asked in (
            q.tools(None),
            q.tool("x", "a.b"),
            q.call(None, "1"),
            q.calls(None, 1),
            q.cancel(None, "1"),
            q.identify(""),
        ):
            assert (await refused(asked)).reason is Reason.UNAUTHENTICATED


async def test_who_may_pull_the_kill_switch_operates_and_a_task_does_not() -> None:
    async with World() as world:
        asked = queries(world)
        operator = await asked.identify("agent")
        assert asked.operates(operator)
        assert not asked.operates(replace(operator, task="t1"))
        world.policy.ruling = Ruling.DENY
        assert not asked.operates(operator)


class OwnTenantOnly(Rulings):
    def may_administer(self, caller: Caller, operation: Operation) -> Verdict:
        return Verdict(Ruling.ALLOW if operation == "breakers" else self.ruling, (), "v1")


async def test_metrics_tell_of_all_tenants_and_are_shown_to_who_may_see_them_alone() -> None:
    refusals: list[tuple[str, Mapping[str, Json]]] = []

    async def remark(kind: str, body: Mapping[str, Json]) -> None:
        refusals.append((kind, body))

    policy = OwnTenantOnly([])
    figures = Figures(Authentication(Tokens()), Administration(policy, remark), lambda: b"breaker=tool:rival/x.y")
    assert await figures.show("agent") == b"breaker=tool:rival/x.y"
    policy.ruling = Ruling.DENY
    assert (await refused(figures.show("agent"))).reason is Reason.POLICY_DENIED
    assert (await refused(figures.show("nobody"))).reason is Reason.UNAUTHENTICATED
    assert [(kind, body["operation"]) for kind, body in refusals] == [("administration_refused", "metrics")]
