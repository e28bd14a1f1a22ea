import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from callgate_server.admission.bounds import Bounds, BoundTable
from callgate_server.admission.queue import QueueRules
from callgate_server.execution.breaker import BreakerRules
from callgate_server.execution.breaker import State as Breaker
from callgate_server.execution.breakers import BreakerKey
from callgate_server.execution.running import Accepted, Running, Waiting
from callgate_server.kept import Patience
from callgate_server.model.call import CallRequest
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.spending import MILLION, Amounts, Budget, Scope
from callgate_server.model.verdict import Ruling
from support.stages import AGENT, CANARY, World, exit_frame, tool

LATER = CallRequest("text.echo", b'{"text": "hi"}', "http", asynchronous=True)
NOW = replace(LATER, asynchronous=False)


async def refused(running: Running) -> CallError:
    with pytest.raises(CallError) as caught:
        await running.wait()
    return caught.value


async def approve(world: World, running: Running, *, approve: bool = True) -> None:
    await world.ledger.decide(running.call_id, "acme/boss", approve=approve)
    running.decided.set()


async def waits(running: Running, state: State) -> Waiting:
    async with asyncio.timeout(5):
        async for event in running.events():
            if isinstance(event, Waiting) and event.state is state:
                return event
    raise AssertionError("it did not wait")


async def test_an_asynchronous_call_is_claimed_at_once_judged_again_and_runs_when_its_turn_comes() -> None:
    async with World() as world:
        running = await world.pipeline.start("agent", LATER)
        assert world.journal == ["authorize", "claim"]
        answer = await running.wait()
    assert answer["state"] == "succeeded"
    assert answer["call_id"] == running.call_id
    assert world.journal[:4] == ["authorize", "claim", "authorize", "begin"]
    assert not world.ledger.rows[running.call_id].kept


async def test_while_it_waits_the_gateway_holds_none_of_its_arguments() -> None:
    async with World(kept=QueueRules(1, 1, 8, 8, 8)) as world:
        world.sandboxes.gate = asyncio.Event()
        first = await world.pipeline.start("agent", LATER)
        await waits(first, State.ADMITTED)
        second = await world.pipeline.start(
            "agent", replace(LATER, arguments_json=json.dumps({"text": CANARY}).encode())
        )
        await waits(second, State.ADMITTED)
        assert CANARY not in repr(world.ledger.rows)
        world.sandboxes.gate.set()
        assert (await second.wait())["state"] == "succeeded"
    assert any(CANARY.encode() in frame for frame in world.sandboxes.opened[-1].received)


async def test_a_call_that_needs_an_approval_waits_without_running_anything() -> None:
    async with World() as world:
        world.policy.ruling = Ruling.NEEDS_APPROVAL
        running = await world.pipeline.start("agent", NOW)
        await running.settled()
        event = await waits(running, State.AWAITING_APPROVAL)
        assert (event.group, running.ended) == ("approvers", False)
        assert world.journal == ["authorize", "claim"]
        await approve(world, running)
        assert (await running.wait())["state"] == "succeeded"


async def test_a_denied_call_never_runs_and_says_who_denied_it() -> None:
    async with World() as world:
        world.policy.ruling = Ruling.NEEDS_APPROVAL
        running = await world.pipeline.start("agent", NOW)
        await approve(world, running, approve=False)
        assert (await refused(running)).reason is Reason.APPROVAL_DENIED
    assert "run" not in world.journal


async def test_an_approval_that_nobody_gives_expires_and_says_so() -> None:
    async with World(patience=Patience(30, 0)) as world:
        world.policy.ruling = Ruling.NEEDS_APPROVAL
        running = await world.pipeline.start("agent", NOW)
        error = await refused(running)
    assert error.reason is Reason.APPROVAL_EXPIRED
    assert "approvers" in error.message
    assert world.ledger.rows[running.call_id].state is State.DENIED


async def test_a_turn_that_does_not_come_in_time_ends_the_call() -> None:
    async with World(kept=QueueRules(1, 1, 8, 8, 8), patience=Patience(0.05, 30)) as world:
        world.sandboxes.gate = asyncio.Event()
        await world.pipeline.start("agent", LATER)
        late = await world.pipeline.start("agent", LATER)
        assert (await refused(late)).reason is Reason.DEADLINE_EXCEEDED
        assert world.ledger.rows[late.call_id].state is State.TIMED_OUT
        assert world.ledger.rows[late.call_id].dead == "open"
        world.sandboxes.gate.set()


@pytest.mark.parametrize("ruling", [Ruling.ALLOW, Ruling.NEEDS_APPROVAL])
async def test_what_waits_can_be_cancelled_and_has_not_run(ruling: Ruling) -> None:
    async with World(kept=QueueRules(1, 1, 8, 8, 8)) as world:
        world.sandboxes.gate = asyncio.Event()
        await world.pipeline.start("agent", LATER)
        await world.sandboxes.asked.wait()
        world.policy.ruling = ruling
        second = await world.pipeline.start("agent", LATER)
        second.cancel()
        answer = await second.wait()
        assert (answer["state"], answer["error"]["reason"]) == ("cancelled", "cancelled")
        assert world.ledger.rows[second.call_id].dead is None
        world.sandboxes.gate.set()
    assert world.journal.count("run") == 1


async def test_policy_that_changed_while_a_call_waited_is_obeyed() -> None:
    async with World() as world:
        world.policy.ruling = Ruling.NEEDS_APPROVAL
        running = await world.pipeline.start("agent", NOW)
        world.policy.ruling = Ruling.DENY
        await approve(world, running)
        assert (await refused(running)).reason is Reason.POLICY_DENIED
    assert world.ledger.rows[running.call_id].state is State.DENIED
    assert "run" not in world.journal


async def test_an_approval_is_void_for_another_tool_than_the_one_that_was_seen() -> None:
    async with World() as world:
        world.policy.ruling = Ruling.NEEDS_APPROVAL
        running = await world.pipeline.start("agent", NOW)
        parcel = world.ledger.parcels[running.call_id]
        world.ledger.parcels[running.call_id] = replace(parcel, tool_digest="sha256:other")
        await approve(world, running)
        assert (await refused(running)).reason is Reason.APPROVAL_VOID
    assert "run" not in world.journal


async def test_a_call_that_waits_for_its_turn_may_run_with_a_newer_tool() -> None:
    async with World(kept=QueueRules(1, 1, 8, 8, 8)) as world:
        world.sandboxes.gate = asyncio.Event()
        first = await world.pipeline.start("agent", LATER)
        await waits(first, State.ADMITTED)
        second = await world.pipeline.start("agent", LATER)
        parcel = world.ledger.parcels[second.call_id]
        world.ledger.parcels[second.call_id] = replace(parcel, tool_digest="sha256:older")
        world.sandboxes.gate.set()
        assert (await second.wait())["state"] == "succeeded"


async def test_a_record_that_cannot_be_written_for_a_while_costs_a_kept_call_nothing_but_time() -> None:
    async with World() as world:
        world.ledger.failing = {"begin"}
        running = await world.pipeline.start("agent", LATER)
        await waits(running, State.ADMITTED)
        await asyncio.sleep(0.05)
        world.ledger.failing = set()
        assert (await running.wait())["state"] == "succeeded"


async def test_at_the_end_of_the_gateway_what_waits_is_suspended_and_stays_in_the_record() -> None:
    async with World() as world:
        world.policy.ruling = Ruling.NEEDS_APPROVAL
        running = await world.pipeline.start("agent", NOW)
        await waits(running, State.AWAITING_APPROVAL)
        assert await world.running.drain(1, 1) == 0
        assert (await refused(running)).reason is Reason.DRAINING
        assert world.ledger.rows[running.call_id].state is State.AWAITING_APPROVAL
        assert world.ledger.rows[running.call_id].kept


async def test_the_next_life_goes_on_with_what_waited_and_its_events_come_after_the_earlier_ones() -> None:
    async with World() as world:
        world.policy.ruling = Ruling.NEEDS_APPROVAL
        running = await world.pipeline.start("agent", NOW)
        last = await waits(running, State.AWAITING_APPROVAL)
        await world.running.drain(1, 1)
        world.running.draining = False
        assert await world.pipeline.resume() == 1
        again = world.running.get(running.call_id)
        assert again is not None
        await approve(world, again)
        assert (await again.wait())["state"] == "succeeded"
        events = [event async for event in again.events(after=last.seq)]
    assert isinstance(events[0], Accepted)
    assert events[0].seq > last.seq


async def test_what_was_approved_while_nobody_carried_it_runs_in_the_next_life() -> None:
    async with World() as world:
        world.policy.ruling = Ruling.NEEDS_APPROVAL
        running = await world.pipeline.start("agent", NOW)
        await world.running.drain(1, 1)
        await world.ledger.decide(running.call_id, "acme/boss", approve=True)
        world.running.draining = False
        assert await world.pipeline.resume() == 1
        again = world.running.get(running.call_id)
        assert again is not None
        assert (await again.wait())["state"] == "succeeded"


async def test_no_more_calls_are_kept_than_there_are_places() -> None:
    async with World(kept=QueueRules(1, 1, 1, 1, 1)) as world:
        world.sandboxes.gate = asyncio.Event()
        await world.pipeline.start("agent", LATER)
        with pytest.raises(CallError) as caught:
            await world.pipeline.start("agent", LATER)
        assert caught.value.reason is Reason.OVERLOADED
        world.sandboxes.gate.set()


async def test_a_dead_letter_becomes_a_new_call_of_its_own_caller_and_its_tool_knows_both_by_one_key() -> None:
    async with World(tool(effect="idempotent")) as world:
        world.sandboxes.frames = [exit_frame(code=3)]
        dead = await world.pipeline.start("agent", LATER)
        await dead.wait()
        row = world.ledger.rows[dead.call_id]
        assert (row.state, row.dead) == (State.LOST, "open")
        new = await world.pipeline.redrive(row, row.caller, "acme/boss")
        await new.wait()
    assert world.ledger.rows[new.call_id].follows == dead.call_id
    assert world.ledger.rows[new.call_id].caller == row.caller
    assert world.ledger.parcels[new.call_id].known_as == world.ledger.parcels[dead.call_id].known_as


async def test_what_is_kept_no_more_is_not_redriven() -> None:
    async with World() as world:
        done = await world.pipeline.start("agent", LATER)
        await done.wait()
        with pytest.raises(CallError) as caught:
            await world.pipeline.redrive(world.ledger.rows[done.call_id], AGENT, "acme/boss")
    assert caught.value.reason is Reason.NOT_POSSIBLE


# --- and the circuit breaker of its tool ---------------------------------------------------------------------------

BREAKER = "tool:acme/text.echo"
ONE_PROBE = BreakerRules(window=2, min_calls=1, failure_rate=0.5, open_s=0.05, probes=1)


@pytest.mark.parametrize("ruling", [Ruling.NEEDS_APPROVAL, Ruling.ALLOW])
async def test_nobody_is_asked_to_approve_what_will_not_run_and_nothing_is_queued_for_it(ruling: Ruling) -> None:
    async with World() as world:
        world.breakers.open(BREAKER)
        world.policy.ruling = ruling
        with pytest.raises(CallError) as caught:
            await world.pipeline.start("agent", LATER)
        assert caught.value.reason is Reason.CIRCUIT_OPEN
        assert world.journal == ["authorize", "refuse"]


async def test_a_call_whose_tool_is_stopped_while_it_waits_runs_when_it_is_not_any_more() -> None:
    async with World() as world:
        world.policy.ruling = Ruling.NEEDS_APPROVAL
        running = await world.pipeline.start("agent", NOW)
        await waits(running, State.AWAITING_APPROVAL)
        world.breakers.open(BREAKER)
        await approve(world, running)
        await waits(running, State.ADMITTED)
        await asyncio.sleep(0.05)
        assert not running.ended
        assert "begin" not in world.journal
        world.breakers.close(BREAKER)
        assert (await running.wait())["state"] == "succeeded"
        assert world.breakers.list()[BREAKER].calls == 1


async def test_a_call_that_waits_takes_no_probes_place() -> None:
    async with World(rules={"tool": ONE_PROBE}) as world:
        world.policy.ruling = Ruling.NEEDS_APPROVAL
        await world.pipeline.start("agent", NOW)
        world.breakers.failed(BreakerKey("tool", "acme", "text.echo"))
        await asyncio.sleep(0.1)
        running = await world.pipeline.start("agent", NOW)
        await waits(running, State.AWAITING_APPROVAL)
        assert (world.breakers.list()[BREAKER].state, world.breakers.list()[BREAKER].probing) == (Breaker.HALF_OPEN, 0)
        world.policy.ruling = Ruling.ALLOW
        assert (await (await world.pipeline.start("agent", NOW)).wait())["state"] == "succeeded"
        assert world.breakers.list()[BREAKER].state is Breaker.CLOSED
        await world.running.drain(0, 1)


async def test_a_call_that_cannot_be_begun_gives_its_probes_place_back() -> None:
    async with World(rules={"tool": ONE_PROBE}) as world:
        world.breakers.failed(BreakerKey("tool", "acme", "text.echo"))
        await asyncio.sleep(0.1)
        world.ledger.failing.add("begin")
        running = await world.pipeline.start("agent", LATER)
        await asyncio.sleep(0.05)
        assert (world.breakers.list()[BREAKER].state, world.breakers.list()[BREAKER].probing) == (Breaker.HALF_OPEN, 0)
        world.ledger.failing.clear()
        assert (await running.wait())["state"] == "succeeded"
        assert world.breakers.list()[BREAKER].state is Breaker.CLOSED


async def test_the_repetition_of_a_parked_call_is_told_at_once_that_it_waits() -> None:
    async with World() as world:
        world.policy.ruling = Ruling.NEEDS_APPROVAL
        first = await world.pipeline.start("agent", replace(NOW, idempotency_key="k"))
        again = await world.pipeline.start("agent", replace(NOW, idempotency_key="k"))
        async with asyncio.timeout(5):
            await again.settled()
        assert (again.claimed_id, again.ended) == (first.call_id, False)
        await approve(world, first)
        assert (await again.wait())["replayed"] is True


async def test_a_call_that_a_breaker_stops_lets_others_have_its_turn_and_runs_when_it_may() -> None:
    async with World(tool(), tool(tool="text.other"), kept=QueueRules(1, 1, 8, 8, 8)) as world:
        stopped = await world.pipeline.start("agent", LATER)
        world.breakers.open("tool:acme/text.echo")
        other = await world.pipeline.start("agent", replace(LATER, tool="text.other"))
        assert (await other.wait())["state"] == "succeeded"
        assert not stopped.ended
        world.breakers.close("tool:acme/text.echo")
        assert (await stopped.wait())["state"] == "succeeded"


async def test_what_a_breaker_stops_for_too_long_is_over_and_a_dead_letter() -> None:
    async with World(patience=Patience(0.1, 30)) as world:
        running = await world.pipeline.start("agent", LATER)
        world.breakers.open("tool:acme/text.echo")
        assert (await refused(running)).reason is Reason.DEADLINE_EXCEEDED
        assert world.ledger.rows[running.call_id].dead == "open"


async def test_a_call_waits_for_the_engine_and_does_not_fail_for_it() -> None:
    async with World() as world:
        running = await world.pipeline.start("agent", LATER)
        world.breakers.open("engine")
        await asyncio.sleep(0.05)
        assert world.ledger.rows[running.call_id].state is State.ADMITTED
        world.breakers.close("engine")
        assert (await running.wait())["state"] == "succeeded"


async def test_an_approval_is_not_lost_where_the_record_cannot_be_read_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with World() as world:
        world.policy.ruling = Ruling.NEEDS_APPROVAL
        running = await world.pipeline.start("agent", NOW)
        looked, get = [], world.ledger.get

        async def failing_once(call_id: str) -> object:
            looked.append(call_id)
            if len(looked) == 1:
                raise CallError(Reason.AUDIT_UNAVAILABLE, "Not now.")
            return await get(call_id)

        monkeypatch.setattr(world.ledger, "get", failing_once)
        await approve(world, running)
        assert (await running.wait())["state"] == "succeeded"


async def test_a_defect_while_it_waits_ends_the_call_and_tells_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with World() as world:
        running = await world.pipeline.start("agent", LATER)

        async def damaged(call_id: str) -> None:
            raise RuntimeError(CANARY)

        monkeypatch.setattr(world.ledger, "parcel", damaged)
        error = await refused(running)
        assert (error.reason, CANARY in error.message) == (Reason.INTERNAL, False)
        assert world.ledger.rows[running.call_id].state is State.FAILED
        assert world.watch.defects == ["RuntimeError"]


async def test_who_cancels_a_call_that_was_denied_in_that_moment_learns_that_it_was_denied() -> None:
    async with World() as world:
        world.policy.ruling = Ruling.NEEDS_APPROVAL
        running = await world.pipeline.start("agent", NOW)
        await world.ledger.decide(running.call_id, "acme/boss", approve=False)
        running.cancel()
        assert (await refused(running)).reason is Reason.APPROVAL_DENIED


async def test_a_later_attempt_says_so_to_its_tool() -> None:
    async with World(tool(effect="idempotent")) as world:
        world.policy.ruling = Ruling.NEEDS_APPROVAL
        running = await world.pipeline.start("agent", NOW)
        await world.running.drain(1, 1)
        world.running.draining = False
        row = world.ledger.rows[running.call_id]
        world.ledger.rows[row.call_id] = replace(row, state=State.ADMITTED, attempt=2)
        await world.pipeline.resume()
        again = world.running.get(row.call_id)
        assert again is not None
        assert (await again.wait())["attempt"] == 2
        sent = b"".join(world.sandboxes.opened[-1].received).replace(b" ", b"")
    assert b'"attempt":2' in sent


# --- and what it has reserved of a budget --------------------------------------------------------------------------

BOT = Scope("acme", "bot")
BUDGET = BoundTable(per_agent=Bounds(budget=Budget(calls=9, window_h=24)))
RESERVED = Amounts(calls=1, cost=MILLION)
End = Callable[[World, Running], Awaitable[None]]


async def cancelled(world: World, running: Running) -> None:
    running.cancel()


async def refused_in_its_turn(world: World, running: Running) -> None:
    world.policy.ruling = Ruling.DENY
    await approve(world, running)


def spent(world: World) -> tuple[Amounts, Amounts]:
    """In the record, and in memory."""
    charges = [charge.amounts for charge in world.ledger.charges if charge.scope == BOT]
    return sum(charges, Amounts()), world.limits.budgets.spent(BOT)


async def asked_for_approval(world: World) -> Running:
    world.policy.ruling = Ruling.NEEDS_APPROVAL
    running = await world.pipeline.start("agent", NOW)
    await waits(running, State.AWAITING_APPROVAL)
    return running


async def over(running: Running) -> None:
    async with asyncio.timeout(5):
        await running.finished.wait()


@asynccontextmanager
async def next_life(world: World, running: Running) -> AsyncIterator[tuple[World, Running]]:
    """A gateway with the same record, and the call in it. What was spent comes from there."""
    async with World(bounds=BUDGET) as later:
        later.ledger.rows |= world.ledger.rows
        later.ledger.parcels |= world.ledger.parcels
        later.ledger.charges += world.ledger.charges
        later.limits.load(later.ledger.charges)
        assert await later.pipeline.resume() == 1
        again = later.running.get(running.call_id)
        assert again is not None
        yield later, again


@pytest.mark.parametrize("end", [cancelled, refused_in_its_turn])
async def test_what_ends_while_it_waits_gives_back_what_it_has_reserved(end: End) -> None:
    async with World(bounds=BUDGET) as world:
        running = await asked_for_approval(world)
        assert spent(world) == (RESERVED, RESERVED)
        await end(world, running)
        await over(running)
        assert spent(world) == (Amounts(), Amounts())


@pytest.mark.parametrize("end", [cancelled, refused_in_its_turn])
async def test_so_does_what_was_claimed_in_an_earlier_life(end: End) -> None:
    async with World(bounds=BUDGET) as world:
        running = await asked_for_approval(world)
        await world.running.drain(1, 1)
    async with next_life(world, running) as (later, again):
        assert spent(later) == (RESERVED, RESERVED)
        await end(later, again)
        await over(again)
        assert spent(later) == (Amounts(), Amounts())


async def test_what_was_claimed_in_an_earlier_life_and_runs_is_spent() -> None:
    async with World(bounds=BUDGET) as world:
        running = await asked_for_approval(world)
        await world.running.drain(1, 1)
    async with next_life(world, running) as (later, again):
        await approve(later, again)
        await over(again)
        assert spent(later) == (replace(RESERVED, cpu_us=1000), replace(RESERVED, cpu_us=1000))


async def test_what_was_begun_before_it_waits_again_gives_nothing_back() -> None:
    async with World(bounds=BUDGET) as world:
        running = await asked_for_approval(world)
        await world.running.drain(1, 1)
        row = world.ledger.rows[running.call_id]
        world.ledger.rows[row.call_id] = replace(row, attempt=2)
    async with next_life(world, running) as (later, again):
        again.cancel()
        await over(again)
        assert spent(later) == (RESERVED, RESERVED)
