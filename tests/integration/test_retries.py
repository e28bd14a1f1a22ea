"""Attempts and fallbacks of one call on a real gateway; what tools did is counted outside of it (`support/witness.py`)."""

from collections.abc import Iterator
from typing import Any

import docker
import pytest

from callgate import Answer
from support.gateway import Deployment, RunningGateway
from support.images import ENGINE
from support.live import eventually, live
from support.witness import Witness, token

UNTIL_THE_THIRD = """
import os
print('did', 'TOKEN', flush=True)
if os.environ['CALLGATE_ATTEMPT'] != '3':
    raise SystemExit(75)
result = [os.environ['CALLGATE_ATTEMPT'], os.environ['CALLGATE_IDEMPOTENCY_KEY']]
"""
NOT_NOW = "print('did', 'TOKEN', flush=True)\nraise SystemExit(75)"
# Its first attempt makes the change and fails to tell so; the next finds a version that it knows to be its own.
CHANGE = """
import os
attempt = int(os.environ['CALLGATE_ATTEMPT'])
current = VERSION if attempt == 1 else 'next'
if current == VERSION:
    print('did', 'TOKEN', flush=True)
    raise SystemExit(75)
result = 'changed by this call' if attempt > 1 else 'changed by another'
"""
A_WHILE = "import time\nprint('ready', flush=True)\ntime.sleep(5)\nresult = 'slept'"


@pytest.fixture(scope="module")
def witness() -> Iterator[Witness]:
    with Witness(ENGINE) as witness:
        yield witness


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, witness: Witness) -> Iterator[RunningGateway]:
    deployment = Deployment(tmp_path_factory.mktemp("retries"), settings={"engine": {"socket": witness.url}})
    with deployment.start() as running:
        yield running
    deployment.wait_until_clean()
    assert deployment.verify().fault is None


def called(gateway: RunningGateway, tool: str, code: str, **arguments: str) -> dict[str, Any]:
    response = gateway.post(tool, {"code": code, **arguments})
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


def failures(gateway: RunningGateway, call_id: str) -> list[tuple[int, str]]:
    events = gateway.deployment.events(call_id)
    return [(event["attempt"], event["reason"]) for event in events if event["kind"] == "attempt_failed"]


def kill_sandbox_of(gateway: RunningGateway, call_id: str) -> None:
    def killed() -> None:
        name = gateway.deployment.sandboxes().get(call_id)
        assert name is not None
        engine = docker.DockerClient(ENGINE)
        try:
            engine.containers.get(name).kill()
        finally:
            engine.close()

    eventually(killed)


def test_what_cannot_be_done_for_now_is_tried_until_it_can(watched: RunningGateway, witness: Witness) -> None:
    name = token()
    answer = called(watched, "probe.patient", UNTIL_THE_THIRD.replace("TOKEN", name))
    assert (answer["state"], answer["attempt"], answer["result"][0]) == ("succeeded", 3, "3")
    assert witness.orders[name] == witness.deeds[name] == 3
    assert failures(watched, answer["call_id"]) == [(1, "tool_unavailable"), (2, "tool_unavailable")]
    assert len(watched.deployment.events(answer["call_id"])) >= 4


def test_what_is_unsafe_is_never_run_twice_and_has_no_fallback_then(watched: RunningGateway, witness: Witness) -> None:
    name = token()
    answer = called(watched, "probe.once", NOT_NOW.replace("TOKEN", name))
    assert (answer["state"], answer["error"]["reason"], answer["attempt"]) == ("failed", "tool_unavailable", 1)
    assert answer["fallback"] is None
    assert witness.orders[name] == witness.deeds[name] == 1


def test_a_conditional_tool_tells_its_own_earlier_change(watched: RunningGateway, witness: Witness) -> None:
    name = token()
    answer = called(watched, "probe.conditional", CHANGE.replace("TOKEN", name), version="first")
    assert (answer["result"], answer["attempt"]) == ("changed by this call", 2)
    assert witness.deeds[name] == 1


def test_a_constant_stands_for_a_tool_that_cannot_and_says_so(watched: RunningGateway) -> None:
    answer = called(watched, "probe.constant", "")
    assert (answer["state"], answer["result"], answer["exit"]["code"]) == ("succeeded", {"instead": "constant"}, 75)
    assert (answer["fallback"]["kind"], answer["fallback"]["error"]["reason"]) == ("constant", "tool_unavailable")
    outcome = watched.deployment.events(answer["call_id"])[-1]
    assert (outcome["kind"], outcome["fallback"], outcome["reason"]) == ("outcome", "constant", "tool_unavailable")
    with watched.sdk() as sdk:
        same = sdk.call("probe.constant", {"code": ""})
    assert isinstance(same, Answer)
    assert same.fallback is not None
    assert (same.ok, same.fallback.kind, same.fallback.error.reason) == (True, "constant", "tool_unavailable")
    assert "could not do it (tool_unavailable" in same.envelope()
    with watched.web() as web:
        assert "error" in web.get(f"/v1/calls/{answer['call_id']}").json()
        listed = {call["call_id"]: call for call in web.get("/v1/calls").json()["calls"]}
    assert listed[answer["call_id"]]["error"] is None


def test_another_tool_stands_in_as_a_call_of_its_own(watched: RunningGateway) -> None:
    answer = called(watched, "probe.standby", "print('unseen')\nresult = 42")
    assert (answer["state"], answer["result"], answer["stdout"]["text"]) == ("succeeded", 42, "")
    assert (answer["fallback"]["kind"], answer["fallback"]["tool"]) == ("tool", "probe.run")
    with watched.web() as web:
        inner = web.get(f"/v1/calls/{answer['fallback']['call_id']}").json()
    assert (inner["tool"], inner["state"], inner["stdout"]["text"]) == ("probe.run", "succeeded", "unseen\n")


def test_a_sandbox_killed_in_mid_run_is_replaced(watched: RunningGateway) -> None:
    with live(watched, "probe.steady", A_WHILE) as call:
        call.until_printed("ready")
        kill_sandbox_of(watched, call.call_id)
        answer = call.answer()
    assert (answer["state"], answer["attempt"], answer["result"]) == ("succeeded", 2, "slept")
    assert failures(watched, answer["call_id"]) == [(1, "sandbox_lost")]


def test_the_last_good_answer_stands_for_one_that_is_lost(watched: RunningGateway) -> None:
    good = called(watched, "probe.recent", A_WHILE)
    with live(watched, "probe.recent", A_WHILE) as call:
        call.until_printed("ready")
        kill_sandbox_of(watched, call.call_id)
        answer = call.answer()
    fallback = answer["fallback"]
    assert (answer["result"], fallback["kind"], fallback["call_id"]) == ("slept", "last_good", good["call_id"])
    assert (fallback["error"]["reason"], fallback["age_s"] >= 0) == ("sandbox_lost", True)
