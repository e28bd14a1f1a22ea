"""What of a folder reaches the engine: regular files, the same bytes for the same folder, no declarations."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from callgate_server.backends.docker.context import digest, files_of, is_installed, write


@pytest.fixture
def image(tmp_path: Path) -> Path:
    folder = tmp_path / "image"
    (folder / "tools").mkdir(parents=True)
    (folder / "Dockerfile").write_text("ARG BASE\nFROM ${BASE}\n")
    (folder / "tools/tool.py").write_text("x = 1\n")
    return folder


def packed(image: Path, dockerfile: str = "FROM x\n") -> bytes:
    target = io.BytesIO()
    write(files_of(image), dockerfile, target)
    return target.read()


def test_declarations_and_leftovers_stay_out(image: Path) -> None:
    for name in ("tools/a.yaml", "tools/a.input.schema.json", "tools/README.md", ".git/config", "tools/.hidden"):
        (image / name).parent.mkdir(exist_ok=True)
        (image / name).write_text("x")
    (image / "tools/__pycache__").mkdir()
    (image / "tools/__pycache__/tool.cpython-311.pyc").write_bytes(b"x")
    (image / "data.yaml").write_text("for the Dockerfile")
    assert sorted(files_of(image)) == ["Dockerfile", "data.yaml", "tools/tool.py"]


@pytest.mark.parametrize("place", ["tools/link", "linked"])
def test_a_link_is_refused(image: Path, place: str) -> None:
    (image / place).symlink_to("/etc")
    with pytest.raises(ValueError, match="is a link or a special file"):
        files_of(image)


def test_a_pipe_is_refused(image: Path) -> None:
    os.mkfifo(image / "pipe")
    with pytest.raises(ValueError, match="is a link or a special file"):
        files_of(image)


def test_a_folder_without_a_dockerfile_is_refused(image: Path) -> None:
    (image / "Dockerfile").unlink()
    with pytest.raises(ValueError, match="has no Dockerfile"):
        files_of(image)


def test_packages_come_from_the_lock_or_from_the_folder_but_not_from_both(image: Path) -> None:
    (image / "requirements.lock").write_text("")
    (image / "packages").mkdir()
    (image / "packages/x.py").write_text("")
    with pytest.raises(ValueError, match=r"requirements\.lock fills packages/"):
        files_of(image)


def test_equal_folders_give_equal_bytes_whatever_their_dates_and_owners(image: Path) -> None:
    before = packed(image), digest(files_of(image))
    os.utime(image / "tools/tool.py", (1, 1))
    (image / "tools/tool.py").chmod(0o600)
    assert (packed(image), digest(files_of(image))) == before


@pytest.mark.parametrize("change", ["content", "name", "mode", "more"])
def test_every_change_that_matters_gives_another_digest(image: Path, change: str) -> None:
    before = digest(files_of(image), "recipe")
    match change:
        case "content":
            (image / "tools/tool.py").write_text("x = 2\n")
        case "name":
            (image / "tools/tool.py").rename(image / "tools/other.py")
        case "mode":
            (image / "tools/tool.py").chmod(0o755)
    assert digest(files_of(image), "other" if change == "more" else "recipe") != before


def test_the_context_is_roots_and_has_the_dockerfile_it_was_given(image: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(image, "FROM y\n"))) as archive:
        members = {member.name: member for member in archive}
        stream = archive.extractfile("Dockerfile")
        assert stream is not None
        assert stream.read() == b"FROM y\n"
    assert {(member.uid, member.gid, member.mtime) for member in members.values()} == {(0, 0, 0)}
    # What COPY names is always there, also for an image without packages.
    assert {name for name, member in members.items() if member.isdir()} == {"packages", "tools", "callgate_runner"}


@pytest.mark.parametrize(
    ("name", "installed"),
    [
        *(("tools/x.py", True), ("packages/x/y.py", True), ("callgate_runner/main.py", True)),
        *(("requirements.lock", True), ("Dockerfile", False), ("toolset/x", False), ("data/tools/x", False)),
    ],
)
def test_what_the_builder_puts_in_place_is_not_for_the_dockerfile(name: str, *, installed: bool) -> None:
    assert is_installed(name) is installed
