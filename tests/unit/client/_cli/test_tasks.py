import json
import os
import signal
from pathlib import Path

import pytest
from typer.testing import Result

from support.command_line import document, run
from support.fake_gateway import FakeGateway

CREATE = ("tasks", "create", "compare texts", "--tool", "text.diff", "--calls", "3")


def says(result: Result, text: str) -> bool:
    """Whether a command was not understood, for this reason."""
    return result.exit_code == 2 and text in " ".join(result.stderr.replace("│", " ").split())


def test_a_task_is_made_and_its_credential_alone_is_on_standard_output(commands: FakeGateway) -> None:
    assert "No tasks yet" in run("tasks").stderr
    result = run(*CREATE, "--lifetime", "60")
    assert (result.exit_code, result.stdout) == (0, "cgt_fake_credential\n")
    [task] = commands.made
    assert (task.name, list(task.grant.tools_json), task.budget.calls) == ("compare texts", ["text.diff"], 3)
    assert "shown this once" in result.stderr


def test_tasks_are_listed_shown_and_ended_in_80_columns(commands: FakeGateway) -> None:
    run(*CREATE)
    task_id = commands.made[0].task_id
    listed = run("tasks").stdout
    assert task_id in listed
    assert "0 of 3" in listed
    for words in (("show", task_id), (task_id,)):
        shown = run("tasks", *words).stdout
        assert "may call   text.diff" in shown
        assert max(map(len, shown.splitlines())) <= 80
    assert document("tasks", "--json", task_id)["task_id"] == task_id
    assert "over" in run("tasks", "end", task_id).stdout
    refused = run("tasks", "show", "task-none")
    assert (refused.exit_code, "next: List your tasks: callgate tasks" in refused.stderr) == (3, True)


def test_documents_for_programs_are_those_of_http(commands: FakeGateway) -> None:
    made = document(*CREATE)
    assert made["token"] == "cgt_fake_credential"
    assert document("tasks") == {"tasks": [made["task"]]}
    assert document("tasks", "show", made["task"]["task_id"]) == made["task"]
    assert document("tasks", "end", made["task"]["task_id"])["ended_at"] is not None


def test_a_grant_comes_from_a_file(commands: FakeGateway, tmp_path: Path) -> None:
    schema = {"properties": {"before": {"const": "a"}}}
    (tmp_path / "grant.json").write_text(json.dumps({"text.diff": schema}))
    run("tasks", "create", "x", "--grant-file", "grant.json", "--tool", "text.upper")
    grant = commands.made[0].grant.tools_json
    assert {tool: json.loads(one) for tool, one in grant.items()} == {"text.diff": schema, "text.upper": {}}


def test_the_credential_goes_to_a_new_private_file(commands: FakeGateway, tmp_path: Path) -> None:
    result = run(*CREATE, "--save-token", "token")
    path = tmp_path / "token"
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("cgt_fake_credential\n", 0o600)
    assert "cgt_" not in result.stdout + result.stderr
    assert says(run(*CREATE, "--save-token", "token"), "token is there already")
    assert says(run(*CREATE, "--save-token", "no/token"), "no/token: No such file or directory")
    assert len(commands.made) == 1


@pytest.mark.parametrize("save", [(), ("--save-token", "token")])
def test_interrupting_the_making_of_a_task_loses_no_credential(
    commands: FakeGateway, tmp_path: Path, save: tuple[str, ...]
) -> None:
    commands.on_request = lambda: os.kill(os.getpid(), signal.SIGINT)
    result = run(*CREATE, *save)
    assert (result.exit_code, commands.made[0].task_id in result.stdout + result.stderr) == (130, True)
    assert ((tmp_path / "token").read_text() if save else result.stdout) == "cgt_fake_credential\n"


def test_where_nothing_was_made_no_file_is_left(commands: FakeGateway, tmp_path: Path) -> None:
    assert run("tasks", "create", "x", "--save-token", "token").exit_code == 3
    assert not (tmp_path / "token").exists()


@pytest.mark.parametrize(
    ("grant", "why"),
    [
        ("[]", "must hold one JSON object"),
        ("{", "is not JSON: "),
        ('{"a.b": 1}', "must hold a JSON Schema for each tool"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_grant_that_is_none_is_a_mistake(commands: FakeGateway, tmp_path: Path, grant: str | None, why: str) -> None:
    if grant is not None:
        (tmp_path / "grant.json").write_text(grant)
    assert says(run("tasks", "create", "x", "--grant-file", "grant.json"), f"grant.json {why}")
    assert run(*CREATE, "--json", "--save-token", "token").exit_code == 2
    assert commands.made == []
