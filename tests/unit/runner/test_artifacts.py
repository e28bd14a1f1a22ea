import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from callgate_runner import artifacts

FRAMES = json.loads((Path(__file__).parents[3] / "proto/callgate_proto/frames.json").read_text())


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr(artifacts, "ARTIFACTS_FOLDER", str(folder))
    return folder


def find(files: int, size: int) -> Iterator[artifacts.Found]:
    folder = artifacts.open_folder()
    assert folder is not None
    try:
        yield from artifacts.find(folder, files, size)
    finally:
        os.close(folder)


def taken(files: int = 100, size: int = 1000) -> dict[str, bytes]:
    return {found.name: os.read(found.fd, 10_000) for found in find(files, size) if found.rejected is None}


def rejected(files: int = 100, size: int = 1000) -> dict[str, str]:
    reasons = {found.name: found.rejected for found in find(files, size) if found.rejected is not None}
    assert set(reasons.values()) <= set(FRAMES["rejections"])
    return reasons


def descriptors() -> set[str]:
    """This process's own, but for the one that looks."""
    return {path.name for path in list(Path("/proc/self/fd").iterdir()) if os.path.lexists(path)}


def test_plain_files_are_taken_with_their_paths(out: Path) -> None:
    (out / "a/b").mkdir(parents=True)
    (out / "a/b/c.txt").write_bytes(b"deep")
    (out / "é").write_bytes(b"")
    before = descriptors()
    assert taken() == {"a/b/c.txt": b"deep", "é": b""}
    # A thread of another test may open one at any time, and close it.
    until_s = time.monotonic() + 5
    while new := descriptors() - before:
        assert time.monotonic() < until_s, new
        time.sleep(0.01)


def test_links_are_not_followed(out: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    (out / "file").symlink_to(tmp_path / "outside")
    (out / "folder").symlink_to(tmp_path)
    (out / "hard").hardlink_to(tmp_path / "outside")
    assert taken() == {}
    assert rejected() == {"file": "symbolic_link", "folder": "symbolic_link", "hard": "hard_link"}


def test_a_fifo_is_not_opened(out: Path) -> None:
    os.mkfifo(out / "fifo")
    assert rejected() == {"fifo": "not_a_regular_file"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"a\nb", "a\\nb"), (b"\xff", "\\udcff"), ("a\u202eb".encode(), "a\\u202eb"), (b"a\x7f", "a\\x7f")],
)
def test_a_name_that_hides_something_is_refused_and_shown_escaped(out: Path, name: bytes, shown: str) -> None:
    (Path(os.fsdecode(os.fsencode(out) + b"/" + name))).write_text("x")
    assert rejected() == {shown: "bad_name"}


def test_a_path_that_is_too_long_is_refused(out: Path) -> None:
    folder = out / ("a" * 250) / ("b" * 250)
    folder.mkdir(parents=True)
    (folder / "this-makes-it-too-long").write_text("x")
    reasons = rejected()
    assert list(reasons.values()) == ["bad_name"]
    assert all(len(name) <= 200 for name in reasons)


def test_the_size_of_a_sparse_file_is_its_length(out: Path) -> None:
    with (out / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert rejected() == {"sparse": "too_large"}


def test_files_and_bytes_have_budgets(out: Path) -> None:
    for name in "abcd":
        (out / name).write_bytes(b"x" * 400)
    assert set(taken(files=100, size=1000)) == {"a", "b"}
    assert rejected(files=100, size=1000) == {"c": "too_large", "d": "too_large"}
    assert rejected(files=1, size=10_000) == dict.fromkeys("bcd", "too_many_files")


def test_folders_have_a_depth(out: Path) -> None:
    (out / "/".join("d" * 40)).mkdir(parents=True)
    assert rejected() == {"/".join("d" * 16): "too_deep"}


def test_refusals_are_listed_up_to_a_number_and_good_files_behind_them_still_taken(out: Path) -> None:
    for number in range(200):
        (out / f"a{number}").symlink_to("x")
    (out / "z").write_bytes(b"good")
    found = [(one.name, one.rejected) for one in find(10, 1000)]
    assert len([reason for _, reason in found if reason]) == artifacts.MAX_REJECTED
    assert ("z", None) in found
    assert found[-1] == ("", "not_examined")


def test_a_crowd_is_examined_only_in_part(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MAX_EXAMINED", 5)
    for number in range(10):
        (out / str(number)).write_bytes(b"x")
    assert len(taken()) == 5
    assert rejected() == {"": "not_examined"}


def test_a_folder_that_cannot_be_listed_is_not_passed_over_in_silence(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_folder: int) -> None:
        raise OSError

    monkeypatch.setattr(os, "scandir", refuse)
    assert rejected() == {"": "not_examined"}


def test_exactly_as_many_entries_as_are_examined_are_whole(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MAX_EXAMINED", 5)
    for number in range(5):
        (out / str(number)).write_bytes(b"x")
    assert len(taken()) == 5
    assert rejected() == {}


def test_without_a_folder_there_is_nothing(out: Path) -> None:
    out.rmdir()
    assert artifacts.open_folder() is None
