"""Policies are replaced while calls come. Each call is decided by one set, and says by which."""

import threading
import time
from pathlib import Path

from support.gateway import Deployment, RunningGateway

PERMIT = '@id("developers") permit(principal in Role::"developer", action, resource);\n'
FORBID = PERMIT + '@id("closed") forbid(principal, action == Action::"call:probe.run", resource);\n'
CLIENTS = 6
RELOADS = 12


def ask(gateway: RunningGateway, until: threading.Event, seen: list[str]) -> None:
    with gateway.web() as web:
        while not until.is_set():
            # Its deadline is over before there could be a sandbox: what policy says of it is all that it costs.
            body = {"arguments": {"code": "pass"}, "deadline_ms": 1}
            seen.append(web.post("/v1/tools/probe.run/calls", json=body).json()["reason"])


def test_each_call_is_decided_by_one_set_of_policies(tmp_path: Path) -> None:
    # Far more refusals than any agent has otherwise, and each in the record.
    settings = {"limits": {"fruitless": {"calls": 1_000_000, "per_s": 60}}}
    deployment = Deployment(tmp_path / "gateway", policies=PERMIT, settings=settings)
    done, seen = threading.Event(), []
    with deployment.start() as gateway:
        clients = [threading.Thread(target=ask, args=(gateway, done, seen)) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for number in range(RELOADS):
            deployment.write_policies(FORBID if number % 2 == 0 else PERMIT)
            time.sleep(0.5)
        done.set()
        for client in clients:
            client.join()
        assert gateway.stop() == 0
    assert {"policy_denied", "deadline_exceeded"} <= set(seen) <= {"policy_denied", "deadline_exceeded"}
    events = deployment.events()
    allowed = {event["policy_version"] for event in events if event["kind"] == "intent"}
    refused = {event["policy_version"] for event in events if event.get("reason") == "policy_denied"}
    assert (len(allowed), len(refused)) == (1, 1)
    assert allowed != refused
    assert {tuple(event["policies"]) for event in events if event["kind"] == "intent"} == {("developers",)}
    assert {tuple(event["policies"]) for event in events if event.get("reason") == "policy_denied"} == {("closed",)}
    assert deployment.verify().fault is None
