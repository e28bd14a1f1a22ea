"""Both programs as their users run them: what they print, where, and what their exit status says."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from callgate_server.cli.main import app
from support.gateway import PERMIT_DEVELOPERS, Deployment, RunningGateway
from support.live import eventually, live

BIN = Path(sys.executable).parent
DIFF = json.dumps({"before": "a", "after": "b"})
FORBID = '@id("no-destructive-shell")\nforbid(principal, action == Action::"call:shell.run", resource)\n' + (
    'when { context.arguments has argv && context.arguments.argv.contains("rm") };\n'
)


def program(name: str, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end; nothing that it says is ever a traceback."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CALLGATE")}
    done = subprocess.run(
        [BIN / name, *map(str, arguments)], capture_output=True, text=True, timeout=60,
        env={**clean, "COLUMNS": "200", "NO_COLOR": "1", **environment},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def callgated(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """The same without a process: most of its time would go into starting it."""
    done = CliRunner().invoke(app, [*map(str, arguments)], prog_name="callgated", env={"NO_COLOR": "1"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A deployment that is not running."""
    deployment = Deployment(tmp_path_factory.mktemp("deployed") / "gateway", policies=PERMIT_DEVELOPERS + FORBID)
    deployment.write_config()
    return deployment


# --- callgated: help and mistakes ------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    done = program("callgated", "--help")
    assert done.returncode == 0
    for command in ("serve", "dev", "doctor", "check-config", "keys", "audit", "catalog", "policy"):
        assert command in done.stdout


@pytest.mark.parametrize("words", [["fly"], ["serve", "--insecure"], ["keys", "create"], ["audit", "show", "-n", "0"]])
def test_a_mistake_in_the_command_is_a_usage_error(words: list[str]) -> None:
    done = callgated(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr


def test_check_config_names_the_wrong_key(deployed: Deployment, tmp_path: Path) -> None:
    good = callgated("check-config", "-c", deployed.config)
    assert (good.returncode, good.stderr) == (0, "")
    assert deployed.instance in good.stdout
    wrong = tmp_path / "callgate.yaml"
    document = yaml.safe_load(deployed.config.read_text())
    document["limits"] = {"cals": 3}
    wrong.write_text(yaml.safe_dump(document))
    done = callgated("check-config", "-c", wrong)
    assert done.returncode == 1
    assert "limits.cals: " in done.stderr
    wrong.write_text("instance: a\ninstance: b\n")
    repeated = callgated("check-config", "-c", wrong)
    assert repeated.returncode == 1
    assert "instance" in repeated.stderr
    absent = program("callgated", "serve", "-c", tmp_path / "absent.yaml")
    assert absent.returncode == 1
    assert "absent.yaml: cannot be read" in absent.stderr


# --- callgated: keys -------------------------------------------------------------------------------------------


def test_keys_are_shown_once_listed_without_themselves_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made = callgated("keys", "create", "--file", file, "--tenant", "acme", "--agent", "bot", "--role", "a", "--days", 3)
    assert made.returncode == 0
    key = made.stdout.strip()
    assert "\n" not in key
    assert key not in made.stderr
    assert file.stat().st_mode & 0o077 == 0
    (listed,) = json.loads(callgated("keys", "list", "--file", file, "--json").stdout)
    assert (listed["tenant"], listed["agent"], listed["roles"], listed["revoked"]) == ("acme", "bot", ["a"], False)
    secret_part = key.rpartition("_")[2]
    shown = callgated("keys", "list", "--file", file)
    assert f"{listed['id']}  acme/bot  roles a" in shown.stdout
    assert secret_part not in shown.stdout + file.read_text() + json.dumps(listed)
    assert callgated("keys", "revoke", listed["id"], "--file", file).returncode == 0
    assert "revoked" in callgated("keys", "list", "--file", file).stdout
    unknown = callgated("keys", "revoke", "nothing", "--file", file)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    for tenant in ("", "../acme", "a b"):
        refused = callgated("keys", "create", "--file", file, "--tenant", tenant, "--agent", "bot")
        assert (refused.returncode, refused.stdout) == (1, "")


# --- callgated: audit ------------------------------------------------------------------------------------------


@pytest.fixture
def copied(gateway: RunningGateway, tmp_path: Path) -> Deployment:
    """A copy of a running gateway's record, with its key."""
    answer = gateway.post("text.diff", {"before": "nobody may read this", "after": "b"})
    assert answer.status_code == 200
    copy = Deployment(tmp_path / "copy")
    copy.write_config()
    copy.ledger.parent.mkdir(mode=0o700)
    with sqlite3.connect(gateway.deployment.ledger) as source, sqlite3.connect(copy.ledger) as target:
        source.backup(target)
    source.close()
    target.close()
    copy.ledger.chmod(0o600)
    shutil.copy(gateway.deployment.folder / "ledger" / "key", copy.folder / "ledger" / "key")
    return copy


def test_a_running_gateways_record_is_verified_and_an_earlier_head_is_in_it(gateway: RunningGateway) -> None:
    config = gateway.deployment.config
    gateway.post("text.diff", {"before": "a", "after": "b"})
    first = callgated("audit", "verify", "-c", config)
    assert first.returncode == 0, first.stderr
    head = first.stdout.rpartition("head ")[2].strip()
    gateway.post("text.diff", {"before": "a", "after": "b"})
    assert callgated("audit", "verify", "-c", config, "--head", head).returncode == 0
    report = json.loads(callgated("audit", "verify", "-c", config, "--json").stdout)
    assert report["fault"] is None
    assert report["events"] > int(head.partition(":")[0])
    wrong = callgated("audit", "verify", "-c", config, "--head", head[:-4] + "beef")
    assert wrong.returncode == 1
    assert "the record does not hold" in wrong.stderr
    assert callgated("audit", "verify", "-c", config, "--head", "nonsense").returncode == 1


TAMPERED = {
    "an event changed": "UPDATE events SET body = replace(body, 'acme', 'evil') WHERE seq = 2",
    "an event removed": "DELETE FROM events WHERE seq = 2",
    "the end removed": "DELETE FROM events WHERE seq > 2",
    "a call's end changed": "UPDATE calls SET state = 'failed' WHERE state = 'succeeded'",
    "an answer changed": "UPDATE calls SET answer = CAST(replace(CAST(answer AS TEXT), 'text.diff', 'text.dirt') AS BLOB)",
    "a call removed": "DELETE FROM calls WHERE call_id IN (SELECT call_id FROM calls LIMIT 1)",
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_record_that_was_tampered_with_is_named(what: str, copied: Deployment) -> None:
    intact = callgated("audit", "verify", "-c", copied.config)
    assert intact.returncode == 0, intact.stderr
    head = intact.stdout.rpartition("head ")[2].strip()
    with sqlite3.connect(copied.ledger) as connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        assert connection.execute(TAMPERED[what]).rowcount > 0
    connection.close()
    done = callgated("audit", "verify", "-c", copied.config, "--head", head)
    assert done.returncode == 1
    assert "the record does not hold: " in done.stderr
    assert "The chain holds" not in done.stdout


def test_the_record_is_shown_without_arguments(copied: Deployment) -> None:
    shown = callgated("audit", "show", "-c", copied.config, "-n", 2)
    events = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [event["kind"] for event in events] == ["intent", "outcome"]
    assert events[0]["body"]["tool"] == "text.diff"
    assert "nobody may read this" not in shown.stdout
    of_call = callgated("audit", "show", "-c", copied.config, "--call", events[0]["call_id"])
    assert of_call.stdout == shown.stdout
    (copied.folder / "ledger" / "key").unlink()
    without_key = callgated("audit", "verify", "-c", copied.config)
    assert without_key.returncode == 1
    assert without_key.stderr.startswith(f"callgated: {copied.folder / 'ledger' / 'key'}: ")
    assert not (copied.folder / "ledger" / "key").exists()


# --- callgated: catalog, policy, doctor ------------------------------------------------------------------------


def test_the_pinned_catalog_is_listed(deployed: Deployment) -> None:
    listed = json.loads(callgated("catalog", "list", "-c", deployed.config, "--json").stdout)
    digests = {tool["tool"]: tool["image"] for tool in listed}
    assert {"python.run", "shell.run", "text.diff", "webhooks.sign"} <= set(digests)
    shown = callgated("catalog", "list", "-c", deployed.config).stdout
    assert digests["python.run"][:19] in next(line for line in shown.splitlines() if line.startswith("python.run "))


def test_an_address_that_is_taken_is_said_in_a_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for edge in ("http", "grpc"):
            deployment = Deployment(tmp_path / edge, settings={edge: {"listen": address}})
            deployment.write_config()
            done = program("callgated", "serve", "--config", deployment.config)
            assert done.returncode == 1
            assert address in done.stderr.splitlines()[-1]
            assert done.stderr.splitlines()[-1].startswith("callgated: ")


def explain(deployed: Deployment, tool: str, role: str, arguments: str) -> "subprocess.CompletedProcess[str]":
    who = ("--tenant", "acme", "--agent", "bot", "--role", role)
    return callgated("policy", "explain", tool, *who, "--arguments", arguments, "-c", deployed.config)


def test_policy_says_what_it_rules_and_why(deployed: Deployment) -> None:
    allowed = explain(deployed, "text.diff", "developer", DIFF)
    assert allowed.returncode == 0
    assert allowed.stdout.startswith("allow: acme/bot calling text.diff")
    assert "decided by developers (policies.cedar:1)" in allowed.stdout
    denied = explain(deployed, "shell.run", "developer", '{"argv": ["rm", "-rf", "/"]}')
    assert denied.returncode == 1
    assert denied.stdout.startswith("deny: ")
    assert "decided by no-destructive-shell (policies.cedar:2)" in denied.stdout
    nobody = explain(deployed, "text.diff", "visitor", DIFF)
    assert (nobody.returncode, "no policy applies" in nobody.stdout) == (1, True)
    invalid = explain(deployed, "text.diff", "developer", '{"before": 7}')
    assert (invalid.returncode, invalid.stdout) == (2, "")
    assert "after" in invalid.stderr or "before" in invalid.stderr
    assert explain(deployed, "no.such", "developer", "{}").returncode == 2


OPERATORS = (
    '@id("operators")\npermit(principal in Role::"operator", action == Action::"administer", resource)\n'
    'when { principal.tenant == resource && context.operation != "shared_breakers" };\n'
    '@id("asking")\n@approval("owners")\n'
    'permit(principal in Role::"deputy", action == Action::"administer", resource);\n'
)


def explain_act(deployed: Deployment, operation: str, role: str) -> "subprocess.CompletedProcess[str]":
    who = ("--tenant", "acme", "--agent", "root", "--role", role)
    return callgated("policy", "explain", *who, "--administer", operation, "-c", deployed.config)


def test_policy_says_what_it_rules_on_what_administrators_do_and_why(tmp_path: Path) -> None:
    deployed = Deployment(tmp_path / "gateway", policies=OPERATORS)
    deployed.write_config()
    allowed = explain_act(deployed, "stop", "operator")
    assert allowed.returncode == 0
    assert allowed.stdout.startswith("allow: acme/root administering acme: stop")
    assert "administer on acme: allow" in allowed.stdout
    assert "decided by operators (policies.cedar:1)" in allowed.stdout
    nearly = explain_act(deployed, "shared_breakers", "operator")
    assert (nearly.returncode, nearly.stdout.startswith("deny: ")) == (1, True)
    assert "in scope, but its conditions did not hold: operators (policies.cedar:1)" in nearly.stdout
    nobody = explain_act(deployed, "stop", "visitor")
    assert (nobody.returncode, "no policy applies" in nobody.stdout) == (1, True)
    asking = explain_act(deployed, "stop", "deputy")
    assert (asking.returncode, "decided by asking" in asking.stdout) == (1, True)
    assert "cannot be approved" in asking.stdout


def test_policy_says_what_it_rules_for_a_call_of_a_task(tmp_path: Path) -> None:
    nightly = (
        '@id("nightly") forbid(principal, action, resource) when { context has task && context.task == "nightly" };\n'
    )
    deployed = Deployment(tmp_path / "gateway", policies=PERMIT_DEVELOPERS + nightly)
    deployed.write_config()
    who = ("text.diff", "--tenant", "acme", "--agent", "bot", "--role", "developer", "--arguments", DIFF)
    ask = partial(callgated, "policy", "explain", *who, "-c", deployed.config)
    assert ask().returncode == 0
    assert ask("--task", "daily").returncode == 0
    refused = ask("--task", "nightly")
    assert (refused.returncode, "decided by nightly" in refused.stdout) == (1, True)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["text.diff", "--administer", "stop"], "leave out TOOL, or leave out --administer"),
        (["--administer", "stop", "--arguments", "{}", "--to", "https://a.example"], "leave out --arguments, --to"),
        ([], "name a tool, or give --administer with one of stop, resume"),
        (["text.diff", "--to", "https://a.example", "--arguments", "{}"], "leave out one of --to and --arguments"),
        (["text.diff", "--method", "GET"], "say with --to what the tool wants to reach"),
        (["--administer", "fly"], "'shared_breakers'"),
    ],
)
def test_what_asks_policy_two_questions_or_none_is_a_usage_error_with_the_remedy(words: list[str], remedy: str) -> None:
    done = callgated("policy", "explain", *words, "--tenant", "acme", "--agent", "root")
    assert (done.returncode, done.stdout) == (2, "")
    assert remedy in " ".join(done.stderr.replace("│", " ").split())


def test_tools_are_listed_and_explained_at_the_isolation_level_that_the_operator_chose(tmp_path: Path) -> None:
    forbid = '@id("no-forks") forbid(principal, action in Action::"call", resource) when { resource.isolation == Isolation::"fork" };\n'
    deployed = Deployment(
        tmp_path / "gateway",
        policies=PERMIT_DEVELOPERS + forbid,
        settings={"tools": {"python.run": {"isolation": "fork"}}},
    )
    deployed.write_config()
    listed = json.loads(callgated("catalog", "list", "-c", deployed.config, "--json").stdout)
    levels = {tool["tool"]: tool["isolation"] for tool in listed}
    assert (levels["python.run"], levels["text.diff"]) == ("fork", "container")
    assert "decided by no-forks" in explain(deployed, "python.run", "developer", '{"code": "1"}').stdout
    assert explain(deployed, "text.diff", "developer", DIFF).returncode == 0
    deployed.settings["tools"] = {"no.such": {"isolation": "fork"}}
    deployed.write_config()
    unknown = callgated("catalog", "list", "-c", deployed.config)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "no.such" in unknown.stderr


def test_policy_cases_pass_or_fail(deployed: Deployment, tmp_path: Path) -> None:
    case = {
        "name": "developers compare", "tenant": "acme", "agent": "bot", "roles": ["developer"], "tool": "text.diff",
        "arguments": json.loads(DIFF), "expect": "allow",
    }  # fmt: skip
    file = tmp_path / "cases.yaml"
    file.write_text(json.dumps({"cases": [case]}))
    assert callgated("policy", "test", file, "-c", deployed.config).returncode == 0
    file.write_text(json.dumps({"cases": [case, {**case, "name": "wrong", "roles": []}]}))
    failed = callgated("policy", "test", file, "-c", deployed.config)
    assert failed.returncode == 1
    assert "FAILED  wrong" in failed.stdout
    assert "1 passed, 1 failed" in failed.stdout
    file.write_text(json.dumps({"cases": []}))
    assert callgated("policy", "test", file, "-c", deployed.config).returncode == 1


def test_doctor_looks_at_this_host_and_says_what_is_missing(tmp_path: Path) -> None:
    findings = json.loads(callgated("doctor", "--json").stdout)
    assert {"python", "openbao"} < {finding["name"] for finding in findings}
    assert all(finding["fix"] for finding in findings if finding["level"] != "ok")
    without_engine = program("callgated", "doctor", "--engine", f"unix://{tmp_path}/none.sock")
    assert without_engine.returncode == 1
    assert "→" in without_engine.stdout


# --- callgate --------------------------------------------------------------------------------------------------


@pytest.fixture
def callgate(gateway: RunningGateway) -> Any:
    def run(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
        own = {"CALLGATE_TARGET": gateway.grpc, "CALLGATE_TOKEN": gateway.deployment.tokens["acme"]}
        return program("callgate", *arguments, **{**own, **environment})

    return run


def test_the_exit_status_says_what_became_of_a_call(callgate: Any, gateway: RunningGateway) -> None:
    succeeded = callgate("call", "python.run", "--arg", "code=print(6 * 7)")
    assert (succeeded.returncode, succeeded.stdout) == (0, "42\n")
    failed = callgate("call", "python.run", "--arg", "code=print('kept'); raise SystemExit(3)")
    assert (failed.returncode, failed.stdout) == (1, "kept\n")
    assert callgate("call", "python.run", "--arg", "code").returncode == 2
    assert callgate("call").returncode == 2
    denied = callgate(
        "call", "text.diff", "-a", "before=a", "-a", "after=b", CALLGATE_TOKEN=gateway.deployment.tokens["guest"]
    )
    assert (denied.returncode, denied.stdout) == (3, "")
    assert "policy" in denied.stderr
    invalid = callgate("call", "text.diff", "-a", "before:=7", "-a", "after=b")
    assert invalid.returncode == 3
    assert "/before" in invalid.stderr
    stranger = callgate("tools", CALLGATE_TOKEN="cg_wrong_key")
    assert stranger.returncode == 3
    assert "cg_wrong_key" not in stranger.stderr
    assert callgate("tools", CALLGATE_TARGET="127.0.0.1:1").returncode == 4


def test_tools_and_calls_are_shown(callgate: Any, gateway: RunningGateway) -> None:
    tools = json.loads(callgate("tools", "--json").stdout)
    assert "webhooks.sign" in {tool["tool"] for tool in (tools["tools"] if isinstance(tools, dict) else tools)}
    one = callgate("tools", "webhooks.sign")
    assert one.returncode == 0
    assert "payload" in one.stdout
    assert callgate("tools", "no.such").returncode == 3
    with live(gateway, "probe.run") as call:
        call.until_printed("ready")
        assert call.call_id in callgate("calls").stdout
        cancelled = callgate("cancel", call.call_id, "--json")
        assert json.loads(cancelled.stdout)["state"] == "cancelled"
    shown = callgate("calls", call.call_id, "--json")
    assert json.loads(shown.stdout)["call_id"] == call.call_id
    assert callgate("calls", "01890000-0000-7000-8000-000000000000").returncode == 3


def test_ctrl_c_cancels_the_call_and_shows_what_it_wrote(gateway: RunningGateway) -> None:
    environment = os.environ | {"CALLGATE_TARGET": gateway.grpc, "CALLGATE_TOKEN": gateway.deployment.tokens["rival"]}
    code = "print('first', flush=True); import time; time.sleep(18)"
    command = [BIN / "callgate", "call", "probe.run", "--stream", "--arg", f"code={code}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        process.send_signal(2)
        assert process.wait(timeout=20) == 130

    def recorded() -> None:
        with gateway.web("rival") as web:
            assert web.get("/v1/calls").json()["calls"][0]["state"] == "cancelled"

    eventually(recorded)
