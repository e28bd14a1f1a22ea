import json
import os
from pathlib import Path

import pytest

from callgate._cli.settings import DEFAULT_TARGET, Settings, load, resolve

TOKEN = "cg_dev_token"


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """The folder of a development gateway, as `callgated dev` leaves it."""
    folder = tmp_path / "project" / ".callgate"
    folder.mkdir(parents=True, mode=0o700)
    write(folder / "developer.token", TOKEN)
    announce(folder)
    return folder


def write(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


def announce(folder: Path, **changes: object) -> None:
    document = {"target": "127.0.0.1:7777", "token_file": str(folder / "developer.token"), **changes}
    write(folder / "client.json", json.dumps(document))


def settle(folder: Path, target: str | None = None, token_file: Path | None = None, **environment: str) -> Settings:
    return resolve(environment, folder, target=target, token_file=token_file)


def test_without_anything_it_is_the_default_without_a_token(tmp_path: Path) -> None:
    assert settle(tmp_path) == Settings(DEFAULT_TARGET, None, assumed=True)


def test_options_go_before_the_environment(tmp_path: Path) -> None:
    write(tmp_path / "a", "from-option\n")
    write(tmp_path / "b", "from-file\n")
    environment = {
        "CALLGATE_TARGET": "e:1",
        "CALLGATE_TOKEN_FILE": str(tmp_path / "b"),
        "CALLGATE_TOKEN": "from-variable",
    }
    assert settle(tmp_path, "o:1", tmp_path / "a", **environment) == Settings("o:1", "from-option")
    assert settle(tmp_path, **environment) == Settings("e:1", "from-file")
    del environment["CALLGATE_TOKEN_FILE"]
    assert settle(tmp_path, **environment) == Settings("e:1", "from-variable")


def test_the_real_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLGATE_TARGET", "e:1")
    monkeypatch.delenv("CALLGATE_TOKEN_FILE", raising=False)
    monkeypatch.setenv("CALLGATE_TOKEN", "t")
    monkeypatch.chdir(tmp_path)
    assert load(target=None, token_file=None) == Settings("e:1", "t")


def test_the_dev_server_is_found_from_below(dev: Path) -> None:
    below = dev.parent / "a" / "b"
    below.mkdir(parents=True)
    assert settle(below) == Settings("127.0.0.1:7777", TOKEN)


def test_the_credential_of_the_dev_server_goes_nowhere_else(dev: Path) -> None:
    assert settle(dev.parent, "gateway.example:9090") == Settings("gateway.example:9090", None)
    assert settle(dev.parent, CALLGATE_TARGET="gateway.example:9090").token is None


def test_another_credential_does_not_go_to_the_dev_server(dev: Path) -> None:
    assert settle(dev.parent, CALLGATE_TOKEN="mine") == Settings(DEFAULT_TARGET, "mine", assumed=True)


def test_a_file_of_a_stranger_cannot_send_a_token_away(dev: Path) -> None:
    announce(dev, target="gateway.example:9090")
    with pytest.raises(ValueError, match="another machine"):
        settle(dev.parent)


@pytest.mark.parametrize("token_file", ["../key", "/etc/hostname", "sub/../../key"])
def test_a_file_of_a_stranger_cannot_send_other_files(dev: Path, token_file: str) -> None:
    write(dev.parent / "key", "another secret")
    announce(dev, token_file=token_file)
    with pytest.raises(ValueError, match="outside its own folder") as caught:
        settle(dev.parent)
    assert "another secret" not in str(caught.value)


def test_a_link_instead_of_the_token_is_refused(dev: Path) -> None:
    write(dev.parent / "key", "another secret")
    (dev / "developer.token").unlink()
    (dev / "developer.token").symlink_to(dev.parent / "key")
    with pytest.raises(ValueError, match="cannot be read"):
        settle(dev.parent)


def test_a_pipe_instead_of_a_file_does_not_hang(dev: Path) -> None:
    (dev / "client.json").unlink()
    os.mkfifo(dev / "client.json", 0o600)
    with pytest.raises(ValueError, match="not a regular file"):
        settle(dev.parent)


def test_a_linked_folder_is_refused(dev: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".callgate").symlink_to(dev)
    with pytest.raises(ValueError, match="cannot be read"):
        settle(tmp_path / "other")


@pytest.mark.parametrize(("name", "mode"), [("client.json", 0o620), ("client.json", 0o602), ("developer.token", 0o640)])
def test_a_file_that_is_open_to_others_is_refused(dev: Path, name: str, mode: int) -> None:
    (dev / name).chmod(mode)
    with pytest.raises(ValueError, match="open to other users"):
        settle(dev.parent)


def test_a_folder_that_others_can_write_is_refused(dev: Path) -> None:
    dev.chmod(0o777)
    with pytest.raises(ValueError, match="open to other users"):
        settle(dev.parent)


def test_a_file_of_another_user_is_refused(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(ValueError, match="belongs to somebody else"):
        settle(dev.parent)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"target": 1, "token_file": "developer.token"}', "[" * 60_000])
def test_a_malformed_file_is_refused(dev: Path, text: str) -> None:
    write(dev / "client.json", text)
    with pytest.raises(ValueError, match="not what `callgated dev` writes"):
        settle(dev.parent)


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere cannot be read: No such file"):
        settle(tmp_path, token_file=tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe"])
def test_a_file_without_a_token_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(ValueError, match="holds no token"):
        settle(tmp_path, token_file=tmp_path / "token")


def test_a_token_file_may_be_a_link(tmp_path: Path) -> None:
    write(tmp_path / "..data", "t\n")
    (tmp_path / "token").symlink_to(tmp_path / "..data")
    assert settle(tmp_path, token_file=tmp_path / "token").token == "t"


def test_the_token_is_not_in_the_representation() -> None:
    assert TOKEN not in repr(Settings("h:1", TOKEN))
