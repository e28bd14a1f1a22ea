"""How `callgated` speaks: results to standard output, trouble to standard error, exit status says success."""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

DENIED = 1
MISTAKE = 2


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is: no markup in it is interpreted, since parts of it may come from files."""
    out.print(text, style=style, markup=False)


def tell(text: str) -> None:
    """Print a line about what goes on, to standard error. A terminal that has been closed does not end that."""
    with suppress(OSError):
        typer.echo(text, err=True)


def fail(text: str, code: int = 1) -> NoReturn:
    """Print what went wrong and leave with `code`."""
    err.print(f"callgated: {text}", style="red", markup=False)
    raise typer.Exit(code)


def document(value: Any) -> None:  # noqa: ANN401  # anything that JSON can hold
    """Print for programs."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def explained(*more: type[Exception], config: Path | None = None, code: int = 1) -> Iterator[None]:
    """Turn the errors whose texts are written for people into an exit, without a traceback.

    `config` is the configuration that was given, if one was: see `advice`.
    """
    expected: tuple[type[Exception], ...] = (ValueError, OSError, RuntimeError, *more)
    try:
        yield
    except expected as error:
        fail(advice(_said(error), config), code)


def advice(text: str, config: Path | None) -> str:
    """A text in which the command that it advises is about the same configuration as the one that was given."""
    if config is None:
        return text
    return text.replace("`callgated catalog build", f"`callgated catalog build -c {shlex.quote(str(config))}")


def _said(error: Exception) -> str:
    """The text of an error, without the number that the system's own ones begin with."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


Progress = Callable[[str], None]
