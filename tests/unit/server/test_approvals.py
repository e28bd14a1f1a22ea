import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from callgate_server.admission.authenticate import Authentication
from callgate_server.admission.bounds import Bounds, BoundTable
from callgate_server.approvals import Approvals
from callgate_server.execution.running import Running
from callgate_server.ledger.store import StoredCall
from callgate_server.model.call import Caller, CallRequest
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.spending import Amounts, Budget, Scope
from callgate_server.model.strict_json import Json
from callgate_server.model.task import Stop
from callgate_server.model.verdict import Ruling
from callgate_server.observe.refusals import Refusals
from support.stages import World

BOSS = Caller("acme", "boss", ("approvers",))
CALLERS = {
    "boss": BOSS,
    "self": Caller("acme", "bot", ("approvers",)),
    "clerk": Caller("acme", "clerk", ("developer",)),
    "rival": Caller("rival", "boss", ("approvers",)),
    "task": replace(BOSS, task="t1"),
}
# What is recorded of who was refused.
SAID: list[tuple[str, Mapping[str, Json]]] = []
REQUEST = CallRequest("text.echo", b'{"text": "pay 100"}', "http", purpose="An invoice is due.")


class Tokens:
    async def authenticate(self, token: str) -> Caller | None:
        return CALLERS.get(token)


async def asked(world: World) -> tuple[Approvals, Running]:
    world.policy.ruling = Ruling.NEEDS_APPROVAL
    running = await world.pipeline.start("agent", REQUEST)
    approvals = Approvals(
        Authentication(Tokens()),
        world.catalog,
        world.ledger,
        world.running,
        world.limits.stops.refuse,
        world.limits.unused,
        Refusals(lambda kind, body: SAID.append((kind, body))),
    )
    SAID.clear()
    return approvals, running


async def reason(work: object) -> Reason:
    with pytest.raises(CallError) as caught:
        await work  # type: ignore[misc]
    return caught.value.reason


async def test_an_approver_sees_who_asks_for_what_and_why() -> None:
    async with World() as world:
        approvals, running = await asked(world)
        shown = await approvals.show("boss", running.call_id)
        running.cancel()
    assert shown["arguments"] == {"text": "pay 100"}
    assert (shown["tenant"], shown["agent"], shown["group"]) == ("acme", "bot", "approvers")
    assert (shown["purpose"], shown["policies"], shown["state"]) == ("An invoice is due.", ["p1"], "waiting")
    assert len(shown["digest"]) == 64


async def test_a_list_shows_no_arguments() -> None:
    async with World() as world:
        approvals, running = await asked(world)
        (listed,) = await approvals.list("boss")
        running.cancel()
    assert (listed["call_id"], listed["arguments"], listed["purpose"]) == (running.call_id, None, None)


async def test_what_is_approved_with_its_digest_runs_once() -> None:
    async with World() as world:
        approvals, running = await asked(world)
        digest = (await approvals.show("boss", running.call_id))["digest"]
        decided = await approvals.decide("boss", running.call_id, digest, approve=True)
        assert (decided["state"], decided["decided_by"]) == ("approved", "acme/boss")
        assert (await running.wait())["state"] == "succeeded"
        again = approvals.decide("boss", running.call_id, digest, approve=True)
        assert await reason(again) is Reason.NOT_POSSIBLE
    assert world.journal.count("run") == 1


async def test_a_denial_says_who_and_ends_the_call() -> None:
    async with World() as world:
        approvals, running = await asked(world)
        digest = (await approvals.show("boss", running.call_id))["digest"]
        assert (await approvals.decide("boss", running.call_id, digest, approve=False))["state"] == "denied"
        assert await reason(running.wait()) is Reason.APPROVAL_DENIED
        assert (await approvals.show("boss", running.call_id))["arguments"] is None


async def test_a_denial_gives_back_what_the_call_has_reserved() -> None:
    async with World(bounds=BoundTable(per_agent=Bounds(budget=Budget(calls=1, window_h=24)))) as world:
        approvals, running = await asked(world)
        digest = (await approvals.show("boss", running.call_id))["digest"]
        await approvals.decide("boss", running.call_id, digest, approve=False)
        await running.finished.wait()
        assert sum((charge.amounts for charge in world.ledger.charges), Amounts()) == Amounts()
        assert world.limits.budgets.spent(Scope("acme", "bot")) == Amounts()


@pytest.mark.parametrize("approve", [True, False])
async def test_a_decision_whose_approver_leaves_while_it_is_written_reaches_the_call(
    monkeypatch: pytest.MonkeyPatch, *, approve: bool
) -> None:
    async with World() as world:
        approvals, running = await asked(world)
        digest = (await approvals.show("boss", running.call_id))["digest"]
        writing, disk, decide = asyncio.Event(), asyncio.Event(), world.ledger.decide
        writes: list[asyncio.Task[StoredCall]] = []

        async def write(*decision: str, **how: Any) -> StoredCall:
            writing.set()
            await disk.wait()
            return await decide(*decision, **how)

        async def slowly(*decision: str, **how: Any) -> StoredCall:
            # As the ledger does it: who stops waiting takes nothing back.
            writes.append(asyncio.create_task(write(*decision, **how)))
            return await asyncio.shield(writes[0])

        monkeypatch.setattr(world.ledger, "decide", slowly)
        asking = asyncio.create_task(approvals.decide("boss", running.call_id, digest, approve=approve))
        await writing.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not running.decided.is_set()
        disk.set()
        async with asyncio.timeout(5):
            if approve:
                assert (await running.wait())["state"] == "succeeded"
            else:
                assert await reason(running.wait()) is Reason.APPROVAL_DENIED


@pytest.mark.parametrize("digest", ["", "0" * 64])
async def test_a_decision_without_the_digest_that_was_shown_decides_nothing(digest: str) -> None:
    async with World() as world:
        approvals, running = await asked(world)
        for approve in (True, False):
            decision = approvals.decide("boss", running.call_id, digest, approve=approve)
            assert await reason(decision) is Reason.APPROVAL_VOID
        assert not running.decided.is_set()
        running.cancel()


async def test_the_digest_of_other_arguments_is_another_one() -> None:
    async with World() as world:
        approvals, first = await asked(world)
        second = await world.pipeline.start("agent", replace(REQUEST, arguments_json=b'{"text": "pay 1"}'))
        digest = (await approvals.show("boss", second.call_id))["digest"]
        assert await reason(approvals.decide("boss", first.call_id, digest, approve=True)) is Reason.APPROVAL_VOID
        first.cancel()
        second.cancel()


async def test_nobody_approves_its_own_call() -> None:
    async with World() as world:
        approvals, running = await asked(world)
        digest = (await approvals.show("boss", running.call_id))["digest"]
        own = approvals.decide("self", running.call_id, digest, approve=True)
        assert await reason(own) is Reason.POLICY_DENIED
        assert await approvals.list("self") == []
        running.cancel()


@pytest.mark.parametrize("token", ["clerk", "rival", "task"])
async def test_for_everybody_else_there_is_no_such_call(token: str) -> None:
    async with World() as world:
        approvals, running = await asked(world)
        digest = (await approvals.show("boss", running.call_id))["digest"]
        assert await approvals.list(token) == []
        for attempt in (
            approvals.show(token, running.call_id),
            approvals.decide(token, running.call_id, digest, approve=True),
        ):
            assert await reason(attempt) is Reason.UNKNOWN_CALL
        assert await reason(approvals.show("boss", "c-absent")) is Reason.UNKNOWN_CALL
        running.cancel()


async def test_who_is_stopped_approves_nothing() -> None:
    async with World() as world:
        approvals, running = await asked(world)
        digest = (await approvals.show("boss", running.call_id))["digest"]
        world.limits.stops.put(Stop("acme", "boss", "It loops.", "acme/root", datetime.now(UTC)))
        decision = approvals.decide("boss", running.call_id, digest, approve=True)
        assert await reason(decision) is Reason.STOPPED
        running.cancel()


@pytest.mark.parametrize(
    ("token", "guessed", "refused"),
    [
        ("self", None, "policy_denied"),
        ("boss", "0" * 64, "approval_void"),
        ("clerk", None, "unknown_call"),
        ("rival", None, "unknown_call"),
        ("task", None, "unknown_call"),
    ],
)
async def test_who_tries_to_approve_what_it_may_not_leaves_a_trace(
    token: str, guessed: str | None, refused: str
) -> None:
    async with World() as world:
        approvals, running = await asked(world)
        digest = (await approvals.show("boss", running.call_id))["digest"]
        assert await reason(approvals.decide(token, running.call_id, guessed or digest, approve=True)) == refused
        running.cancel()
    [(kind, body)] = SAID
    who = CALLERS[token]
    assert kind == "approval_refused"
    assert body == {
        "tenant": who.tenant, "agent": who.agent, "task": who.task,
        "operation": "decide", "reason": refused, "call": running.call_id,
    }  # fmt: skip


async def test_who_has_redriven_a_call_and_would_approve_it_leaves_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    async with World() as world:
        approvals, running = await asked(world)
        digest = (await approvals.show("boss", running.call_id))["digest"]

        async def refuse(*_: object, **__: object) -> None:
            raise CallError(Reason.POLICY_DENIED, "Who has redriven a call cannot approve it.")

        monkeypatch.setattr(world.ledger, "decide", refuse)
        assert await reason(approvals.decide("boss", running.call_id, digest, approve=True)) is Reason.POLICY_DENIED
        running.cancel()
    assert [(kind, body["reason"]) for kind, body in SAID] == [("approval_refused", "policy_denied")]


async def test_what_a_caller_makes_up_is_not_recorded() -> None:
    async with World() as world:
        approvals, running = await asked(world)
        assert await reason(approvals.show("clerk", "c-made-up")) is Reason.UNKNOWN_CALL
        assert SAID == []
        assert await reason(approvals.show("clerk", running.call_id)) is Reason.UNKNOWN_CALL
        running.cancel()
    assert [body["operation"] for _, body in SAID] == ["show"]
