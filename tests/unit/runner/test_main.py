import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from callgate_runner import main, python_tool, wire
from callgate_server.execution.framing import encode_call, encode_cancel, encode_secret
from callgate_server.model.manifest import Limits, Run
from callgate_server.model.sealed import Sealed
from support.names import NAMES

RUNNER = Path(__file__).parents[3] / "sandbox_images/base"
CALL = encode_call(Run(command=("/bin/true",)), b'{"a":1}', Limits(), 2000, NAMES)
SECRET = encode_secret("pin", "stdin", Sealed(b"1234"))


def test_it_refuses_to_be_any_process_but_the_first() -> None:
    program = f"import sys; sys.path.insert(0, {str(RUNNER)!r}); from callgate_runner.main import main; main()"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "process 1 of a sandbox" in done.stderr
    assert done.stdout == ""


@pytest.fixture
def feed():
    source, to_runner = os.pipe()
    from_runner, sink = os.pipe()
    link = wire.Wire(source, sink)

    def receive(data: bytes):
        os.write(to_runner, data)
        os.close(to_runner)
        return main._receive_call(link, link.next_frames())

    yield receive
    for fd in (source, from_runner, sink):
        os.close(fd)


def test_secrets_come_before_the_call(feed) -> None:
    now = time.monotonic()
    call, secrets, deadline = feed(SECRET + CALL)
    assert (call.command, call.arguments, secrets) == (["/bin/true"], b'{"a":1}', {"pin": "1234"})
    assert now + 2.0 <= deadline <= time.monotonic() + 2.0


@pytest.mark.parametrize("data", [CALL + SECRET, CALL + CALL, encode_cancel() + CALL, CALL + encode_cancel()])
def test_what_comes_out_of_order_is_refused(feed, data: bytes) -> None:
    with pytest.raises(ValueError, match="precede"):
        feed(data)


def test_the_end_of_the_wire_ends_the_wait_for_a_call(feed) -> None:
    with pytest.raises(ConnectionError):
        feed(CALL[:-1])


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is imported ahead of a call, in place of importing it."""
    names: list[str] = []
    monkeypatch.setattr(main, "_IDLE_S", 0.01)
    monkeypatch.setattr(main, "__import__", names.append, raising=False)
    return names


def test_what_tools_import_is_there_before_a_call_that_leaves_time(imported: list[str]) -> None:
    source, to_runner = os.pipe()
    main._preload(wire.Wire(source, to_runner))
    assert imported == list(python_tool.COMMON_IMPORTS)
    os.close(source)
    os.close(to_runner)


def test_a_call_that_is_there_waits_for_no_imports(imported: list[str]) -> None:
    source, to_runner = os.pipe()
    os.write(to_runner, CALL)
    main._preload(wire.Wire(source, to_runner))
    assert imported == []
    os.close(source)
    os.close(to_runner)


def test_a_fault_is_reported_without_what_it_was_about(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        int("hunter2")
    except ValueError as error:
        main._report(error)
    said = capsys.readouterr().err
    assert "ValueError at " in said
    assert "test_main.py:" in said
    assert "hunter2" not in said
