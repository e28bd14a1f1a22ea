import asyncio
import gc
import json
import weakref
from collections.abc import Mapping
from dataclasses import replace

import pytest

from callgate_runner import wire
from callgate_server.model.call import CallRequest
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.sealed import Sealed
from callgate_server.pipeline import Pipeline
from callgate_server.result.redact import Redactor
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


EGRESS = {
    "egress": [{"host": "api.example.com", "secret": "key"}],
    "secrets": [{"name": "key", "from": "kv/data/{tenant}/app#key", "deliver": "egress"}],
}


def without_gate(world: World) -> Pipeline:
    attempts = replace(world.endurance.attempts, egress=None)
    endurance = replace(world.endurance, attempts=attempts)
    return replace(world.pipeline, attempts=replace(world.pipeline.attempts, endurance=endurance))


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
        without = without_gate(world)
        running = await without.start("agent", request())
        with pytest.raises(CallError) as caught:
            await running.wait()
        await running.finished.wait()
    assert caught.value.reason is Reason.INTERNAL
    assert "run" not in world.journal
    assert world.journal[-1] == "note:secret_revoked"


@pytest.mark.parametrize("way", ["succeeds", "fails", "is lost", "is cancelled"])
async def test_what_a_call_held_goes_with_it_and_waits_for_no_collector(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Redactor]] = []

    class Watched(Redactor):
        def __init__(self, values: Mapping[str, Sealed]) -> None:
            super().__init__(values)
            held.append(weakref.ref(self))

    monkeypatch.setattr("callgate_server.attempt.Redactor", Watched)
    async with World() as world:
        if way == "fails":
            world.sandboxes.frames = [exit_frame(code=3), wire.encode(wire.BYE, b"")]
        if way == "is lost":
            world.sandboxes.frames = []
        if way == "is cancelled":
            world.sandboxes.gate = asyncio.Event()
        gc.disable()
        try:
            running = await world.pipeline.start("agent", request())
            if way == "is cancelled":
                running.cancel()
            await running.wait()
            await running.finished.wait()
            assert len(held) == 1
            # What waited for it may still be on its way out.
            async with asyncio.timeout(5):
                while held[0]():  # noqa: ASYNC110  # nothing tells of it
                    await asyncio.sleep(0.01)
        finally:
            gc.enable()
