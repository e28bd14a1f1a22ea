"""Idempotency keys on a real gateway. A key is one call, whoever asks again, by which edge and when."""

import asyncio
import itertools
import json
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import httpx
import pytest

from callgate import Answer
from support.gateway import Deployment, RunningGateway
from support.live import live, refusal

ONCE = "import uuid\nprint('told')\nresult = [str(uuid.uuid4()), 2**60, 0.1, 'ä\\u2028']"
SLOWLY = "import time\ntime.sleep(1.5)\n" + ONCE
DUPLICATES = 100
# A name for each test's keys: the gateway lives longer than a test.
numbers = itertools.count()


@pytest.fixture
def key() -> str:
    return f"key-{next(numbers)}"


def keyed(
    gateway: RunningGateway, key: str, code: str = ONCE, *, tool: str = "probe.run", **extra: Any
) -> httpx.Response:
    return gateway.post(tool, {"code": code}, headers={"Idempotency-Key": key}, **extra)


def kinds(gateway: RunningGateway, call_id: str) -> list[str]:
    return [event["kind"] for event in gateway.deployment.events(call_id)]


def as_first(response: httpx.Response) -> bytes:
    """The bytes of a replayed answer, but for the mark that says so."""
    assert response.content.count(b'"replayed":true') == 1
    return response.content.replace(b'"replayed":true', b'"replayed":false')


def test_a_finished_call_is_answered_byte_for_byte_and_starts_nothing(gateway: RunningGateway, key: str) -> None:
    first = keyed(gateway, key)
    started = gateway.deployment.sandboxes()
    again = keyed(gateway, key)
    assert first.json()["state"] == "succeeded"
    assert as_first(again) == first.content
    assert gateway.deployment.sandboxes() == started
    replays = [event for event in gateway.deployment.events() if event.get("original") == first.json()["call_id"]]
    assert [(event["kind"], event["state"]) for event in replays] == [("replayed", "replayed")]


def test_a_failure_is_an_answer_and_is_not_tried_again(gateway: RunningGateway, key: str) -> None:
    code = "print('half'); raise SystemExit('no')"
    first, again = keyed(gateway, key, code), keyed(gateway, key, code)
    assert first.json()["error"]["reason"] == "tool_failed"
    assert as_first(again) == first.content


def test_other_arguments_are_refused_and_start_nothing(gateway: RunningGateway, key: str) -> None:
    keyed(gateway, key)
    started = gateway.deployment.sandboxes()
    refused = keyed(gateway, key, "result = 'other'")
    assert refusal(refused) == (422, "idempotency_conflict")
    assert "other" not in refused.json()["detail"].replace("other arguments", "")
    assert gateway.deployment.sandboxes() == started
    assert kinds(gateway, refused.json()["call_id"]) == ["refused"]


def test_a_key_is_the_agents_own_and_for_one_tool(gateway: RunningGateway, key: str) -> None:
    deployment = gateway.deployment
    deployment.tokens["colleague"] = deployment.key("acme", "second-bot", "developer")
    try:
        answers = [keyed(gateway, key, tenant=tenant) for tenant in ("acme", "rival", "colleague")]
        answers.append(keyed(gateway, key, tool="probe.secret"))
    finally:
        del deployment.tokens["colleague"]
    assert {answer.json()["replayed"] for answer in answers} == {False}
    assert len({answer.json()["result"][0] for answer in answers}) == 4
    # Who may do nothing learns nothing of a key.
    assert refusal(keyed(gateway, key, tenant="guest")) == (403, "policy_denied")


def test_what_never_ran_holds_no_key(gateway: RunningGateway, key: str) -> None:
    assert refusal(keyed(gateway, key, tenant="guest")) == (403, "policy_denied")
    assert refusal(gateway.post("probe.run", {}, headers={"Idempotency-Key": key})) == (422, "invalid_arguments")
    assert refusal(keyed(gateway, key, deadline_ms=1)) == (504, "deadline_exceeded")
    assert keyed(gateway, key).json()["replayed"] is False


def test_the_deadline_of_a_duplicate_is_its_own(gateway: RunningGateway, key: str) -> None:
    code = "print('ready', flush=True)\nimport time\ntime.sleep(6)\n" + ONCE
    with live(gateway, "probe.run", code, key=key) as first:
        first.until_printed("ready")
        late = keyed(gateway, key, code, deadline_ms=1000)
        assert refusal(late) == (409, "call_in_flight")
        assert first.call_id in late.json()["detail"]
        assert late.headers["retry-after"]
        with live(gateway, "probe.run", code, key=key) as second:
            assert second.call_id == first.call_id
            joined = second.answer()
        answer = first.answer()
    assert joined == {**answer, "replayed": True}
    assert answer["state"] == "succeeded"


def test_a_cancelled_call_ends_for_all_who_wait_for_it(gateway: RunningGateway, key: str) -> None:
    with live(gateway, "probe.run", key=key) as first:
        first.until_printed("ready")
        with live(gateway, "probe.run", key=key) as second, gateway.web() as web:
            assert web.post(f"/v1/calls/{second.call_id}/cancel").json()["state"] == "cancelled"
            assert (first.answer()["state"], second.answer()["state"]) == ("cancelled", "cancelled")


# --- a hundred at once, and a restart ---------------------------------------------------------------------------------


async def at_once(gateway: RunningGateway, key: str) -> tuple[list[bytes], list[Answer]]:
    """So many duplicates, every other one by gRPC; what each edge gave."""
    headers = {"Authorization": f"Bearer {gateway.deployment.tokens['acme']}", "Idempotency-Key": key}
    limits = httpx.Limits(max_connections=None)
    async with (
        gateway.async_sdk() as sdk,
        httpx.AsyncClient(base_url=f"http://{gateway.http}", timeout=60, limits=limits, trust_env=False) as web,
    ):
        by_http: list[Awaitable[httpx.Response]] = [
            web.post("/v1/tools/probe.run/calls", json={"arguments": {"code": SLOWLY}}, headers=headers)
            for _ in range(DUPLICATES // 2)
        ]
        by_grpc = [sdk.call("probe.run", {"code": SLOWLY}, idempotency_key=key) for _ in range(DUPLICATES // 2)]
        responses, answers = await asyncio.gather(asyncio.gather(*by_http), asyncio.gather(*by_grpc))
    assert {response.status_code for response in responses} == {200}
    return [response.content for response in responses], answers


def test_a_hundred_duplicates_at_once_run_once_and_get_one_answer_over_restarts_too(tmp_path: Path) -> None:
    # Far fewer places than duplicates: who only waits takes none.
    settings = {"execution": {"sandboxes": 2, "pool": {"enabled": False}}}
    own = Deployment(tmp_path / "gateway", settings=settings)
    with own.start() as gateway:
        documents, answers = asyncio.run(at_once(gateway, "k"))
        replayed = [json.loads(document)["replayed"] for document in documents] + [each.replayed for each in answers]
        assert sorted(replayed) == [False] + [True] * (DUPLICATES - 1)
        (answer,) = {document.replace(b'"replayed":true', b'"replayed":false') for document in documents}
        assert len({(each.call_id, json.dumps(each.result), each.stdout.text) for each in answers}) == 1
        call_id = json.loads(answer)["call_id"]
        assert (answers[0].call_id, answers[0].result) == (call_id, json.loads(answer)["result"])
        assert list(own.sandboxes()) == [call_id]
        intents = [event["call_id"] for event in own.events() if event["kind"] == "intent"]
        assert intents == [call_id]
    for stop in (RunningGateway.stop, RunningGateway.kill):
        with own.start() as gateway:
            assert as_first(keyed(gateway, "k", SLOWLY)) == answer
            with gateway.web() as web:
                assert web.get(f"/v1/calls/{call_id}").content == answer
            with gateway.sdk() as sdk:
                again = sdk.call("probe.run", {"code": SLOWLY}, idempotency_key="k")
                assert (again.replayed, again.result) == (True, json.loads(answer)["result"])
            stop(gateway)
    assert list(own.sandboxes()) == [call_id]
    own.wait_until_clean()
    assert own.verify().fault is None


def test_an_agent_that_lost_its_rights_reads_no_old_answer(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway")
    with deployment.start() as gateway:
        first = keyed(gateway, "k")
        gateway.stop()
    deployment.write_policies('@id("nobody") forbid(principal, action, resource);\n')
    with deployment.start() as gateway:
        assert refusal(keyed(gateway, "k")) == (403, "policy_denied")
        with gateway.web() as web:
            assert refusal(web.get(f"/v1/calls/{first.json()['call_id']}")) == (404, "unknown_call")
