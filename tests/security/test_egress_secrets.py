"""Code under an attacker's control uses a key and never holds it; and what the record says of it.

A gateway as a process of its own, a real OpenBao, upstreams on loopback that are declared as internal. The tool runs
whatever a test gives it.
"""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from callgate_server.backends.openbao_dev import DevServer
from support.gateway import Deployment, RunningGateway, canary, start_store
from support.images import ENGINE
from support.live import eventually, live, refusal
from support.secrecy import everything_written, hits, memory_of
from support.upstreams import TestAuthority, Upstream

LOOPBACK = ["127.0.0.0/8", "::1/128"]
# Prepended to every program: `ask` returns the status and the text of an answer, whatever it is.
ASK = """
import json, urllib.error, urllib.request
def ask(url, method="GET", headers={}, data=None):
    request = urllib.request.Request(url, method=method, headers=headers, data=data)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return [answer.status, answer.read().decode(), dict(answer.headers)]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode(), dict(error.headers)]
    except OSError as error:
        return [0, repr(error), {}]
"""


@dataclass
class Place:
    """A gateway, the upstream that demands the key, one that does not, and the key."""

    gateway: RunningGateway
    api: Upstream
    other: Upstream
    key: str

    @property
    def url(self) -> str:
        return f"https://localhost:{self.api.port}"

    @property
    def other_url(self) -> str:
        return f"http://localhost:{self.other.port}"

    def run(self, code: str, tenant: str = "acme") -> dict[str, Any]:
        """Run code and return the whole answer; the key must be nowhere in it."""
        response = self.gateway.post("probe.egress", {"code": ASK + code}, tenant)
        assert hits(self.key, response.content) == []
        answer: dict[str, Any] = response.json()
        assert answer.get("state") == "succeeded", answer
        return answer

    def asked(self, code: str) -> Any:
        return self.run(f"result = {code}")["result"]


def settings(api: Upstream, other: Upstream, ca_file: Path) -> dict[str, Any]:
    return {
        "egress": {
            "authority_dir": "egress",
            "ca_file": str(ca_file),
            "internal": [{"host": "localhost", "networks": LOOPBACK}],
        },
        "tools": {
            "probe.egress": {
                "egress": [
                    {
                        "host": "localhost", "port": api.port, "methods": ["GET"],
                        "paths": ["/echo/*", "/echo-header", "/echo-gzip", "/echo-slowly", "/redirect"],
                        "secret": "api",
                    },
                    {"host": "localhost", "port": api.port, "methods": ["POST"]},
                    {"host": "localhost", "scheme": "http", "port": other.port},
                ],
                "secrets": [{"name": "api", "from": "kv/data/{tenant}/api#key", "deliver": "egress"}],
            }
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, store: DevServer) -> Iterator[Place]:
    key = canary()
    store.operator.write("kv/data/acme/api", {"key": key})
    authority = TestAuthority(tmp_path_factory.mktemp("authority"))
    with Upstream(tls=authority.context("localhost")) as api, Upstream() as other:
        deployment = Deployment(
            tmp_path_factory.mktemp("egress"), store, settings=settings(api, other, authority.ca_file)
        )
        with deployment.start() as running:
            yield Place(running, api, other, key)
        deployment.wait_until_clean()
        assert deployment.verify().fault is None
        assert hits(key, everything_written(deployment)) == []


@pytest.fixture(autouse=True)
def _forgotten(place: Place) -> None:
    place.api.seen.clear()
    place.other.seen.clear()


# --- what the upstream sees ----------------------------------------------------------------------------------


def test_the_upstream_sees_the_key_and_the_program_does_not(place: Place) -> None:
    status, body, _ = place.asked(f"ask('{place.url}/echo/1')")
    assert status == 200
    assert place.api.headers_seen("authorization") == [f"Bearer {place.key}"]
    assert json.loads(body)["target"] == "/echo/1"


def test_what_a_program_says_in_place_of_the_key_is_replaced(place: Place) -> None:
    place.asked(f"ask('{place.url}/echo/1', headers={{'Authorization': 'Bearer mine', 'authorization': 'two'}})")
    (seen,) = place.api.seen
    assert seen["headers"]["authorization"] == f"Bearer {place.key}"
    assert seen["header_names"].count("authorization") == 1


@pytest.mark.parametrize("way", ["echo/x", "echo-header", "echo-gzip", "echo-slowly"])
def test_an_upstream_that_echoes_the_key_does_not_hand_it_over(way: str, place: Place) -> None:
    """In the body, the headers, the reason, compressed, or a byte at a time: inside the sandbox it never arrives."""
    code = f"found = ask('{place.url}/{way}')\nimport base64\nresult = base64.b85encode(repr(found).encode()).decode()"
    inside = base64.b85decode(place.run(code)["result"])
    assert place.api.headers_seen("authorization") == [f"Bearer {place.key}"]
    assert hits(place.key, inside) == []


# --- what goes elsewhere -------------------------------------------------------------------------------------


def test_another_method_goes_out_without_the_key(place: Place) -> None:
    assert place.asked(f"ask('{place.url}/echo/1', 'POST', data=b'x')")[0] == 200
    assert [request["method"] for request in place.api.seen] == ["POST"]
    assert place.api.headers_seen("authorization") == []


def test_another_port_and_scheme_goes_out_without_the_key(place: Place) -> None:
    assert place.asked(f"ask('{place.other_url}/echo/1')")[0] == 200
    assert len(place.other.seen) == 1
    assert place.other.headers_seen("authorization") == []


def test_a_redirect_is_decided_anew_and_does_not_carry_the_key(place: Place) -> None:
    status, _, _ = place.asked(f"ask('{place.url}/redirect?to={place.other_url}/echo/1')")
    assert status == 200
    assert place.api.headers_seen("authorization") == [f"Bearer {place.key}"]
    assert len(place.other.seen) == 1
    assert place.other.headers_seen("authorization") == []


@pytest.mark.parametrize(
    ("url", "method"),
    [
        ("{url}/private", "GET"),
        ("{url}/echo/../private", "GET"),
        ("{url}/echo/1", "DELETE"),
        ("https://127.0.0.1:{port}/echo/1", "GET"),
        ("https://localhost.:{other_port}/echo/1", "GET"),
        ("http://localhost:{port}/echo/1", "GET"),
        ("https://localhost:{other_port}/echo/1", "GET"),
        ("http://169.254.169.254/latest/meta-data", "GET"),
        ("https://evil.example/echo/1", "GET"),
    ],
)
def test_what_no_rule_allows_does_not_go_out_at_all(url: str, method: str, place: Place) -> None:
    target = url.format(url=place.url, port=place.api.port, other_port=place.other.port)
    status, body, _ = place.asked(f"ask('{target}', '{method}')")
    assert status in (0, 403)
    if status == 403:
        assert json.loads(body)["error"] == "egress_refused"
    assert (place.api.seen, place.other.seen) == ([], [])


# --- what the sandbox can read -------------------------------------------------------------------------------

SEARCH = """
import os, re
found, pattern = [], re.compile(rb"sk-test-[A-Za-z0-9]{20,}")
def search(name, data):
    found.extend([name, match.decode()[:12]] for match in pattern.findall(data))
for name, value in os.environb.items():
    search(name.decode(), value)
for place, folders, files in os.walk("/"):
    if place in ("/sys", "/dev"):
        folders.clear()
        continue
    for name in files:
        path = os.path.join(place, name)
        try:
            if os.path.isfile(path) and os.path.getsize(path) < 1 << 26:
                search(path, open(path, "rb").read())
        except OSError:
            pass
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        lines, memory = open(f"/proc/{pid}/maps").read().splitlines(), open(f"/proc/{pid}/mem", "rb", 0)
    except OSError:
        continue
    for line in lines:
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        try:
            memory.seek(begin)
            search(f"memory of {pid}", memory.read(end - begin))
        except (OSError, OverflowError, ValueError):
            pass
"""


def test_everything_that_a_sandbox_can_read_does_not_hold_the_key(place: Place) -> None:
    """The program looks itself: environment, all files, all memory it may read, and its own requests as echoed back."""
    code = f"held = [ask('{place.url}/echo/1') for _ in range(3)]\n" + SEARCH
    assert place.run(code + "result = found")["result"] == []
    assert place.api.headers_seen("authorization") == [f"Bearer {place.key}"] * 3


def test_the_search_of_a_sandbox_finds_what_is_there(place: Place) -> None:
    planted = "planted = 'sk-' + 'test-' + 'a1b2c3d4' * 4\nopen('/tmp/planted', 'w').write(planted)\n"
    found = {name for name, _ in place.run(planted + SEARCH + "result = found")["result"]}
    assert "/tmp/planted" in found
    assert any(name.startswith("memory of") for name in found)


def test_no_memory_of_any_process_in_the_sandbox_holds_the_key(place: Place) -> None:
    """The host looks, while the connection through which the key went is still open: the runner's memory too."""
    marker = canary()
    code = (
        f"marker = '{marker}'\n"
        "import http.client, ssl\n"
        "tunnel = http.client.HTTPSConnection('127.0.0.1', 3128, context=ssl.create_default_context())\n"
        f"tunnel.set_tunnel('localhost', {place.api.port})\n"
        "tunnel.request('GET', '/echo/1')\n"
        "held = tunnel.getresponse().read()\n"
        "print('ready', flush=True)\n"
        "import time; time.sleep(20)\n"
    )
    with live(place.gateway, "probe.egress", code) as call:
        call.until_printed("ready")
        engine = docker.APIClient(base_url=ENGINE, version="auto")
        container = place.gateway.deployment.sandboxes()[call.call_id]
        pids = [int(process[1]) for process in engine.top(container)["Processes"]]
        memories = [memory_of(pid) for pid in pids]
        environments = b"".join(Path(f"/proc/{pid}/environ").read_bytes() for pid in pids)
        inspected = json.dumps(engine.inspect_container(container)).encode()
        engine.close()
        with place.gateway.web() as web:
            web.post(f"/v1/calls/{call.call_id}/cancel")
    assert place.api.headers_seen("authorization") == [f"Bearer {place.key}"]
    assert any(marker.encode() in memory for memory in memories)
    assert len(memories) >= 2
    for memory in memories:
        assert place.key.encode() not in memory
    assert hits(place.key, environments + inspected) == []


def test_a_secret_of_the_gate_is_no_file_and_no_input(place: Place) -> None:
    """Beside the secrets lie only the certificates by which the program knows the gate."""
    answer = place.run("import os\nresult = [os.listdir('/run/secrets'), secrets]")
    assert answer["result"] == [["ca-certificates.crt"], {}]


# --- what the record says ------------------------------------------------------------------------------------


def test_the_record_shows_what_went_out_and_what_was_refused(place: Place) -> None:
    code = f"result = [ask('{place.url}/echo/1?q=private')[0], ask('https://evil.example/x?q=private')[0]]"
    answer = place.run(code)
    events = [event for event in place.gateway.deployment.events(answer["call_id"]) if "egress" in event["kind"]]
    assert sorted(event["kind"] for event in events) == ["egress_allowed", "egress_closed", "egress_refused"]
    by_kind = {event["kind"]: event for event in events}
    allowed = by_kind["egress_allowed"]
    assert (allowed["scheme"], allowed["host"], allowed["port"]) == ("https", "localhost", place.api.port)
    assert (allowed["method"], allowed["secret"]) == ("GET", "api")
    assert allowed["rule"] == f"localhost:{place.api.port}"
    assert allowed["policies"] == ["developers"]
    assert allowed["address"] in ("127.0.0.1", "::1")
    refused = by_kind["egress_refused"]
    assert (refused["host"], refused["port"], refused["why"]) == ("evil.example", 443, "no_rule")
    closed = by_kind["egress_closed"]
    assert closed["sent_bytes"] > 0
    assert closed["received_bytes"] > 0
    assert answer["usage"]["egress_bytes"] == closed["sent_bytes"] + closed["received_bytes"]
    assert "private" not in json.dumps(events)
    with place.gateway.web() as web:
        metrics = web.get("/metrics").text
    assert 'callgate_egress_allowed_total{tool="probe.egress"}' in metrics
    assert 'callgate_egress_refused_total{tool="probe.egress",why="no_rule"}' in metrics


def test_another_tenants_key_is_out_of_reach(place: Place) -> None:
    """The path of a secret is made of the caller's own tenant, whatever the program asks for."""
    refused = place.gateway.post("probe.egress", {"code": ASK + f"result = ask('{place.url}/echo/1')"}, "rival")
    assert refusal(refused) == (424, "secret_refused")
    assert "`api`" in refused.json()["detail"]
    assert place.api.seen == []


# --- who may reach, and without a store ----------------------------------------------------------------------


def _gives(place: Place, code: str, result: object) -> None:
    assert place.run(code)["result"] == result


CALLS_ONLY = """
@id("calls") permit(principal in Role::"developer", action in Action::"call", resource);
@id("uses") permit(principal in Role::"developer", action == Action::"use", resource);
"""
READS = """
@id("reads") permit(principal in Role::"developer", action == Action::"connect", resource == Host::"localhost")
when { context.tool == Tool::"probe.egress" && context has method && context.method == "GET" };
"""


def test_without_a_permit_to_connect_nothing_is_reached_and_with_one_only_what_it_says(
    tmp_path: Path, store: DevServer, place: Place
) -> None:
    sections = settings(place.api, place.other, tmp_path / "none.pem")
    sections["egress"].pop("ca_file")
    deployment = Deployment(tmp_path / "gateway", store, policies=CALLS_ONLY, settings=sections)
    code = f"result = [ask('{place.other_url}/echo/1', method, data=b'')[0] for method in ('GET', 'POST')]"
    with deployment.start() as running:
        here = Place(running, place.api, place.other, place.key)
        answer = here.run(code)
        assert answer["result"] == [403, 403]
        whys = [event["why"] for event in deployment.events(answer["call_id"]) if event["kind"] == "egress_refused"]
        assert set(whys) == {"policy_denied"}
        assert place.other.seen == []
        deployment.write_policies(READS, "reads.cedar")
        eventually(lambda: _gives(here, code, [200, 403]))
        assert {request["method"] for request in place.other.seen} == {"GET"}


def test_with_the_store_down_a_tool_with_a_key_fails_by_name_and_others_go_on(tmp_path: Path, place: Place) -> None:
    store = start_store(tmp_path / "bao")
    store.operator.write("kv/data/acme/api", {"key": place.key})
    sections = settings(place.api, place.other, tmp_path / "none.pem")
    sections["egress"].pop("ca_file")
    deployment = Deployment(tmp_path / "gateway", store, settings=sections)
    with deployment.start() as running:
        here = Place(running, place.api, place.other, place.key)
        assert here.run("result = 1")["result"] == 1
        store.stop()
        refused = running.post("probe.egress", {"code": "result = 1"})
        assert refusal(refused) == (503, "secrets_unavailable")
        assert "`api`" in refused.json()["detail"]
        assert running.post("probe.run", {"code": "result = 2"}).json()["result"] == 2
