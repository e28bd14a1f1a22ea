import os
from hashlib import sha256
from pathlib import Path

import pytest

from callgate import Artifact
from callgate._cli.artifacts import save


def artifact(name: str, data: bytes = b"new") -> Artifact:
    return Artifact(name, len(data), sha256(data).hexdigest(), data)


def test_a_file_is_written_below_a_new_folder(tmp_path: Path) -> None:
    path = save(artifact("sub/chart 1.csv"), tmp_path / "out", overwrite=False)
    assert path == tmp_path / "out" / "sub" / "chart 1.csv"
    assert path.read_bytes() == b"new"
    assert not path.stat().st_mode & 0o111


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/cron.d/job",
        "../up",
        "a/../../up",
        "a//b",
        "a/",
        ".",
        ".bashrc",
        "a/.ssh/authorized_keys",
        "-rf",
        "a\\..\\b",
        "a\0b",
        "line\nbreak",
        "esc\x1b[2J",
        "rtl\u202egnp.exe",
        "sur\ud800rogate",
        "x" * 256,
        "ü" * 128,
        "/".join("a" * 17),
    ],
)
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str, overwrite: bool) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="its name"):
        save(artifact(name), out, overwrite=overwrite)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileExistsError):
        save(artifact("a"), tmp_path, overwrite=False)
    assert (tmp_path / "a").read_text() == "old"
    save(artifact("a"), tmp_path, overwrite=True)
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path, overwrite: bool) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.write_text("old")
    out.mkdir()
    (out / "a").symlink_to(outside)
    if overwrite:
        save(artifact("a"), out, overwrite=True)
        assert not (out / "a").is_symlink()
    else:
        with pytest.raises(FileExistsError):
            save(artifact("a"), out, overwrite=False)
    assert outside.read_text() == "old"


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        save(artifact("a"), tmp_path, overwrite=False)
    assert not (tmp_path / "elsewhere").exists()


def test_a_hard_link_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.write_text("old")
    out.mkdir()
    os.link(outside, out / "a")
    save(artifact("a"), out, overwrite=True)
    assert outside.read_text() == "old"


def test_a_linked_folder_on_the_way_is_not_followed(tmp_path: Path) -> None:
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    out.mkdir()
    (out / "sub").symlink_to(outside)
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        save(artifact("sub/a"), out, overwrite=True)
    assert list(outside.iterdir()) == []


def test_a_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError):  # noqa: PT011  # whatever the system calls it
        save(artifact("a"), tmp_path, overwrite=True)
    assert (tmp_path / "a").is_dir()


def test_bytes_that_are_not_those_announced_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="digest"):
        save(Artifact("a", 3, sha256(b"old").hexdigest(), b"new"), tmp_path, overwrite=True)
    assert list(tmp_path.iterdir()) == []
