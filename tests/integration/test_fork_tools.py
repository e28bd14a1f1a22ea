"""Tools that the operator set to isolation `fork`, through the gateway: what it refuses to start with, what it says of
itself, and a host that does not let lanes be made."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from callgate_server.app import Gateway, gateway
from callgate_server.backends.docker import seccomp, spec
from callgate_server.config import load
from support.gateway import PERMIT_DEVELOPERS, Deployment, RunningGateway
from support.live import eventually, refusal

FORK = {"isolation": "fork"}
HELLO = {"code": "print('hello'); result = 42"}


def parts(gateway: RunningGateway) -> dict[str, str]:
    with gateway.web() as web:
        components: dict[str, str] = web.get("/readyz").json()["components"]
    return components


# --- at start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tools": {"no.such": FORK}}, ["no.such", "no manifest declares"]),
        ({"tools": {"probe.gvisor": FORK}}, ["probe.gvisor", "runsc", "`container`"]),
        ({"tools": {"probe.run": FORK}, "engine": {"runtime": "runsc"}}, ["probe.run", "runsc", "`container`"]),
        ({"tools": {"probe.run": FORK}, "execution": {"lanes": {"memory_mb": 64}}}, ["probe.run", "lanes.memory_mb"]),
    ],
    ids=["unknown tool", "tool that demands gVisor", "gVisor for all", "too little room"],
)
async def test_what_could_never_work_is_refused_at_start_by_the_tools_name(
    tmp_path: Path, settings: dict[str, Any], words: list[str]
) -> None:
    deployment = Deployment(tmp_path / "gateway", settings=settings)
    deployment.write_config()
    with pytest.raises(ValueError, match=words[0]) as refused:
        async with gateway(load(deployment.config), purpose="production"):
            pass
    assert all(word in str(refused.value) for word in words)


# --- serving -------------------------------------------------------------------------------------------------


def test_lanes_are_tried_before_there_is_a_call_and_none_is_left(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway", settings={"tools": {"probe.run": FORK}})
    with deployment.start() as serving:

        def tried() -> str:
            found = list(deployment.found())
            assert len(found) == 1
            return found[0]

        tried_with = eventually(tried)
        assert parts(serving)["lanes"] == "ok"
        answer = serving.post("probe.run", HELLO).json()
        assert (answer["state"], answer["sandbox"]["isolation"]) == ("succeeded", "fork")
        # What was tried is nobody's: the call got another.
        assert tried_with not in deployment.sandboxes().values()
    assert deployment.found() == {}


def test_what_lanes_do_is_counted(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway", settings={"tools": {"probe.run": FORK}})
    with deployment.start() as serving:

        def count(series: str) -> float:
            with serving.web() as web:
                lines = web.get("/metrics").text.splitlines()
            return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"callgate_{series}"))

        for code in ("result = 1", "result = 2", "import os; os.kill(os.getpid(), 9)"):
            serving.post("probe.run", {"code": code})

        def counted() -> None:
            # One claim is the trial's at the start.
            assert count("lane_claims_total") == 4
            assert count('lane_claims_total{how="ready"}') >= 1
            assert count('lanes_ended_total{cause="irregular"}') == 1
            assert count("lanes_ended_total") == 1
            assert count('lanes{state="busy"}') == count("lanes_waiting") == count("lane_failed_starts_total") == 0

        eventually(counted)


def test_policy_can_forbid_what_the_operator_set(tmp_path: Path) -> None:
    forbid = '@id("no-forks") forbid(principal, action in Action::"call", resource) when { resource.isolation == Isolation::"fork" };\n'
    deployment = Deployment(
        tmp_path / "gateway", policies=PERMIT_DEVELOPERS + forbid, settings={"tools": {"probe.run": FORK}}
    )
    with deployment.start() as serving:
        refused = serving.post("probe.run", HELLO)
        assert refusal(refused) == (403, "policy_denied")
        assert refused.json()["policies"] == ["no-forks"]
        assert serving.post("text.diff", {"before": "a", "after": "b"}).json()["state"] == "succeeded"


# --- a host that refuses -------------------------------------------------------------------------------------


async def test_where_the_host_refuses_lanes_only_such_calls_are_refused_and_the_operator_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The filter of single calls in place of a lane's stands for such a host: it refuses the same requests."""
    strict = seccomp.profile_json()
    monkeypatch.setattr(spec, "profile_json", lambda *, lane: strict)
    deployment = Deployment(tmp_path / "gateway", settings={"tools": {"probe.run": FORK}})
    deployment.write_config()
    async with gateway(load(deployment.config), purpose="production") as serving, web_of(serving, deployment) as web:
        await _until_not_ready(web, "lanes")
        ready = await web.get("/readyz")
        assert (ready.status_code, ready.json()["components"]["engine"]) == (200, "ok")
        refused = await web.post("/v1/tools/probe.run/calls", json={"arguments": HELLO})
        assert refusal(refused) == (424, "runtime_missing")
        assert "`callgated doctor`" in refused.json()["detail"]
        other = await web.post("/v1/tools/text.diff/calls", json={"arguments": {"before": "a", "after": "b"}})
        assert other.json()["state"] == "succeeded"
    said = [line for line in capsys.readouterr().err.splitlines() if '"component": "lanes"' in line]
    assert len(said) == 1
    assert "`callgated doctor`" in said[0]
    assert deployment.found() == {}


def web_of(serving: Gateway, deployment: Deployment) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {deployment.tokens['acme']}"}
    url = f"http://{serving.endpoints.http}"
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False)


async def _until_not_ready(web: httpx.AsyncClient, component: str) -> None:
    until = time.monotonic() + 30
    while (await web.get("/readyz")).json()["components"][component] == "ok":
        assert time.monotonic() < until
