"""Packages of an image: fetched by real pip, from a folder of this test, by hash or not at all."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from callgate_server.backends.docker import wheels


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all that pip knows."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel(folder: Path, tag: str = "py3-none-any") -> str:
    """Make a wheel of `words` 1.0 with a script, and return its hash."""
    path = folder / f"words-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("words/__init__.py", "hello = 'hello'\n")
        archive.writestr("words-1.0.data/scripts/words", "#!python\n")
        archive.writestr("words-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: words\nVersion: 1.0\n")
        archive.writestr("words-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr("words-1.0.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lock(folder: Path, text: str) -> Path:
    path = folder / "requirements.lock"
    path.write_text(text)
    return path


def fetch(tmp_path: Path, text: str) -> Path:
    return wheels.fetch(lock(tmp_path, text), tmp_path / "cache", python="3.11", machine="x86_64")


def test_a_locked_wheel_is_unpacked_without_its_scripts(index: Path, tmp_path: Path) -> None:
    found = fetch(tmp_path, f"words==1.0 --hash=sha256:{wheel(index)}\n")
    assert (found / "words/__init__.py").read_text() == "hello = 'hello'\n"
    assert not (found / "bin").exists()
    assert not list(found.rglob("*.pyc"))


def test_what_was_fetched_once_is_not_fetched_again(index: Path, tmp_path: Path) -> None:
    text = f"words==1.0 --hash=sha256:{wheel(index)}\n"
    found = fetch(tmp_path, text)
    next(index.iterdir()).unlink()
    assert fetch(tmp_path, text) == found


def test_another_lock_gets_another_folder(index: Path, tmp_path: Path) -> None:
    text = f"words==1.0 --hash=sha256:{wheel(index)}\n"
    assert fetch(tmp_path, text) != fetch(tmp_path, f"# again\n{text}")


@pytest.mark.parametrize("tag", ["cp311-cp311-manylinux_2_28_x86_64", "cp311-abi3-manylinux2014_x86_64"])
def test_wheels_are_for_the_sandboxs_platform_not_for_the_hosts(index: Path, tmp_path: Path, tag: str) -> None:
    assert fetch(tmp_path, f"words==1.0 --hash=sha256:{wheel(index, tag)}\n").is_dir()


@pytest.mark.parametrize("tag", ["cp312-cp312-manylinux_2_28_x86_64", "cp311-cp311-manylinux_2_28_aarch64"])
def test_wheels_for_another_platform_are_not_taken(index: Path, tmp_path: Path, tag: str) -> None:
    with pytest.raises(RuntimeError, match="could not fetch"):
        fetch(tmp_path, f"words==1.0 --hash=sha256:{wheel(index, tag)}\n")


@pytest.mark.parametrize(
    "line", ["words==1.0", "words==1.0 --hash=sha256:" + "0" * 64, "none==1.0 --hash=sha256:" + "0" * 64]
)
def test_nothing_is_taken_without_its_hash(index: Path, tmp_path: Path, line: str) -> None:
    wheel(index)
    with pytest.raises(RuntimeError, match="could not fetch"):
        fetch(tmp_path, f"{line}\n")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_source_distribution_is_never_built(index: Path, tmp_path: Path) -> None:
    source = index / "words-1.0.tar.gz"
    source.write_bytes(b"x")
    with pytest.raises(RuntimeError, match="could not fetch"):
        fetch(tmp_path, f"words==1.0 --hash=sha256:{hashlib.sha256(b'x').hexdigest()}\n")


def test_without_pip_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="pip is needed on this host"):
        fetch(tmp_path, "")
