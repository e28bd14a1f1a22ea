"""Makes a Debian root file system from Debian's packages, for hosts that reach no image registry.

It has what `sandbox_images/base` would install, so that building that image needs no network.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import IO, Final

PACKAGES: Final = ("python3", "ca-certificates")
_TIMEOUT_S: Final = 900
_ERROR_LINES: Final = 5
_MERGED_USR: Final = Path("/usr/share/mmdebstrap/hooks/merged-usr")


def bootstrap(suite: str, tar: IO[bytes]) -> None:
    """Write the tar of a minimal `suite` with `PACKAGES` to `tar`. Installs mmdebstrap where root may.

    Raises:
        RuntimeError: mmdebstrap is missing and cannot be installed, or fails.
    """
    command = [_mmdebstrap(), "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    if _MERGED_USR.is_dir():
        # Born merged, it needs no usrmerge, which would bring the whole of perl.
        command += [f"--hook-dir={_MERGED_USR}", "--include=usr-is-merged"]
    _run([*command, suite, "-"], tar)


def _mmdebstrap() -> str:
    program = shutil.which("mmdebstrap")
    if program is None and os.geteuid() == 0 and shutil.which("apt-get"):
        _run(["apt-get", "-q", "update"])
        _run(["apt-get", "-q", "install", "-y", "--no-install-recommends", "mmdebstrap"])
        program = shutil.which("mmdebstrap")
    if program is None:
        raise RuntimeError(
            "no image registry answers, and mmdebstrap is not installed: install it (Debian: apt install mmdebstrap),"
            " or load a Debian image and name it as the base image"
        )
    return program


def _run(command: list[str], output: IO[bytes] | None = None) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - our argv
            command,
            stdin=subprocess.DEVNULL,
            stdout=output or subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{command[0]} did not finish within {_TIMEOUT_S} s") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"{command[0]} failed: " + "\n".join(lines[-_ERROR_LINES:]))
