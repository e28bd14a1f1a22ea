import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from callgate_runner import wire
from callgate_server.admission.bounds import Bounds, BoundTable
from callgate_server.admission.tasks import LiveTask
from callgate_server.backends.json_schema import grantable
from callgate_server.fallback import FALLS_BACK, may_fall_back
from callgate_server.model.call import CallRequest
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.spending import MILLION, Amounts, Budget, Scope
from callgate_server.model.task import Stop, Task, new_task_id
from callgate_server.model.verdict import Ruling
from support.stages import AGENT, World, exit_frame, success, tool

UNAVAILABLE = [exit_frame(code=75), wire.encode(wire.BYE, b"")]
CONSTANT = {"fallback": {"constant": {"rate": 1}}}
OTHER = {"fallback": {"tool": "text.other"}}
LAST = {"fallback": {"last_good_s": 3600}}
NO_SANDBOX = CallError(Reason.SANDBOX_UNAVAILABLE, "No sandbox.")


def request(arguments: bytes = b'{"text":"hi"}', **changes: object) -> CallRequest:
    return CallRequest("text.echo", arguments, "http", **changes)  # type: ignore[arg-type]


async def answered(world: World, asked: CallRequest | None = None) -> dict[str, Any]:
    return dict(await (await world.pipeline.start("agent", asked or request())).wait())


def other(**changes: object) -> Any:
    return tool(tool="text.other", **changes)


async def test_a_constant_answers_for_a_tool_that_cannot_and_says_so() -> None:
    async with World(tool(**CONSTANT)) as world:
        world.sandboxes.first = [list(UNAVAILABLE)]
        answer = await answered(world)
    assert (answer["state"], answer["result"], answer["error"]) == ("succeeded", {"rate": 1}, None)
    fallback = answer["fallback"]
    assert (fallback["kind"], fallback["error"]["reason"]) == ("constant", "tool_unavailable")
    assert (fallback["tool"], fallback["call_id"], fallback["age_s"]) == (None, None, None)
    assert answer["exit"] == {"code": 75, "signal": None}
    end = world.ledger.completions[-1]
    assert (end.fallback, end.reason, end.state.value) == ("constant", Reason.TOOL_UNAVAILABLE, "succeeded")
    assert world.watch.fallbacks == [("text.echo", "constant", Reason.TOOL_UNAVAILABLE)]


async def test_a_success_of_the_tools_own_is_no_fallback() -> None:
    async with World(tool(**CONSTANT)) as world:
        answer = await answered(world)
    assert (answer["result"], answer["fallback"]) == ("done", None)
    assert world.ledger.completions[-1].fallback is None


async def test_what_never_started_falls_back_too() -> None:
    async with World(tool(**CONSTANT, effect="unsafe")) as world:
        world.sandboxes.error = NO_SANDBOX
        answer = await answered(world)
    assert (answer["state"], answer["fallback"]["error"]["reason"]) == ("succeeded", "sandbox_unavailable")
    assert (answer["exit"]["code"], answer["sandbox"]["backend"]) == (None, "")
    assert answer["content"]["nonce"]


async def test_an_unsafe_tool_that_was_started_has_no_fallback() -> None:
    async with World(tool(**CONSTANT, effect="unsafe")) as world:
        world.sandboxes.first = [list(UNAVAILABLE)]
        answer = await answered(world)
    assert (answer["state"], answer["error"]["reason"]) == ("failed", "tool_unavailable")
    assert (answer["result"], answer["fallback"]) == (None, None)


@pytest.mark.parametrize("reason", list(Reason))
def test_only_what_the_tool_could_not_help_falls_back(reason: Reason) -> None:
    assert may_fall_back(tool(**CONSTANT), reason, started=True) == (reason in FALLS_BACK)
    assert not may_fall_back(tool(**CONSTANT, effect="unsafe"), reason, started=True)
    assert not may_fall_back(tool(), reason, started=True)


async def test_a_failure_that_the_tool_reports_stands() -> None:
    async with World(tool(**CONSTANT)) as world:
        world.sandboxes.first = [[exit_frame(code=1), wire.encode(wire.BYE, b"")]]
        answer = await answered(world)
    assert (answer["error"]["reason"], answer["fallback"]) == ("tool_failed", None)


async def test_a_fallback_that_does_not_fit_the_tools_schema_is_none() -> None:
    async with World(tool(**OTHER), other()) as world:
        world.sandboxes.first = [list(UNAVAILABLE), success("misfit")]
        answer = await answered(world)
    assert (answer["error"]["reason"], answer["fallback"]) == ("tool_unavailable", None)


async def test_another_tool_answers_as_a_call_of_its_own() -> None:
    async with World(tool(**OTHER), other()) as world:
        world.sandboxes.first = [list(UNAVAILABLE), success("instead", b"not shown\n")]
        answer = await answered(world)
    fallback = answer["fallback"]
    assert (answer["result"], fallback["kind"], fallback["tool"]) == ("instead", "tool", "text.other")
    assert answer["stdout"]["text"] == ""
    inner = world.ledger.rows[fallback["call_id"]]
    assert (inner.tool, inner.state.value, fallback["call_id"] == answer["call_id"]) == (
        "text.other",
        "succeeded",
        False,
    )
    links = {kind: body["call"] for kind, body in world.ledger.noted if kind.startswith("fallback_")}
    assert links == {"fallback_started": fallback["call_id"], "fallback_of": answer["call_id"]}


async def test_policy_decides_of_the_other_tool_and_the_failure_stands_where_it_refuses() -> None:
    async with World(tool(**OTHER), other()) as world:
        world.sandboxes.first = [list(UNAVAILABLE)]
        decide = world.policy.decide

        def only_the_first(caller: Any, asked: Any, arguments: Any) -> Any:
            verdict = decide(caller, asked, arguments)
            return replace(verdict, ruling=Ruling.DENY) if asked.name == "text.other" else verdict

        world.policy.decide = only_the_first  # type: ignore[method-assign]
        answer = await answered(world)
    assert (answer["error"]["reason"], answer["fallback"]) == ("tool_unavailable", None)
    refused = [row for row in world.ledger.rows.values() if row.tool == "text.other"]
    assert [row.reason for row in refused] == [Reason.POLICY_DENIED]
    assert world.journal.count("run") == 1


async def test_where_the_other_tool_fails_the_first_failure_stands() -> None:
    async with World(tool(**OTHER), other()) as world:
        world.sandboxes.first = [list(UNAVAILABLE), list(UNAVAILABLE)]
        answer = await answered(world)
    assert (answer["error"]["reason"], answer["exit"]["code"], answer["fallback"]) == ("tool_unavailable", 75, None)
    assert {row.state.value for row in world.ledger.rows.values()} == {"failed"}


async def test_where_the_other_tool_never_starts_the_refusal_stands() -> None:
    async with World(tool(**OTHER), other()) as world:
        world.sandboxes.error = NO_SANDBOX
        with pytest.raises(CallError) as caught:
            await answered(world)
    assert caught.value.reason is Reason.SANDBOX_UNAVAILABLE
    assert [row.state.value for row in world.ledger.rows.values()] == ["failed", "failed"]


async def test_the_last_good_answer_of_the_same_arguments_is_given_with_its_age() -> None:
    async with World(tool(**LAST)) as world:
        good = await answered(world)
        world.sandboxes.first = [list(UNAVAILABLE), list(UNAVAILABLE)]
        answer = await answered(world)
        different = await answered(world, request(b'{"text":"other"}'))
    fallback = answer["fallback"]
    assert (answer["result"], fallback["kind"], fallback["call_id"]) == ("done", "last_good", good["call_id"])
    assert 0 <= fallback["age_s"] < 3600
    assert different["error"]["reason"] == "tool_unavailable"


async def test_what_is_too_old_or_was_a_fallback_itself_is_no_last_good_answer() -> None:
    async with World(tool(**LAST)) as world:
        good = await answered(world)
        row = world.ledger.rows[good["call_id"]]
        fresh = datetime.now(UTC)
        world.sandboxes.first = [list(UNAVAILABLE)] * 2
        fallen = await answered(world)
        world.ledger.rows[good["call_id"]] = replace(row, finished_at=fresh - timedelta(hours=2))
        answer = await answered(world)
    assert fallen["fallback"]["call_id"] == good["call_id"]
    assert (answer["error"]["reason"], answer["fallback"]) == ("tool_unavailable", None)


async def test_a_cancelled_call_does_not_fall_back() -> None:
    async with World(tool(**CONSTANT)) as world:
        world.sandboxes.turn = asyncio.Event()
        running = await world.pipeline.start("agent", request())
        await world.sandboxes.asked.wait()
        running.cancel()
        answer = await running.wait()
    assert (answer["state"], answer["fallback"]) == ("cancelled", None)


async def test_a_call_whose_tool_ends_as_it_is_cancelled_does_not_fall_back() -> None:
    async with World(tool(**CONSTANT)) as world:
        world.sandboxes.first = [list(UNAVAILABLE)]
        running = await world.pipeline.start("agent", request())
        running.cancel()
        answer = await running.wait()
    assert running.cancelled.is_set()
    assert (answer["error"]["reason"], answer["fallback"]) == ("tool_unavailable", None)


async def test_where_a_breaker_stops_the_tool_its_fallback_answers_and_the_tool_is_not_run() -> None:
    async with World(tool(**CONSTANT)) as world:
        world.breakers.open("tool:acme/text.echo")
        answer = await answered(world)
    assert (answer["result"], answer["fallback"]["error"]["reason"]) == ({"rate": 1}, "circuit_open")
    assert "run" not in world.journal


async def test_without_a_fallback_a_breaker_refuses_before_anything_is_claimed() -> None:
    async with World() as world:
        world.breakers.open("tool:acme/text.echo")
        with pytest.raises(CallError) as caught:
            await answered(world)
    assert caught.value.reason is Reason.CIRCUIT_OPEN
    assert "claim" not in world.journal


async def test_nobody_is_asked_to_approve_what_stands_in() -> None:
    async with World(tool(**OTHER), other()) as world:
        world.sandboxes.first = [list(UNAVAILABLE)]
        running = await world.pipeline.start("agent", request())
        world.policy.ruling = Ruling.NEEDS_APPROVAL
        answer = await running.wait()
    assert (answer["state"], answer["error"]["reason"], answer["fallback"]) == ("failed", "tool_unavailable", None)


async def test_a_fallback_counts_for_the_breaker_as_the_failure_that_it_is_of() -> None:
    async with World(tool(**CONSTANT)) as world:
        world.sandboxes.first = [list(UNAVAILABLE)]
        await answered(world)
        assert world.breakers.list()["tool:acme/text.echo"].failures == 1


def inner_rows(world: World) -> list[Any]:
    return [row for row in world.ledger.rows.values() if row.tool == "text.other"]


def stop(world: World) -> None:
    world.limits.stops.put(Stop("acme", "bot", "", "root", datetime.now(UTC)))


def open_breaker(world: World) -> None:
    world.breakers.open("tool:acme/text.other")


@pytest.mark.parametrize(("against", "reason"), [(stop, Reason.STOPPED), (open_breaker, Reason.CIRCUIT_OPEN)])
async def test_what_stands_in_is_refused_as_any_call_is(against: Any, reason: Reason) -> None:
    async with World(tool(**OTHER), other()) as world:
        world.sandboxes.first = [list(UNAVAILABLE)]
        running = await world.pipeline.start("agent", request())
        against(world)
        answer = await running.wait()
    assert (answer["error"]["reason"], answer["fallback"]) == ("tool_unavailable", None)
    assert [row.reason for row in inner_rows(world)] == [reason]
    assert world.journal.count("run") == 1


@pytest.mark.parametrize(("granted", "kind"), [(("text.echo",), None), (("text.echo", "text.other"), "tool")])
async def test_a_task_gets_no_tool_by_a_fallback_that_it_was_not_granted(
    granted: tuple[str, ...], kind: str | None
) -> None:
    async with World(tool(**OTHER), other()) as world:
        task_id, now = new_task_id(), datetime.now(UTC)
        grant: dict[str, Any] = {name: {} for name in granted}
        task = Task(task_id, replace(AGENT, task=task_id), "x", grant, Budget(), now, now + timedelta(hours=1))
        world.limits.tasks.add(LiveTask.of(task, "digest", grantable))
        world.sandboxes.first = [list(UNAVAILABLE)]
        answer = await answered(world, request(task=task_id))
    assert (answer["fallback"] or {}).get("kind") == kind
    assert [row.caller.task for row in inner_rows(world)] == [task_id]
    assert [row.reason for row in inner_rows(world)] == [None if kind else Reason.OUTSIDE_GRANT]


async def test_no_grant_is_checked_for_what_stands_in_without_a_permit() -> None:
    async with World(tool(**OTHER), other()) as world:
        task_id, now = new_task_id(), datetime.now(UTC)
        task = Task(
            task_id, replace(AGENT, task=task_id), "x", {"text.echo": {}}, Budget(), now, now + timedelta(hours=1)
        )
        world.limits.tasks.add(LiveTask.of(task, "digest", grantable))
        world.sandboxes.first = [list(UNAVAILABLE)]
        running = await world.pipeline.start("agent", request(task=task_id))
        world.policy.ruling = Ruling.DENY
        await running.wait()
    assert [row.reason for row in inner_rows(world)] == [Reason.POLICY_DENIED]


async def test_what_stands_in_counts_for_the_breaker_of_its_own_tool() -> None:
    async with World(tool(**OTHER), other()) as world:
        world.sandboxes.first = [list(UNAVAILABLE), list(UNAVAILABLE)]
        await answered(world)
        assert world.breakers.list()["tool:acme/text.other"].failures == 1


@pytest.mark.parametrize(("calls", "reasons"), [(1, [Reason.BUDGET_EXCEEDED]), (2, [None])])
async def test_what_stands_in_is_charged_as_a_call_of_its_own(calls: int, reasons: list[Reason | None]) -> None:
    bounds = BoundTable(per_agent=Bounds(budget=Budget(calls=calls, window_h=24)))
    async with World(tool(**OTHER), other(), bounds=bounds) as world:
        world.sandboxes.first = [list(UNAVAILABLE)]
        await answered(world)
    assert [row.reason for row in inner_rows(world)] == reasons
    charged = [[charge.amounts.calls for charge in intent.charges] for intent in world.ledger.intents]
    assert charged == [[1]] * calls
    assert [charge.amounts.cpu_us for end in world.ledger.completions for charge in end.charges] == [1000] * calls


async def test_what_stands_in_and_never_starts_is_given_back() -> None:
    bounds = BoundTable(per_agent=Bounds(budget=Budget(calls=9, window_h=24)))
    async with World(tool(**OTHER), other(), bounds=bounds) as world:
        world.sandboxes.first = [list(UNAVAILABLE)]
        world.sandboxes.errors = [None, NO_SANDBOX]
        await answered(world)
        assert world.limits.budgets.spent(Scope("acme", "bot")) == Amounts(1, 1000, 0, MILLION)
    inner, outer = [[charge.amounts for charge in end.charges] for end in world.ledger.completions]
    assert (inner, outer) == ([Amounts(calls=-1, cost=-MILLION)], [Amounts(cpu_us=1000)])


async def test_what_stands_in_and_fails_is_charged_with_what_its_attempts_used() -> None:
    bounds = BoundTable(per_agent=Bounds(budget=Budget(calls=9, window_h=24)))
    twice = {"attempts": 2, "backoff_s": 0.01}
    async with World(tool(**OTHER), other(retry=twice), bounds=bounds) as world:
        world.sandboxes.first = [list(UNAVAILABLE), [exit_frame(code=75, cpu_ms=40.0), wire.encode(wire.BYE, b"")]]
        world.sandboxes.errors = [None, None, NO_SANDBOX]
        answer = await answered(world)
        assert world.limits.budgets.spent(Scope("acme", "bot")) == Amounts(2, 41_000, 0, 2 * MILLION)
    assert (answer["error"]["reason"], answer["usage"]["cpu_ms"]) == ("tool_unavailable", 1.0)
    assert [row.reason for row in inner_rows(world)] == [Reason.SANDBOX_UNAVAILABLE]
    inner, outer = [[charge.amounts for charge in end.charges] for end in world.ledger.completions]
    assert (inner, outer) == ([Amounts(cpu_us=40_000)], [Amounts(cpu_us=1000)])


@pytest.mark.parametrize("what", ["claim", "note:fallback_started", "note:fallback_of"])
async def test_a_fallback_that_cannot_be_recorded_leaves_the_answer_as_it_is(what: str) -> None:
    async with World(tool(**OTHER), other()) as world:
        world.sandboxes.first = [list(UNAVAILABLE)]
        running = await world.pipeline.start("agent", request())
        world.ledger.failing.add(what)
        answer = await running.wait()
    assert (answer["error"]["reason"], answer["exit"]["code"], answer["fallback"]) == ("tool_unavailable", 75, None)
    assert {row.state.value for row in world.ledger.rows.values()} == {"failed"}


async def test_a_fallback_that_cannot_be_recorded_leaves_the_refusal_as_it_is() -> None:
    async with World(tool(**OTHER), other()) as world:
        world.sandboxes.error = NO_SANDBOX
        running = await world.pipeline.start("agent", request())
        world.ledger.failing.add("claim")
        with pytest.raises(CallError) as caught:
            await running.wait()
    assert caught.value.reason is Reason.SANDBOX_UNAVAILABLE


class Panic(BaseException):
    """What compiled code throws when it panics."""


async def test_a_panic_leaves_no_claim_of_what_stands_in_open() -> None:
    async with World(tool(**OTHER), other()) as world:
        world.sandboxes.errors = [NO_SANDBOX, Panic()]  # type: ignore[list-item]  # a defect, not a CallError
        with pytest.raises(CallError) as caught:
            await answered(world)
    assert caught.value.reason is Reason.INTERNAL
    assert [(row.state.value, row.reason) for row in inner_rows(world)] == [("failed", Reason.INTERNAL)]
