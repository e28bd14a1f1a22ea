"""What an error of the engine means: which refusal it is, and what a dead container says about its end.

"The sandbox failed" is decided here; "the tool failed" is never read from the engine, only from the runner's
exit frame. Everything unknown is a refusal too, only a less precise one.

Misreadings that are accepted:
- Some causes are told apart by the engine's text, as its status codes differ between versions. Where the text
  is unknown, `sandbox_unavailable` is said instead of `runtime_missing` or `image_missing`.
- A host so loaded that the engine answers too late looks like a hung engine.
- `oom_killed` says that some process in the sandbox was killed for memory. On cgroup v1 that need not be the
  one whose end mattered.
- Exit code 137 without `oom_killed` is reported as it is: our own kill looks the same as somebody else's.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from docker.errors import APIError, ImageNotFound, InvalidVersion
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import Timeout

from callgate_server.backends.docker.spec import ENTRYPOINT
from callgate_server.execution.sandbox import ExitReport
from callgate_server.model.errors import CallError, Reason


class Step(StrEnum):
    """What was being done; the words appear in messages."""

    LOOK = "looking at the engine"
    CREATE = "creating the sandbox"
    ATTACH = "attaching to the sandbox"
    START = "starting the sandbox"
    LIST = "listing sandboxes"
    REMOVE = "removing a sandbox"


_UNKNOWN_RUNTIME: Final = ("unknown runtime", "unknown or invalid runtime", "invalid runtime name")
# The engine knows the runtime's name, but the program behind it is gone.
_RUNTIME_PROGRAM_GONE: Final = ("unable to retrieve oci runtime error", "runtime binary", "failed to start shim")
_NO_FILE: Final = ("executable file not found", "no such file or directory", "not found")
_CONFLICT: Final = 409
_BROKEN: Final = 500
# What the runner says when it breaks: the class of the error and the kernel's name for it, and the line of its own or
# of the standard library. And what the runner of a lane says when it cannot go on.
_RUNNER_REPORT: Final = re.compile(
    rb"^callgate_runner: ("
    rb"[A-Za-z]{1,40}(?: E[A-Z0-9]{1,15})? at /(?:opt/callgate/runner/callgate_runner|usr/lib/python3\.[0-9]{1,2})"
    rb"/[a-z_/]{1,40}\.py:[0-9]{1,5}"
    rb"|no cgroup holds the limits of a lane"
    rb"|a cell was not made in time"
    rb"|a cell's process 1 died, wait status [0-9]{1,5}"
    rb"|the zygote died"
    rb"|what the imports started does not die"
    rb")$",
    re.MULTILINE,
)

_IMAGE_MISSING = "The tool's pinned image is not on this host. Build or load it; nothing is pulled at call time."
_IMAGE_UNUSABLE = "The tool's pinned image has no usable interpreter for the runner. Rebuild it from the base image."
_RUNTIME_MISSING = "The isolation runtime that the tool asks for is not usable on this engine. Run `callgated doctor`."


def refusal(error: Exception, step: Step) -> CallError:
    """Return what to raise for an error that the engine, or the way to it, gave during `step`.

    The error's own text stays out of the message: it may name paths of the host. Raise it `from` the error.
    """
    if isinstance(error, TimeoutError | Timeout):
        return _unavailable(f"The container engine did not answer in time while {step}. Check that it is not hung.")
    if isinstance(error, APIError):
        return _refused(error, step)
    if isinstance(error, InvalidVersion):
        return _unavailable("The container engine is too old. Its API must be 1.41 (20.10) or newer.")
    if isinstance(error, OSError | RequestsConnectionError):
        return _unavailable(
            f"The container engine cannot be reached while {step}. "
            "Check that it runs and that this user may open its socket."
        )
    return _unavailable(f"The container engine gave an answer that makes no sense while {step}.")


def _refused(error: APIError, step: Step) -> CallError:
    text = (error.explanation or "").lower()
    if isinstance(error, ImageNotFound):
        return CallError(Reason.IMAGE_MISSING, _IMAGE_MISSING)
    if any(words in text for words in _UNKNOWN_RUNTIME):
        return CallError(Reason.RUNTIME_MISSING, _RUNTIME_MISSING)
    if step is Step.START and any(words in text for words in _NO_FILE):
        # Both are a missing program; the image's is named by its path.
        if any(words in text for words in _RUNTIME_PROGRAM_GONE):
            return CallError(Reason.RUNTIME_MISSING, _RUNTIME_MISSING)
        if ENTRYPOINT[0] in text:
            return CallError(Reason.IMAGE_MISSING, _IMAGE_UNUSABLE)
    if step is Step.CREATE and error.status_code == _CONFLICT:
        return _unavailable("A sandbox of this call exists already.", particular=True)
    # With a status below 500 it refuses what it was asked for, and works.
    return _unavailable(
        f"The container engine refused while {step} (status {error.status_code}). See the server's log.",
        particular=(error.status_code or _BROKEN) < _BROKEN,
    )


def _unavailable(message: str, *, particular: bool = False) -> CallError:
    return CallError(Reason.SANDBOX_UNAVAILABLE, message, particular=particular)


def exit_report(state: Mapping[str, Any], diagnostics: bytes) -> ExitReport:
    """Read the `State` of an inspected container. `diagnostics` is what the runner said on standard error."""
    running = bool(state.get("Running"))
    exit_code = None if running else state.get("ExitCode")
    oom_killed = bool(state.get("OOMKilled"))
    words = ["still running" if running else f"exited with {exit_code}"]
    if oom_killed:
        words.append("a process was killed for memory")
    if state.get("Error"):
        words.append("the engine reported an error")
    return ExitReport(exit_code, oom_killed, _evidence(words, diagnostics))


def unknown_exit(error: Exception, diagnostics: bytes) -> ExitReport:
    """The end of a sandbox of which the engine tells nothing."""
    return ExitReport(None, oom_killed=False, evidence=_evidence([f"unknown: {type(error).__name__}"], diagnostics))


def _evidence(words: list[str], diagnostics: bytes) -> str:
    text = "; ".join(words)
    if diagnostics:
        # The text becomes part of a message, and under gVisor the tool can write to the runner's standard error:
        # only the runner's own form of words is quoted.
        report = _RUNNER_REPORT.search(diagnostics)
        text += f"; runner: {report[1].decode()}" if report else "; unknown words on standard error"
    return text
