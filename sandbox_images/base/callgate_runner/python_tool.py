"""A Python tool: a function that gets the call's arguments by name and returns its result as JSON.

This runs in the tool's own process. Whatever the function does, its end becomes an exit status that tells the
truth: a result that cannot be written whole is a failure.
"""

import _signal  # type: ignore[import-not-found]  # the stubs know `signal` alone
import atexit
import io
import os
import sys

from callgate_runner import json_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

TOOLS_FOLDER = "/opt/callgate/tools"
PACKAGES_FOLDER = "/opt/callgate/packages"
_RUNNER_FOLDER = "/opt/callgate/runner"
_RESULT_FD = 3
# What practically every Python tool imports sooner or later.
COMMON_IMPORTS = ("json", "base64", "contextlib", "traceback", "typing")


def run(function: str, *, with_result: bool) -> int:
    """Call `module:function` and return the exit status of the process.

    `with_result` False: what it prints is its result, and what it returns is dropped.
    """
    become_a_python_program()
    return call(function, with_result=with_result)


def call(function: str, *, with_result: bool) -> int:
    """Call `module:function` in a process that is a Python program already, and return its exit status."""
    try:
        status = _call(function, with_result=with_result)
    except SystemExit as request:
        status = _status_of(request)
    except BaseException as error:
        _report(error)
        status = 1
    return _finish(status)


def preload(function: str) -> bool:
    """Import the tool's module, in a Python program, before there is a call. Return whether that succeeded."""
    try:
        __import__(function.partition(":")[0])
    except BaseException:  # whatever it is, the call is where it is told
        return False
    return True


def forget_inherited_randomness() -> None:
    """Make what is random differ between forks of one process.

    The standard library's generators do so by themselves. OpenSSL tells forks apart by their process id, which is
    the same in every new namespace; numpy's global generator does not tell them apart.
    """
    if "_ssl" in sys.modules:
        sys.modules["_ssl"].RAND_add(os.urandom(32), 32.0)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def become_a_python_program() -> None:
    """Give the function the surroundings of a program of its own."""
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
    _signal.signal(_signal.SIGXFSZ, _signal.SIG_IGN)
    sys.argv = [""]
    sys.path = [TOOLS_FOLDER, PACKAGES_FOLDER, *(path for path in sys.path if path != _RUNNER_FOLDER)]
    sys.dont_write_bytecode = True
    # Lines leave at once, so that a tool killed at its deadline has said what it said.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # lives as long as the process
    sys.stdout = _text_output(1, "surrogateescape")
    sys.stderr = _text_output(2, "backslashreplace")


def _text_output(fd: int, errors: str) -> io.TextIOWrapper:
    raw = open(fd, "wb", closefd=False)  # noqa: SIM115  # lives as long as the process
    return io.TextIOWrapper(raw, encoding="utf-8", errors=errors, line_buffering=True)


def _call(function: str, *, with_result: bool) -> int:
    module_name, _, function_name = function.partition(":")
    arguments, _, secrets = sys.stdin.buffer.read().partition(b"\n")
    # The arguments of a call are an object, which the gateway has checked.
    keywords: dict[str, object] = json_text.decode(arguments)  # type: ignore[assignment]
    tool = getattr(__import__(module_name), function_name)
    if _takes_secrets(tool):
        if "secrets" in keywords:
            raise TypeError("`secrets` is for the gateway to give: the tool may not have an argument of that name")
        keywords["secrets"] = json_text.decode(secrets) if secrets else {}
    value = tool(**keywords)
    if with_result:
        _write_result(value)
    return 0


def _takes_secrets(tool: "Callable[..., object]") -> bool:
    while hasattr(tool, "__wrapped__"):
        tool = tool.__wrapped__
    code = tool.__code__
    return "secrets" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def _write_result(value: object) -> None:
    # Strict: NaN and infinities are not JSON, and a lone surrogate is not UTF-8.
    left = memoryview(json_text.encode(value))
    while left:
        left = left[os.write(_RESULT_FD, left) :]
    os.close(_RESULT_FD)


def _status_of(request: SystemExit) -> int:
    if request.code is None:
        return 0
    if isinstance(request.code, int):
        return request.code & 0xFF
    sys.stderr.write(f"{request.code}\n")
    return 1


def _report(error: BaseException) -> None:
    """Print a traceback as the interpreter does, from the tool's first frame on: ours say nothing to its author."""
    place = error.__traceback__
    while place is not None and place.tb_frame.f_code.co_filename == __file__:
        place = place.tb_next
    sys.excepthook(type(error), error.with_traceback(place), place)


def _finish(status: int) -> int:
    """Do what the interpreter does at its end: wait for threads, run exit functions, flush."""
    try:
        threading = sys.modules.get("threading")
        if threading is not None:
            # What the interpreter itself calls.
            threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = status or 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            # Closed or taken away by the tool: what a program of its own would report as status 120.
            status = status or 120
    return status
