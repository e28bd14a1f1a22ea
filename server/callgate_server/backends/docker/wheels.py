"""Fetches the Python packages of an image, on the host, as its requirements.lock pins them.

Only wheels, only by hash, nothing of them is executed here: pip unpacks them for the sandbox's Python, not for
ours. Where they come from is the host's pip configuration. A lock that was fetched once is not fetched again.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

_GLIBC_MINORS: Final = range(36, 16, -1)  # manylinux tags up to the glibc of Debian 12
_TIMEOUT_S: Final = 900
_ERROR_LINES: Final = 5


def fetch(lock: Path, cache: Path, *, python: str, machine: str) -> Path:
    """Return a folder with the unpacked packages of `lock`, for Python `python` ("3.11") on `machine` ("x86_64").

    Raises:
        RuntimeError: pip is missing, a package cannot be had, or a hash is wrong.
        OSError: the cache cannot be written.
    """
    pinned = hashlib.sha256(f"{python} {machine}\n".encode() + lock.read_bytes()).hexdigest()
    target = cache / pinned[:32]
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        unpacked = Path(scratch, "packages")
        unpacked.mkdir()
        _run([*_pip(), "install", *_options(python, machine), "--target", str(unpacked), "--requirement", str(lock)])
        # Their first lines name the host's interpreter.
        shutil.rmtree(unpacked / "bin", ignore_errors=True)
        unpacked.replace(target)
    return target


def _pip() -> list[str]:
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    program = shutil.which("pip3") or shutil.which("pip")
    if program is None:
        raise RuntimeError("pip is needed on this host to fetch an image's packages: install it (python -m ensurepip)")
    return [program]


def _options(python: str, machine: str) -> list[str]:
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC_MINORS] + [f"manylinux2014_{machine}"]
    return [
        *("--quiet", "--no-input", "--disable-pip-version-check", "--no-compile"),
        *("--require-hashes", "--only-binary=:all:", "--no-deps"),
        *("--implementation", "cp", "--python-version", python),
        *(word for platform in platforms for word in ("--platform", platform)),
    ]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False)  # noqa: S603 - our argv
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"pip did not finish within {_TIMEOUT_S} s") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError("pip could not fetch the packages: " + "\n".join(lines[-_ERROR_LINES:]))
