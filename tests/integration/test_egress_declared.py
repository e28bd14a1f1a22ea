"""What operators and tool authors write about egress, through the programs they use: wrong manifests stop the build,
wrong configurations stop the gateway, and each says where and what to change.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.gateway import CALLGATED, PERMIT_DEVELOPERS, Deployment

OUT = {"authority_dir": "egress"}
KEY = {"name": "api", "from": "kv/data/{tenant}/api#key", "deliver": "egress"}
RULE = {"host": "api.example.com", "secret": "api"}


def callgated(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [*CALLGATED, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


# --- manifests, at `callgated catalog build` -----------------------------------------------------------------

MANIFEST = """\
tool: reach.out
version: 1.0.0
summary: Reach something.
image: reach
run: {command: [/bin/true]}
input: {type: object, additionalProperties: false}
output: {}
effect: read
"""
SECRETS = 'secrets: [{name: api, from: "kv/data/{tenant}/api#key", deliver: egress}]\n'


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ("egress: [{host: '*'}]\n", "line 9: egress.0.host: Value error, a wildcard is `*.` and at least two labels"),
        ("egress: [{host: '*.com'}]\n", "line 9: egress.0.host: "),
        ("egress: [{host: '*.co.uk'}]\n", "line 9: egress.0.host: Value error, anybody can have a name"),
        ("egress:\n  - host: db\n    scheme: tcp\n", "line 10: egress.0.port: a tcp rule needs its `port`"),
        (
            SECRETS + "egress:\n  - {host: a.example, secret: api}\n  - {host: a.example, paths: [/v1/*]}\n",
            "line 12: egress.1: rule 0 allows some of the same requests, and the two disagree about the secret; make",
        ),
        (SECRETS + "egress: [{host: a.example}]\n", "line 9: secrets.0.deliver: no rule of `egress` names api: give"),
        (SECRETS, "line 9: secrets.0.deliver: no rule of `egress` names api"),
        (
            "egress: [{host: a.example, secret: api}]\n",
            "line 9: egress.0.secret: there is no secret api: declare it in `secrets` with `deliver: egress`",
        ),
        (
            SECRETS + "egress: [{host: '*.a.example', secret: api}]\n",
            "line 10: egress.0.host: a secret goes to one host: write its name in full",
        ),
        (
            SECRETS + "egress: [{host: a.example, scheme: http, secret: api}]\n",
            "line 10: egress.0.scheme: the secret would travel to a.example:80 in clear: write `scheme: https`",
        ),
        (
            SECRETS.replace("egress}", "egress, header: Host}") + "egress: configured\n",
            "line 9: secrets.0.header: Value error, this header decides how a request is read",
        ),
        (
            "isolation: fork\negress: configured\n",
            "line 9: isolation: a tool with `egress` needs `isolation: container`",
        ),
    ],
)
def test_a_wrong_manifest_stops_the_build_with_file_line_key_and_what_to_change(
    tmp_path: Path, declared: str, says: str
) -> None:
    tools = tmp_path / "images/reach/tools"
    tools.mkdir(parents=True)
    (tools.parent / "Dockerfile").write_text("ARG BASE\nFROM ${BASE}\n")
    (tools / "reach.out.yaml").write_text(MANIFEST + declared)
    deployment = Deployment(tmp_path / "gateway")
    lock = tmp_path / "new.lock"
    deployment.settings = {"catalog": {"directories": [str(tmp_path / "images")], "lock": str(lock)}, "egress": OUT}
    deployment.write_config()
    built = callgated("catalog", "build", "-c", deployment.config)
    assert built.returncode == 1
    assert f"{tools / 'reach.out.yaml'}: {says}" in built.stderr
    assert not lock.exists()


# --- configurations, at the gateway's start ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (
            {"tools": {"probe.egress": {"egress": [{"host": "api.example.com"}]}}},
            "probe.egress may reach api.example.com:443, and the configuration says nothing of egress: add a section "
            "`egress: {authority_dir: egress}`",
        ),
        (
            {"tools": {"probe.run": {"egress": [{"host": "api.example.com"}]}}, "egress": OUT},
            "tools.probe.run: its manifest does not say `egress: configured`",
        ),
        (
            {"tools": {"probe.egress": {"egress": [RULE]}}, "egress": OUT},
            "tools.probe.egress.egress.0.secret: there is no secret api",
        ),
        (
            {
                "tools": {"probe.egress": {"egress": [RULE, {"host": "api.example.com"}], "secrets": [KEY]}},
                "egress": OUT,
            },
            "tools.probe.egress.egress.1: rule 0 allows some of the same requests",
        ),
        (
            {"tools": {"probe.egress": {"egress": [RULE | {"scheme": "http"}], "secrets": [KEY]}}, "egress": OUT},
            "tools.probe.egress.egress.0.scheme: the secret would travel to api.example.com:80 in clear",
        ),
        (
            {"tools": {"probe.egress": {"isolation": "fork", "egress": [{"host": "api.example.com"}]}}, "egress": OUT},
            "tools.probe.egress.isolation: a tool with `egress` needs `isolation: container`",
        ),
        (
            {"tools": {"probe.egres": {"egress": []}}, "egress": OUT},
            "tools.probe.egres: no manifest declares this tool",
        ),
        (
            {"egress": OUT | {"internal": [{"host": "db", "networks": ["0.0.0.0/0"]}]}},
            "egress.internal.0.networks: a network of fewer than 8 bits is everybody's",
        ),
        ({"egress": OUT | {"ca_file": "none.pem"}}, "none.pem: No such file or directory"),
        ({"egress": OUT | {"ca_file": "keys.json"}}, "keys.json holds no certificates in PEM form"),
    ],
)
def test_a_gateway_with_a_wrong_configuration_does_not_start_and_says_what_to_write(
    tmp_path: Path, sections: dict[str, Any], says: str
) -> None:
    deployment = Deployment(tmp_path / "gateway", settings=sections)
    deployment.write_config()
    served = callgated("serve", "-c", deployment.config)
    assert served.returncode == 1
    assert says in served.stderr
    assert "Traceback" not in served.stderr


def test_a_gateway_whose_authority_others_can_read_does_not_start(tmp_path: Path) -> None:
    """Whoever has its key could pretend to be any upstream for every sandbox of this gateway."""
    deployment = Deployment(tmp_path / "gateway", settings={"egress": OUT})
    with deployment.start():
        files = [path for path in (deployment.folder / "egress").rglob("*") if path.is_file()]
    assert files
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    for path in files:
        path.chmod(0o644)
    served = callgated("serve", "-c", deployment.config)
    assert served.returncode == 1
    assert str(deployment.folder / "egress") in served.stderr
    assert "Traceback" not in served.stderr


def test_tools_that_leave_their_destinations_open_serve_without_any(tmp_path: Path) -> None:
    """No section, no rules: they run, and nothing can be reached."""
    code = "import socket\nresult = [socket.socket().connect_ex(('127.0.0.1', port)) for port in (3128, 80)]"
    with Deployment(tmp_path / "gateway").start() as running:
        answer = running.post("probe.egress", {"code": code + "\nimport os; result += [os.environ.get('HTTPS_PROXY')]"})
    refused = 111
    assert answer.json()["result"] == [refused, refused, None]


# --- policy, before a call is made ---------------------------------------------------------------------------

REACHES = """
@id("reads-example")
permit(principal in Role::"visitor", action == Action::"connect", resource == Host::"api.example.com")
when { context has method && context.method == "GET" };
"""


@pytest.fixture(scope="module")
def reaching(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A deployment that is not running; its tool may send two methods to one host."""
    rule = {"host": "api.example.com", "methods": ["GET", "POST"]}
    sections = {"egress": OUT, "tools": {"probe.egress": {"egress": [rule]}}}
    folder = tmp_path_factory.mktemp("reaching") / "gateway"
    deployment = Deployment(folder, policies=PERMIT_DEVELOPERS + REACHES, settings=sections)
    deployment.write_config()
    return deployment


@pytest.mark.parametrize(
    ("to", "method", "status", "says"),
    [
        (
            "https://api.example.com/v1?q=1",
            "GET",
            0,
            ["rules of probe.egress: api.example.com:443", "allow: ", "reads-example"],
        ),
        ("https://API.example.com./v1", "GET", 0, ["allow: "]),
        (
            "https://api.example.com/v1",
            "POST",
            1,
            ["rules of probe.egress: api.example.com:443", "deny: ", "did not hold"],
        ),
        ("https://api.example.com/v1", "DELETE", 1, ["rules of probe.egress: no_rule", "deny: "]),
        ("https://evil.example/v1", "GET", 1, ["rules of probe.egress: no_rule", "deny: ", "no policy applies"]),
        ("https://api.example.com", None, 1, ["rules of probe.egress: no_rule", "deny: "]),
        ("ftp://api.example.com", "GET", 2, ["write one of https, http, tcp"]),
    ],
)
def test_policy_explains_what_a_tool_may_reach(
    reaching: Deployment, to: str, method: str | None, status: int, says: list[str]
) -> None:
    who = ("--tenant", "acme", "--agent", "bot", "--role", "visitor")
    request = ("--method", method) if method else ()
    done = callgated("policy", "explain", "probe.egress", *who, "--to", to, *request, "-c", reaching.config)
    assert done.returncode == status
    assert [text for text in says if text not in done.stdout + done.stderr] == []


def test_policy_cases_may_be_about_connections(reaching: Deployment, tmp_path: Path) -> None:
    who = {"tenant": "acme", "agent": "bot", "roles": ["visitor"], "tool": "probe.egress"}
    get = {"host": "api.example.com", "method": "GET", "path": "/v1"}
    cases = [
        {"name": "reads", **who, "connect": get, "expect": "allow", "policies": ["reads-example"]},
        {"name": "writes not", **who, "connect": get | {"method": "POST"}, "expect": "deny"},
    ]
    file = tmp_path / "cases.yaml"
    file.write_text(json.dumps({"cases": cases}))
    assert callgated("policy", "test", file, "-c", reaching.config).returncode == 0
    file.write_text(json.dumps({"cases": [cases[0] | {"expect": "deny"}]}))
    failed = callgated("policy", "test", file, "-c", reaching.config)
    assert failed.returncode == 1
    assert "expected deny, got allow by reads-example" in failed.stdout


def test_policy_schema_shows_hosts(reaching: Deployment) -> None:
    shown = callgated("policy", "schema", "-c", reaching.config).stdout
    assert "entity Host {" in shown
    assert 'action "connect" appliesTo' in shown
