"""Circuit breakers of a tenant's tools and upstreams, in a gateway on real parts."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from support.gateway import Deployment, RunningGateway
from support.live import CLOSED, OPEN, breaker, eventually, refusal
from support.upstreams import Upstream

RULES = {"window": 6, "min_calls": 3, "failure_rate": 0.5, "open_s": 8, "probes": 1}
# Touches more memory than it may have.
HUNGRY = "x = bytearray(1 << 29)\nfor i in range(0, len(x), 4096): x[i] = 1"
# Asks an upstream so many times and prints what came, one word each.
_ASK = """
import json, urllib.error, urllib.request
for _ in range({times}):
    try:
        with urllib.request.urlopen("{url}", timeout=10) as answer:
            print(answer.status)
    except urllib.error.HTTPError as refused:
        body = refused.read()
        print(json.loads(body)["why"] if body.startswith(b"{{") else refused.code, refused.headers.get("Retry-After", ""))
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[RunningGateway]:
    settings: dict[str, Any] = {
        "breakers": {"tool": dict(RULES), "upstream": dict(RULES)},
        "egress": {"authority_dir": "egress", "internal": [{"host": "localhost", "networks": ["127.0.0.0/8"]}]},
        "tools": {"python.run": {"egress": [{"host": "localhost", "scheme": "http", "port": upstream.port}]}},
    }
    deployment = Deployment(tmp_path_factory.mktemp("breakers"), settings=settings)
    with deployment.start() as gateway:
        yield gateway
        deployment.wait_until_clean()
    assert deployment.verify().fault is None


def runs(gateway: RunningGateway, tenant: str = "acme") -> None:
    assert gateway.post("probe.fragile", {"code": "result = 42"}, tenant).json().get("result") == 42


def is_out_of_memory(gateway: RunningGateway, tool: str) -> None:
    answer = gateway.post(tool, {"code": HUNGRY}).json()
    assert (answer["state"], answer["error"]["reason"]) == ("failed", "out_of_memory")


def test_a_tool_that_ends_at_its_limits_is_stopped_for_its_tenant_and_comes_back(running: RunningGateway) -> None:
    for _ in range(3):
        is_out_of_memory(running, "probe.fragile")
    refused = running.post("probe.fragile", {"code": "result = 42"})
    assert refusal(refused) == (503, "circuit_open")
    assert 1 <= int(refused.headers["retry-after"]) <= RULES["open_s"]
    assert [event["kind"] for event in running.deployment.events(refused.json()["call_id"])] == ["refused"]
    assert breaker(running, "tool:acme/probe.fragile") == OPEN
    with running.web() as web:
        shown = {each["name"]: each for each in web.get("/v1/breakers").json()["breakers"]}
    assert shown["tool:acme/probe.fragile"]["state"] == "open"
    assert 0 <= shown["tool:acme/probe.fragile"]["retry_after_ms"] <= 1000 * RULES["open_s"]
    assert shown["engine"]["retry_after_ms"] is None
    runs(running, "rival")
    assert running.post("text.diff", {"before": "a", "after": "b"}).json()["state"] == "succeeded"
    eventually(lambda: runs(running))
    assert breaker(running, "tool:acme/probe.fragile") == CLOSED


def test_a_tool_that_runs_its_callers_programs_is_never_stopped_for_them(running: RunningGateway) -> None:
    for _ in range(4):
        is_out_of_memory(running, "python.run")
    assert running.post("python.run", {"code": "print(1)"}).json()["state"] == "succeeded"


def asked(gateway: RunningGateway, upstream: Upstream, times: int, tenant: str = "acme") -> list[list[str]]:
    code = _ASK.format(times=times, url=f"http://localhost:{upstream.port}/bytes?n=1")
    answer = gateway.post("python.run", {"code": code}, tenant).json()
    assert answer["state"] == "succeeded", answer
    return [line.split() for line in answer["stdout"]["text"].splitlines()]


def test_an_upstream_that_fails_is_left_alone_by_its_tenants_calls_and_no_others(
    running: RunningGateway, upstream: Upstream
) -> None:
    name = f"upstream:acme/localhost:{upstream.port}"
    assert asked(running, upstream, 1) == [["200"]]
    upstream.mood = "unavailable"
    said = asked(running, upstream, 6)
    reached = [words for words in said if words == ["503"]]
    refused = [words for words in said if words[0] == "circuit_open"]
    assert (len(reached), len(refused)) == (2, 4)
    assert all(1 <= int(words[1]) <= RULES["open_s"] for words in refused)
    # The next call of the same tenant finds it open; it is recorded with why.
    seen = len(upstream.seen)
    answer = running.post("python.run", {"code": _ASK.format(times=1, url=f"http://localhost:{upstream.port}/")}).json()
    assert answer["stdout"]["text"].startswith("circuit_open")
    assert len(upstream.seen) == seen
    events = running.deployment.events(answer["call_id"])
    assert [event["why"] for event in events if event["kind"] == "egress_refused"] == ["circuit_open"]
    assert breaker(running, name) == OPEN
    # Another tenant has its own.
    assert asked(running, upstream, 1, "rival") == [["503"]]
    upstream.mood = ""
    eventually(lambda: _answers(running, upstream))
    assert breaker(running, name) == CLOSED
    eventually(lambda: tells_of_each_change(running, name))


def tells_of_each_change(gateway: RunningGateway, name: str) -> None:
    changes = [event for event in gateway.deployment.events("") if event.get("breaker") == name]
    assert [event["to"] for event in changes] == ["open", "half_open", "closed"]


def _answers(gateway: RunningGateway, upstream: Upstream) -> None:
    assert asked(gateway, upstream, 1) == [["200"]]


def test_what_breakers_refused_is_counted(running: RunningGateway) -> None:
    with running.web() as web:
        text = web.get("/metrics").text
    counts = dict(line.split() for line in text.splitlines() if line.startswith("callgate_breaker_refusals_total"))
    assert float(counts['callgate_breaker_refusals_total{kind="tool"}']) >= 1
    assert float(counts['callgate_breaker_refusals_total{kind="upstream"}']) >= 5
    assert float(counts['callgate_breaker_refusals_total{kind="engine"}']) == 0


def test_every_change_is_in_the_log(running: RunningGateway) -> None:
    lines = [json.loads(line) for line in running.deployment.log_text().splitlines() if line.startswith("{")]
    told = [line for line in lines if line.get("event") == "a circuit breaker changed"]
    assert ("tool:acme/probe.fragile", "open", "failures") in {
        (line["breaker"], line["after"], line["why"]) for line in told
    }
