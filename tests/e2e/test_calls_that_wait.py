"""Approvals, asynchronous calls, dead letters, tasks and breakers from the command line, on a real gateway."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.gateway import Deployment, RunningGateway
from support.live import eventually

BIN = Path(sys.executable).parent
POLICIES = """
@id("developers") permit(principal in Role::"developer", action in Action::"call", resource)
unless { resource == Tool::"probe.run" };
@id("asks-finance") @approval("finance")
permit(principal in Role::"developer", action in Action::"call", resource == Tool::"probe.run");
@id("operators") permit(principal in Role::"operator", action == Action::"administer", resource)
when { principal.tenant == resource };
"""
DIFF = ("--arg", "before=a", "--arg", "after=b")


class Person:
    """Somebody at a command line, in a terminal of 80 columns."""

    def __init__(self, deployment: Deployment, tmp_path: Path, agent: str, *roles: str) -> None:
        self.file = tmp_path / f"{agent}.token"
        self.file.write_text(deployment.tokens["acme"] if agent == "bot" else deployment.key("acme", agent, *roles))
        self.file.chmod(0o600)

    def types(self, gateway: RunningGateway, *words: object) -> "subprocess.CompletedProcess[str]":
        clean = {key: value for key, value in os.environ.items() if not key.startswith("CALLGATE")}
        where = {"CALLGATE_TARGET": gateway.grpc, "CALLGATE_TOKEN_FILE": str(self.file)}
        done = subprocess.run(
            [BIN / "callgate", *map(str, words)], capture_output=True, text=True, timeout=60,
            env={**clean, "COLUMNS": "80", "NO_COLOR": "1", **where},
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def reads(self, gateway: RunningGateway, *words: object) -> Any:
        done = self.types(gateway, *words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path / "gateway", policies=POLICIES)


def test_a_call_parked_over_a_kill_is_approved_from_the_command_line_and_runs_once(
    deployment: Deployment, tmp_path: Path
) -> None:
    bot, boss = Person(deployment, tmp_path, "bot"), Person(deployment, tmp_path, "boss", "finance")
    with deployment.start() as first:
        parked = bot.types(first, "call", "probe.run", "--arg", "code=result = 6 * 7", "--purpose", "It is due.")
        assert parked.returncode == 75
        assert "finance" in parked.stderr
        [call] = bot.reads(first, "calls")["calls"]
        assert call["state"] == "awaiting_approval"
        first.kill()
    with deployment.start() as second:
        shown = boss.types(second, "approvals", call["call_id"])
        assert "It is due." in shown.stdout
        assert "result = 6 * 7" in shown.stdout
        # Nobody is there to be asked, and nothing was said of what was seen: it decides nothing.
        assert boss.types(second, "approve", call["call_id"]).returncode not in (0, 3)
        digest = boss.reads(second, "approvals", call["call_id"])["digest"]
        wrong = boss.types(second, "approve", call["call_id"], "--digest", "0" * 64)
        assert wrong.returncode == 3
        assert "approval_void" in wrong.stderr
        own = bot.types(second, "approve", call["call_id"], "--digest", digest)
        assert own.returncode == 3
        assert boss.types(second, "approve", call["call_id"], "--digest", digest).returncode == 0
        followed = bot.types(second, "follow", call["call_id"])
        assert (followed.returncode, followed.stdout.strip()) == (0, "42")
        again = boss.types(second, "approve", call["call_id"], "--digest", digest)
        assert again.returncode == 3
    kinds = [event["kind"] for event in deployment.events(call["call_id"])]
    assert kinds == ["intent", "approved", "began", "outcome"]


def test_an_asynchronous_call_is_handed_over_and_what_fails_for_good_is_redriven_or_given_up(
    deployment: Deployment, tmp_path: Path
) -> None:
    bot = Person(deployment, tmp_path, "bot")
    with deployment.start() as gateway:
        handed = bot.types(gateway, "call", "text.diff", "--async", *DIFF)
        assert handed.returncode == 0, handed.stderr
        [call] = bot.reads(gateway, "calls")["calls"]
        assert call["call_id"] in handed.stdout + handed.stderr
        assert bot.types(gateway, "follow", call["call_id"]).returncode == 0
        failing = ("call", "python.run", "--arg", "code=raise SystemExit(3)", "--async", "--json")
        failed = json.loads(bot.types(gateway, *failing).stdout)["call_id"]
        assert bot.types(gateway, "follow", failed).returncode == 1
        listed = bot.types(gateway, "dead-letters")
        assert failed in listed.stdout
        assert max(map(len, listed.stdout.splitlines())) <= 80
        redriven = bot.reads(gateway, "dead-letters", "redrive", failed)
        assert redriven["follows"] == failed
        assert bot.types(gateway, "follow", redriven["call_id"]).returncode == 1
        assert bot.types(gateway, "dead-letters", "discard", redriven["call_id"]).returncode == 0
        assert bot.reads(gateway, "dead-letters") == {"dead_letters": [], "total": 0}
        assert gateway.stop() == 0


def test_a_task_confines_its_credential_and_an_operator_stops_an_agent(deployment: Deployment, tmp_path: Path) -> None:
    bot, operator = Person(deployment, tmp_path, "bot"), Person(deployment, tmp_path, "root", "operator")
    with deployment.start() as gateway:
        made = bot.reads(gateway, "tasks", "create", "compare texts", "--tool", "text.diff", "--calls", 5)
        confined = Person(deployment, tmp_path, "task")
        confined.file.write_text(made["token"])
        assert confined.types(gateway, "call", "text.diff", *DIFF).returncode == 0
        outside = confined.types(gateway, "call", "python.run", "--arg", "code=1")
        assert outside.returncode == 3
        assert "outside_grant" in outside.stderr
        assert bot.types(gateway, "stop", "bot").returncode == 3
        assert operator.types(gateway, "stop", "bot", "--reason", "It loops.").returncode == 0
        stopped = bot.types(gateway, "call", "text.diff", *DIFF)
        assert stopped.returncode == 3
        assert "stopped" in stopped.stderr
        assert operator.types(gateway, "resume", "bot").returncode == 0
        assert bot.types(gateway, "call", "text.diff", *DIFF).returncode == 0
        mistyped = operator.types(gateway, "breakers", "open", "tool:acme/text.dif")
        assert (mistyped.returncode, "refused: not_possible" in mistyped.stderr) == (3, True)
        assert operator.types(gateway, "breakers", "open", "tool:acme/text.diff").returncode == 0
        eventually(lambda: refused_by_breaker(bot, gateway))
        assert operator.types(gateway, "breakers", "close", "tool:acme/text.diff").returncode == 0
        assert bot.types(gateway, "call", "text.diff", *DIFF).returncode == 0
    assert deployment.verify().fault is None


def refused_by_breaker(bot: Person, gateway: RunningGateway) -> None:
    refused = bot.types(gateway, "call", "text.diff", *DIFF)
    assert refused.returncode == 3
    assert "circuit_open" in refused.stderr
