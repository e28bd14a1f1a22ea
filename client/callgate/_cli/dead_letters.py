"""Dead letters: `callgate dead-letters` lists them, shows one, and redrives, discards or settles it."""

from typing import Annotated

import typer

from callgate._cli.connection import (
    AsJson,
    CaFile,
    InClear,
    Target,
    TokenFile,
    connected,
    screen_for,
    usage,
)
from callgate._cli.listing import Listing

CallId = Annotated[str, typer.Argument(metavar="ID", help="The call, as `callgate dead-letters` shows it.")]

dead_letters = typer.Typer(
    cls=Listing,
    help="List the calls that failed for good, show one, or settle what becomes of it.\n\n"
    "`callgate dead-letters` lists, `callgate dead-letters ID` shows.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dead_letters.command("list")
def list_them(
    *,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many to list.")] = 20,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """List them, newest first, and how many there are."""
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="dead-letters") as gateway:
        screen.dead_letters(gateway.dead_letters(limit))


@dead_letters.command()
def show(
    *,
    call_id: CallId,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """Show one with its attempts."""
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="dead-letters") as gateway:
        screen.dead_letter(gateway.dead_letter(call_id))


@dead_letters.command()
def redrive(
    *,
    call_id: CallId,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """Make a new call of one, and show the new call."""
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="dead-letters") as gateway:
        screen.state(gateway.redrive(call_id))


@dead_letters.command()
def discard(
    *,
    call_id: CallId,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """Give one up."""
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="dead-letters") as gateway:
        screen.settled("Discarded.", gateway.discard(call_id))


@dead_letters.command()
def settle(
    *,
    call_id: CallId,
    happened: Annotated[
        bool | None,
        typer.Option("--happened/--did-not-happen", help="Whether the call took effect.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """Say whether a call took effect of which that is not known. For administrators."""
    if happened is None:
        usage("say --happened or --did-not-happen: whether the call took effect")
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="dead-letters") as gateway:
        screen.settled("Settled.", gateway.settle(call_id, happened=happened))
