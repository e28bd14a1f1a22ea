"""The sync client is what its generator makes of the async one."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = ROOT / "client" / "generate_sync.py"


def generate(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=60)


def copy_of_the_client(folder: Path) -> Path:
    """Copy the client and its tests, so that a test may spoil them; return the copied generator."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    for part in ("client", "proto", "tests/support", "tests/unit/client"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder / GENERATOR.relative_to(ROOT)


def test_the_committed_sync_client_is_current() -> None:
    done = generate(GENERATOR, "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_async_is_left_in_it() -> None:
    text = (ROOT / "client/callgate/_sync/client.py").read_text()
    assert text.startswith("# Generated from client/callgate/_async/client.py")
    assert not any(word in text for word in ("async ", "await ", "Async", "__aenter__", "__aexit__"))


def test_drift_is_noticed_and_mended(tmp_path: Path) -> None:
    generator = copy_of_the_client(tmp_path)
    generated = tmp_path / "client/callgate/_sync/client.py"
    current = generated.read_text()
    generated.write_text(current + "# changed by hand\n")
    done = generate(generator, "--check")
    assert done.returncode == 1
    assert "client/callgate/_sync/client.py is stale" in done.stderr
    assert generate(generator).returncode == 0
    assert generated.read_text() == current
    assert generate(generator, "--check").returncode == 0


def test_a_missing_half_is_noticed(tmp_path: Path) -> None:
    generator = copy_of_the_client(tmp_path)
    (tmp_path / "client/callgate/_sync/client.py").unlink()
    assert generate(generator, "--check").returncode == 1


def test_anything_else_is_a_usage_error() -> None:
    assert generate(GENERATOR, "--chekc").returncode == 2
