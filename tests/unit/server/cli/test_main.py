import subprocess
import sys
from pathlib import Path

import pytest

from support.unbuilt import callgated


def run(command: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of a shell as a user would, with `callgated` in it."""
    function = f'callgated() {{ "{sys.executable}" -m callgate_server.cli "$@"; }}; '
    return subprocess.run(
        ["bash", "-c", function + command], capture_output=True, text=True, timeout=60, cwd=folder,
        env={"PATH": "/usr/bin:/bin", "NO_COLOR": "1", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("words", [("-h",), ("audit", "-h"), ("audit", "show", "-h"), ("policy", "explain", "-h")])
def test_every_command_knows_the_short_word_for_help(words: tuple[str, ...]) -> None:
    done = callgated(*words)
    assert (done.exit_code, "Usage: callgated" in done.stdout) == (0, True)


def test_the_version_is_said() -> None:
    assert callgated("--version").stdout.startswith("callgated 0.")


def test_a_terminal_that_cannot_show_a_character_gets_its_escape(tmp_path: Path) -> None:
    done = run(f"callgated doctor --engine unix://{tmp_path}/none", tmp_path, PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (1, "")
    assert "\\u2192 Start the Docker engine" in done.stdout


@pytest.mark.parametrize("words", ["--version", "keys list --file keys.json", "keys list --json --file keys.json"])
def test_an_output_that_takes_nothing_is_named_in_a_line(tmp_path: Path, words: str) -> None:
    done = callgated("keys", "create", "--file", tmp_path / "keys.json", "--tenant", "acme", "--agent", "bot")
    assert done.exit_code == 0
    full = run(f"callgated {words} >/dev/full", tmp_path)
    assert (full.returncode, full.stderr) == (1, "callgated: the output cannot be written: No space left on device\n")


def test_a_key_cannot_outlive_the_calendar(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    done = callgated("keys", "create", "--file", file, "--tenant", "a", "--agent", "b", "--days", 10**11)
    assert (done.exit_code, file.exists()) == (2, False)
