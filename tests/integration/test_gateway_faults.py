"""A gateway whose container engine, containers and images fail. The fault has a name within seconds, what can still be
served is served, and when the engine is back nothing is left behind and no restart was needed."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import pytest

from callgate_server.backends.catalog.lock import Lock, read_lock, write_lock
from callgate_server.backends.catalog.manifests import declarations, image_folders
from support.engine import PrivateEngine, tolerating_unclosed_sockets
from support.gateway import CATALOG, Deployment, RunningGateway, catalog_lock
from support.images import ENGINE
from support.live import CLOSED, OPEN, breaker, eventually, live, refusal

# "Within seconds", on a machine that has other things to do.
SOON_S = 40


@pytest.fixture(scope="module")
def engine() -> Iterator[PrivateEngine]:
    """An engine that has the image of the suite's tools and no other."""
    with tolerating_unclosed_sockets(), PrivateEngine() as engine:
        engine.load_image(read_lock(catalog_lock()).images["probe"])
        yield engine


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, engine: PrivateEngine) -> Iterator[RunningGateway]:
    """A gateway on that engine."""
    deployment = Deployment(tmp_path_factory.mktemp("alone"), settings={"engine": {"socket": engine.url}})
    with deployment.start() as running:
        yield running
        deployment.wait_until_clean()
    assert deployment.verify().fault is None


def ready(gateway: RunningGateway) -> tuple[int, dict[str, str]]:
    with gateway.web() as web:
        response = web.get("/readyz")
    return response.status_code, response.json()["components"]


def is_ready(gateway: RunningGateway) -> None:
    assert ready(gateway)[0] == 200


def says_not_ready(gateway: RunningGateway) -> None:
    status, components = ready(gateway)
    assert (status, components["engine"], components["ledger"]) == (503, "failing", "ok")


def runs(gateway: RunningGateway) -> None:
    assert gateway.post("probe.run", {"code": "result = 42"}).json().get("result") == 42


def is_refused_by_the_breaker(gateway: RunningGateway) -> None:
    refused = gateway.post("probe.run", {"code": "1"})
    assert refusal(refused) == (503, "circuit_open")
    assert 1 <= int(refused.headers["retry-after"]) <= 5


def tells_of_the_breaker(gateway: RunningGateway) -> None:
    """From closed to closed again, each change in the record, and none of them belongs to a call."""
    changes = [event for event in gateway.deployment.events("") if event["kind"] == "breaker_changed"]
    assert {event["breaker"] for event in changes} == {"engine"}
    assert (changes[0]["from"], changes[0]["to"], changes[0]["why"]) == ("closed", "open", "failures")
    assert (changes[-1]["from"], changes[-1]["to"], changes[-1]["why"]) == ("half_open", "closed", "recovered")
    assert [one["to"] for one in changes[:-1]] == [other["from"] for other in changes[1:]]


def serves_what_needs_no_engine(gateway: RunningGateway, ended: str) -> None:
    with gateway.web() as web, gateway.web("guest") as guest:
        assert "probe.run" in {tool["tool"] for tool in web.get("/v1/tools").json()["tools"]}
        assert web.get(f"/v1/calls/{ended}").status_code == 200
        assert ended in {call["call_id"] for call in web.get("/v1/calls").json()["calls"]}
        denied = guest.post("/v1/tools/probe.run/calls", json={"arguments": {"code": "1"}})
        invalid = web.post("/v1/tools/probe.run/calls", json={"arguments": {}})
    assert (refusal(denied), refusal(invalid)) == ((403, "policy_denied"), (422, "invalid_arguments"))
    kinds = [event["kind"] for event in gateway.deployment.events(denied.json()["call_id"])]
    assert kinds == ["refused"]


def test_a_call_whose_container_is_killed_from_outside_is_lost_and_keeps_its_output(gateway: RunningGateway) -> None:
    with live(gateway, "probe.run") as call:
        call.until_printed("ready")
        name = gateway.deployment.sandboxes()[call.call_id]
        client = docker.APIClient(base_url=ENGINE, version="auto")
        client.kill(name.removeprefix("/"))
        client.close()
        began_s = time.monotonic()
        answer = call.answer()
    assert time.monotonic() - began_s < SOON_S
    assert (answer["state"], answer["error"]["reason"]) == ("lost", "sandbox_lost")
    assert answer["stdout"]["text"] == "ready\n"
    assert [event["kind"] for event in gateway.deployment.events(call.call_id)] == ["intent", "outcome"]
    gateway.deployment.wait_until_clean()


def test_a_killed_engine_loses_its_calls_by_name_and_stops_nothing_else(
    alone: RunningGateway, engine: PrivateEngine
) -> None:
    with live(alone, "probe.run") as call, live(alone, "probe.run") as other:
        call.until_printed("ready")
        other.until_printed("ready")
        engine.kill()
        began_s = time.monotonic()
        answers = (call.answer(), other.answer())
    assert time.monotonic() - began_s < SOON_S
    for answer in answers:
        assert (answer["state"], answer["error"]["reason"]) == ("lost", "sandbox_lost")
        assert answer["stdout"]["text"] == "ready\n"
    serves_what_needs_no_engine(alone, call.call_id)
    began_s = time.monotonic()
    assert refusal(alone.post("probe.run", {"code": "1"})) == (503, "sandbox_unavailable")
    assert time.monotonic() - began_s < SOON_S
    eventually(lambda: is_refused_by_the_breaker(alone))
    assert breaker(alone, "engine") == OPEN
    eventually(lambda: says_not_ready(alone))
    engine.start()
    eventually(lambda: is_ready(alone))
    # Not before the engine's breaker asks it again.
    eventually(lambda: runs(alone))
    # As many probes as it wants.
    runs(alone)
    assert breaker(alone, "engine") == CLOSED
    eventually(lambda: tells_of_the_breaker(alone))
    # The lost call's container, which outlived its engine, goes in one of the rounds.
    alone.deployment.wait_until_clean()


def test_a_hung_engine_has_a_name_and_an_end_and_what_came_late_is_removed(
    alone: RunningGateway, engine: PrivateEngine
) -> None:
    with ThreadPoolExecutor(1) as beside, live(alone, "probe.run", deadline_ms=8000) as call:
        call.until_printed("ready")
        engine.freeze()
        try:
            began_s = time.monotonic()
            meanwhile = beside.submit(alone.post, "probe.run", {"code": "1"})
            answer = call.answer()
            assert time.monotonic() - began_s < SOON_S
            serves_what_needs_no_engine(alone, call.call_id)
            eventually(lambda: says_not_ready(alone))
            refused = meanwhile.result(timeout=2 * SOON_S)
            assert time.monotonic() - began_s < 2 * SOON_S
        finally:
            engine.thaw()
    assert refusal(refused) == (503, "sandbox_unavailable")
    assert (answer["state"], answer["error"]["reason"]) == ("timed_out", "timed_out")
    assert answer["stdout"]["text"] == "ready\n"
    eventually(lambda: is_ready(alone))
    # Not before the engine's breaker asks it again.
    eventually(lambda: runs(alone))
    alone.deployment.wait_until_clean()


def test_an_image_that_is_not_there_is_refused_at_once_and_never_pulled(
    alone: RunningGateway, engine: PrivateEngine
) -> None:
    before_s = int(time.time())
    began_s = time.monotonic()
    refused = alone.post("text.diff", {"before": "a", "after": "b"})
    assert time.monotonic() - began_s < SOON_S
    assert refusal(refused) == (424, "image_missing")
    assert ready(alone)[1]["images"] == "failing"
    with engine.client as client:
        seen = client.events(since=before_s, until=int(time.time()) + 1, decode=True)
        # The pool may start other images meanwhile.
        others = {read_lock(catalog_lock()).images["probe"]}
        made = [
            (event["Action"], event["Actor"]["Attributes"].get("image"))
            for event in seen
            if event.get("Action") in ("pull", "create")
        ]
    assert [(action, image) for action, image in made if action == "pull" or image not in others] == []


def test_a_lock_that_names_a_digest_which_does_not_exist_runs_nothing(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway")
    lock = deployment.folder / "catalog.lock"
    manifests = [each.manifest() for each in declarations(image_folders(CATALOG).values())]
    write_lock(lock, Lock.of(manifests, {**read_lock(catalog_lock()).images, "probe": "sha256:" + "0" * 64}))
    deployment.settings["catalog"] = {"lock": str(lock)}
    with deployment.start() as running:
        assert refusal(running.post("probe.run", {"code": "1"})) == (424, "image_missing")
        assert deployment.containers() == []
    # The image and the tool are pinned together: the one cannot be exchanged without the other.
    document = json.loads(lock.read_text())
    document["images"]["probe"] = document["images"]["shell"]
    lock.write_text(json.dumps(document))
    with pytest.raises(AssertionError, match=r"probe\.\w+ is not what the catalog lock has"), deployment.start():
        pass


def test_a_runtime_that_the_engine_does_not_have_is_refused_and_not_replaced(alone: RunningGateway) -> None:
    assert refusal(alone.post("probe.gvisor", {"code": "1"})) == (424, "runtime_missing")
