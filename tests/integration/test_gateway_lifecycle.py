"""A gateway that is killed, told to stop, or cannot write its record. What it leaves behind, the next one
settles: calls, containers, leases. Without a record nothing runs."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from callgate.errors import CallRefused
from callgate_server.backends.catalog.lock import read_lock
from callgate_server.backends.openbao_dev import DevServer
from support.gateway import CALLGATED, Deployment, RunningGateway, catalog_lock
from support.images import ENGINE
from support.live import LiveCall, eventually, live, refusal
from support.postgres import Postgres

DONE = {"code": "print('out')\nresult = [1, 2.5, 'x']"}


@pytest.fixture
def engine() -> Iterator[docker.APIClient]:
    client = docker.APIClient(base_url=ENGINE, version="auto")
    yield client
    client.close()


@pytest.fixture
def stranger(engine: docker.APIClient) -> Iterator[str]:
    """A running container of another gateway's instance."""
    image = read_lock(catalog_lock()).images["probe"]
    other = ("--label", f"callgate.instance=test-other-{os.getpid()}", "--entrypoint", "/usr/bin/python3")
    command = ("docker", "run", "--detach", "--network", "none", *other, image, "-c", "import time; time.sleep(600)")
    container = subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    yield container
    engine.remove_container(container, force=True)


def running(engine: docker.APIClient, deployment: Deployment) -> list[str]:
    filters = {"label": f"callgate.instance={deployment.instance}", "status": "running"}
    return [found["Id"] for found in engine.containers(filters=filters)]


def none_runs(engine: docker.APIClient, deployment: Deployment) -> None:
    assert running(engine, deployment) == []


def keyed(gateway: RunningGateway, tool: str, arguments: dict[str, Any], key: str) -> httpx.Response:
    return gateway.post(tool, arguments, headers={"Idempotency-Key": key})


def fetched(gateway: RunningGateway, call_id: str) -> dict[str, Any]:
    with gateway.web() as web:
        response = web.get(f"/v1/calls/{call_id}")
    assert response.status_code == 200
    return dict(response.json())


def test_what_a_killed_gateway_leaves_is_settled_by_the_next(
    tmp_path: Path, store: DevServer, database: Postgres, engine: docker.APIClient, stranger: str
) -> None:
    database.lend_to(store.operator, "probe")
    deployment = Deployment(tmp_path / "gateway", store)
    ready = "print('ready', flush=True)\nimport time; time.sleep(18)"
    brief = ready.replace("18", "8")
    with deployment.start() as first:
        done = keyed(first, "probe.run", DONE, "done")
        with (
            live(first, "probe.run", ready) as read,
            live(first, "probe.run", brief, key="read") as again,
            live(first, "probe.secret", ready, key="unsafe") as unsafe,
            live(first, "probe.dynamic", ready) as leased,
        ):
            for call in (read, again, unsafe, leased):
                call.until_printed("ready")
            assert len(running(engine, deployment)) == 4
            first.kill()
        # Nobody is there to end them: each runner sees the end of its wire and ends itself, long before its deadline.
        eventually(lambda: none_runs(engine, deployment), within_s=10)
        assert len(deployment.containers()) == 4
        assert len(database.leased_roles()) == 1
    with deployment.start() as second:
        assert deployment.containers() == []
        assert engine.inspect_container(stranger)["State"]["Running"]
        assert database.leased_roles() == set()
        states = {call.call_id: fetched(second, call.call_id) for call in (read, unsafe, leased)}
        assert [(found["state"], found["error"]["reason"], found["error"]["retryable"]) for found in states.values()] == [
            ("interrupted", "interrupted", True),
            ("unknown", "effect_unknown", False),
            ("interrupted", "interrupted", True),
        ]  # fmt: skip
        kinds = [event["kind"] for event in deployment.events(leased.call_id)]
        assert kinds == ["intent", "secret_leased", "settled", "secret_revoked"]
        assert deployment.verify().fault is None
        # What may be run twice hands its key to the same call, and to no other; what may not is never run again.
        assert refusal(keyed(second, "probe.run", {"code": ready}, "read")) == (422, "idempotency_conflict")
        attempt = keyed(second, "probe.run", {"code": brief}, "read").json()
        assert (attempt["state"], attempt["replayed"]) == ("succeeded", False)
        (intent, _) = deployment.events(attempt["call_id"])
        assert intent["retry_of"] == again.call_id
        assert [event["kind"] for event in deployment.events(again.call_id)] == ["intent", "settled", "retried"]
        assert keyed(second, "probe.run", {"code": brief}, "read").json() == {**attempt, "replayed": True}
        refused = keyed(second, "probe.secret", {"code": ready}, "unsafe")
        assert refusal(refused) == (409, "effect_unknown")
        assert unsafe.call_id in refused.json()["detail"]
        # An answer that was given is given again, byte for byte.
        replayed = keyed(second, "probe.run", DONE, "done")
        assert replayed.content.replace(b'"replayed":true', b'"replayed":false') == done.content
        assert replayed.json()["replayed"] is True
    deployment.wait_until_clean()
    assert deployment.verify().fault is None


def test_a_gateway_killed_at_any_moment_of_a_call_leaves_nothing_open(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway")
    for pause_s in (0.0, 0.05, 0.12, 0.25, None):
        with deployment.start() as gateway:
            assert deployment.containers() == []
            with gateway.web() as web:
                listed = web.get("/v1/calls").json()["calls"]
            assert {call["state"] for call in listed} <= {"interrupted", "succeeded"}
            assert deployment.verify().fault is None
            if pause_s is None:
                break
            posting = threading.Thread(target=_post_and_be_cut_off, args=(gateway,))
            posting.start()
            time.sleep(pause_s)
            gateway.kill()
            posting.join(timeout=20)
            assert not posting.is_alive()


def _post_and_be_cut_off(gateway: RunningGateway) -> None:
    with contextlib.suppress(httpx.TransportError):
        gateway.post("probe.run", DONE)


# --- told to stop ----------------------------------------------------------------------------------------------


def test_a_gateway_told_to_stop_lets_short_calls_finish_and_cancels_the_rest(tmp_path: Path) -> None:
    limits = {"calls": 32, "calls_per_tenant": 32, "drain_s": 15}
    deployment = Deployment(tmp_path / "gateway", settings={"limits": limits})
    code = "print('ready', flush=True)\nimport time; time.sleep({})"
    with deployment.start() as gateway, contextlib.ExitStack() as held:
        long = [held.enter_context(live(gateway, "python.run", code.format(55))) for _ in range(5)]
        short = [held.enter_context(live(gateway, "python.run", code.format(5))) for _ in range(5)]
        for call in (*long, *short):
            call.until_printed("ready")
        gateway.process.send_signal(signal.SIGTERM)
        eventually(lambda: says_that_it_stops(gateway), within_s=10)
        refused = gateway.post("probe.run", DONE)
        assert refusal(refused) == (503, "draining")
        assert refused.headers["retry-after"]
        with gateway.sdk() as client, pytest.raises(CallRefused) as refused_by_grpc:
            client.call("probe.run", DONE)
        assert refused_by_grpc.value.reason == "draining"
        answers = [call.answer() for call in (*short, *long)]
        assert gateway.process.wait(timeout=60) == 0
    assert [answer["state"] for answer in answers] == ["succeeded"] * 5 + ["cancelled"] * 5
    assert {answer["stdout"]["text"] for answer in answers} == {"ready\n"}
    outcomes = [event["state"] for event in deployment.events() if event["kind"] == "outcome"]
    assert sorted(outcomes) == ["cancelled"] * 5 + ["succeeded"] * 5
    refusals = [event["reason"] for event in deployment.events() if event["kind"] == "refused"]
    assert refusals == ["draining", "draining"]
    assert deployment.containers() == []
    assert deployment.verify().fault is None


def says_that_it_stops(gateway: RunningGateway) -> None:
    with gateway.web() as web:
        response = web.get("/readyz")
    assert (response.status_code, response.json()["components"]["accepting"]) == (503, "failing")
    with grpc.insecure_channel(gateway.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "callgate.v1.Gateway"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_gateway_with_nothing_to_do_stops_at_once_also_with_a_client_connected(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway", settings={"limits": {"drain_s": 600}})
    with deployment.start() as gateway, gateway.web() as web, gateway.sdk() as client:
        assert web.get("/healthz").status_code == 200
        assert client.tools()
        # Long before the calls' grace is over, which it would give to the clients.
        assert gateway.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_stop_a_gateway_in_order_too(tmp_path: Path, number: signal.Signals) -> None:
    deployment = Deployment(tmp_path / "gateway", settings={"limits": {"drain_s": 1}})
    # As in a terminal, however this suite was started.
    program = ("env", "--default-signal=INT,HUP", *CALLGATED)
    with deployment.start(program=program) as gateway, live(gateway, "probe.run") as call:
        call.until_printed("ready")
        # A shell sends its end to its jobs, and the terminal sends its own to them.
        for _ in range(2):
            gateway.process.send_signal(number)
        assert call.answer()["state"] == "cancelled"
        assert gateway.process.wait(timeout=30) == 0
    assert [event["kind"] for event in deployment.events(call.call_id)] == ["intent", "outcome"]
    assert deployment.containers() == []


def test_a_gateway_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway")
    with deployment.start(program=("nohup", *CALLGATED)) as gateway:
        gateway.process.send_signal(signal.SIGHUP)
        runs(gateway)
        assert gateway.stop() == 0


# --- the record cannot be written --------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A ledger's folder on a disk of eight megabytes, of which the spool takes four."""
    folder = tmp_path / "gateway" / "ledger"
    folder.mkdir(parents=True, mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> None:
    with (disk / "ballast").open("ab", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"\0" * 4096)


def refused_for_want_of_a_record(gateway: RunningGateway, disk: Path | None = None, tenant: str = "acme") -> str:
    """Return the id of a call that was."""
    if disk is not None:
        fill(disk)  # again: what the ledger gives back when it lets go of its files is room
    response = gateway.post("probe.run", DONE, tenant=tenant)
    assert refusal(response) == (503, "audit_unavailable")
    return str(response.json()["call_id"])


def refused_by_grpc(gateway: RunningGateway, disk: Path) -> str:
    fill(disk)
    with gateway.sdk() as client, pytest.raises(CallRefused) as error:
        client.call("probe.run", DONE)
    assert error.value.reason == "audit_unavailable"
    assert error.value.call_id is not None
    return error.value.call_id


def created(engine: docker.APIClient, deployment: Deployment, since_s: int) -> list[str]:
    """Names of the containers that were made."""
    filters = {"label": f"callgate.instance={deployment.instance}", "event": "create"}
    events = engine.events(since=since_s, until=int(time.time()) + 1, filters=filters, decode=True)
    return [event["Actor"]["Attributes"]["name"] for event in events]


def runs(gateway: RunningGateway) -> None:
    assert gateway.post("probe.run", DONE).json().get("state") == "succeeded"


def test_on_a_full_disk_nothing_runs_and_service_resumes_when_there_is_room(
    tmp_path: Path, disk: Path, engine: docker.APIClient
) -> None:
    deployment = Deployment(tmp_path / "gateway")
    began_s = int(time.time())
    with deployment.start() as gateway:
        runs(gateway)
        with live(gateway, "probe.run", "print('ready', flush=True)\nimport time; time.sleep(5)") as owed:
            owed.until_printed("ready")
            refused = [eventually(lambda: refused_for_want_of_a_record(gateway, disk)) for _ in range(3)]
            # What policy refuses is recorded as well, or the caller is not told what policy says.
            refused.append(eventually(lambda: refused_for_want_of_a_record(gateway, disk, "guest")))
            refused.append(eventually(lambda: refused_by_grpc(gateway, disk)))
            # A running call finishes; what it owes the record waits where there is room for it.
            name, document = until_ended(owed, disk)
            assert (name, document["state"], document["call_id"]) == ("answer", "succeeded", owed.call_id)
        eventually(lambda: says_that_it_cannot_record(gateway))
        assert fetched(gateway, owed.call_id) == document
        assert [event["kind"] for event in deployment.events(owed.call_id)] == ["intent"]
        names = created(engine, deployment, began_s)
        assert any(owed.call_id in name for name in names)
        assert not any(call_id in name for call_id in refused for name in names)
        (disk / "ballast").unlink()
        eventually(lambda: runs(gateway))
        eventually(lambda: has_its_outcome(deployment, owed.call_id))
        assert fetched(gateway, owed.call_id) == document
    deployment.wait_until_clean()
    assert deployment.verify().fault is None


def has_its_outcome(deployment: Deployment, call_id: str) -> None:
    assert [event["kind"] for event in deployment.events(call_id)] == ["intent", "outcome"]


def until_ended(call: LiveCall, disk: Path) -> tuple[str, dict[str, Any]]:
    """Keep the disk full until the call has ended."""
    ended = threading.Event()
    filler = threading.Thread(target=_keep_full, args=(disk, ended))
    filler.start()
    try:
        return call.end()
    finally:
        ended.set()
        filler.join()


def _keep_full(disk: Path, ended: threading.Event) -> None:
    while not ended.wait(0.05):
        fill(disk)


def says_that_it_cannot_record(gateway: RunningGateway) -> None:
    with gateway.web() as web:
        response = web.get("/readyz")
    assert (response.status_code, response.json()["components"]["ledger"]) == (503, "failing")


def test_a_record_that_others_could_read_or_that_was_taken_away_refuses_calls(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway")
    with deployment.start() as gateway:
        runs(gateway)
        deployment.ledger.chmod(0o644)
        refused_for_want_of_a_record(gateway)
        deployment.ledger.chmod(0o600)
        runs(gateway)
        aside = deployment.ledger.with_name("aside.db")
        deployment.ledger.rename(aside)
        refused_for_want_of_a_record(gateway)
        aside.rename(deployment.ledger)
        runs(gateway)
    assert deployment.verify().fault is None
