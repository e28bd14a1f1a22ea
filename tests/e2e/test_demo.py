"""`make demo` checks what it tells; here it is run as a newcomer would, twice, since it must be repeatable."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(900)
def test_the_demo_tells_its_story_and_can_be_run_again() -> None:
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, ROOT / "deploy" / "demo.py"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "✘" not in done.stdout
        assert done.stdout.count("✔") >= 27
