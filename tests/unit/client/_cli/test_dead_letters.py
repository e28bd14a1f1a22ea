import pytest

from support.command_line import document, run
from support.fake_gateway import FakeGateway


def dead(commands: FakeGateway, tool: str) -> str:
    run("call", tool, "--async")
    call = commands.calls[-1]
    assert call.ended.wait(10)
    return call.id


def test_they_are_listed_with_how_many_there_are(commands: FakeGateway) -> None:
    assert "No dead letters." in run("dead-letters").stderr
    ids = [dead(commands, "demo.fail") for _ in range(2)]
    result = run("dead-letters", "--limit", "1")
    assert ids[1] in result.stdout
    assert ids[0] not in result.stdout
    assert "1 of 2." in result.stderr
    assert document("dead-letters")["total"] == 2


def test_one_is_shown_with_its_attempts_and_what_can_be_done(commands: FakeGateway) -> None:
    call_id = dead(commands, "demo.fail")
    for arguments in ((call_id,), ("show", call_id)):
        result = run("dead-letters", *arguments)
        assert "attempt 2  failed (tool_failed)" in result.stdout
        assert f"callgate dead-letters redrive {call_id}" in result.stderr
    assert len(document("dead-letters", call_id)["attempts"]) == 2
    assert document("dead-letters", "--json", call_id)["call_id"] == call_id


def test_redriving_makes_a_new_call(commands: FakeGateway) -> None:
    call_id = dead(commands, "demo.fail")
    commands.turns.clear()
    result = run("dead-letters", "redrive", call_id)
    assert result.exit_code == 0
    assert f"follows call {call_id}" in result.stderr
    assert f"next: callgate follow {commands.calls[-1].id}" in result.stderr
    refused = run("dead-letters", "redrive", call_id)
    assert (refused.exit_code, "next: List the dead letters: callgate dead-letters" in refused.stderr) == (3, True)


def test_discarding_gives_it_up(commands: FakeGateway) -> None:
    call_id = dead(commands, "demo.fail")
    assert "Discarded." in run("dead-letters", "discard", call_id).stderr
    assert document("dead-letters")["total"] == 0


@pytest.mark.parametrize(("option", "state"), [("--happened", "succeeded"), ("--did-not-happen", "failed")])
def test_an_unknown_effect_is_settled(commands: FakeGateway, option: str, state: str) -> None:
    call_id = dead(commands, "demo.unknown")
    shown = run("dead-letters", call_id)
    assert f"callgate dead-letters settle {call_id} --happened|--did-not-happen" in shown.stderr
    assert "redrive" not in shown.stderr
    assert document("dead-letters", "settle", call_id, option)["state"] == state


def test_which_of_the_two_it_is_has_to_be_said(commands: FakeGateway) -> None:
    result = run("dead-letters", "settle", "c1")
    assert "--happened or --did-not-happen" in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("words", [["redrve", "1" * 36], ["redrive"], ["settle", "c1"], ["nonsense"], ["--nonsense"]])
def test_a_mistake_is_exit_status_2_and_sends_nothing(commands: FakeGateway, words: list[str]) -> None:
    assert run("dead-letters", *words).exit_code == 2
    assert commands.metadata == []
