"""Approvals: `callgate approvals`, `callgate approve` and `callgate deny`.

What is decided is what was shown: a decision carries the digest of the approval that was on the screen, or the one
that was typed.
"""

import sys
import termios
from contextlib import suppress
from typing import Annotated, Final

import typer

from callgate._cli.connection import (
    FAILED,
    INTERRUPTED,
    AsJson,
    CaFile,
    InClear,
    Target,
    TokenFile,
    connected,
    screen_for,
    usage,
)
from callgate._cli.screen import Screen
from callgate._cli.text import one_line
from callgate._sync.client import Callgate
from callgate.approval import Approval

CallId = Annotated[str, typer.Argument(metavar="ID", help="The call, as `callgate approvals` shows it.")]
Digest = Annotated[
    str | None, typer.Option(metavar="DIGEST", help="Decide without being asked, if the call has this digest.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Decide without being asked, whatever is shown.")]
_BOTH: Final = "give --digest or --yes, not both"


def approvals(
    *,
    call_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Show this call with its arguments.")] = None,
    decided: Annotated[bool, typer.Option("--all", help="List also what was decided lately.")] = False,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """List what waits for your approval, or show one call to judge."""
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="approvals") as gateway:
        if call_id is None:
            screen.approvals([one for one in gateway.approvals() if decided or one.waits])
        else:
            screen.approval(gateway.approval(call_id))


def approve(
    *,
    call_id: CallId,
    digest: Digest = None,
    yes: Yes = False,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """Show a call that needs an approval, ask, and let it run."""
    _check("approve", call_id, digest, yes=yes, as_json=as_json)
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="approvals") as gateway:
        digest = digest or _ask("Approve", gateway, call_id, screen, yes=yes)
        screen.decided(gateway.approve(call_id, digest))


def deny(
    *,
    call_id: CallId,
    digest: Digest = None,
    yes: Yes = False,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """Show a call that needs an approval, ask, and refuse it for good."""
    _check("deny", call_id, digest, yes=yes, as_json=as_json)
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="approvals") as gateway:
        digest = digest or _ask("Deny", gateway, call_id, screen, yes=yes)
        screen.decided(gateway.deny(call_id, digest))


def _check(command: str, call_id: str, digest: str | None, *, yes: bool, as_json: bool) -> None:
    """Refuse to decide where nobody could be asked, before anything is sent."""
    if digest is not None and yes:
        usage(_BOTH)
    if digest == "":
        usage("--digest is empty")
    asks = digest is None and not yes
    if asks and (as_json or not (sys.stdin.isatty() and sys.stdout.isatty())):
        usage(
            "nobody can be asked here; look at it with `callgate approvals ID`, then type "
            f"`callgate {command} {one_line(call_id)} --digest DIGEST`"
        )


def _ask(decision: str, gateway: Callgate, call_id: str, screen: Screen, *, yes: bool) -> str:
    """Show the approval, ask unless `yes`, and return its digest."""
    approval = gateway.approval(call_id)
    whole = screen.judged(approval)
    if not yes:
        if not whole:
            screen.note(
                "Too long to be asked about here. Read all of it with `callgate approvals ID --json`, then decide "
                "with --digest."
            )
            raise typer.Exit(FAILED)
        _forget_what_was_typed()
        status = _answer(decision, approval) if approval.waits else FAILED
        if status:
            screen.note("Nothing was decided.")
            raise typer.Exit(status)
    return approval.digest


def _answer(decision: str, approval: Approval) -> int:
    """Ask, and return 0 for yes, or the exit status."""
    try:
        agreed = typer.confirm(f"{decision} {one_line(approval.tool)} as shown above?", err=True)
    except typer.Abort as left:
        # The end of the input is a no.
        return INTERRUPTED if isinstance(left.__context__, KeyboardInterrupt) else FAILED
    return 0 if agreed else FAILED


def _forget_what_was_typed() -> None:
    """Drop keys that were pressed before there was anything to judge."""
    with suppress(termios.error, OSError):
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
