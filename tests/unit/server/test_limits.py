import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from callgate_server.admission.bounds import Bounds, BoundTable
from callgate_server.admission.loops import LoopRule
from callgate_server.admission.rates import Rate
from callgate_server.admission.tasks import LiveTask
from callgate_server.backends.json_schema import grantable
from callgate_server.execution.running import Running
from callgate_server.model.call import CallRequest
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.spending import MILLION, Amounts, Budget, Charge, Scope, hour_of
from callgate_server.model.task import Stop, Task, new_task_id
from callgate_server.model.verdict import Ruling
from support.stages import AGENT, OTHER_AGENT, World, exit_frame, success, tool, wire

BOT, ACME = Scope("acme", "bot"), Scope("acme")
FAILS = [exit_frame(code=3), wire.encode(wire.BYE, b"")]
THRICE = {"attempts": 3, "backoff_s": 0.01}
API = [{"host": "api.example.com"}]
NO_SANDBOX = CallError(Reason.SANDBOX_UNAVAILABLE, "None.")


def request(text: str = "hi", **changes: object) -> CallRequest:
    return CallRequest("text.echo", json.dumps({"text": text}).encode(), "http", **changes)  # type: ignore[arg-type]


async def call(world: World, asked: CallRequest | None = None, token: str = "agent") -> dict[str, object]:
    running = await world.pipeline.start(token, asked or request())
    answer = dict(await running.wait())
    await running.finished.wait()
    return answer


async def refused(world: World, asked: CallRequest | None = None, token: str = "agent") -> CallError:
    with pytest.raises(CallError) as caught:
        await call(world, asked, token)
    return caught.value


def made(world: World, grant: dict[str, dict[str, object]], budget: Budget = Budget()) -> Task:  # noqa: B008  # frozen
    task_id, now = new_task_id(), datetime.now(UTC)
    task = Task(task_id, replace(AGENT, task=task_id), "x", grant, budget, now, now + timedelta(hours=1))
    world.limits.tasks.add(LiveTask.of(task, "digest", grantable))
    return task


def agent_bounds(**bounds: object) -> BoundTable:
    return BoundTable(per_agent=Bounds(**bounds))  # type: ignore[arg-type]


async def test_a_rate_refuses_with_the_time_to_wait_and_the_refusal_is_recorded() -> None:
    async with World(bounds=agent_bounds(rate=Rate(2, 600))) as world:
        await call(world)
        await call(world)
        error = await refused(world)
        await call(world, token="other")
    assert (error.reason, error.call_id in world.ledger.rows) == (Reason.RATE_LIMITED, True)
    assert 0 < (error.retry_after_ms or 0) <= 300_001


async def test_beyond_a_number_of_refusals_an_agent_is_refused_all_and_only_their_sum_is_recorded() -> None:
    async with World(fruitless=Rate(2, 600)) as world:
        world.policy.ruling = Ruling.DENY
        errors = [await refused(world) for _ in range(5)]
        world.policy.ruling = Ruling.ALLOW
        assert (await refused(world)).reason is Reason.RATE_LIMITED
        await call(world, token="other")
        told: list[tuple[str, object]] = []
        world.limits.tell_beyond(lambda kind, body: told.append((kind, dict(body))))
    assert [error.reason for error in errors] == [Reason.POLICY_DENIED] * 2 + [Reason.RATE_LIMITED] * 3
    assert [error.call_id in world.ledger.rows for error in errors] == [True, True, False, False, False]
    assert told == [("refused_beyond", {"tenant": "acme", "agent": "bot", "requests": 4})]
    assert len(world.watch.refusals) == 6


async def test_what_the_gateway_itself_asks_for_an_agent_pays_for_no_noise_of_it() -> None:
    async with World(fruitless=Rate(1, 600)) as world:
        world.policy.ruling = Ruling.DENY
        await refused(world)
        world.policy.ruling = Ruling.ALLOW
        error = await refused(world)
        assert (error.reason, error.call_id) == (Reason.RATE_LIMITED, None)
        running = await world.pipeline.start_for(AGENT, request())
        assert (await running.wait())["state"] == "succeeded"


async def test_repetitions_count_among_what_comes_to_nothing() -> None:
    async with World(fruitless=Rate(2, 600)) as world:
        for replayed in (False, True, True):
            assert (await call(world, request(idempotency_key="k")))["replayed"] is replayed
        assert (await refused(world, request(idempotency_key="k"))).reason is Reason.RATE_LIMITED


async def test_a_kept_call_whose_turn_comes_pays_for_no_noise_of_its_agent() -> None:
    async with World(fruitless=Rate(1, 600)) as world:
        world.sandboxes.gate = asyncio.Event()
        kept = [await world.pipeline.start("agent", request(str(n), asynchronous=True)) for n in range(3)]
        world.policy.ruling = Ruling.DENY
        await refused(world)
        world.policy.ruling = Ruling.ALLOW
        assert (await refused(world)).reason is Reason.RATE_LIMITED
        world.sandboxes.gate.set()
        assert [(await one.wait())["state"] for one in kept] == ["succeeded"] * 3


async def test_a_replay_costs_nothing() -> None:
    bounds = agent_bounds(rate=Rate(1, 600), budget=Budget(calls=1, window_h=24))
    async with World(bounds=bounds) as world:
        await call(world, request(idempotency_key="k"))
        for _ in range(3):
            assert (await call(world, request(idempotency_key="k")))["replayed"] is True
        assert (await refused(world, request(idempotency_key="k2"))).reason is Reason.BUDGET_EXCEEDED


async def test_a_budget_has_figures_and_counts_what_a_call_cost() -> None:
    bounds = agent_bounds(budget=Budget(cost=5 * MILLION, window_h=24))
    async with World(tool(cost=2.5), bounds=bounds) as world:
        await call(world)
        await call(world)
        error = await refused(world)
        assert world.limits.budgets.spent(BOT) == Amounts(2, 2000, 0, 5 * MILLION)
    assert "5 of 5 units of cost, and this call costs 2.5," in error.message
    hour = hour_of(datetime.now(UTC))
    [first, _] = [intent.charges for intent in world.ledger.intents]
    assert first in [(Charge(BOT, at, Amounts(calls=1, cost=int(2.5 * MILLION))),) for at in (hour, hour - 1)]
    assert [charge.amounts for charge in world.ledger.completions[0].charges] == [Amounts(cpu_us=1000)]


async def test_what_did_not_run_is_given_back() -> None:
    async with World(bounds=agent_bounds(budget=Budget(calls=1, window_h=24))) as world:
        world.sandboxes.error = CallError(Reason.SANDBOX_UNAVAILABLE, "None.")
        assert (await refused(world)).reason is Reason.SANDBOX_UNAVAILABLE
        assert [charge.amounts.calls for charge in world.ledger.completions[0].charges] == [-1]
        world.sandboxes.error = None
        await call(world)
        assert (await refused(world)).reason is Reason.BUDGET_EXCEEDED


async def test_what_earlier_attempts_used_counts_where_the_last_one_never_started() -> None:
    gone = [[exit_frame(code=75, cpu_ms=cpu_ms), wire.encode(wire.BYE, b"")] for cpu_ms in (40.0, 20.0)]
    bounds = agent_bounds(budget=Budget(calls=9, egress_bytes=1_000_000, window_h=24))
    async with World(tool(retry=THRICE, egress=API), bounds=bounds) as world:
        world.sandboxes.first = gone
        world.sandboxes.errors = [None, None, NO_SANDBOX]
        assert (await refused(world)).reason is Reason.SANDBOX_UNAVAILABLE
        assert world.limits.budgets.spent(BOT) == Amounts(1, 60_000, 84, MILLION)
    assert [charge.amounts for charge in world.ledger.completions[0].charges] == [Amounts(0, 60_000, 84)]


async def test_a_call_is_given_back_that_no_attempt_of_started() -> None:
    async with World(tool(retry=THRICE), bounds=agent_bounds(budget=Budget(calls=9, window_h=24))) as world:
        world.sandboxes.errors = [NO_SANDBOX] * 3
        assert (await refused(world)).reason is Reason.SANDBOX_UNAVAILABLE
        assert world.limits.budgets.spent(BOT) == Amounts()
    assert [charge.amounts for charge in world.ledger.completions[0].charges] == [Amounts(calls=-1, cost=-MILLION)]


async def test_what_was_not_claimed_is_given_back() -> None:
    async with World(bounds=agent_bounds(budget=Budget(calls=1, window_h=24))) as world:
        world.ledger.failing = {"claim"}
        assert (await refused(world)).reason is Reason.AUDIT_UNAVAILABLE
        world.ledger.failing = set()
        await call(world)


async def test_what_a_rate_refuses_reserves_nothing() -> None:
    bounds = agent_bounds(rate=Rate(1, 600), budget=Budget(calls=5, window_h=24))
    async with World(bounds=bounds) as world:
        await call(world)
        assert (await refused(world)).reason is Reason.RATE_LIMITED
        assert world.limits.budgets.spent(BOT).calls == 1


async def test_an_unsafe_call_whose_effect_is_unknown_is_not_given_back() -> None:
    async with World(tool(effect="unsafe"), bounds=agent_bounds(budget=Budget(calls=9, window_h=24))) as world:
        world.sandboxes.frames = [b"\xff" * 64]
        await call(world)
        assert world.limits.budgets.spent(BOT).calls == 1


async def test_an_agent_has_only_so_many_places() -> None:
    async with World(bounds=agent_bounds(concurrent=1)) as world:
        world.sandboxes.gate = asyncio.Event()
        first = await world.pipeline.start("agent", request())
        error = await refused(world)
        second = await world.pipeline.start("other", request())
        world.sandboxes.gate.set()
        await asyncio.gather(first.wait(), second.wait())
        await first.finished.wait()
        await call(world)
    assert len(world.limits.shares) == 0
    assert (error.reason, "agent acme/bot" in error.message) == (Reason.OVERLOADED, True)


async def test_what_was_spent_before_a_restart_is_spent() -> None:
    bounds = BoundTable(per_tenant=Bounds(budget=Budget(calls=3, window_h=24)))
    async with World(bounds=bounds) as world:
        hour = hour_of(datetime.now(UTC))
        unknown = Charge(Scope("acme", "bot", "gone"), 0, Amounts(calls=1))
        world.limits.load([Charge(ACME, hour, Amounts(calls=3)), unknown])
        assert "3 of 3 calls" in (await refused(world)).message
        await call(world, token="other")


async def test_a_failing_call_again_and_again_is_stopped_and_a_changed_one_is_not() -> None:
    async with World(loop=LoopRule(3, 600)) as world:
        world.sandboxes.frames = FAILS
        for _ in range(3):
            assert (await call(world))["state"] == "failed"
        error = await refused(world)
        assert (await call(world, request("other")))["state"] == "failed"
        assert (await call(world, token="other"))["state"] == "failed"
    assert (error.reason, "tool_failed" in error.message) == (Reason.LOOP_STOPPED, True)
    assert (error.retry_after_ms or 0) > 0


async def test_a_success_in_between_starts_anew() -> None:
    async with World(loop=LoopRule(2, 600)) as world:
        for frames in (FAILS, success("done"), FAILS, FAILS):
            world.sandboxes.frames = list(frames)
            await call(world)
        assert (await refused(world)).reason is Reason.LOOP_STOPPED


async def test_what_was_no_fault_of_the_call_makes_no_loop() -> None:
    async with World(loop=LoopRule(1, 600)) as world:
        world.sandboxes.error = CallError(Reason.SANDBOX_UNAVAILABLE, "None.")
        await refused(world)
        world.sandboxes.error = None
        await call(world)


@pytest.mark.parametrize("agent", ["bot", ""])
async def test_who_is_stopped_is_refused_before_anything_else(agent: str) -> None:
    async with World() as world:
        await call(world, request(idempotency_key="k"))
        world.limits.stops.put(Stop("acme", agent, "", "root", datetime.now(UTC)))
        for asked in (request(), request(idempotency_key="k"), CallRequest("no.tool", b"x", "http")):
            error = await refused(world, asked)
            assert (error.reason, world.ledger.rows[error.call_id or ""].reason) == (Reason.STOPPED, Reason.STOPPED)
        await call(world, token="other")


async def test_a_call_in_progress_is_found_by_its_owner() -> None:
    async with World() as world:
        world.sandboxes.gate = asyncio.Event()
        running: Running = await world.pipeline.start("agent", request())
        assert world.running.of("acme", "bot") == world.running.of("acme") == [running]
        assert world.running.of("rival") == world.running.of("acme", "other") == []
        running.cancel()
        assert (await running.wait())["state"] == "cancelled"


async def test_a_task_narrows_a_call_and_is_recorded_with_it() -> None:
    async with World() as world:
        task = made(world, {"text.echo": {"properties": {"text": {"const": "hi"}}}}, Budget(calls=1))
        answer = await call(world, request(task=task.task_id))
        assert world.ledger.rows[str(answer["call_id"])].caller == replace(AGENT, task=task.task_id)
        outside = await refused(world, request("ho", task=task.task_id))
        over = await refused(world, request(task=task.task_id))
        await call(world, request("ho"))
    assert (outside.reason, [v.rule for v in outside.violations]) == (Reason.OUTSIDE_GRANT, ["const"])
    assert "of this task" in over.message
    scope = Scope("acme", "bot", task.task_id)
    assert world.ledger.intents[0].charges == (Charge(scope, 0, Amounts(calls=1, cost=MILLION)),)


async def test_a_grant_never_widens_what_policy_allows() -> None:
    async with World() as world:
        task = made(world, {"text.echo": {}})
        world.policy.ruling = Ruling.DENY
        assert (await refused(world, request(task=task.task_id))).reason is Reason.POLICY_DENIED


async def test_who_has_no_permit_has_no_grant_checked() -> None:
    async with World() as world:
        task = made(world, {"text.echo": {"properties": {"text": {"const": "hi"}}}})
        asked = request("ho", task=task.task_id)
        assert (await refused(world, asked)).reason is Reason.OUTSIDE_GRANT
        world.policy.ruling = Ruling.DENY
        assert (await refused(world, asked)).reason is Reason.POLICY_DENIED


async def test_a_task_that_ended_while_its_call_ran_is_charged_all_the_same() -> None:
    async with World() as world:
        task = made(world, {"text.echo": {}})
        world.sandboxes.gate = asyncio.Event()
        running = await world.pipeline.start("agent", request(task=task.task_id))
        world.limits.tasks.end(task)
        world.sandboxes.gate.set()
        await running.wait()
        assert (await refused(world, request(task=task.task_id))).reason is Reason.TASK_ENDED
    [charge] = world.ledger.completions[0].charges
    assert (charge.scope.task, charge.amounts) == (task.task_id, Amounts(cpu_us=1000))


async def test_another_tenants_task_is_unknown_and_what_it_has_is_not_told() -> None:
    async with World() as world:
        task = made(world, {"text.echo": {}})
        error = await refused(world, request(task=task.task_id), token="other")
        none = await refused(world, request(task=new_task_id()), token="other")
    assert (error.reason, error.message) == (none.reason, none.message) == (Reason.UNKNOWN_TASK, "No such task.")
    assert world.ledger.rows[error.call_id or ""].caller == OTHER_AGENT


async def test_what_an_agent_does_beside_calls_takes_from_the_same_rates() -> None:
    async with World(bounds=agent_bounds(rate=Rate(2, 600))) as world:
        await call(world)
        world.limits.hasten(AGENT)
        for hasty in (world.limits.hasten, lambda caller: world.limits.hasten(replace(caller, task="nightly"))):
            with pytest.raises(CallError) as caught:
                hasty(AGENT)
            assert (caught.value.reason, (caught.value.retry_after_ms or 0) > 0) == (Reason.RATE_LIMITED, True)
        assert (await refused(world)).reason is Reason.RATE_LIMITED
        world.limits.hasten(OTHER_AGENT)
