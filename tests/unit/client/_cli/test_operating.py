import pytest

from support.command_line import document, run
from support.fake_gateway import FakeGateway


def test_an_agent_is_stopped_and_goes_on(commands: FakeGateway) -> None:
    assert "Nothing is stopped." in run("stops").stderr
    result = run("stop", "bot", "--reason", "it loops")
    assert result.exit_code == 0
    assert "Agent bot is stopped; 2 calls cancelled." in result.stderr
    assert "callgate resume bot" in result.stderr
    listed = run("stops").stdout
    assert "it loops" in listed
    assert max(map(len, listed.splitlines())) <= 80
    assert "Agent bot goes on." in run("resume", "bot").stderr
    assert commands.stopped == {}
    refused = run("resume", "bot")
    assert (refused.exit_code, "next: List what is stopped: callgate stops" in refused.stderr) == (3, True)


def test_the_whole_tenant_is_stopped_by_who_says_so(commands: FakeGateway) -> None:
    assert "The whole tenant is stopped" in run("stop", "--tenant").stderr
    assert list(commands.stopped) == [""]
    assert "(the whole tenant)" in run("stops").stdout
    assert run("resume", "--tenant").exit_code == 0


@pytest.mark.parametrize("words", [["stop"], ["resume"], ["stop", "bot", "--tenant"], ["stop", ""]])
def test_nobody_is_stopped_by_forgetting_a_word(commands: FakeGateway, words: list[str]) -> None:
    assert run(*words).exit_code == 2
    assert commands.stopped == {}


def test_breakers_are_listed_opened_and_closed(commands: FakeGateway) -> None:
    listed = run("breakers").stdout
    assert "tool:acme/text.diff" in listed
    assert max(map(len, listed.splitlines())) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in listed.splitlines()}
    assert rows["breaker"] == ["state", "calls", "failed", "slow", "retry", "in"]
    assert rows["engine"] == ["closed", "9", "2", "1"]
    assert rows["upstream:acme/statistics.example:8443"] == ["open", "0", "0", "0", "12.3", "s"]
    assert "engine is forced_open." in run("breakers", "open", "engine").stderr
    assert "engine is closed." in run("breakers", "close", "engine").stderr
    refused = run("breakers", "open", "nonsense")
    assert (refused.exit_code, "next: List the breakers: callgate breakers" in refused.stderr) == (3, True)


@pytest.mark.parametrize("words", [["open"], ["opne", "engine"], ["engine"]])
def test_a_breaker_is_not_set_by_mistake(commands: FakeGateway, words: list[str]) -> None:
    assert run("breakers", *words).exit_code == 2
    assert commands.opened == set()


def test_documents_for_programs_are_those_of_http(commands: FakeGateway) -> None:
    stopped = document("stop", "bot")
    assert (stopped["stopped"]["agent"], stopped["cancelled"]) == ("bot", 2)
    assert document("stops") == {"stops": [stopped["stopped"]]}
    assert document("resume", "bot") == {"resumed": "bot"}
    assert document("breakers")["breakers"][0] == {
        "name": "engine", "state": "closed", "calls": 9, "failures": 2, "slow": 1,
        "retry_after_ms": None,
    }  # fmt: skip
    assert document("breakers")["breakers"][2]["retry_after_ms"] == 12_300
    assert document("breakers", "open", "engine")["state"] == "forced_open"
