"""Sandboxes started ahead of their calls, on the real engine and through the gateway: each serves one call and no
second one, a burst is answered or told to come back, and nothing outlives the gateway."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import docker
import httpx
import pytest

from callgate_server.backends.catalog.lock import Lock, read_lock, write_lock
from callgate_server.backends.catalog.manifests import declarations, image_folders
from support.gateway import CATALOG, Deployment, RunningGateway, catalog_lock
from support.images import ENGINE
from support.live import eventually, live

POOL = {"per_shape": 4, "spare": 0, "memory_mb": 4096, "cpus": 16, "refill_concurrency": 2, "idle_s": 300}
# What one call leaves behind of itself, and what another looks for.
LEAVE = """
import os, signal, socket, subprocess, sys, builtins
open('/tmp/mine', 'w').write('x'); open('/dev/shm/mine', 'w').write('x'); open('/out/mine', 'w').write('x')
os.environ['MINE'] = 'x'; builtins.mine = 'x'; sys.modules['mine'] = sys
signal.signal(signal.SIGTERM, signal.SIG_IGN); os.umask(0)
held = socket.socket(socket.AF_UNIX); held.bind('\\0mine')
subprocess.Popen(['/usr/bin/python3', '-c', 'import time; time.sleep(600)'], start_new_session=True)
result = 'left'
"""
LOOK = """
import builtins, os, signal, socket, sys
def sockets():
    return 'mine' in open('/proc/net/unix').read()
result = {
    'files': sorted(os.listdir('/tmp') + os.listdir('/dev/shm') + os.listdir('/out') + os.listdir('/run/secrets')),
    'environment': 'MINE' in os.environ, 'builtins': hasattr(builtins, 'mine'), 'modules': 'mine' in sys.modules,
    'processes': len([name for name in os.listdir('/proc') if name.isdecimal()]), 'sockets': sockets(),
    'signals': signal.getsignal(signal.SIGTERM) == signal.SIG_IGN, 'umask': os.umask(0o077),
}
"""
CLEAN = {
    "files": [], "environment": False, "builtins": False, "modules": False, "processes": 2, "sockets": False,
    "signals": False, "umask": 0o077,
}  # fmt: skip


def pooled(folder: Path, **pool: Any) -> Deployment:
    return Deployment(folder, settings={"execution": {"pool": {**POOL, **pool}}})


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    deployment = pooled(tmp_path_factory.mktemp("pooled"))
    with deployment.start() as running:
        yield running
    assert deployment.found() == {}
    assert deployment.verify().fault is None


def run(gateway: RunningGateway, code: str, tenant: str = "acme") -> dict[str, Any]:
    document: dict[str, Any] = gateway.post("probe.run", {"code": code}, tenant).json()
    assert document["state"] == "succeeded", document
    return document


def metric(gateway: RunningGateway, name: str, **labels: str) -> float:
    """The sum over all series with these labels."""
    with gateway.web() as web:
        lines = web.get("/metrics").text.splitlines()
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    found = [line for line in lines if line.startswith(name) and all(text in line for text in wanted)]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def wait_for_ready(gateway: RunningGateway, count: int) -> None:
    def look() -> None:
        assert metric(gateway, "callgate_pool_ready") >= count

    eventually(look, within_s=60)


def test_nothing_of_a_call_is_left_to_the_next_and_no_container_serves_two(gateway: RunningGateway) -> None:
    answers = []
    for tenant in ("acme", "rival") * 4:
        answers.append(run(gateway, LEAVE, tenant))
        other = "rival" if tenant == "acme" else "acme"
        answers.append(looked := run(gateway, LOOK, other))
        assert looked["result"] == CLEAN
    calls = [answer["call_id"] for answer in answers]
    used = gateway.deployment.sandboxes()
    assert len({used[call] for call in calls}) == len(calls)
    assert metric(gateway, "callgate_pool_claims_total", how="warm") > 0


def test_the_record_ties_a_call_to_its_container(gateway: RunningGateway) -> None:
    call = run(gateway, "result = 1")["call_id"]
    (outcome,) = [event for event in gateway.deployment.events(call) if event["kind"] == "outcome"]
    assert outcome["sandbox"] == gateway.deployment.sandboxes()[call]


def test_what_waits_for_a_call_carries_nobodys_name(gateway: RunningGateway) -> None:
    run(gateway, "result = 1")
    wait_for_ready(gateway, 1)
    (waiting, *_) = gateway.deployment.waiting_containers()
    engine = docker.APIClient(base_url=ENGINE, version="auto")
    found = engine.inspect_container(waiting)
    engine.close()
    labels = found["Config"]["Labels"]
    assert {"callgate.instance", "callgate.boot", "callgate.pool"} <= labels.keys()
    assert not {"callgate.call", "callgate.tenant", "callgate.tool", "callgate.deadline"} & labels.keys()
    assert "acme" not in json.dumps(found)


def test_a_call_that_finds_one_ready_starts_none(gateway: RunningGateway) -> None:
    run(gateway, "result = 1")
    wait_for_ready(gateway, 1)
    before = metric(gateway, "callgate_pool_claims_total", how="warm")
    waiting = set(gateway.deployment.waiting_containers())
    call = run(gateway, "result = 1")["call_id"]
    assert gateway.deployment.sandboxes()[call] in waiting
    assert metric(gateway, "callgate_pool_claims_total", how="warm") == before + 1


def test_containers_killed_from_outside_while_they_wait_cost_no_call(gateway: RunningGateway) -> None:
    engine = docker.APIClient(base_url=ENGINE, version="auto")
    for _ in range(3):
        run(gateway, "result = 1")
        wait_for_ready(gateway, 1)
        for container in gateway.deployment.waiting_containers():
            try:
                engine.kill(container, "SIGKILL")
            except docker.errors.APIError:
                continue  # not started yet, or gone
        # As soon as the engine has told the gateway; a call that is faster meets a death like any other.
        time.sleep(1)
        assert run(gateway, "result = 42")["result"] == 42
    engine.close()
    assert metric(gateway, "callgate_pool_deaths_total") >= 1
    wait_for_ready(gateway, 1)


def test_a_call_cancelled_while_it_waits_frees_its_place(tmp_path: Path) -> None:
    deployment = pooled(tmp_path)
    deployment.settings["execution"]["sandboxes"] = 1
    with deployment.start() as gateway:
        with live(gateway, "probe.run") as holder, live(gateway, "probe.run") as waiter:
            holder.until_printed("ready")
            with gateway.web() as web:
                assert web.post(f"/v1/calls/{waiter.call_id}/cancel").is_success
            assert waiter.answer()["state"] == "cancelled"
            assert waiter.call_id not in deployment.sandboxes()
            with gateway.web() as web:
                assert web.post(f"/v1/calls/{holder.call_id}/cancel").is_success
            assert holder.answer()["state"] == "cancelled"
        assert run(gateway, "result = 1")["result"] == 1


async def burst(gateway: RunningGateway, count: int, deadline_ms: int) -> list[tuple[httpx.Response, float]]:
    """So many calls at once, half of them of each tenant; each answer with its time."""
    begin = time.monotonic()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=f"http://{gateway.http}", timeout=90, limits=limits, trust_env=False
    ) as client:

        async def call(number: int) -> tuple[httpx.Response, float]:
            token = gateway.deployment.tokens["acme" if number % 2 else "rival"]
            response = await client.post(
                "/v1/tools/probe.run/calls",
                json={"arguments": {"code": f"result = {number}"}, "deadline_ms": deadline_ms},
                headers={"Authorization": f"Bearer {token}"},
            )
            return response, time.monotonic() - begin

        return await asyncio.gather(*(call(number) for number in range(count)))


def test_a_burst_is_answered_or_told_to_come_back_and_nothing_is_lost(gateway: RunningGateway) -> None:
    run(gateway, "result = 1")
    wait_for_ready(gateway, 1)
    before_kb = gateway.rss_kb()
    results = asyncio.run(burst(gateway, 200, deadline_ms=15_000))
    ends = Counter[str]()
    for number, (response, _) in enumerate(results):
        document = response.json()
        if response.status_code == 200 and document["state"] == "timed_out":
            ends["at its deadline"] += 1  # its turn came when hardly any time was left
        elif response.status_code == 200:
            ends["answered"] += 1
            assert (document["state"], document["result"]) == ("succeeded", number)
        else:
            ends["told to come back"] += 1
            assert document["reason"] in ("overloaded", "deadline_exceeded")
            # Who ran out of its own time may come back at once; who met a full gateway is told when.
            assert document["reason"] == "deadline_exceeded" or int(response.headers["retry-after"]) >= 1
    assert ends["answered"] >= 4
    assert ends.total() == 200
    # Nobody was kept past the deadline, but for the way there and back on a busy machine.
    assert max(seconds for _, seconds in results) < 75
    gateway.deployment.wait_until_clean(60)
    assert gateway.rss_kb() < before_kb + 64 * 1024
    assert metric(gateway, "callgate_pool_waiting") == 0
    assert metric(gateway, "callgate_pool_held") == 0
    assert run(gateway, "result = 1")["result"] == 1
    used = list(gateway.deployment.sandboxes().values())
    assert len(used) == len(set(used))


def test_of_five_hundred_calls_at_once_those_that_wait_are_served_by_deadline(tmp_path: Path) -> None:
    """A pool of four, all of it held; who is beyond the ceiling of calls is told to come back before any is served."""
    at_once, held, ceiling = 500, 4, 254
    deployment = pooled(tmp_path)
    deployment.settings["execution"]["sandboxes"] = held
    requests = {"concurrent_requests": 600, "requests_per_agent": 600}
    deployment.settings["limits"] = {"calls": ceiling, "calls_per_tenant": ceiling, **requests}
    deadlines_ms = [30_000 + 20 * number for number in range(at_once)]
    Random(at_once).shuffle(deadlines_ms)
    with deployment.start() as gateway:
        before_kb = gateway.rss_kb()
        responses, fullest_kb = asyncio.run(burst_on_a_held_pool(gateway, deadlines_ms, held))
        gateway.deployment.wait_until_clean(60)
        assert metric(gateway, "callgate_pool_waiting") == metric(gateway, "callgate_pool_held") == 0
        assert max(fullest_kb, gateway.rss_kb()) < before_kb + 96 * 1024
        assert run(gateway, "result = 1")["result"] == 1
    ends = Counter(outcome(response) for response in responses)
    assert ends.keys() <= {"succeeded", "timed_out", "deadline_exceeded", "overloaded"}, ends
    assert ends["overloaded"] >= 1
    assert ends["succeeded"] >= held
    waited = {response.json()["call_id"] for response in responses}
    deadlines = {
        event["call_id"]: datetime.fromisoformat(event["deadline_at"])
        for event in deployment.events()
        if event["kind"] == "intent"
    }
    served = [deadlines[call_id] for call_id in deployment.sandboxes() if call_id in waited]
    # Wall time and the clock that is waited by are read one after the other, on a machine that does much else.
    assert all(one <= next_one + timedelta(milliseconds=500) for one, next_one in pairwise(served))


async def burst_on_a_held_pool(
    gateway: RunningGateway, deadlines_ms: list[int], held: int
) -> tuple[list[httpx.Response], int]:
    """Make a call for each deadline at once, while other calls hold the whole pool until each waits or has its answer.

    Returns the answers, and what the gateway held in memory (KiB) when most calls waited.
    """
    headers = {"Authorization": f"Bearer {gateway.deployment.tokens['acme']}"}
    async with httpx.AsyncClient(
        base_url=f"http://{gateway.http}", timeout=110, limits=httpx.Limits(), headers=headers, trust_env=False
    ) as client:

        async def call(code: str, deadline_ms: int) -> httpx.Response:
            body = {"arguments": {"code": code}, "deadline_ms": deadline_ms}
            return await client.post("/v1/tools/python.run/calls", json=body)

        async def until(is_so: Callable[[], bool]) -> None:
            await asyncio.to_thread(eventually_so, is_so)

        holders = [asyncio.create_task(call("import time; time.sleep(60)", 60_000)) for _ in range(held)]
        await until(lambda: len(gateway.deployment.sandboxes()) == held)
        calls = [asyncio.create_task(call("print(1)", deadline_ms)) for deadline_ms in deadlines_ms]
        await until(lambda: metric(gateway, "callgate_pool_waiting") + sum(task.done() for task in calls) == len(calls))
        told = [task.result() for task in calls if task.done()]
        assert all(int(response.headers["retry-after"]) >= 1 for response in told if outcome(response) == "overloaded")
        fullest_kb = gateway.rss_kb()
        for call_id in gateway.deployment.sandboxes():
            await client.post(f"/v1/calls/{call_id}/cancel")
        responses = await asyncio.gather(*calls)
        await asyncio.gather(*holders)
    return responses, fullest_kb


def eventually_so(is_so: Callable[[], bool]) -> None:
    def look() -> None:
        assert is_so()

    eventually(look, within_s=60)


def outcome(response: httpx.Response) -> str:
    document = response.json()
    return str(document["state"] if response.status_code == 200 else document["reason"])


def test_calls_beyond_what_the_gateway_holds_are_refused_at_once(tmp_path: Path) -> None:
    deployment = pooled(tmp_path)
    deployment.settings["limits"] = {"calls": 10, "calls_per_tenant": 10}
    with deployment.start() as gateway:
        results = asyncio.run(burst(gateway, 60, deadline_ms=20_000))
        refused = [response for response, _ in results if response.status_code == 503]
        assert refused
        assert {response.json()["reason"] for response in refused} == {"overloaded"}
        assert all(int(response.headers["retry-after"]) >= 1 for response in refused)


def test_a_killed_gateway_leaves_containers_that_the_next_one_removes(tmp_path: Path) -> None:
    deployment = pooled(tmp_path, spare=1)
    with deployment.start() as gateway:
        wait_for_ready(gateway, 2)
        gateway.kill()
    orphans = deployment.found().keys()
    deployment.settings["execution"]["pool"]["spare"] = 0
    with deployment.start() as gateway:
        assert deployment.found().keys() & orphans == set()
        run(gateway, "result = 1")
    assert deployment.found() == {}


def test_another_catalog_has_none_of_the_containers_of_the_one_before(tmp_path: Path) -> None:
    deployment = pooled(tmp_path, spare=1)
    with deployment.start() as gateway:
        wait_for_ready(gateway, 3)
    assert deployment.found() == {}
    before = dict(read_lock(catalog_lock()).images)
    after = before | {"python": before["probe"]}
    manifests = [each.manifest() for each in declarations(image_folders(CATALOG).values())]
    write_lock(tmp_path / "other.lock", Lock.of(manifests, after))
    deployment.settings["catalog"] = {"lock": str(tmp_path / "other.lock")}
    with deployment.start() as gateway:
        wait_for_ready(gateway, 3)
        engine = docker.APIClient(base_url=ENGINE, version="auto")
        used = {engine.inspect_container(container)["Image"] for container in deployment.waiting_containers()}
        engine.close()
    assert before["python"] not in used
    assert after["python"] in used
    assert deployment.found() == {}
