import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from callgate_server.backends.private_files import take_lock
from callgate_server.cli import dev
from callgate_server.cli.main import app


class Store:
    """Stands for the OpenBao development server."""

    address = "http://127.0.0.1:1"

    @property
    def operator(self) -> Any:
        return self

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def enable_kv(self) -> None:
        pass

    def write(self, path: str, fields: object) -> None:
        pass

    def create_approle(self, directory: Path) -> Any:
        self.role_id_file, self.secret_id_file = directory / "callgate.role_id", directory / "callgate.secret_id"
        return self


@pytest.fixture(autouse=True)
def _nothing_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dev.DevServer, "start", lambda *_, **__: Store())
    monkeypatch.setattr(dev, "_build", lambda *_: None)
    monkeypatch.setattr(dev, "serve", lambda *_: None)
    monkeypatch.chdir(tmp_path)


def develop(*options: str) -> Result:
    return CliRunner().invoke(app, ["dev", *options], env={"NO_COLOR": "1"})


def test_a_second_gateway_in_the_same_folder_is_refused_before_it_changes_anything(tmp_path: Path) -> None:
    state = tmp_path / ".callgate"
    assert develop().exit_code == 0
    before = {path: path.read_bytes() for path in state.iterdir() if path.is_file()}
    # Whoever holds this lock is the gateway that runs.
    lock = take_lock(state / "dev.lock", wait=False)
    refused = develop("--http", "127.0.0.1:1")
    assert refused.exit_code == 1
    assert f"a gateway already runs here ({state}); stop it, or give another --state" in refused.stderr
    assert {path: path.read_bytes() for path in state.iterdir() if path.is_file()} == before
    os.close(lock)
    assert develop().exit_code == 0


def test_a_folder_of_images_is_looked_for_where_the_command_is_given(tmp_path: Path) -> None:
    assert develop("--state", "st2", "--images", "my_images").exit_code == 0
    document = yaml.safe_load((tmp_path / "st2/callgate.yaml").read_text())
    assert document["catalog"]["directories"][1] == str(tmp_path / "my_images")
