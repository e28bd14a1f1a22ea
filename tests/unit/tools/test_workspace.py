"""Which names a caller's files may have: none that leaves the working folder, or replaces what is there."""

from pathlib import Path

import pytest

from support.tools import Ended, call


def enter(folder: Path, *files: dict[str, str]) -> Ended:
    return call("workspace:enter", "base", folder, {"files": list(files)})


@pytest.mark.parametrize(
    "name",
    [
        *("../up", "/etc/passwd", "a/b", "..", ".", ".hidden", "", "-rf", "a\\b", "..\\up", "%2e%2e/up", "a\0b"),
        *("a\n", "name with space", "é.txt", "x" * 101),
    ],
)
def test_names_that_are_not_plain_are_refused(tmp_path: Path, name: str) -> None:
    ended = enter(tmp_path, {"name": name, "content": "x"})
    assert ended.status == 1
    assert "a file's name may have" in ended.stderr
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("name", ["a", "data.csv", "_x-1.tar.gz", "x" * 100])
def test_plain_names_are_written(tmp_path: Path, name: str) -> None:
    assert enter(tmp_path, {"name": name, "content": "héllo"}).status == 0
    assert (tmp_path / "work" / name).read_text("utf-8") == "héllo"


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    ended = enter(tmp_path, {"name": "a", "content": "1"}, {"name": "a", "content": "2"})
    assert "two files are called a" in ended.stderr
    assert (tmp_path / "work" / "a").read_text() == "1"


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a").symlink_to(tmp_path / "victim")
    assert enter(tmp_path, {"name": "a", "content": "1"}).status == 1
    assert not (tmp_path / "victim").exists()


def test_text_that_is_not_base64_is_refused(tmp_path: Path) -> None:
    assert enter(tmp_path, {"name": "a", "content_base64": "not base64!"}).status == 1


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    enter(tmp_path, {"name": "a", "content": "1"})
    assert (tmp_path / "work" / "a").stat().st_mode & 0o777 == 0o600
