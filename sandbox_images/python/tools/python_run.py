"""`python.run`: a caller's program, run in this process as if the interpreter had been started on it.

What it prints is the call's output, how it ends is how the call ends, what it leaves in /out is handed back.
Tracebacks show the program's own frames and none of ours.

Types are only for who reads them and for the schemas: what a program does not need is not imported before it.
"""

from __future__ import annotations

import builtins
import os
import sys

import workspace

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    from typing import Annotated, TypedDict

    FileName = Annotated[str, ("pattern", "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"), ("maxLength", 100)]

    class TextFile(TypedDict):
        """A text file."""

        name: FileName
        content: Annotated[str, "Its text.", ("maxLength", 1_000_000)]

    class BinaryFile(TypedDict):
        """Any file, as Base64."""

        name: FileName
        content_base64: Annotated[str, "Its bytes in Base64.", ("maxLength", 1_000_000)]

    class Result(TypedDict):
        exit_code: Annotated[int, "Always 0: a program that ends otherwise fails the call."]
        files: Annotated[list[str], "Names of the files in /out, which come as artifacts."]


PROGRAM = "main.py"
OUTPUT_FOLDER = "/out"
MAX_LISTED = 100


def run(
    code: Annotated[str, ("minLength", 1), ("maxLength", 262_144)],
    files: Annotated[list[TextFile | BinaryFile], ("maxItems", 32)] | None = None,
    args: Annotated[list[Annotated[str, ("maxLength", 4096)]], ("maxItems", 64)] | None = None,
) -> Result:
    """Run a Python 3.11 program with numpy, pandas, requests and httpx, and no network but what the gateway allows.

    Args:
        code: The program. Print what you want to see; write files to keep into /out.
        files: Files to put into the working folder first. The program itself is main.py there. All of a request
            together is at most 1 MiB, unless the gateway's operator decided otherwise.
        args: The program's command line arguments, sys.argv[1:].
    """
    program = os.path.join(workspace.FOLDER, PROGRAM)
    workspace.enter([{"name": PROGRAM, "content": code}, *(files or [])])
    _become_the_program(program, args or [])
    _execute(code, program)
    return {"exit_code": 0, "files": _produced(OUTPUT_FOLDER)}


def _become_the_program(program: str, args: list[str]) -> None:
    sys.argv = [program, *args]
    sys.path.insert(0, os.path.dirname(program))
    # The interpreter runs without `site`, and programs expect these two of it.
    for name in ("exit", "quit"):
        setattr(builtins, name, sys.exit)
    # One core is all there is: a thread for each of the host's would only use up the process limit.
    for library in ("OPENBLAS", "OMP", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def _execute(code: str, program: str) -> None:
    module = type(sys)("__main__")
    module.__file__ = program
    sys.modules["__main__"] = module
    try:
        exec(compile(code.encode(), program, "exec", dont_inherit=True), module.__dict__)  # noqa: S102  # the purpose
    except SystemExit as request:
        if request.code is not None and request.code != 0:
            raise
    except BaseException as error:
        error.__traceback__ = _own_frames(error.__traceback__, program)
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(1) from None


def _own_frames(traceback: types.TracebackType | None, program: str) -> types.TracebackType | None:
    while traceback is not None and traceback.tb_frame.f_code.co_filename != program:
        traceback = traceback.tb_next
    return traceback


def _produced(folder: str) -> list[str]:
    """Names of the regular files below `folder`. Which of them are taken is for the runner to decide."""
    names: list[str] = []
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(place, name)
            if os.path.isfile(path) and not os.path.islink(path) and name.isprintable():
                names.append(os.path.relpath(path, folder))
            if len(names) == MAX_LISTED:
                return names
    return names
