"""SIGKILL at each named point of a call, for each effect. After a restart every call is in exactly one truthful
state, nothing unsafe was done twice, and nothing is left behind.

What tools did is counted outside the gateway (`support/witness.py`); the points are `support/crash_gateway.py`.
"""

import json
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from callgate_server.backends.openbao_dev import DevServer
from support import crash_gateway
from support.gateway import Deployment, RunningGateway
from support.images import ENGINE
from support.live import eventually, refusal
from support.postgres import Postgres
from support.witness import Witness, deed, token

CRASHING = [sys.executable, crash_gateway.__file__]
EFFECTS = {"probe.dynamic": "read", "probe.idempotent": "idempotent", "probe.unsafe": "unsafe"}
POINTS = list(crash_gateway.POINTS)
GRANTED = "after the lease was granted, before it is in the journal"
CLAIMED, STARTED, ANSWERED = (
    POINTS.index(name) for name in ("after claim", "after effect", "after outcome, before answer")
)


def test_there_is_a_point_before_and_after_each_step() -> None:
    for step in ("claim", "intent", "lease", "acquire", "start", "effect", "result", "outcome", "answer"):
        for side in ("before", "after"):
            assert any(side in point and step in point for point in POINTS), (side, step)


@dataclass
class Call:
    """One call, and what its client knows of it."""

    tool: str
    name: str = field(default_factory=token)

    def make(self, gateway: RunningGateway) -> httpx.Response:
        return gateway.post(self.tool, {"code": deed(self.name)}, headers={"Idempotency-Key": self.name})

    def state_after(self, point: str) -> str | None:
        """The one true state that the next gateway must find; None where nothing may be in the record."""
        at = POINTS.index(point)
        if at < CLAIMED:
            return None
        if at >= ANSWERED:
            return "succeeded"
        return "unknown" if EFFECTS[self.tool] == "unsafe" else "interrupted"


@dataclass
class Scene:
    deployment: Deployment
    witness: Witness
    database: Postgres
    calls: list[Call] = field(default_factory=lambda: [Call(tool) for tool in EFFECTS])

    def crash(self, point: str) -> list[bytes]:
        """Make all calls at once of a gateway that dies at the point; return the answers that came out of it."""
        program = [*CRASHING, point, str(len(self.calls))]
        with self.deployment.start(program=program) as gateway, ThreadPoolExecutor(len(self.calls)) as clients:
            made = [clients.submit(call.make, gateway) for call in self.calls]
            assert gateway.process.wait(timeout=60) == -signal.SIGKILL
            return [found for client in made if (found := answer_of(client)) is not None]

    def listed(self, gateway: RunningGateway) -> dict[str, dict[str, Any]]:
        """Calls in the record by tool; of each tool there must be one at most."""
        with gateway.web() as web:
            found = web.get("/v1/calls").json()["calls"]
        by_tool = {call["tool"]: call for call in found}
        assert len(found) == len(by_tool)
        return by_tool


def answer_of(client: "Future[httpx.Response]") -> bytes | None:
    try:
        response = client.result()
    except httpx.TransportError:
        return None
    assert response.status_code == 200
    return response.content


@pytest.fixture
def scene(tmp_path: Path, store: DevServer, database: Postgres) -> Iterator[Scene]:
    database.lend_to(store.operator, "probe")
    with Witness(ENGINE) as witness:
        settings = {"engine": {"socket": witness.url, "reap_every_s": 2}}
        yield Scene(Deployment(tmp_path / "gateway", store, settings=settings), witness, database)


@pytest.mark.parametrize("point", POINTS)
def test_a_gateway_killed_there_leaves_one_truth_and_nothing_else(point: str, scene: Scene, store: DevServer) -> None:
    answers = scene.crash(point)
    done = int(POINTS.index(point) >= STARTED)
    assert [scene.witness.orders[call.name] for call in scene.calls] == [done] * 3
    assert [scene.witness.deeds[call.name] for call in scene.calls] == [done] * 3
    with scene.deployment.start() as gateway:
        assert scene.deployment.found() == {}
        if point != GRANTED:
            assert scene.database.leased_roles() == set()
        listed = scene.listed(gateway)
        for call in scene.calls:
            expected = call.state_after(point)
            assert listed.get(call.tool, {"state": None})["state"] == expected, call.tool
            repeat(call, gateway, listed.get(call.tool), done)
            assert scene.witness.orders[call.name] == done + (expected in (None, "interrupted")), call.tool
            assert scene.witness.deeds[call.name] == scene.witness.orders[call.name], call.tool
            if EFFECTS[call.tool] == "unsafe":
                assert scene.witness.deeds[call.name] <= 1
        given = {json.loads(answer)["call_id"] for answer in answers}
        assert given <= {call["call_id"] for call in listed.values() if call["state"] == "succeeded"}
        assert gateway.stop() == 0
    scene.deployment.wait_until_clean()
    assert scene.deployment.found() == {}
    if point == GRANTED:  # nobody knows of these: they end with their time to live
        assert len(scene.database.leased_roles()) == 3
        store.operator.request("put", "sys/leases/revoke-prefix/database/creds/probe")
    eventually(lambda: no_lease(scene.database))
    assert scene.deployment.verify().fault is None


def repeat(call: Call, gateway: RunningGateway, stored: dict[str, Any] | None, done: int) -> None:
    """The client asks again with its key, and once more."""
    again = call.make(gateway)
    if stored is not None and stored["state"] == "unknown":
        assert refusal(again) == (409, "effect_unknown")
        assert stored["call_id"] in again.json()["detail"]
        return
    answer = again.json()
    assert (again.status_code, answer["state"]) == (200, "succeeded")
    replayed = stored is not None and stored["state"] == "succeeded"
    assert answer["replayed"] is replayed
    with gateway.web() as web:
        kept = web.get(f"/v1/calls/{answer['call_id']}").content
    assert again.content.replace(b'"replayed":true', b'"replayed":false') == kept
    assert call.make(gateway).content.replace(b'"replayed":true', b'"replayed":false') == kept
    _, told_id, told_key = answer["result"]
    assert told_id == answer["call_id"]
    assert told_key != call.name
    attempts = [event for event in gateway.deployment.events(answer["call_id"]) if event["kind"] == "intent"]
    interrupted = stored is not None and stored["state"] == "interrupted"
    assert [event.get("retry_of") for event in attempts] == [stored["call_id"] if interrupted and stored else None]


def no_lease(database: Postgres) -> None:
    assert database.leased_roles() == set()
