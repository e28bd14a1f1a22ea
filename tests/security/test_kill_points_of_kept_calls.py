"""SIGKILL at each named point of a call that the gateway carries on by itself. Nobody asks again: the next
gateway brings each call to its one truthful end, once where it is unsafe.

What tools did is counted outside the gateway (`support/witness.py`); the points are `support/crash_gateway.py`.
"""

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from callgate_server.backends.openbao_dev import DevServer
from support import crash_gateway
from support.gateway import Deployment, RunningGateway
from support.images import ENGINE
from support.live import eventually
from support.postgres import Postgres
from support.witness import Witness, deed, token

CRASHING = [sys.executable, crash_gateway.__file__]
EFFECTS = {"probe.dynamic": "read", "probe.idempotent": "idempotent", "probe.unsafe": "unsafe"}
_NAMED = list(crash_gateway.POINTS)
_BEGIN = _NAMED.index("before lease")
POINTS = _NAMED[:_BEGIN] + list(crash_gateway.KEPT_POINTS) + _NAMED[_BEGIN:]
CLAIMED, BEGUN, DONE, RECORDED = (
    POINTS.index(name) for name in ("after claim", "after begin", "after effect", "after outcome, before answer")
)
GRANTED = "after the lease was granted, before it is in the journal"


@dataclass
class Call:
    tool: str
    name: str = field(default_factory=token)

    def make(self, gateway: RunningGateway) -> None:
        body: dict[str, Any] = {"async": True}
        try:
            gateway.post(self.tool, {"code": deed(self.name)}, headers={"Idempotency-Key": self.name}, **body)
        except httpx.TransportError:
            return  # the gateway died before it could say that it has the call

    def end_after(self, at: int) -> str | None:
        """The state to which the next gateway brings it by itself; None where nothing of it may be in the record."""
        if at < CLAIMED:
            return None
        was_begun = BEGUN <= at < RECORDED
        return "unknown" if EFFECTS[self.tool] == "unsafe" and was_begun else "succeeded"

    def deeds_after(self, at: int) -> int:
        done = int(at >= DONE)
        begun_again = CLAIMED <= at < RECORDED and not (EFFECTS[self.tool] == "unsafe" and at >= BEGUN)
        return done + begun_again


@pytest.mark.parametrize("point", POINTS)
def test_a_kept_call_comes_to_its_one_end_by_itself(
    point: str, tmp_path: Path, store: DevServer, database: Postgres
) -> None:
    database.lend_to(store.operator, "probe")
    at, calls = POINTS.index(point), [Call(tool) for tool in EFFECTS]
    with Witness(ENGINE) as witness:
        deployment = Deployment(
            tmp_path / "gateway", store, settings={"engine": {"socket": witness.url, "reap_every_s": 2}}
        )
        crashing = deployment.start(program=[*CRASHING, point, str(len(calls))])
        with crashing as gateway, ThreadPoolExecutor(len(calls)) as clients:
            for call in calls:
                clients.submit(call.make, gateway)
            assert gateway.process.wait(timeout=60) == -signal.SIGKILL
        with deployment.start() as gateway:
            ends = eventually(lambda: all_ended(gateway, at, calls), within_s=60)
            assert ends == {call.tool: end for call in calls if (end := call.end_after(at)) is not None}
            assert [witness.deeds[call.name] for call in calls] == [call.deeds_after(at) for call in calls]
            assert gateway.stop() == 0
        deployment.wait_until_clean()
        assert deployment.found() == {}
    if point == GRANTED:  # nobody knows of these: they end with their time to live
        store.operator.request("put", "sys/leases/revoke-prefix/database/creds/probe")
    eventually(lambda: no_lease(database))
    assert deployment.verify().fault is None


def all_ended(gateway: RunningGateway, at: int, calls: list[Call]) -> dict[str, str]:
    """The calls in the record by tool, when none of them waits or runs any more; of each tool there is one at most."""
    with gateway.web() as web:
        found = web.get("/v1/calls").json()["calls"]
    assert all(call["state"] not in ("admitted", "running") for call in found)
    states = {call["tool"]: call["state"] for call in found}
    assert len(states) == len(found)
    return states


def no_lease(database: Postgres) -> None:
    assert database.leased_roles() == set()
