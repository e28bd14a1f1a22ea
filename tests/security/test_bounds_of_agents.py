"""What an agent cannot do however hard it tries: leave its task's grant, spend more than its budget, loop, go on while it
is stopped, on production gateways whose record is checked at the end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.gateway import PERMIT_DEVELOPERS, Deployment, RunningGateway
from support.live import eventually, live, refusal

DIFF = {"before": "a\n", "after": "b\n"}
FAILS = {"code": "raise SystemExit(3)"}
ADMINISTRATORS = """
@id("administrators") permit(principal in Role::"admin", action == Action::"administer", resource)
when { principal.tenant == resource };
"""
POLICIES = PERMIT_DEVELOPERS.replace("action,", 'action in [Action::"call", Action::"use"],') + ADMINISTRATORS
TASK: dict[str, Any] = {
    "name": "compare two texts",
    "grant": {"tools": {"text.diff": {"properties": {"before": {"const": "a\n"}}}}},
    "lifetime_s": 600,
}


def deployment(folder: Path, **settings: Any) -> Deployment:
    made = Deployment(folder / "gateway", policies=POLICIES, settings=settings)
    made.tokens["colleague"] = made.key("acme", "colleague", "developer")
    made.tokens["admin"] = made.key("acme", "admin", "admin", "developer")
    made.tokens["rival-admin"] = made.key("rival", "admin", "admin")
    return made


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    made = deployment(tmp_path_factory.mktemp("bounds"), limits={"loop": {"failures": 3, "within_s": 600}})
    with made.start() as running:
        yield running
        made.wait_until_clean()
    assert made.verify().fault is None


def ask(gateway: RunningGateway, method: str, path: str, who: str = "acme", **body: Any) -> httpx.Response:
    with gateway.web(who) as web:
        return web.request(method, path, json=body or None)


def made_task(gateway: RunningGateway, who: str = "acme", **changes: Any) -> str:
    """A task's id, which is also the name under which its credential can be used from here on."""
    reply = ask(gateway, "POST", "/v1/tasks", who, **(TASK | changes))
    assert reply.status_code == 201, reply.text
    task_id = reply.json()["task"]["task_id"]
    gateway.deployment.tokens[task_id] = reply.json()["token"]
    return task_id


# --- Noise ---------------------------------------------------------------------------------------------------------


def test_an_agent_cannot_fill_the_record_with_refusals(tmp_path: Path) -> None:
    made = deployment(tmp_path, limits={"fruitless": {"calls": 5, "per_s": 600}})
    with made.start() as gateway:
        replies = [gateway.post("no.such_tool", {}) for _ in range(12)]
        assert gateway.post("text.diff", DIFF).status_code == 429
        assert gateway.post("text.diff", DIFF, tenant="colleague").json()["state"] == "succeeded"
    assert [refusal(reply)[1] for reply in replies] == ["unknown_tool"] * 5 + ["rate_limited"] * 7
    assert int(replies[-1].headers["Retry-After"]) > 60
    ids = [reply.json()["call_id"] for reply in replies]
    assert all(made.events(call_id) for call_id in ids[:5])
    assert ids[5:] == [None] * 7
    (told,) = [event for event in made.events("") if event["kind"] == "refused_beyond"]
    assert (told["tenant"], told["agent"], told["requests"]) == ("acme", "bot", 8)
    assert made.verify().fault is None


# --- Tasks ------------------------------------------------------------------------------------------------------


def test_a_task_is_confined_to_its_grant_whatever_its_agent_may(gateway: RunningGateway) -> None:
    who = task_id = made_task(gateway)
    assert gateway.post("text.diff", DIFF, tenant=who).json()["state"] == "succeeded"
    other_tool = gateway.post("probe.run", {"code": "1"}, tenant=who)
    other_text = gateway.post("text.diff", {**DIFF, "before": "sk-live-value"}, tenant=who)
    assert refusal(other_tool) == refusal(other_text) == (403, "outside_grant")
    assert other_text.json()["violations"][0]["path"] == "/before"
    assert "sk-live-value" not in other_text.text
    assert gateway.post("probe.run", {"code": "1"}).json()["state"] == "succeeded"
    events = gateway.deployment.events(other_tool.json()["call_id"])
    assert (events[0]["task"], events[0]["reason"]) == (task_id, "outside_grant")


def test_a_single_call_is_narrowed_by_a_task_that_it_names(gateway: RunningGateway) -> None:
    task_id = made_task(gateway)
    assert gateway.post("text.diff", DIFF, task=task_id).json()["state"] == "succeeded"
    assert refusal(gateway.post("probe.run", {"code": "1"}, task=task_id)) == (403, "outside_grant")


def test_a_grant_gives_nothing_that_policy_does_not(gateway: RunningGateway) -> None:
    who = made_task(gateway, "guest")
    assert refusal(gateway.post("text.diff", DIFF, tenant=who)) == (403, "policy_denied")


def test_a_tasks_credential_reaches_nothing_of_its_agent(gateway: RunningGateway) -> None:
    own = gateway.post("text.diff", DIFF).json()["call_id"]
    who = made_task(gateway, "admin")
    made = gateway.post("text.diff", DIFF, tenant=who).json()["call_id"]
    assert refusal(ask(gateway, "POST", "/v1/tasks", who, **TASK)) == (403, "outside_grant")
    assert refusal(ask(gateway, "POST", "/v1/stops", who, agent="bot")) == (403, "policy_denied")
    assert refusal(ask(gateway, "GET", f"/v1/calls/{own}", who)) == (404, "unknown_call")
    assert [call["call_id"] for call in ask(gateway, "GET", "/v1/calls", who).json()["calls"]] == [made]
    assert [tool["tool"] for tool in ask(gateway, "GET", "/v1/tools", who).json()["tools"]] == ["text.diff"]
    assert ask(gateway, "GET", f"/v1/calls/{made}", who).json()["state"] == "succeeded"


def test_after_its_end_a_tasks_credential_is_worthless(gateway: RunningGateway) -> None:
    who = task_id = made_task(gateway)
    ended = ask(gateway, "POST", f"/v1/tasks/{task_id}/end")
    assert ended.json()["ended_at"] is not None
    assert refusal(gateway.post("text.diff", DIFF, tenant=who)) == (401, "unauthenticated")
    assert ask(gateway, "GET", "/v1/tools", who).status_code == 401
    assert refusal(gateway.post("text.diff", DIFF, task=task_id)) == (409, "task_ended")


def test_a_task_that_is_expired_is_worthless_too(gateway: RunningGateway) -> None:
    who = task_id = made_task(gateway, lifetime_s=0.5)

    def refused() -> None:
        assert ask(gateway, "GET", "/v1/tools", who).status_code == 401

    eventually(refused)
    assert refusal(gateway.post("text.diff", DIFF, task=task_id)) == (409, "task_ended")


def test_another_agents_ids_answer_exactly_like_none(gateway: RunningGateway) -> None:
    """The confused deputy: an id of somebody else, whether one of the same tenant or not, is no id."""
    task_id = made_task(gateway)
    none = task_id[:-4] + "ffff"
    for who in ("colleague", "rival"):
        for method, path in (("GET", "/v1/tasks/{}"), ("POST", "/v1/tasks/{}/end")):
            mine, nobodys = (ask(gateway, method, path.format(name), who) for name in (task_id, none))
            assert refusal(mine) == refusal(nobodys) == (404, "unknown_task")
            assert mine.json() == nobodys.json()
        calls = [gateway.post("text.diff", DIFF, tenant=who, task=name).json() for name in (task_id, none)]
        for document in calls:
            document.pop("call_id")
        assert calls[0] == calls[1]
        assert calls[0]["reason"] == "unknown_task"
        assert ask(gateway, "GET", "/v1/tasks", who).json() == {"tasks": []}
    assert ask(gateway, "GET", f"/v1/tasks/{task_id}").json()["ended_at"] is None


def test_a_grant_that_fetches_or_explodes_is_no_grant(gateway: RunningGateway) -> None:
    for schema in ({"$ref": "http://127.0.0.1:1/x"}, {"$ref": "file:///etc/passwd"}, {"patern": "x"}):
        reply = ask(gateway, "POST", "/v1/tasks", **(TASK | {"grant": {"tools": {"text.diff": schema}}}))
        assert refusal(reply) == (400, "invalid_request")


# --- Budgets ----------------------------------------------------------------------------------------------------


def test_over_budget_is_refused_with_the_figures_also_after_a_kill(tmp_path: Path) -> None:
    budget = {"window_h": 744, "calls": 3}
    made = deployment(tmp_path, limits={"agents": {"acme/bot": {"budget": budget}}})
    with made.start() as running:
        who = task_id = made_task(running, budget={"calls": 1})
        for tenant in (who, "acme"):
            assert running.post("text.diff", DIFF, tenant=tenant).json()["state"] == "succeeded"
        of_task = running.post("text.diff", DIFF, tenant=who)
        assert refusal(of_task) == (429, "budget_exceeded")
        assert "1 of 1 calls" in of_task.json()["detail"]
        running.kill()
    with made.start() as running:
        assert refusal(running.post("text.diff", DIFF, tenant=who)) == (429, "budget_exceeded")
        spent = ask(running, "GET", f"/v1/tasks/{task_id}").json()["spent"]
        assert (spent["calls"], spent["cost"], spent["cpu_s"] > 0) == (1, 1.0, True)
        assert running.post("text.diff", DIFF).json()["state"] == "succeeded"
        refused = running.post("text.diff", DIFF)
        assert refusal(refused) == (429, "budget_exceeded")
        assert "agent acme/bot is used up: 3 of 3 calls until" in refused.json()["detail"]
        assert running.post("text.diff", DIFF, tenant="colleague").json()["state"] == "succeeded"
        made.wait_until_clean()
    assert made.verify().fault is None


def test_a_rate_refuses_with_when_to_come_again_and_a_replay_costs_nothing(tmp_path: Path) -> None:
    made = deployment(tmp_path, limits={"per_agent": {"rate": {"calls": 2, "per_s": 600}}})
    with made.start() as running:
        key = {"Idempotency-Key": "k"}
        first = running.post("text.diff", DIFF, headers=key)
        again = [running.post("text.diff", DIFF, headers=key).json()["replayed"] for _ in range(3)]
        assert (first.json()["replayed"], again) == (False, [True] * 3)
        assert running.post("text.diff", DIFF).json()["state"] == "succeeded"
        refused = running.post("text.diff", DIFF)
        assert refusal(refused) == (429, "rate_limited")
        assert 0 < int(refused.headers["retry-after"]) <= 301
        assert running.post("text.diff", DIFF, tenant="rival").json()["state"] == "succeeded"
        made.wait_until_clean()


# --- Loops ------------------------------------------------------------------------------------------------------


def test_the_same_failing_call_again_and_again_is_stopped(gateway: RunningGateway) -> None:
    """A loop of an agent costs three sandboxes and no more, and nobody else notices."""
    answers = [gateway.post("probe.run", FAILS, tenant="colleague") for _ in range(8)]
    states = [answer.json().get("state") for answer in answers]
    assert states == ["failed"] * 3 + [None] * 5
    assert {refusal(answer) for answer in answers[3:]} == {(429, "loop_stopped")}
    assert "tool_failed" in answers[-1].json()["detail"]
    assert "retry-after" in answers[-1].headers
    assert gateway.post("probe.run", {"code": "1"}, tenant="colleague").json()["state"] == "succeeded"
    assert gateway.post("probe.run", FAILS).json()["state"] == "failed"


# --- The kill switch --------------------------------------------------------------------------------------------


def test_a_stop_cancels_what_runs_refuses_the_rest_survives_a_kill_and_is_taken_back(tmp_path: Path) -> None:
    made = deployment(tmp_path)
    with made.start() as running:
        key = {"Idempotency-Key": "k"}
        replayable = running.post("text.diff", DIFF, headers=key)
        assert replayable.json()["state"] == "succeeded"
        who = made_task(running)
        with live(running, "probe.run") as call:
            call.until_printed("ready")
            stopped = ask(running, "POST", "/v1/stops", "admin", agent="bot", reason="it deletes things")
            assert stopped.json()["cancelled"] == 1
            assert call.answer()["state"] == "cancelled"
        for asked in (
            running.post("text.diff", DIFF),
            running.post("text.diff", DIFF, headers=key),
            running.post("text.diff", DIFF, tenant=who),
        ):
            assert refusal(asked) == (403, "stopped")
        assert ask(running, "GET", f"/v1/calls/{replayable.json()['call_id']}").status_code == 200
        for other in ("rival", "colleague"):
            assert running.post("text.diff", DIFF, tenant=other).json()["state"] == "succeeded"
        running.kill()
    with made.start() as running:
        assert refusal(running.post("text.diff", DIFF)) == (403, "stopped")
        assert ask(running, "GET", "/v1/stops", "rival-admin").json() == {"stops": []}
        assert refusal(ask(running, "POST", "/v1/stops/resume", "rival-admin", agent="bot")) == (409, "not_possible")
        assert refusal(ask(running, "POST", "/v1/stops/resume", "colleague", agent="bot")) == (403, "policy_denied")
        assert ask(running, "POST", "/v1/stops/resume", "admin", agent="bot").status_code == 200
        assert running.post("text.diff", DIFF).json()["state"] == "succeeded"
        made.wait_until_clean()
    assert made.verify().fault is None
    kinds = [event["kind"] for event in made.events("")]
    assert [kind for kind in kinds if kind in ("stopped", "resumed")] == ["stopped", "resumed"]


def test_an_administrator_who_stops_the_whole_tenant_is_not_locked_out(gateway: RunningGateway) -> None:
    assert ask(gateway, "POST", "/v1/stops", "admin", agent="").status_code == 200
    try:
        assert refusal(gateway.post("text.diff", DIFF, tenant="admin")) == (403, "stopped")
        assert refusal(gateway.post("text.diff", DIFF)) == (403, "stopped")
        assert gateway.post("text.diff", DIFF, tenant="rival").json()["state"] == "succeeded"
    finally:
        assert ask(gateway, "POST", "/v1/stops/resume", "admin", agent="").status_code == 200
    assert gateway.post("text.diff", DIFF).json()["state"] == "succeeded"


def test_who_is_no_administrator_stops_nobody(gateway: RunningGateway) -> None:
    assert refusal(ask(gateway, "POST", "/v1/stops", "acme", agent="colleague")) == (403, "policy_denied")
    assert gateway.post("text.diff", DIFF, tenant="colleague").json()["state"] == "succeeded"
    refused = [event for event in gateway.deployment.events("") if event["kind"] == "administration_refused"]
    assert ("bot", "stop") in [(event["agent"], event["operation"]) for event in refused]
