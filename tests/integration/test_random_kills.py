"""SIGKILL at random moments under load. Whatever the moment, each call comes to one truth.

`CALLGATE_KILLS` says how often. Each round has clients that make calls of all effects, some of them twice at once; then
the gateway dies, with its pool of sandboxes in every other round; the next one starts on what is left, and the clients
ask again with their keys. Some of the calls are asynchronous, and go on by themselves. What tools did is counted outside the gateway (`support/witness.py`).
"""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from hvac.exceptions import InvalidPath

from callgate_server.backends.openbao_dev import DevServer
from support.gateway import Deployment, RunningGateway
from support.images import ENGINE
from support.live import refusal
from support.postgres import Postgres
from support.witness import Witness, deed, token

KILLS = int(os.environ.get("CALLGATE_KILLS", "10"))
CLIENTS = 6
LONGEST_S = 2.5
PATIENCE_S = 60
TOOLS = ("probe.run", "probe.dynamic", "probe.idempotent", "probe.unsafe", "probe.unsafe")
LEASES = "database/creds/probe"
MARK, NO_MARK = b'"replayed":true', b'"replayed":false'


@dataclass
class Call:
    """One call, and each answer that any client got to it, but for the mark of a replay."""

    tool: str
    seconds: float
    # Carried on by the gateway itself, also in its next life.
    kept: bool = False
    name: str = field(default_factory=token)
    answers: set[bytes] = field(default_factory=set)
    unknown: bool = False

    def make(self, gateway: RunningGateway) -> httpx.Response:
        code = deed(self.name, seconds=self.seconds)
        body = {"async": True} if self.kept else {}
        response = gateway.post(self.tool, {"code": code}, headers={"Idempotency-Key": self.name}, **body)
        if response.status_code == 200:
            assert response.json()["state"] == "succeeded", response.text
            self.answers.add(response.content.replace(MARK, NO_MARK))
        return response


class Load:
    """Clients that make calls until their gateway is gone."""

    def __init__(self, gateway: RunningGateway, dice: random.Random) -> None:
        self._gateway = gateway
        self._dice = dice
        self.calls: list[Call] = []
        self.refusals: Counter[str] = Counter()
        self._clients = [threading.Thread(target=self._work) for _ in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.join(timeout=60)
            assert not client.is_alive()

    def _work(self) -> None:
        while True:
            try:
                response = self._next().make(self._gateway)
            except httpx.TransportError:
                return
            if response.status_code not in (200, 202) and not response.json()["retryable"]:
                self.refusals[response.json()["reason"]] += 1

    def _next(self) -> Call:
        """Mostly a new call, sometimes one that a client has made or is making."""
        if self.calls and self._dice.random() < 0.25:
            return self._dice.choice(self.calls)
        kept = self._dice.random() < 0.3
        call = Call(self._dice.choice(TOOLS), seconds=self._dice.choice((0.0, 0.0, 0.2)), kept=kept)
        self.calls.append(call)
        return call


@pytest.fixture
def witness() -> Iterator[Witness]:
    with Witness(ENGINE) as witness:
        yield witness


@pytest.fixture
def database(store: DevServer) -> Iterator[Postgres]:
    """Its own: a gateway that dies while the store answers it leaves a user of whom not even the store knows."""
    with Postgres() as own:
        own.lend_to(store.operator, "probe")
        yield own
        # What the store does know of goes while its database is there.
        store.operator.request("put", f"sys/leases/revoke-prefix/{LEASES}")


@pytest.mark.timeout(120 + 30 * KILLS)
def test_whatever_the_moment_each_call_comes_to_one_truth(
    tmp_path: Path, store: DevServer, database: Postgres, witness: Witness
) -> None:
    settings = {"engine": {"socket": witness.url, "reap_every_s": 2}}
    deployment = Deployment(tmp_path / "gateway", store, settings=settings)
    dice = random.Random(seed := random.randrange(2**32))
    print(f"seed {seed}")
    calls: list[Call] = []
    unclear: list[Call] = []
    left: set[str] = set()
    for kill in range(KILLS + 1):
        deployment.settings["execution"] = {"pool": {"enabled": bool(kill % 2)}}
        with deployment.start() as gateway:
            assert not left & deployment.found().keys()
            for call in unclear:
                ask_again(call, gateway)
            if kill == KILLS:
                assert gateway.stop() == 0
                break
            with Load(gateway, dice) as load:
                time.sleep(dice.uniform(0, LONGEST_S))
                gateway.kill()
        assert set(load.refusals) == set()
        unclear = load.calls
        calls += load.calls
        left = set(deployment.found())
    assert deployment.found() == {}
    for call in calls:
        did_what_it_said(call, witness)
    the_record_has_one_end_for_each_call(deployment, calls)
    no_journalled_lease_is_open(deployment, store)


def ask_again(call: Call, gateway: RunningGateway) -> None:
    told = set(call.answers)
    response = until_final(call, gateway)
    if response.status_code != 200:
        assert refusal(response) == (409, "effect_unknown"), response.text
        assert call.tool == "probe.unsafe"
        call.unknown = True
    # Who was told of a success is told of the same one, in the same bytes.
    assert not told or call.answers == told
    assert bool(call.answers) is not call.unknown


def until_final(call: Call, gateway: RunningGateway) -> httpx.Response:
    """Ask until the answer is not one to come back: a busy machine may have no sandbox for a while."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        response = call.make(gateway)
        waits = response.status_code == 202 or (response.status_code != 200 and response.json()["retryable"])
        if not waits or time.monotonic() > give_up:
            return response
        time.sleep(0.2)


def did_what_it_said(call: Call, witness: Witness) -> None:
    assert len(call.answers) == (0 if call.unknown else 1)
    orders, deeds = witness.orders[call.name], witness.deeds[call.name]
    assert deeds <= orders
    if call.answers:
        assert deeds >= 1
    if call.tool == "probe.unsafe":
        assert orders <= 1


def the_record_has_one_end_for_each_call(deployment: Deployment, calls: list[Call]) -> None:
    events = deployment.events()
    claimed = Counter(event["call_id"] for event in events if event["kind"] == "intent")
    ended = Counter(event["call_id"] for event in events if event["kind"] in ("outcome", "settled"))
    # What is begun again has ended once more.
    assert claimed == ended - Counter(event["call_id"] for event in events if event["kind"] == "requeued")
    assert set(claimed.values()) <= {1}
    states = Counter(event["state"] for event in events if event["kind"] in ("outcome", "settled"))
    assert states["succeeded"] == sum(len(call.answers) for call in calls)
    assert states["unknown"] == sum(call.unknown for call in calls)
    assert set(states) <= {"succeeded", "unknown", "interrupted", "failed"}
    never_ran = {event["reason"] for event in events if event["kind"] == "outcome" and event["state"] == "failed"}
    assert never_ran <= {"sandbox_unavailable", "secrets_unavailable"}
    assert deployment.verify().fault is None


def no_journalled_lease_is_open(deployment: Deployment, store: DevServer) -> None:
    """One that was granted and not journalled when the gateway died ends with its time to live."""
    journalled = {event["lease_id"] for event in deployment.events() if event["kind"] == "secret_leased"}
    try:
        found = store.operator.request("get", f"sys/leases/lookup/{LEASES}?list=true")["data"]["keys"]
    except InvalidPath:  # none at all
        found = []
    assert not journalled & {f"{LEASES}/{lease}" for lease in found}
    assert journalled
