import json
import os
import signal
import threading
import time
from pathlib import Path

import grpc
import pytest

from support.command_line import document, run
from support.fake_gateway import FakeGateway
from support.fake_refusals import Refused


def test_a_call_that_needs_an_approval_is_left_waiting_and_says_what_to_do(commands: FakeGateway) -> None:
    result = run("call", "demo.guarded", "--purpose", "because", "--task", "t1")
    call = commands.calls[0]
    assert (result.exit_code, result.stdout) == (75, "")
    assert "waits for an approval by finance, until 2100-01-02 03:04 UTC" in result.stderr
    assert f"next: callgate follow {call.id}" in result.stderr
    assert (call.request.purpose, call.request.task, call.cancelled.is_set()) == ("because", "t1", False)


def test_a_program_gets_the_summary_of_a_call_that_waits(commands: FakeGateway) -> None:
    assert document("call", "demo.guarded")["approval"]["group"] == "finance"
    lines = run("call", "demo.guarded", "--stream", "--json").stdout.splitlines()
    assert [json.loads(line).get("event") for line in lines] == ["accepted", "waiting", None]
    assert json.loads(lines[-1])["state"] == "awaiting_approval"


def test_an_asynchronous_call_is_not_waited_for(commands: FakeGateway) -> None:
    commands.turns.clear()
    result = run("call", "demo.speak", "--async", "--priority", "9")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("admitted · demo.speak 1.0.0")
    assert (commands.calls[0].request.asynchronous, commands.calls[0].request.priority) == (True, 9)
    assert run("call", "demo.guarded", "--async").exit_code == 75


def test_interrupting_an_asynchronous_call_shows_it_all_the_same(commands: FakeGateway) -> None:
    commands.turns.clear()
    commands.on_request = lambda: os.kill(os.getpid(), signal.SIGINT)
    result = run("call", "demo.speak", "--async")
    assert (result.exit_code, f"next: callgate follow {commands.calls[0].id}" in result.stderr) == (130, True)


def test_a_call_is_followed_to_its_end(commands: FakeGateway) -> None:
    run("call", "demo.speak", "--async")
    call_id = commands.calls[0].id
    result = run("follow", call_id)
    assert (result.exit_code, result.stdout) == (0, "one\ntwo\n")
    assert "succeeded" in result.stderr
    run("call", "demo.fail")
    assert run("follow", commands.calls[1].id).exit_code == 1
    assert run("follow", "no-such-call").exit_code == 3


@pytest.mark.parametrize("command", ["follow", "calls"])
def test_the_files_of_a_call_that_nobody_waited_for_are_saved_later(
    commands: FakeGateway, tmp_path: Path, command: str
) -> None:
    commands.artifacts = [("chart.csv", b"1,2\n")]
    run("call", "demo.files", "--async")
    call = commands.calls[0]
    assert call.ended.wait(10)
    result = run(command, call.id, "--save-artifacts", "out")
    assert (result.exit_code, (tmp_path / "out" / "chart.csv").read_bytes()) == (0, b"1,2\n")
    assert "saved out/chart.csv" in result.stderr
    assert run(command, call.id, "--save-artifacts", "out").exit_code == 1
    assert run(command, call.id, "--save-artifacts", "out", "--force").exit_code == 0


def test_a_call_without_an_answer_has_no_files_to_save(commands: FakeGateway) -> None:
    commands.turns.clear()
    run("call", "demo.files", "--async")
    result = run("calls", commands.calls[0].id, "--save-artifacts", "out")
    assert (result.exit_code, "Nothing to save" in result.stderr) == (1, True)


def test_following_says_what_a_call_waits_for(commands: FakeGateway) -> None:
    run("call", "demo.guarded")
    call = commands.calls[0]
    assert call.approval is not None
    assert run("approve", call.id, "--digest", call.approval.digest).exit_code == 0
    lines = [json.loads(line) for line in run("follow", call.id, "--json").stdout.splitlines()]
    assert lines[-1]["answer"]["stdout"]["text"] == "paid\n"


def test_a_stream_that_breaks_says_how_to_go_on(commands: FakeGateway) -> None:
    commands.turns.clear()
    run("call", "demo.flaky", "--async")
    call_id = commands.calls[0].id

    def begin_once_it_is_followed() -> None:
        while len(commands.metadata) < 2:
            time.sleep(0.01)
        time.sleep(1)
        commands.turns.set()

    beginning = threading.Thread(target=begin_once_it_is_followed)
    beginning.start()
    result = run("follow", call_id)
    beginning.join()
    assert (result.exit_code, result.stdout) == (4, "one\n")
    assert "Waits for its turn." in result.stderr
    assert f"Go on with: callgate follow {call_id} --after 2" in result.stderr


def test_a_refusal_that_passes_says_both_when_and_what_to_do(commands: FakeGateway) -> None:
    commands.refuse_with = Refused("rate_limited", grpc.StatusCode.UNAVAILABLE, "No.", retry_after_ms=2000)
    assert "next: Try again in 2.0 s. " in run("call", "demo.speak").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["call", "a.b", "--async", "--stream"],
        ["call", "a.b", "--async", "--save-artifacts", "d"],
        ["call", "a.b", "--priority", "3"],
        ["call", "a.b", "--async", "--priority", "10"],
        ["call", "a.b", "--purpose", "\udcff"],
        ["calls", "--save-artifacts", "d"],
        ["follow"],
        ["follow", "c1", "--after", "-2"],
        ["follow", "c1", "--after", str(2**63)],
        ["follow", "\udcff"],
    ],
)
def test_a_mistake_is_exit_status_2_and_sends_nothing(commands: FakeGateway, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
    assert commands.metadata == []
