import asyncio
import dataclasses
import json
from dataclasses import replace

import pytest

from callgate_server.model.call import CallRequest
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
        (Ruling.NEEDS_APPROVAL, Reason.APPROVAL_REQUIRED),
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

    monkeypatch.setattr("callgate_server.pipeline.conclude", broken)
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


async def test_a_result_that_does_not_fit_is_a_failure() -> None:
    async with World() as world:
        world.sandboxes.frames = success("misfit")
        answer = await (await world.pipeline.start("agent", request())).wait()
    assert (answer["state"], answer["error"]["reason"], answer["result"]) == ("failed", "invalid_result", None)


async def test_a_secret_is_redacted_from_the_answer_the_events_and_the_record() -> None:
    async with World(tool(secrets=SECRETS)) as world:
        world.sandboxes.frames = success({"echo": CANARY}, f"it is {CANARY}\n".encode())
        running = await world.pipeline.start("agent", request())
        answer = await running.wait()
        events = [event async for event in running.events()]
    assert answer["result"] == {"echo": "[REDACTED:key]"}
    assert answer["stdout"]["text"] == "it is [REDACTED:key]\n"
    assert CANARY not in repr((answer, events, world.ledger.rows, world.ledger.notes))


async def test_a_wire_that_ends_early_is_a_loss_never_a_success() -> None:
    async with World() as world:
        world.sandboxes.frames = success("done", b"hello\n")[:-1]
        answer = await (await world.pipeline.start("agent", request())).wait()
    assert (answer["state"], answer["error"]["reason"]) == ("lost", "sandbox_lost")
    assert answer["stdout"]["text"] == "hello\n"


async def test_the_deadline_is_the_smallest_of_the_clients_the_manifests_and_the_servers() -> None:
    async with World(tool(limits={"wall_s": 5}), max_s=4) as world:
        for client_ms, expected_s in ((None, 4.0), (2000, 2.0), (900_000, 4.0)):
            await (await world.pipeline.start("agent", request(deadline_ms=client_ms))).wait()
            sent = world.sandboxes.requests[-1]
            row = world.ledger.rows[sent.call_id]
            assert (sent.deadline_at - row.received_at).total_seconds() == pytest.approx(expected_s, abs=0.01)


async def test_a_call_cancelled_while_it_waits_for_a_sandbox_gets_none() -> None:
    async with World() as world:
        world.sandboxes.turn = asyncio.Event()
        running = await world.pipeline.start("agent", request())
        await world.sandboxes.asked.wait()
        running.cancel()
        answer = await running.wait()
        await running.finished.wait()
    assert answer["state"] == "cancelled"
    assert answer["error"]["reason"] == "cancelled"
    assert world.sandboxes.opened == []
    assert world.journal[-1] == "complete:cancelled"
    assert "run" not in world.journal


async def test_which_sandbox_a_call_got_is_watched_and_recorded() -> None:
    async with World() as world:
        running = await world.pipeline.start("agent", request())
        await running.wait()
    assert world.watch.starts == [(running.call_id, world.sandboxes.opened[0].id)]
    assert [(end.call_id, end.sandbox) for end in world.ledger.completions] == world.watch.starts


async def test_a_sandbox_that_is_gone_before_the_call_reaches_it_costs_another_one_and_not_the_call() -> None:
    async with World() as world:
        world.sandboxes.dead = 1
        running = await world.pipeline.start("agent", request())
        answer = await running.wait()
        await running.finished.wait()
    gone, served = world.sandboxes.opened
    assert (answer["state"], answer["result"]) == ("succeeded", "done")
    assert world.journal.count("run") == 1
    # There is one for each call at a time.
    assert [step for step in world.journal if step in ("acquire", "destroy", "run")] == [
        "acquire", "destroy", "acquire", "run", "destroy", "destroy",
    ]  # fmt: skip
    assert [end.sandbox for end in world.ledger.completions] == [served.id] != [gone.id]
    assert gone.received == []


async def test_a_call_that_reaches_no_sandbox_fails_and_has_not_run() -> None:
    async with World() as world:
        world.sandboxes.dead = 2
        running = await world.pipeline.start("agent", request())
        with pytest.raises(CallError) as refused:
            await running.wait()
        await running.finished.wait()
    assert refused.value.reason is Reason.SANDBOX_UNAVAILABLE
    assert "run" not in world.journal
    assert len(world.sandboxes.opened) == 2


async def test_a_cancelled_call_ends_as_cancelled_and_is_cleaned_up() -> None:
    async with World() as world:
        world.sandboxes.gate = asyncio.Event()
        running = await world.pipeline.start("agent", request())
        running.cancel()
        answer = await running.wait()
        await running.finished.wait()
    assert answer["state"] == "cancelled"
    assert world.journal[-2:] == ["complete:cancelled", "destroy"]


EGRESS = {
    "egress": [{"host": "api.example.com", "secret": "key"}],
    "secrets": [{"name": "key", "from": "kv/data/{tenant}/app#key", "deliver": "egress"}],
}


async def test_a_tool_with_rules_gets_a_way_out_that_ends_before_its_secrets_and_its_sandbox() -> None:
    async with World(tool(**EGRESS)) as world:
        running = await world.pipeline.start("agent", request())
        answer = await running.wait()
        await running.finished.wait()
    assert world.journal == [
        "authorize", "claim", "lease", "note:secret_leased", "acquire", "run", "consent:api.example.com",
        "note:egress_allowed", "egress closed", "complete:succeeded", "destroy", "revoke", "note:secret_revoked",
    ]  # fmt: skip
    assert answer["usage"]["egress_bytes"] == 42
    assert world.watch.connections == [("text.echo", "egress_allowed")]
    assert (running.call_id, "egress_allowed") in world.ledger.notes


async def test_a_secret_for_the_gate_is_in_its_hands_and_never_on_the_way_to_the_sandbox() -> None:
    async with World(tool(**EGRESS)) as world:
        running = await world.pipeline.start("agent", request())
        await running.wait()
    (terms,) = world.gate.opened
    assert terms.credentials["key"].value.reveal() == CANARY.encode()
    sent = b"".join(world.sandboxes.opened[0].received)
    assert CANARY.encode() not in sent
    assert b'"proxy":true' in sent.replace(b" ", b"")


async def test_what_comes_back_through_the_gate_is_redacted_like_any_secret() -> None:
    async with World(tool(**EGRESS)) as world:
        world.sandboxes.frames = success(f"the upstream said {CANARY}", CANARY.encode())
        running = await world.pipeline.start("agent", request())
        answer = await running.wait()
    assert CANARY not in json.dumps(answer)
    assert "key" in answer["stdout"]["text"]


async def test_a_secret_that_a_tool_writes_as_a_host_is_not_in_the_record() -> None:
    async with World(tool(**EGRESS)) as world:
        # As the gate writes what was asked for.
        world.gate.host = f"{CANARY.lower()}.example.com"
        running = await world.pipeline.start("agent", request())
        await running.wait()
        await running.finished.wait()
    (host,) = [body["host"] for kind, body in world.ledger.noted if kind == "egress_allowed"]
    assert CANARY.lower() not in host
    assert host.endswith(".example.com")


async def test_a_tool_without_rules_has_no_way_out() -> None:
    async with World(tool(egress="configured")) as world:
        running = await world.pipeline.start("agent", request())
        answer = await running.wait()
    assert world.gate.opened == []
    assert answer["usage"]["egress_bytes"] == 0


async def test_what_cannot_be_recorded_is_not_counted() -> None:
    async with World(tool(**EGRESS)) as world:
        world.ledger.failing = {"note:egress_allowed"}
        running = await world.pipeline.start("agent", request())
        await running.wait()
    assert world.watch.connections == []


async def test_a_tool_with_rules_never_runs_where_there_is_no_gate() -> None:
    async with World(tool(**EGRESS)) as world:
        without = dataclasses.replace(world.pipeline, egress=None)
        running = await without.start("agent", request())
        with pytest.raises(CallError) as caught:
            await running.wait()
        await running.finished.wait()
    assert caught.value.reason is Reason.INTERNAL
    assert "run" not in world.journal
    assert world.journal[-1] == "note:secret_revoked"
