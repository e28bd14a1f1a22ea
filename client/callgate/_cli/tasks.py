"""Tasks: `callgate tasks` lists them, shows one, makes one with a grant, and ends one."""

import os
from pathlib import Path
from typing import Annotated, Any, Final, TextIO

import typer

from callgate._cli.arguments import read_object
from callgate._cli.connection import (
    INTERRUPTED,
    AsJson,
    CaFile,
    InClear,
    Target,
    TokenFile,
    connected,
    screen_for,
    usage,
    usage_errors,
)
from callgate._cli.interrupts import Interrupts
from callgate._cli.listing import Listing
from callgate.task import Amounts

TaskId = Annotated[str, typer.Argument(metavar="ID", help="The task, as `callgate tasks` shows it.")]
_HOUR_S: Final = 3600.0

tasks = typer.Typer(
    cls=Listing,
    help="List your tasks, or make, show and end one.\n\n`callgate tasks` lists, `callgate tasks ID` shows.\n\n"
    "A task has a grant that narrows its calls, a budget, and a credential of its own for whoever works on it.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@tasks.command("list")
def list_them(
    *,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many to list.")] = 20,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """List them, newest first."""
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="tasks") as gateway:
        screen.tasks(gateway.tasks(limit))


@tasks.command()
def show(
    *,
    task_id: TaskId,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """Show one with what it has spent."""
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="tasks") as gateway:
        screen.task(gateway.task(task_id))


@tasks.command(epilog="Example: callgate tasks create 'compare texts' --tool text.diff --calls 20")
def create(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="One line for people.")],
    tool: Annotated[
        list[str] | None, typer.Option("--tool", metavar="TOOL", help="A tool that its calls may use, however.")
    ] = None,
    grant_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON: tools by name, each with a JSON Schema that arguments must fit (a small part of JSON Schema: "
            "the gateway says which where it refuses one).",
        ),
    ] = None,
    lifetime: Annotated[float, typer.Option(metavar="SECONDS", help="When it ends by itself.")] = _HOUR_S,
    calls: Annotated[int | None, typer.Option(metavar="N", help="At most so many calls.")] = None,
    cpu: Annotated[float | None, typer.Option(metavar="SECONDS", help="At most so much processor time.")] = None,
    egress: Annotated[int | None, typer.Option(metavar="BYTES", help="At most so much egress.")] = None,
    cost: Annotated[float | None, typer.Option(metavar="UNITS", help="At most so much cost.")] = None,
    save_token: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write its credential to a new file instead of showing it.")
    ] = None,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """Make a task, and show its credential this once."""
    if save_token is not None and as_json:
        usage("--save-token goes without --json, whose document has the credential")
    with usage_errors():
        grant = {**_grant(grant_file), **{each: {} for each in tool or ()}}
        # Before anything is asked for: a credential that could not be written would be lost.
        file = None if save_token is None else _new_file(save_token)
    screen = screen_for(as_json)
    with Interrupts() as interrupts:
        try:
            with connected(screen, target, token_file, ca_file, send_token_in_clear, about="tasks") as gateway:
                made = gateway.create_task(name, grant, lifetime_s=lifetime, budget=Amounts(calls, cpu, egress, cost))
        except BaseException:
            if file is not None and save_token is not None:
                file.close()
                save_token.unlink()
            raise
        if file is None:
            screen.new_task(made)
        else:
            with file:
                file.write(made.token + "\n")
            screen.task(made.task)
        if interrupts.came:
            raise typer.Exit(INTERRUPTED)


@tasks.command()
def end(
    *,
    task_id: TaskId,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """End one: its credential is worthless from then on."""
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="tasks") as gateway:
        screen.task(gateway.end_task(task_id))


def _grant(path: Path | None) -> dict[str, dict[str, Any]]:
    """Read a grant.

    Raises:
        ValueError: it cannot be read, or is not an object of objects.
    """
    grant = {} if path is None else read_object(path)
    if not all(isinstance(schema, dict) for schema in grant.values()):
        raise ValueError(f"{path} must hold a JSON Schema for each tool, {{}} for any arguments")
    return grant


def _new_file(path: Path) -> TextIO:
    """Make a file that nobody else may read.

    Raises:
        ValueError: it exists.
        OSError: it cannot be made.
    """
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")
    except FileExistsError:
        raise ValueError(f"{path} is there already; name a new file for the credential") from None
