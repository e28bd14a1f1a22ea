"""The command line against a gateway that behaves: in this process, and as the program that is installed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from callgate import GatewayUnreachable, Tool, cli
from callgate._cli import connection
from support.examples import code_block
from support.fake_gateway import TOKEN, FakeGateway


@pytest.fixture(autouse=True)
def environment(fake: FakeGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CALLGATE_TARGET", fake.target)
    monkeypatch.setenv("CALLGATE_TOKEN", TOKEN)
    monkeypatch.delenv("CALLGATE_TOKEN_FILE", raising=False)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli.app, arguments, input=text)


def program(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", "import sys; from callgate.cli import main; sys.exit(main())", *arguments]


def test_the_example_of_the_module_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        exec(code_block(cli), {"sys": sys})  # noqa: S102  # it is our own documentation
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("callgate ")


def test_a_call_shows_the_output_and_succeeds() -> None:
    result = run("call", "python.run", "--arg", "code=print(6 * 7)")
    assert result.exit_code == 0
    assert result.stdout == "42\n"
    assert result.stderr.startswith("succeeded in 12 ms · call ")


def test_arguments_come_from_options_files_and_standard_input(fake: FakeGateway, tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text('{"text": "from a file"}')
    assert "FROM A FILE" in run("call", "text.upper", "--args-file", "args.json").stdout
    assert "PIPED" in run("call", "text.upper", "--args-file", "-", text='{"text": "piped"}').stdout
    run("call", "demo.wait", "-a", "seconds:=3", "--deadline", "0.01")
    assert fake.calls[-1].arguments == {"seconds": 3}


def test_a_tool_that_fails_is_exit_status_1() -> None:
    result = run("call", "demo.fail")
    assert result.exit_code == 1
    assert result.stdout == "so far\n"
    assert "it broke" in result.stderr
    assert "failed (tool_failed, exit code 3)" in result.stderr


def test_a_deadline_is_exit_status_1_with_partial_output() -> None:
    result = run("call", "demo.wait", "--deadline", "0.05")
    assert (result.exit_code, result.stdout) == (1, "started\n")
    assert "timed_out" in result.stderr


def test_a_refusal_is_exit_status_3_and_says_why() -> None:
    result = run("call", "demo.forbidden")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "refused: policy_denied" in result.stderr
    assert "decided by: forbid-demo, no-nights" in result.stderr


def test_arguments_that_do_not_fit_are_named_with_what_would() -> None:
    result = run("call", "text.upper", "--arg", "txt=the-value")
    assert result.exit_code == 3
    assert "/txt is not declared" in result.stderr
    assert "it takes: text (string, required)" in result.stderr
    assert "the-value" not in result.stderr


def test_a_missing_gateway_is_exit_status_4(fake: FakeGateway) -> None:
    fake.stop()
    result = run("tools")
    assert result.exit_code == 4
    assert f"No gateway answers at {fake.target}" in result.stderr


def test_a_lost_answer_is_exit_status_4_and_names_the_call(fake: FakeGateway) -> None:
    result = run("call", "demo.vanish")
    assert result.exit_code == 4
    assert fake.calls[0].id in result.stderr


def test_json_is_the_document_and_nothing_else(fake: FakeGateway) -> None:
    result = run("call", "demo.both", "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert document["result"] == {"n": 9007199254740993}
    assert document["call_id"] == fake.calls[0].id
    refused = run("call", "demo.forbidden", "--json")
    assert (refused.exit_code, refused.stderr) == (3, "")
    assert json.loads(refused.stdout)["error"]["reason"] == "policy_denied"
    fake.stop()
    unreachable = run("tools", "--json")
    assert unreachable.exit_code == 4
    assert json.loads(unreachable.stdout)["error"]["reason"] == "gateway_unreachable"


def test_a_stream_in_json_is_one_document_a_line() -> None:
    result = run("call", "demo.speak", "--stream", "--json")
    events = [json.loads(line)["event"] for line in result.stdout.splitlines()]
    assert events == ["accepted", "output", "output", "output", "answer"]


def test_a_stream_shows_everything_once() -> None:
    result = run("call", "demo.speak", "--stream")
    assert result.stdout == "one\ntwo\n"
    assert result.stderr.count("a warning") == 1


def test_hostile_output_is_shown_and_not_obeyed() -> None:
    for options in ([], ["--stream"], ["--json"]):
        result = run("call", "demo.hostile", *options)
        assert result.exit_code == 0
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(result.stdout + result.stderr)


def test_raw_writes_the_bytes_where_no_terminal_is() -> None:
    result = run("call", "demo.hostile", "--raw")
    assert result.stdout_bytes.startswith(b"\x1b]52;c;ZXZpbA==\x07")
    assert "\x9b" not in result.stderr


@pytest.mark.parametrize("option", ["--json", "--stream"])
def test_raw_goes_alone(option: str) -> None:
    assert run("call", "demo.hostile", "--raw", option).exit_code == 2


def test_raw_is_refused_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["call", "demo.hostile", "--raw"]) == 2
    assert "\x1b]52" not in capsys.readouterr().out


def test_the_envelope_is_all_that_is_on_standard_output() -> None:
    result = run("call", "demo.both", "--envelope")
    mark = f"[callgate {'f' * 32}]"
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{mark} begin: call ")
    assert lines[1:] == [f"{mark} result (JSON)", '{"n": 9007199254740993}', f"{mark} stdout", "said", f"{mark} end"]
    assert result.stderr.startswith("succeeded")


@pytest.mark.parametrize("option", ["--json", "--stream", "--raw"])
def test_the_envelope_goes_alone(option: str) -> None:
    assert run("call", "demo.both", "--envelope", option).exit_code == 2


def test_an_idempotency_key_replays() -> None:
    for expected in (False, True):
        result = run("call", "text.upper", "-a", "text=a", "--idempotency-key", "k1", "--json")
        assert json.loads(result.stdout)["replayed"] is expected


def test_artifacts_are_saved_and_hostile_names_are_not(fake: FakeGateway, tmp_path: Path) -> None:
    fake.artifacts = [("chart.csv", b"1,2\n"), ("sub/b", b"b")]
    result = run("call", "demo.files", "--save-artifacts", "out")
    assert result.exit_code == 0
    assert (tmp_path / "out" / "chart.csv").read_bytes() == b"1,2\n"
    assert (tmp_path / "out" / "sub" / "b").read_bytes() == b"b"
    again = run("call", "demo.files", "--save-artifacts", "out")
    assert again.exit_code == 1
    assert "not saved: chart.csv: there is something of that name; --force replaces a file" in again.stderr
    assert run("call", "demo.files", "--save-artifacts", "out", "--force").exit_code == 0
    fake.artifacts = [("../evil", b"x"), ("good", b"x")]
    hostile = run("call", "demo.files", "--save-artifacts", "out")
    assert hostile.exit_code == 1
    assert (tmp_path / "out" / "good").exists()
    assert not (tmp_path / "evil").exists()


def test_tools_are_listed_and_shown() -> None:
    assert "text.upper" in run("tools").stdout
    shown = run("tools", "text.upper").stdout
    assert "What to turn into capitals." in shown
    assert run("tools", "no.such").exit_code == 3
    assert json.loads(run("tools", "text.upper", "--json").stdout)["input"]["required"] == ["text"]
    assert "text.upper" in [tool["tool"] for tool in json.loads(run("tools", "--json").stdout)["tools"]]


def test_calls_are_listed_and_shown(fake: FakeGateway) -> None:
    run("call", "demo.fail")
    call_id = fake.calls[0].id
    assert call_id in run("calls").stdout
    shown = run("calls", call_id)
    # The lookup succeeded, whatever became of the call.
    assert (shown.exit_code, shown.stdout) == (0, "so far\n")
    assert json.loads(run("calls", "--json", "--limit", "1").stdout)["calls"][0]["call_id"] == call_id
    assert run("calls", "no-such-id").exit_code == 3


def test_cancel_shows_what_a_call_wrote(fake: FakeGateway) -> None:
    with subprocess.Popen(program(["call", "demo.wait"]), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as waiting:
        call_id = fake.call_of("demo.wait").id
        shown = run("cancel", call_id)
        _, error = waiting.communicate(timeout=30)
    assert (shown.exit_code, shown.stdout) == (0, "started\n")
    assert waiting.returncode == 1
    assert b"cancelled" in error


def test_interrupting_cancels_the_call_and_keeps_its_output(fake: FakeGateway) -> None:
    with subprocess.Popen(
        program(["call", "demo.wait", "--stream"]), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == b"started\n"
        waiting.send_signal(signal.SIGINT)
        output, error = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert output == b""
    assert b"cancelled" in error
    assert fake.calls[0].cancelled.is_set()


def test_interrupting_a_detached_call_leaves_it_running(fake: FakeGateway) -> None:
    with subprocess.Popen(
        program(["call", "demo.wait", "--stream", "--detach"]), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == b"started\n"
        waiting.send_signal(signal.SIGINT)
        _, error = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert fake.calls[0].id.encode() in error
    assert not fake.calls[0].cancelled.is_set()


def test_the_program_ends_quietly_when_its_reader_leaves(fake: FakeGateway) -> None:
    with subprocess.Popen(program(["call", "demo.large"]), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writing:
        assert writing.stdout is not None
        assert writing.stderr is not None
        writing.stdout.read(10)
        writing.stdout.close()
        error = writing.stderr.read()
        writing.wait(timeout=30)
    assert b"Traceback" not in error


@pytest.mark.parametrize("arguments", [["calls"], ["calls", "--json"], ["--version"], ["call", "demo.large"]])
def test_what_cannot_be_written_is_said_in_a_line(fake: FakeGateway, arguments: list[str]) -> None:
    run("call", "demo.fail")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(program(arguments), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "callgate: what there is to show cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["call"], "Missing argument"),
        (["call", "a.b", "--arg", "code"], "name=text"),
        (["call", "a.b", "--argh", "code=1"], "No such option"),
        (["call", "a.b", "--deadline", "0"], "deadline"),
        (["call", "a.b", "--deadline", "nan"], "deadline"),
        (["call", "a.b", "--args-file", "nowhere"], "cannot be read"),
        (["call", "a.b", "--arg", "a=\udcff"], "surrogate"),
        (["tools", "--target", "http://h:1"], "host:port"),
        (["tools", "--target", "h:1", "--ca-file", "nowhere"], "nowhere: No such file or directory"),
        (["tools", "--ca-file", "nowhere"], "nowhere: No such file or directory"),
        (["tools", "--ca-file", "nowhere", "--send-token-in-clear"], "roots to trust are for TLS"),
        (["tools", "--token-file", "nowhere"], "cannot be read"),
        (["calls", "--limit", "0"], "limit"),
        (["colls"], "No such command"),
    ],
)
def test_a_mistake_is_exit_status_2_with_help(fake: FakeGateway, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert fake.metadata == []


@pytest.mark.parametrize("in_clear", [False, True])
def test_sending_the_token_in_clear_has_to_be_said(monkeypatch: pytest.MonkeyPatch, in_clear: bool) -> None:
    made: list[dict[str, object]] = []

    class Unreachable(connection.Callgate):
        """A client that says how it was made, and reaches nobody."""

        def __init__(self, target: str, **options: object) -> None:
            made.append(options)
            super().__init__(target, **options)  # type: ignore[arg-type]  # as the command line gave them

        def tools(self) -> list[Tool]:
            raise GatewayUnreachable("Nobody there.", target="gateway.example:9090")

    monkeypatch.setattr(connection, "Callgate", Unreachable)
    options = ["--send-token-in-clear"] if in_clear else []
    assert run("tools", "--target", "gateway.example:9090", *options).exit_code == 4
    assert made[0]["tls"] is (False if in_clear else None)
    assert made[0]["send_token_in_clear"] is in_clear


def test_the_token_is_in_no_output(fake: FakeGateway) -> None:
    shown = [run("tools"), run("call", "demo.forbidden"), run("tools", "--target", "nonsense"), run("tools", "a.b")]
    fake.stop()
    shown.append(run("tools"))
    assert all(TOKEN not in result.stdout + result.stderr for result in shown)


def test_a_token_file_is_used(fake: FakeGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CALLGATE_TOKEN")
    assert run("tools").exit_code == 3
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert run("tools", "--token-file", "token").exit_code == 0


def test_the_dev_server_is_the_default(fake: FakeGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CALLGATE_TARGET", "CALLGATE_TOKEN"):
        monkeypatch.delenv(name)
    folder = tmp_path / ".callgate"
    folder.mkdir(mode=0o700)
    for name, text in (
        ("client.json", json.dumps({"target": fake.target, "token_file": str(folder / "developer.token")})),
        ("developer.token", TOKEN),
    ):
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text)
    assert run("tools").exit_code == 0


def test_help_fits_eighty_columns_and_names_the_exit_statuses() -> None:
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb"}
    for arguments in (["--help"], ["call", "--help"], ["tools", "-h"], ["calls", "-h"], ["cancel", "-h"]):
        done = subprocess.run(program(arguments), capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0
        assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "Exit status: 0 success, 1" in " ".join(run("--help").stdout.split())


def test_no_arguments_show_the_help() -> None:
    assert "Usage: callgate" in run().output


def test_the_version_is_shown() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.split()[0] == "callgate"
