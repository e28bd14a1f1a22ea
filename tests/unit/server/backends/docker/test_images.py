"""What the builder refuses before it asks the engine; what it builds is tested on the real one in integration."""

import shutil
import socket
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from callgate_server.backends.docker.images import DockerImages

SANDBOX_IMAGES = Path(__file__).resolve().parents[5] / "sandbox_images"


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    target = tmp_path / "images"
    shutil.copytree(SANDBOX_IMAGES, target, ignore=shutil.ignore_patterns("__pycache__"))
    return {name: target / name for name in ("base", "python", "shell")}


def build(tmp_path: Path, folders: dict[str, Path]) -> None:
    DockerImages(f"unix://{tmp_path}/engine.sock", tmp_path / "state").build(folders, lambda line: None)


def without(folders: dict[str, Path], names: Iterable[str]) -> dict[str, Path]:
    return {name: folder for name, folder in folders.items() if name not in names}


def test_a_broken_engine_is_named_with_where_to_look(tmp_path: Path, folders: dict[str, Path]) -> None:
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(f"{tmp_path}/engine.sock")
        engine.listen()
        hanging_up = threading.Thread(target=lambda: engine.accept()[0].close())
        hanging_up.start()
        with pytest.raises(
            RuntimeError, match=r"cannot be reached at unix:.*engine\.sock: .*callgated doctor"
        ) as caught:
            build(tmp_path, folders)
        hanging_up.join()
    assert "Error(" not in str(caught.value)


def test_every_image_needs_the_base(tmp_path: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="stands on `base`"):
        build(tmp_path, without(folders, ["base"]))


def test_the_base_needs_the_runner(tmp_path: Path, folders: dict[str, Path]) -> None:
    (folders["base"] / "callgate_runner/main.py").unlink()
    with pytest.raises(ValueError, match=r"has no callgate_runner/main\.py"):
        build(tmp_path, folders)


@pytest.mark.parametrize("name", ["main.py", "extra.py"])
def test_an_image_cannot_bring_its_own_runner(tmp_path: Path, folders: dict[str, Path], name: str) -> None:
    (folders["shell"] / "callgate_runner").mkdir()
    (folders["shell"] / "callgate_runner" / name).write_text("")
    with pytest.raises(ValueError, match="the runner is the same in every image"):
        build(tmp_path, folders)


def test_an_image_cannot_replace_what_all_images_have(tmp_path: Path, folders: dict[str, Path]) -> None:
    (folders["shell"] / "tools/workspace.py").write_text("")
    with pytest.raises(ValueError, match=r"tools/workspace\.py is in every image already"):
        build(tmp_path, folders)
