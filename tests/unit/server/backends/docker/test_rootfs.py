"""The bootstrap: how mmdebstrap is asked, and what is said when it is not there or fails."""

import io
import os
import tempfile
from pathlib import Path

import pytest

from callgate_server.backends.docker.rootfs import bootstrap


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def made() -> bytes:
    with tempfile.TemporaryFile() as tar:
        bootstrap("bookworm", tar)
        tar.seek(0)
        return tar.read()


def test_the_tar_is_what_the_program_writes(programs: Path) -> None:
    program(programs, "mmdebstrap", 'echo noise >&2; echo "$@"')
    words = made().decode().split()
    assert words[-2:] == ["bookworm", "-"]
    assert "--variant=minbase" in words
    assert "--include=python3,ca-certificates" in words


def test_a_failure_is_told_with_its_last_lines(programs: Path) -> None:
    program(programs, "mmdebstrap", "echo 'E: no such suite' >&2; exit 1")
    with pytest.raises(RuntimeError, match="mmdebstrap failed: E: no such suite"):
        made()


def test_root_installs_it_where_there_is_apt(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program(programs, "mmdebstrap.new", "printf tar")
    log, new, target = programs / "log", programs / "mmdebstrap.new", programs / "mmdebstrap"
    program(programs, "apt-get", f'echo "$@" >> {log}; [ "$2" = update ] || /bin/cp {new} {target}')
    assert made() == b"tar"
    assert log.read_text().splitlines() == ["-q update", "-q install -y --no-install-recommends mmdebstrap"]


@pytest.mark.parametrize("uid", [0, 1000])
def test_without_it_the_ways_out_are_named(programs: Path, monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    if uid:
        program(programs, "apt-get", "exit 0")
    with pytest.raises(RuntimeError, match=r"install it .*mmdebstrap.*, or load a Debian image"):
        bootstrap("bookworm", io.BytesIO())
