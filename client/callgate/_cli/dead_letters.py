"""Dead letters: `callgate dead-letters` lists them, shows one, and redrives, discards or settles it."""

import re
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from callgate._cli.connection import (
    AsJson,
    CaFile,
    InClear,
    Target,
    TokenFile,
    connected,
    screen_for,
)

_CALL_ID: Final = re.compile(r"[0-9a-fA-F-]{36}")
CallId = Annotated[str, typer.Argument(metavar="ID", help="The call, as `callgate dead-letters` shows it.")]


class _Listing(TyperGroup):
    """A group whose first word may be left out: without one it lists, and with an id alone it shows."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  # of the click inside typer
        first = args[0] if args else "-"
        if _CALL_ID.fullmatch(first) or (first.startswith("-") and any(map(_CALL_ID.fullmatch, args))):
            args = ["show", *args]
        elif first.startswith("-") and first not in ctx.help_option_names:
            args = ["list", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


dead_letters = typer.Typer(
    cls=_Listing,
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
        bool, typer.Option("--happened/--did-not-happen", help="Whether the call took effect.", show_default=False)
    ],
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """Say whether a call took effect of which that is not known. For administrators."""
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="dead-letters") as gateway:
        screen.settled("Settled.", gateway.settle(call_id, happened=happened))
