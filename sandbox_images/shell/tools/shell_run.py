"""`shell.run`: a command or a script of the caller, in a child process whose end becomes this process's end.

`argv` is executed as it stands, by no shell. A script runs under `bash -eu`: the first command that fails, and the
first variable that is not set, end it, so that a success is one. `set +eu` turns that off; pipes report their last
command, since `| head` would otherwise be a failure.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import TypedDict

import workspace

SCRIPT = "/tmp/script.sh"  # noqa: S108  # the sandbox's own
_SHELL = ("/bin/bash", "-eu")
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "HOME": workspace.FOLDER,
    "PWD": workspace.FOLDER,
    "TMPDIR": "/tmp",  # noqa: S108  # the sandbox's own
    "LANG": "C.UTF-8",
}
# The way out, where the deployment gives this tool one.
_WAY_OUT = ("http_proxy", "https_proxy", "no_proxy", "ssl_cert_file", "curl_ca_bundle", "requests_ca_bundle")
_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


class Result(TypedDict):
    exit_code: int


def run(
    argv: Sequence[str] | None = None,
    script: str | None = None,
    stdin: str = "",
    files: Sequence[Mapping[str, str]] = (),
) -> Result:
    """Run either `argv` or `script` in the working folder; return only after a success.

    Raises:
        SystemExit: it ended with another status than 0, which becomes ours.
        ValueError: not exactly one of the two was given, or a file cannot be placed.
    """
    if (argv is None) == (script is None):
        raise ValueError("give either argv or script")
    workspace.enter(files)
    status = _status_of(list(argv or _shell_command(script or "")), stdin)
    if status < 0:
        _die_by(-status)
    if status > 0:
        raise SystemExit(status)
    return {"exit_code": 0}


def _shell_command(script: str) -> list[str]:
    with open(SCRIPT, "w", encoding="utf-8") as file:
        file.write(script)
    return [*_SHELL, SCRIPT]


def _status_of(argv: list[str], stdin: str) -> int:
    # A file, not a pipe: a command that does not read its input must not hold us up.
    with tempfile.TemporaryFile() as source:
        source.write(stdin.encode())
        source.seek(0)
        try:
            return subprocess.run(argv, stdin=source, env=_ENVIRONMENT | _way_out(), check=False).returncode
        except FileNotFoundError:
            sys.stderr.write(f"{argv[0]}: command not found\n")
            return _NOT_FOUND
        except OSError as error:
            sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
            return _NOT_EXECUTABLE


def _way_out() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.lower() in _WAY_OUT}


def _die_by(number: int) -> None:
    """End as the command ended: by the same signal, which the runner then reports."""
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    # A signal that ends nobody by default cannot have ended the command; say it the way shells do.
    raise SystemExit(128 + number)
