"""Calls that go on by themselves, on a real gateway: asynchronous ones, approvals, dead letters; over restarts, SIGTERM
and SIGKILL."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from callgate_server.backends import api_keys
from callgate_server.backends.openbao_dev import DevServer
from support.gateway import Deployment, RunningGateway
from support.images import ENGINE
from support.live import READY_THEN_SLEEP, eventually, refusal
from support.postgres import Postgres
from support.witness import Witness, deed, token

ASKS = """
@id("developers") permit(principal in Role::"developer", action, resource) unless { resource == Tool::"probe.run" };
@id("asks-finance") @approval("finance")
permit(principal in Role::"developer", action in Action::"call", resource == Tool::"probe.run");
"""
ONE_AT_ONCE = {"queue": {"running": 1, "running_per_tenant": 1}}
SHORT = {"code": "print('done', flush=True)\nresult = 6 * 7"}


def later(gateway: RunningGateway, tool: str, code: str, **extra: Any) -> dict[str, Any]:
    response = gateway.post(tool, {"code": code}, **{"async": True}, **extra)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/calls/{response.json()['call_id']}"
    return dict(response.json())


def shown(gateway: RunningGateway, call_id: str, tenant: str = "acme") -> dict[str, Any]:
    with gateway.web(tenant) as web:
        return dict(web.get(f"/v1/calls/{call_id}").json())


def in_state(gateway: RunningGateway, call_id: str, *states: str) -> dict[str, Any]:
    def look() -> dict[str, Any]:
        found = shown(gateway, call_id)
        assert found["state"] in states, found
        return found

    return eventually(look, within_s=40)


def events(gateway: RunningGateway, call_id: str, after: int | None = None) -> list[tuple[int, str, dict[str, Any]]]:
    """All events to the end of the call: number, name, document."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    found, seq, name = [], -1, ""
    with gateway.web() as web, web.stream("GET", f"/v1/calls/{call_id}/events", headers=headers) as stream:
        assert stream.status_code == 200
        for line in stream.iter_lines():
            key, _, value = line.partition(": ")
            if key == "id":
                seq = int(value)
            elif key == "event":
                name = value
            elif key == "data":
                found.append((seq, name, json.loads(value)))
    return found


class Approver:
    """Somebody who may approve: agent `boss`, in the group `finance`, unless it is told otherwise."""

    def __init__(
        self, deployment: Deployment, agent: str = "boss", role: str = "finance", tenant: str = "acme"
    ) -> None:
        deployment.tokens[f"{tenant}/{agent}"] = deployment.key(tenant, agent, role)
        self.name = f"{tenant}/{agent}"

    def ask(self, gateway: RunningGateway, method: str, path: str, body: Any = None) -> httpx.Response:
        with gateway.web(self.name) as web:
            return web.request(method, f"/v1/approvals{path}", json=body)

    def decide(
        self, gateway: RunningGateway, call_id: str, *, approve: bool, digest: str | None = None
    ) -> httpx.Response:
        known = digest if digest is not None else self.ask(gateway, "GET", f"/{call_id}").json()["digest"]
        return self.ask(gateway, "POST", f"/{call_id}/decision", {"digest": known, "approve": approve})


def test_an_asynchronous_call_gives_the_same_answer_as_one_that_was_waited_for(gateway: RunningGateway) -> None:
    made = later(gateway, "probe.run", SHORT["code"], priority=9)
    followed = events(gateway, made["call_id"])
    answer = followed[-1][2]
    assert [name for _, name, _ in followed][:2] == ["accepted", "waiting"]
    assert followed[-1][1] == "answer"
    assert (answer["state"], answer["result"], answer["stdout"]["text"]) == ("succeeded", 42, "done\n")
    assert shown(gateway, made["call_id"]) == answer
    assert [event["kind"] for event in gateway.deployment.events(made["call_id"])] == ["intent", "began", "outcome"]
    waited = gateway.post("probe.run", SHORT).json()
    assert {key for key in waited if waited[key] != answer[key]} <= {"call_id", "usage", "decision", "content"}


def test_a_stream_that_broke_goes_on_from_its_last_event_and_nothing_is_lost(gateway: RunningGateway) -> None:
    code = "import time\nfor n in range(20):\n    print(n, flush=True)\n    time.sleep(0.05)"
    made = later(gateway, "probe.run", code)
    whole = events(gateway, made["call_id"])
    printed = "".join(document["text"] for _, name, document in whole if name == "output")
    assert printed == "".join(f"{n}\n" for n in range(20))
    assert [seq for seq, _, _ in whole] == sorted({seq for seq, _, _ in whole})
    # Of a call that has ended the last event is still told, which has all of its output.
    rest = eventually(lambda: only_the_end(events(gateway, made["call_id"], after=whole[3][0])))
    assert rest[0] > whole[3][0]
    assert rest[2]["stdout"]["text"] == printed


def only_the_end(found: list[tuple[int, str, dict[str, Any]]]) -> tuple[int, str, dict[str, Any]]:
    assert len(found) == 1
    [(seq, name, answer)] = found
    assert name == "answer"
    return seq, name, answer


def test_while_it_runs_a_second_follower_gets_what_it_missed(gateway: RunningGateway) -> None:
    made = later(gateway, "probe.run", "print('first', flush=True)\nimport time; time.sleep(1.5)\nprint('second')")
    with gateway.web() as web, web.stream("GET", f"/v1/calls/{made['call_id']}/events") as stream:
        for line in stream.iter_lines():
            if "first" in line:
                break
    names = [name for _, name, _ in events(gateway, made["call_id"], after=1)]
    assert names == ["output", "output", "answer"]


def test_queued_and_running_calls_are_cancelled_for_certain(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway", settings=ONE_AT_ONCE)
    with deployment.start() as gateway:
        running = later(gateway, "probe.run", READY_THEN_SLEEP)
        in_state(gateway, running["call_id"], "running")
        queued = later(gateway, "probe.run", SHORT["code"])
        assert shown(gateway, queued["call_id"])["state"] == "admitted"
        with gateway.web() as web:
            for call in (queued, running):
                ended = web.post(f"/v1/calls/{call['call_id']}/cancel").json()
                assert ended["state"] == "cancelled"
        assert "began" not in [event["kind"] for event in deployment.events(queued["call_id"])]
        assert gateway.stop() == 0
    deployment.wait_until_clean()
    assert deployment.verify().fault is None


def test_what_a_killed_gateway_left_waiting_and_running_comes_to_its_one_truth(
    tmp_path: Path, store: DevServer, database: Postgres
) -> None:
    database.lend_to(store.operator, "probe")
    names = {tool: token() for tool in ("probe.idempotent", "probe.unsafe", "queued", "unsafe queued")}
    with Witness(ENGINE) as witness:
        settings = {"engine": {"socket": witness.url, "reap_every_s": 2}, "queue": {"running": 2}}
        deployment = Deployment(tmp_path / "gateway", store, settings=settings)
        with deployment.start() as first:
            calls = {
                "probe.idempotent": later(first, "probe.idempotent", deed(names["probe.idempotent"], seconds=4)),
                "probe.unsafe": later(first, "probe.unsafe", deed(names["probe.unsafe"], seconds=4)),
                "queued": later(first, "probe.run", deed(names["queued"])),
                "unsafe queued": later(first, "probe.unsafe", deed(names["unsafe queued"])),
            }
            eventually(lambda: both_did(witness, names["probe.idempotent"], names["probe.unsafe"]))
            first.kill()
        with deployment.start() as second:
            ended = {name: in_state(second, call["call_id"], "succeeded", "unknown") for name, call in calls.items()}
            assert {name: found["state"] for name, found in ended.items()} == {
                "probe.idempotent": "succeeded",
                "probe.unsafe": "unknown",
                "queued": "succeeded",
                "unsafe queued": "succeeded",
            }
            # What may run twice did, and its tool was told the same key; what may not did once.
            assert {name: witness.deeds[names[name]] for name in names} == {
                "probe.idempotent": 2, "probe.unsafe": 1, "queued": 1, "unsafe queued": 1,
            }  # fmt: skip
            kinds = [event["kind"] for event in deployment.events(calls["probe.idempotent"]["call_id"])]
            assert [kind for kind in kinds if not kind.startswith("secret")] == [
                "intent", "began", "settled", "requeued", "began", "outcome",
            ]  # fmt: skip
            with second.web() as web:
                [dead] = web.get("/v1/dead-letters").json()["dead_letters"]
            assert (dead["call_id"], dead["state"]) == (calls["probe.unsafe"]["call_id"], "unknown")
            assert second.stop() == 0
        deployment.wait_until_clean()
    assert deployment.verify().fault is None


def both_did(witness: Witness, *names: str) -> None:
    assert all(witness.deeds[name] == 1 for name in names)


def test_told_to_stop_it_finishes_what_runs_and_leaves_what_waits_to_its_next_life(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway", settings=ONE_AT_ONCE | {"limits": {"drain_s": 15}})
    slow = "print('ready', flush=True)\nimport time; time.sleep(8)\nresult = 'slow'"
    with deployment.start() as first:
        running = later(first, "probe.run", slow)
        in_state(first, running["call_id"], "running")
        queued = [later(first, "probe.run", SHORT["code"]) for _ in range(10)]
        assert first.stop() == 0
    assert [event["state"] for event in deployment.events(running["call_id"])][-1] == "succeeded"
    assert {event["kind"] for call in queued for event in deployment.events(call["call_id"])} == {"intent"}
    with deployment.start() as second:
        for call in queued:
            assert in_state(second, call["call_id"], "succeeded")["result"] == 42
    assert deployment.verify().fault is None


def test_what_outlasts_the_end_of_the_gateway_is_begun_again_by_the_next_one(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway", settings={"limits": {"drain_s": 1}})
    slow = "import os, time\ntime.sleep(30 * (os.environ['CALLGATE_ATTEMPT'] == '1'))\nresult = 'again'"
    with deployment.start() as first:
        call = later(first, "probe.run", slow)
        in_state(first, call["call_id"], "running")
        assert first.stop() == 0
    with deployment.start() as second:
        assert in_state(second, call["call_id"], "succeeded")["result"] == "again"
    kinds = [event["kind"] for event in deployment.events(call["call_id"])]
    assert kinds == ["intent", "began", "settled", "requeued", "began", "outcome"]
    assert deployment.found() == {}
    assert deployment.verify().fault is None


def test_a_parked_call_survives_a_kill_and_runs_once_when_it_is_approved(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway", policies=ASKS)
    boss = Approver(deployment)
    with deployment.start() as first:
        parked = first.post("probe.run", SHORT, purpose="An invoice\nis due.", headers={"Idempotency-Key": "k"})
        assert parked.status_code == 202
        summary = parked.json()
        call_id = summary["call_id"]
        assert (summary["state"], summary["approval"]["group"]) == ("awaiting_approval", "finance")
        first.kill()
    with deployment.start() as second:
        [listed] = boss.ask(second, "GET", "").json()["approvals"]
        assert (listed["call_id"], listed["state"], listed["arguments"]) == (call_id, "waiting", None)
        seen = boss.ask(second, "GET", f"/{call_id}").json()
        assert (seen["arguments"], seen["purpose"]) == (SHORT, "An invoice\nis due.")
        assert (seen["policies"], seen["agent"]) == (["asks-finance"], "bot")
        void = boss.decide(second, call_id, approve=True, digest="0" * 64)
        assert refusal(void) == (409, "approval_void")
        assert boss.decide(second, call_id, approve=True).json()["state"] == "approved"
        assert in_state(second, call_id, "succeeded")["result"] == 42
        assert refusal(boss.decide(second, call_id, approve=True, digest=seen["digest"])) == (409, "not_possible")
        # An approval is of one call: the same again asks again, with its key it is the same call.
        again = second.post("probe.run", SHORT, headers={"Idempotency-Key": "k"})
        assert (again.status_code, again.json()["call_id"], again.json()["replayed"]) == (200, call_id, True)
        other = second.post("probe.run", SHORT)
        assert (other.status_code, other.json()["state"]) == (202, "awaiting_approval")
    kinds = [event["kind"] for event in deployment.events(call_id)]
    assert kinds == ["intent", "approved", "began", "outcome"]
    assert deployment.verify().fault is None


def test_only_the_group_of_the_tenant_decides_and_never_the_caller(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway", policies=ASKS)
    deployment.tokens["acme"] = deployment.key("acme", "bot", "developer", "finance")
    strangers = [
        Approver(deployment, "clerk", "developer"),
        Approver(deployment, "boss", "finance", tenant="rival"),
    ]
    with deployment.start() as gateway:
        call_id = gateway.post("probe.run", SHORT).json()["call_id"]
        absent = strangers[0].ask(gateway, "GET", "/0190a000-0000-7000-8000-000000000000")
        for stranger in strangers:
            assert stranger.ask(gateway, "GET", "").json()["approvals"] == []
            looked = stranger.ask(gateway, "GET", f"/{call_id}")
            assert looked.json() == absent.json()
            decided = stranger.ask(gateway, "POST", f"/{call_id}/decision", {"digest": "0" * 64, "approve": True})
            assert refusal(decided) == (404, "unknown_call")
        own = Approver(deployment, "bot", "finance")
        deployment.tokens["acme/bot"] = deployment.tokens["acme"]
        assert refusal(own.decide(gateway, call_id, approve=True)) == (403, "policy_denied")
        assert shown(gateway, call_id)["state"] == "awaiting_approval"
        with gateway.web() as web:
            route = 'route="/v1/approvals/{call_id}/decision",status="403",transport="http"'
            assert f"callgate_requests_total{{{route}}} 1.0" in web.get("/metrics").text
    told = [event for event in deployment.events("") if event["kind"] == "approval_refused"]
    assert [(event["tenant"], event["agent"], event["operation"], event["reason"]) for event in told] == [
        *(("acme", "clerk", act, "unknown_call") for act in ("show", "decide")),
        *(("rival", "boss", act, "unknown_call") for act in ("show", "decide")),
        ("acme", "bot", "decide", "policy_denied"),
    ]
    assert {event["call"] for event in told} == {call_id}
    assert '"caller": "acme/clerk"' in deployment.log_text()
    assert deployment.verify().fault is None


def test_a_denied_call_and_one_that_nobody_approves_say_so(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway", policies=ASKS, settings={"queue": {"approval_s": 3}})
    boss = Approver(deployment)
    with deployment.start() as gateway:
        denied, expired = (gateway.post("probe.run", SHORT).json()["call_id"] for _ in range(2))
        boss.decide(gateway, denied, approve=False)
        found = in_state(gateway, denied, "denied")
        assert (found["error"]["reason"], found["approval"]["decided_by"]) == ("approval_denied", "acme/boss")
        found = in_state(gateway, expired, "denied")
        assert found["error"]["reason"] == "approval_expired"
        assert "finance" in found["error"]["message"]
        assert boss.ask(gateway, "GET", f"/{expired}").json()["state"] == "expired"
        assert "began" not in [event["kind"] for event in deployment.events()]


def test_policy_that_forbids_by_the_time_of_the_approval_wins(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway", policies=ASKS)
    boss = Approver(deployment)
    with deployment.start() as gateway:
        call_id = gateway.post("probe.run", SHORT).json()["call_id"]
        deployment.write_policies(
            ASKS + '@id("no-more") forbid(principal, action == Action::"call:probe.run", resource);'
        )
        eventually(lambda: forbidden(gateway))
        boss.decide(gateway, call_id, approve=True)
        found = in_state(gateway, call_id, "denied")
        assert found["error"]["reason"] == "policy_denied"


def forbidden(gateway: RunningGateway) -> None:
    response = gateway.post("probe.run", SHORT)
    assert response.status_code == 403
    assert refusal(response) == (403, "policy_denied")


def counted(gateway: RunningGateway, dead: int) -> None:
    with gateway.web() as web:
        assert f'callgate_kept_calls{{state="dead_letters"}} {dead}.0' in web.get("/metrics").text


def redrive(call_id: str) -> str:
    return f"/v1/dead-letters/{call_id}/redrive"


def test_what_failed_for_good_is_kept_redriven_and_given_up(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway")
    with deployment.start() as first:
        failed = later(first, "probe.run", "print('not shown')\nraise SystemExit(3)")
        in_state(first, failed["call_id"], "failed")
        first.kill()
    with deployment.start() as second, second.web() as web:
        listed = web.get("/v1/dead-letters").json()
        assert listed["total"] == 1
        eventually(lambda: counted(second, 1))
        [dead] = listed["dead_letters"]
        assert dead == web.get(f"/v1/dead-letters/{failed['call_id']}").json()
        assert [(step["attempt"], step["reason"]) for step in dead["attempts"]] == [(1, "tool_failed")]
        assert "not shown" not in json.dumps(dead)
        with second.web("rival") as stranger:
            assert refusal(stranger.get(f"/v1/dead-letters/{failed['call_id']}")) == (404, "unknown_call")
        made = web.post(redrive(failed["call_id"]))
        assert (made.status_code, made.json()["follows"]) == (202, failed["call_id"])
        again = in_state(second, made.json()["call_id"], "failed")
        assert again["error"]["reason"] == "tool_failed"
        assert web.post(f"/v1/dead-letters/{made.json()['call_id']}/discard").status_code == 200
        assert web.get("/v1/dead-letters").json() == {"dead_letters": [], "total": 0}
        assert refusal(web.post(redrive(failed["call_id"]))) == (404, "unknown_call")
    kinds = [event["kind"] for event in deployment.events(failed["call_id"])]
    assert kinds == ["intent", "began", "outcome", "redriven"]
    assert deployment.verify().fault is None


def test_what_is_kept_shows_no_argument_to_who_reads_the_file(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway", policies=ASKS)
    with deployment.start() as gateway:
        gateway.post("probe.run", {"code": "# the-argument-that-nobody-may-read"})
        gateway.kill()
    for file in deployment.ledger.parent.iterdir():
        assert b"the-argument-that-nobody-may-read" not in file.read_bytes()


def test_what_became_of_an_unknown_effect_is_found_out_by_the_tool_that_can_tell(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway")
    words = {"it happened": "succeeded", "it did not": "failed", "cannot tell": "unknown"}
    with deployment.start() as first:
        calls = {word: later(first, "probe.transfer", f"# {word}\n{READY_THEN_SLEEP}") for word in words}
        for call in calls.values():
            in_state(first, call["call_id"], "running")
        first.kill()
    with deployment.start() as second:
        for word in ("it happened", "it did not"):
            settled = in_state(second, calls[word]["call_id"], words[word])
            assert (settled["error"] is None) is (word == "it happened")
        assert shown(second, calls["cannot tell"]["call_id"])["state"] == "unknown"
        with second.web() as web:
            dead = {letter["call_id"] for letter in web.get("/v1/dead-letters").json()["dead_letters"]}
        assert dead == {calls["it did not"]["call_id"], calls["cannot tell"]["call_id"]}
    told = deployment.events(calls["it happened"]["call_id"])[-1]
    assert (told["kind"], told["by"].startswith("probe.look in call ")) == ("settled", True)
    assert deployment.verify().fault is None


ADMINISTERED = """
@id("developers") permit(principal in Role::"developer", action in Action::"call", resource);
@id("operators") permit(principal in Role::"operator", action == Action::"administer", resource);
"""


def test_a_stop_ends_what_only_waits_and_a_task_that_ended_takes_its_queued_calls_along(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway", policies=ADMINISTERED, settings=ONE_AT_ONCE)
    deployment.tokens["operator"] = deployment.key("acme", "root", "operator")
    with deployment.start() as gateway, gateway.web() as web:
        running = later(gateway, "probe.run", "print('ready', flush=True)\nimport time; time.sleep(8)")
        in_state(gateway, running["call_id"], "running")
        grant = {"tools": {"probe.run": {}}}
        task = web.post("/v1/tasks", json={"name": "a task", "grant": grant, "lifetime_s": 60}).json()
        deployment.tokens["task"] = task["token"]
        of_task = gateway.post("probe.run", SHORT, tenant="task", **{"async": True}).json()
        assert of_task["task"] == task["task"]["task_id"]
        assert web.post(f"/v1/tasks/{task['task']['task_id']}/end").status_code == 200
        found = in_state(gateway, of_task["call_id"], "denied", "cancelled")
        assert found["error"]["reason"] in ("task_ended", "cancelled")
        assert in_state(gateway, running["call_id"], "succeeded")
        running = later(gateway, "probe.run", READY_THEN_SLEEP)
        in_state(gateway, running["call_id"], "running")
        queued = later(gateway, "probe.run", SHORT["code"])
        with gateway.web("operator") as operator:
            assert operator.post("/v1/stops", json={"agent": "bot", "reason": "It loops."}).status_code == 200
        for call in (queued, running):
            in_state(gateway, call["call_id"], "cancelled")
        assert refusal(gateway.post("probe.run", SHORT)) == (403, "stopped")
    assert "began" not in [event["kind"] for event in deployment.events(queued["call_id"])]
    assert deployment.verify().fault is None


def test_what_was_queued_with_a_key_that_is_revoked_meanwhile_runs_with_the_roles_it_had(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway", settings=ONE_AT_ONCE)
    keys = deployment.folder / "keys.json"
    made = api_keys.create(
        keys, tenant="acme", agent="leaver", roles=("developer",), purpose="production", now=datetime.now(UTC)
    )
    deployment.tokens["leaver"] = made.key.reveal().decode()
    deployment.tokens["demoted"] = deployment.key("acme", "leaver", "visitor")
    with deployment.start() as gateway:
        running = later(gateway, "probe.run", READY_THEN_SLEEP)
        in_state(gateway, running["call_id"], "running")
        queued = later(gateway, "probe.run", SHORT["code"], tenant="leaver")
        api_keys.revoke(keys, made.id)
        for caller, refused in (("leaver", (401, "unauthenticated")), ("demoted", (403, "policy_denied"))):
            assert refusal(gateway.post("probe.run", SHORT, tenant=caller)) == refused
        assert shown(gateway, queued["call_id"], "demoted")["state"] == "admitted"
        with gateway.web() as web:
            assert web.post(f"/v1/calls/{running['call_id']}/cancel").json()["state"] == "cancelled"
        eventually(lambda: succeeded(deployment, queued["call_id"]))
        # What came of it is not shown to who may not call the tool any more.
        with gateway.web("demoted") as web:
            assert refusal(web.get(f"/v1/calls/{queued['call_id']}")) == (404, "unknown_call")
    assert deployment.verify().fault is None


def succeeded(deployment: Deployment, call_id: str) -> None:
    events = deployment.events(call_id)
    assert [event["kind"] for event in events] == ["intent", "began", "outcome"]
    assert events[-1]["state"] == "succeeded"
