"""`shell.run`: the command's end is the call's end, and no shell touches an argv."""

import signal
from pathlib import Path
from typing import Any

import pytest

from support.tools import Ended, call


def run(folder: Path, **arguments: Any) -> Ended:
    return call("shell_run:run", "shell", folder, arguments, shell_run__SCRIPT=str(folder / "script.sh"))


def test_an_argv_is_executed_as_it_stands(tmp_path: Path) -> None:
    words = ["$HOME", "a b", "*", ";", "--", "$(id)"]
    ended = run(tmp_path, argv=["printf", "%s\n", *words])
    assert ended.stdout.splitlines() == words
    assert ended.result == {"exit_code": 0}


def test_a_script_runs_in_the_folder_of_its_files(tmp_path: Path) -> None:
    ended = run(tmp_path, script="pwd; cat a.txt; ls", files=[{"name": "a.txt", "content": "hello\n"}])
    assert ended.stdout == f"{tmp_path}/work\nhello\na.txt\n"
    assert ended.result == {"exit_code": 0}


@pytest.mark.parametrize("arguments", [{}, {"argv": ["true"], "script": "true"}])
def test_it_takes_either_an_argv_or_a_script(tmp_path: Path, arguments: dict[str, Any]) -> None:
    ended = run(tmp_path, **arguments)
    assert ended.status == 1
    assert "give either argv or script" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ({"argv": ["sh", "-c", "exit 7"]}, 7),
        ({"script": "exit 7"}, 7),
        ({"script": "false; echo never"}, 1),
        ({"script": "echo $unset_variable; echo never"}, 1),
        ({"argv": ["no-such-command"]}, 127),
        ({"argv": ["/etc"]}, 126),
        ({"argv": ["bad\0word"]}, 1),
    ],
)
def test_what_failed_has_no_result(tmp_path: Path, arguments: dict[str, Any], status: int) -> None:
    ended = run(tmp_path, **arguments)
    assert ended.status == status
    assert ended.result is None
    assert "never" not in ended.stdout


@pytest.mark.parametrize("script", ["false | true", "yes | head -n 1 > /dev/null", "set +e; false; true"])
def test_a_pipe_reports_its_last_command(tmp_path: Path, script: str) -> None:
    assert run(tmp_path, script=script).result == {"exit_code": 0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_a_signal_that_ended_the_command_ends_the_call(tmp_path: Path, number: signal.Signals) -> None:
    # However this suite was started: a shell's background job ignores SIGINT.
    ended = run(tmp_path, argv=["env", "--default-signal", "sh", "-c", f"kill -{number.value} $$"])
    assert ended.status == -number
    assert ended.result is None


def test_input_is_given_and_then_ends(tmp_path: Path) -> None:
    assert run(tmp_path, argv=["cat"], stdin="zürich\n").stdout == "zürich\n"
    assert run(tmp_path, argv=["cat"]).result == {"exit_code": 0}


def test_input_that_nobody_reads_is_no_obstacle(tmp_path: Path) -> None:
    assert run(tmp_path, argv=["true"], stdin="x" * 1_000_000).result == {"exit_code": 0}


def test_a_command_sees_a_fixed_environment_and_none_of_ours(tmp_path: Path) -> None:
    ended = run(tmp_path, argv=["env"])
    assert {line.partition("=")[0] for line in ended.stdout.splitlines()} == {"PATH", "HOME", "PWD", "TMPDIR", "LANG"}


def test_a_command_finds_the_way_out_where_there_is_one(tmp_path: Path) -> None:
    way = {"HTTPS_PROXY": "http://127.0.0.1:3128", "no_proxy": "", "CURL_CA_BUNDLE": "/x.pem"}
    ended = call(
        "shell_run:run", "shell", tmp_path, {"argv": ["env"]}, environment=way | {"OTHER": "1", "LD_PRELOAD": ""}
    )
    shown = dict(line.split("=", 1) for line in ended.stdout.splitlines())
    assert way.items() <= shown.items()
    assert not {"OTHER", "LD_PRELOAD"} & shown.keys()


def test_a_command_has_three_descriptors_and_no_other(tmp_path: Path) -> None:
    ended = run(tmp_path, script="exec ls /proc/$$/fd")
    # The third is what `ls` reads the folder with.
    assert ended.stdout.split() in (["0", "1", "2"], ["0", "1", "2", "3"])
