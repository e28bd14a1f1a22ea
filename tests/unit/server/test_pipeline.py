import asyncio
import json
from dataclasses import replace

import pytest

from callgate_server.ledger.store import Intent, Keeping, Refusal, StoredCall
from callgate_server.model.call import CallRequest, OnDisconnect
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.verdict import Ruling
from callgate_server.observe.phases import PHASES
from support.stages import CANARY, World, exit_frame, success, tool

SECRETS = [{"name": "key", "from": "kv/data/{tenant}/app#key", "deliver": "file"}]


def request(arguments: object = None, **changes: object) -> CallRequest:
    document = json.dumps({"text": "hi"} if arguments is None else arguments).encode()
    return CallRequest("text.echo", document, "http", **changes)  # type: ignore[arg-type]


async def refusal(world: World, asked: CallRequest, token: str | None = "agent") -> CallError:
    with pytest.raises(CallError) as caught:
        running = await world.pipeline.start(token, asked)
        await running.wait()
    return caught.value


async def test_the_steps_of_a_call_happen_in_the_order_of_the_design() -> None:
    async with World(tool(secrets=SECRETS)) as world:
        running = await world.pipeline.start("agent", request())
        answer = await running.wait()
        await running.finished.wait()
    assert world.journal == [
        "authorize", "claim", "lease", "note:secret_leased", "acquire", "run", "complete:succeeded", "destroy", "revoke", "note:secret_revoked",
    ]  # fmt: skip
    assert answer["state"] == "succeeded"
    assert answer["result"] == "done"
    assert answer["stdout"]["text"] == "hello\n"
    assert answer["untrusted"] is True
    assert answer["decision"]["policies"] == ["p1"]
    # What is recorded cannot say how long its recording took; the metrics do.
    assert set(answer["usage"]["phases_ms"]) == set(PHASES) - {"record"}
    assert world.watch.phases == [set(PHASES)]


async def test_without_a_credential_nothing_happens_and_nothing_is_recorded() -> None:
    async with World() as world:
        for token in (None, "", "stranger"):
            assert (await refusal(world, request(), token)).reason is Reason.UNAUTHENTICATED
    assert world.journal == []


@pytest.mark.parametrize(
    ("ruling", "reason"),
    [
        (Ruling.DENY, Reason.POLICY_DENIED),
        (Ruling.ERROR, Reason.POLICY_ERROR),
    ],
)
async def test_only_an_allow_is_an_allow_and_every_refusal_is_recorded(ruling: Ruling, reason: Reason) -> None:
    async with World() as world:
        world.policy.ruling = ruling
        error = await refusal(world, request())
    assert error.reason is reason
    assert error.call_id is not None
    assert error.policies == ("p1",)
    assert world.journal == ["authorize", "refuse"]
    assert world.ledger.rows[error.call_id].reason is reason
    assert world.watch.refusals == [("text.echo", reason)]
    assert world.watch.phases == [{"admission", "record"}]


async def test_who_can_never_call_a_tool_is_not_told_how_its_arguments_look() -> None:
    async with World() as world:
        misfit = request({"text": 1})
        assert (await refusal(world, misfit)).reason is Reason.INVALID_ARGUMENTS
        world.policy.ruling = Ruling.DENY
        error = await refusal(world, misfit)
    assert (error.reason, error.violations) == (Reason.POLICY_DENIED, ())
    assert error.message == "No policy permits this call."
    assert world.journal == ["refuse", "refuse"]


async def test_a_refusal_is_recorded_and_counted_though_its_client_leaves() -> None:
    async with World() as world:
        world.policy.ruling = Ruling.DENY
        asked, refuse = asyncio.Event(), world.ledger.refuse

        async def slow(refusal: Refusal) -> None:
            # What the ledger was asked to write it writes, whoever stops waiting.
            await refuse(refusal)
            asked.set()
            await asyncio.Event().wait()

        world.ledger.refuse = slow  # type: ignore[method-assign]
        asking = asyncio.create_task(world.pipeline.start("agent", request()))
        await asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert world.journal == ["authorize", "refuse"]
    assert world.watch.refusals == [("text.echo", Reason.POLICY_DENIED)]


@pytest.mark.parametrize(("on_disconnect", "state"), [("detach", "succeeded"), ("cancel", "cancelled")])
async def test_a_client_that_leaves_before_the_claim_cuts_nothing_in_half(on_disconnect: str, state: str) -> None:
    async with World() as world:
        entered, gate, claim = asyncio.Event(), asyncio.Event(), world.ledger.claim

        async def slow(intent: Intent, keeping: Keeping | None = None) -> StoredCall | None:
            entered.set()
            await gate.wait()
            return await claim(intent, keeping)

        world.ledger.claim = slow  # type: ignore[method-assign]
        asking = asyncio.create_task(world.pipeline.start("agent", request(on_disconnect=OnDisconnect(on_disconnect))))
        await entered.wait()
        [running] = world.running.of("acme")
        asking.cancel()
        gate.set()
        assert (await running.wait())["state"] == state
        await running.finished.wait()
    assert f"complete:{state}" in world.journal


async def test_an_unknown_tool_and_bad_arguments_are_recorded_without_the_callers_text() -> None:
    async with World() as world:
        unknown = await refusal(world, CallRequest(f"evil.{CANARY}", b"{}", "http"))
        invalid = await refusal(world, request({"text": 7}))
        malformed = await refusal(world, CallRequest("text.echo", b'{"text":"a","text":"b"}', "http"))
    assert (unknown.reason, invalid.reason) == (Reason.UNKNOWN_TOOL, Reason.INVALID_ARGUMENTS)
    assert malformed.reason is Reason.INVALID_REQUEST
    assert invalid.violations[0].path == "/text"
    assert world.journal == ["refuse", "refuse", "refuse"]
    assert CANARY not in repr(world.ledger.rows) + unknown.message


async def test_what_cannot_be_recorded_does_not_run() -> None:
    async with World(tool(secrets=SECRETS)) as world:
        world.ledger.failing = {"claim"}
        error = await refusal(world, request())
    assert error.reason is Reason.AUDIT_UNAVAILABLE
    assert {"lease", "acquire", "run"}.isdisjoint(world.journal)


async def test_a_refusal_that_cannot_be_recorded_says_so_instead() -> None:
    async with World() as world:
        world.policy.ruling = Ruling.DENY
        world.ledger.failing = {"refuse"}
        assert (await refusal(world, request())).reason is Reason.AUDIT_UNAVAILABLE


async def test_an_outcome_that_cannot_be_recorded_is_never_reported_as_success() -> None:
    async with World() as world:
        world.ledger.failing = {"complete:succeeded"}
        error = await refusal(world, request())
    assert error.reason is Reason.AUDIT_UNAVAILABLE
    assert world.journal[-1] == "destroy"


async def test_a_lease_that_cannot_be_journalled_is_given_back_and_never_used() -> None:
    async with World(tool(secrets=SECRETS)) as world:
        world.ledger.failing = {"note:secret_leased"}
        assert (await refusal(world, request())).reason is Reason.AUDIT_UNAVAILABLE
    assert "acquire" not in world.journal
    assert "revoke" in world.journal


async def test_when_no_sandbox_can_be_had_the_secret_is_given_back_and_the_failure_recorded() -> None:
    async with World(tool(secrets=SECRETS)) as world:
        world.sandboxes.error = CallError(Reason.SANDBOX_UNAVAILABLE, "The engine does not answer.")
        error = await refusal(world, request())
    assert error.reason is Reason.SANDBOX_UNAVAILABLE
    assert world.journal[-3:] == ["complete:failed", "revoke", "note:secret_revoked"]
    assert error.call_id is not None
    assert world.ledger.rows[error.call_id].state is State.FAILED


class Panic(BaseException):
    """What compiled code throws when it panics."""


@pytest.mark.parametrize("defect", [RuntimeError(CANARY), Panic(CANARY)])
async def test_a_defect_ends_the_claim_and_tells_the_caller_only_the_call_id(defect: BaseException) -> None:
    async with World() as world:
        world.sandboxes.error = defect  # type: ignore[assignment]  # a defect, not a CallError
        error = await refusal(world, request())
    assert error.reason is Reason.INTERNAL
    assert CANARY not in error.message
    assert world.watch.defects == ["RuntimeError"]
    assert world.journal[-1] == "complete:failed"


@pytest.mark.parametrize(("effect", "state"), [("read", State.FAILED), ("unsafe", State.UNKNOWN)])
async def test_a_defect_after_an_unsafe_tool_ran_leaves_its_effect_unknown_and_its_key_held(
    effect: str, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr("callgate_server.attempt.conclude", broken)
    async with World(tool(effect=effect)) as world:
        error = await refusal(world, request(idempotency_key="k"))
        again = await refusal(world, request(idempotency_key="k"))
    assert error.call_id is not None
    assert world.ledger.rows[error.call_id].state is state
    assert again.reason is (Reason.EFFECT_UNKNOWN if effect == "unsafe" else Reason.INTERNAL)


async def test_a_finished_call_is_replayed_and_nothing_runs_again() -> None:
    async with World() as world:
        running = await world.pipeline.start("agent", request(idempotency_key="k"))
        first = await running.wait()
        await running.finished.wait()
        world.journal.clear()
        second = await (await world.pipeline.start("agent", request(idempotency_key="k"))).wait()
    assert world.journal == ["authorize", "replayed"]
    assert second == {**first, "replayed": True}
    assert first["replayed"] is False


async def test_a_revoked_caller_cannot_read_an_old_answer() -> None:
    async with World() as world:
        await (await world.pipeline.start("agent", request(idempotency_key="k"))).wait()
        world.policy.ruling = Ruling.DENY
        assert (await refusal(world, request(idempotency_key="k"))).reason is Reason.POLICY_DENIED


async def test_a_replay_costs_no_place() -> None:
    async with World(calls=1) as world:
        await (await world.pipeline.start("agent", request(idempotency_key="k"))).wait()
        world.sandboxes.gate = asyncio.Event()
        blocking = await world.pipeline.start("agent", request())
        replay = await (await world.pipeline.start("agent", request(idempotency_key="k"))).wait()
        full = await refusal(world, request())
        world.sandboxes.gate.set()
        await blocking.wait()
    assert replay["replayed"] is True
    assert full.reason is Reason.OVERLOADED
    assert full.retry_after_ms is not None


async def test_a_key_with_other_arguments_is_a_conflict_also_while_the_first_call_runs() -> None:
    async with World() as world:
        world.sandboxes.gate = asyncio.Event()
        running = await world.pipeline.start("agent", request(idempotency_key="k"))
        early = await refusal(world, request({"text": "other"}, idempotency_key="k"))
        world.sandboxes.gate.set()
        await running.wait()
        late = await refusal(world, request({"text": "other"}, idempotency_key="k"))
    assert early.reason is late.reason is Reason.IDEMPOTENCY_CONFLICT
    assert world.journal.count("run") == 1


async def test_duplicates_that_come_at_once_take_one_place_and_get_one_answer() -> None:
    async with World(calls=1) as world:
        started = await asyncio.gather(
            *(world.pipeline.start("agent", request(idempotency_key="k")) for _ in range(30))
        )
        answers = await asyncio.gather(*(running.wait() for running in started))
    assert world.journal.count("claim") == world.journal.count("run") == 1
    assert sorted(answer["replayed"] for answer in answers) == [False] + [True] * 29
    assert len({json.dumps(dict(answer) | {"replayed": False}, sort_keys=True) for answer in answers}) == 1
    assert len(world.pipeline.turns) == 0


async def test_an_interrupted_call_runs_again_with_its_key_and_with_no_other_arguments() -> None:
    async with World() as world:
        first = await (await world.pipeline.start("agent", request(idempotency_key="k"))).wait()
        row = world.ledger.rows[first["call_id"]]
        world.ledger.rows[row.call_id] = replace(row, state=State.INTERRUPTED, answer_json=None)
        conflict = await refusal(world, request({"text": "other"}, idempotency_key="k"))
        again = await (await world.pipeline.start("agent", request(idempotency_key="k"))).wait()
    assert conflict.reason is Reason.IDEMPOTENCY_CONFLICT
    assert (again["state"], again["replayed"]) == ("succeeded", False)
    assert again["call_id"] != first["call_id"]
    assert world.journal.count("run") == 2


async def test_a_key_belongs_to_its_caller() -> None:
    async with World() as world:
        await (await world.pipeline.start("agent", request(idempotency_key="k"))).wait()
        other = await (await world.pipeline.start("other", request(idempotency_key="k"))).wait()
    assert other["replayed"] is False


async def test_a_call_that_never_started_gives_its_key_back() -> None:
    async with World() as world:
        world.sandboxes.error = CallError(Reason.SANDBOX_UNAVAILABLE, "down")
        await refusal(world, request(idempotency_key="k"))
        world.sandboxes.error = None
        answer = await (await world.pipeline.start("agent", request(idempotency_key="k"))).wait()
    assert (answer["state"], answer["replayed"]) == ("succeeded", False)


async def test_a_failing_tool_has_an_answer_with_what_it_printed() -> None:
    async with World() as world:
        world.sandboxes.frames = [*success("x", b"partial\n")[:1], exit_frame(code=3, stdout_bytes=8), success("x")[-1]]
        answer = await (await world.pipeline.start("agent", request())).wait()
    assert (answer["state"], answer["error"]["reason"]) == ("failed", "tool_failed")
    assert answer["exit"] == {"code": 3, "signal": None}
    assert answer["stdout"]["text"] == "partial\n"
    assert answer["result"] is None


async def test_the_deadline_is_the_smallest_of_the_clients_the_manifests_and_the_servers() -> None:
    async with World(tool(limits={"wall_s": 5}), max_s=4) as world:
        for client_ms, expected_s in ((None, 4.0), (2000, 2.0), (900_000, 4.0)):
            await (await world.pipeline.start("agent", request(deadline_ms=client_ms))).wait()
            sent = world.sandboxes.requests[-1]
            row = world.ledger.rows[sent.call_id]
            assert (sent.deadline_at - row.received_at).total_seconds() == pytest.approx(expected_s, abs=0.01)


async def test_a_cancelled_call_ends_as_cancelled_and_is_cleaned_up() -> None:
    async with World() as world:
        world.sandboxes.gate = asyncio.Event()
        running = await world.pipeline.start("agent", request())
        running.cancel()
        answer = await running.wait()
        await running.finished.wait()
    assert answer["state"] == "cancelled"
    assert world.journal[-2:] == ["complete:cancelled", "destroy"]


# --- the circuit breaker of a tool ---------------------------------------------------------------------------------

BREAKER = "tool:acme/text.echo"


async def breaks(world: World) -> None:
    """Let the tool give results that do not fit until its breaker opens."""
    while world.breakers.list().get(BREAKER) is None or world.breakers.list()[BREAKER].state != "open":
        world.sandboxes.frames = success("misfit")
        running = await world.pipeline.start("agent", request())
        assert (await running.wait())["error"]["reason"] == "invalid_result"
        await running.finished.wait()
    world.journal.clear()


async def test_a_tool_that_keeps_failing_is_refused_before_its_claim_and_the_refusal_is_recorded() -> None:
    async with World() as world:
        await breaks(world)
        refused = await refusal(world, request())
        assert refused.reason is Reason.CIRCUIT_OPEN
        assert refused.retry_after_ms is not None
        assert 0 < refused.retry_after_ms <= 15_000
        assert world.journal == ["authorize", "refuse"]
        assert world.watch.refusals == [("text.echo", Reason.CIRCUIT_OPEN)]


async def test_what_one_tenants_calls_met_keeps_no_other_tenant_from_the_tool() -> None:
    async with World() as world:
        await breaks(world)
        world.sandboxes.frames = success("done")
        running = await world.pipeline.start("other", request())
        assert (await running.wait())["state"] == "succeeded"


async def test_a_stored_answer_needs_no_leave_of_a_breaker() -> None:
    async with World() as world:
        running = await world.pipeline.start("agent", request(idempotency_key="k"))
        first = await running.wait()
        await breaks(world)
        again = await (await world.pipeline.start("agent", request(idempotency_key="k"))).wait()
        assert (again["replayed"], again["result"]) == (True, first["result"])


async def test_who_may_not_call_the_tool_is_not_told_how_it_is() -> None:
    async with World() as world:
        await breaks(world)
        world.policy.ruling = Ruling.DENY
        assert (await refusal(world, request())).reason is Reason.POLICY_DENIED


async def test_a_tool_that_reports_failures_works() -> None:
    async with World() as world:
        for _ in range(8):
            world.sandboxes.frames = [exit_frame(code=1), *success("x")[-1:]]
            running = await world.pipeline.start("agent", request())
            assert (await running.wait())["error"]["reason"] == "tool_failed"
            await running.finished.wait()
        assert world.breakers.list()[BREAKER].failures == 0


async def test_a_tool_without_a_breaker_runs_whatever_became_of_it_before() -> None:
    async with World(tool(breaker=False)) as world:
        for _ in range(12):
            world.sandboxes.frames = success("misfit")
            running = await world.pipeline.start("agent", request())
            assert (await running.wait())["error"]["reason"] == "invalid_result"
            await running.finished.wait()
        assert world.breakers.list() == {}


@pytest.mark.parametrize("how", ["no sandbox", "no record"])
async def test_a_call_that_never_ran_says_nothing_of_its_tool(how: str) -> None:
    async with World() as world:
        if how == "no sandbox":
            world.sandboxes.error = CallError(Reason.SANDBOX_UNAVAILABLE, "no")
        else:
            world.ledger.failing.add("claim")
        for _ in range(6):
            with pytest.raises(CallError):
                running = await world.pipeline.start("agent", request())
                await running.wait()
        view = world.breakers.list()[BREAKER]
        assert (view.calls, view.probing) == (0, 0)
