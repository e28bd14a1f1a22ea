"""What every command has: the options that say where the gateway is, a client of it, and the exit statuses.

What the client raises becomes what is shown and how the program ends here, and nowhere else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from callgate._cli.advice import About
from callgate._cli.documents import Documents
from callgate._cli.screen import Screen, describe
from callgate._cli.settings import DEFAULT_TARGET, load
from callgate._sync.client import Callgate
from callgate.errors import CallgateError, CallRefused, GatewayUnreachable

FAILED: Final = 1
REFUSED: Final = 3
UNREACHABLE: Final = 4
# The EX_TEMPFAIL of sysexits.h: not done yet, and nothing is wrong.
PENDING: Final = 75
INTERRUPTED: Final = 130

_GATEWAY: Final = "Gateway"
_ASSUMED: Final = (
    f"{DEFAULT_TARGET} is the default address, as none was given; for another one give --target or CALLGATE_TARGET."
)
Target = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Where the gateway's gRPC is.", rich_help_panel=_GATEWAY),
]
TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A file that holds the credential.", rich_help_panel=_GATEWAY)
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="PEM roots to trust instead of the built-in ones; means TLS.", rich_help_panel=_GATEWAY
    ),
]
InClear = Annotated[
    bool,
    typer.Option(
        "--send-token-in-clear",
        help="Use no TLS to a gateway that is not on this machine; everybody on the way can read the credential.",
        rich_help_panel=_GATEWAY,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the JSON document, for programs.")]


def screen_for(as_json: bool, *, lines: bool = False) -> Screen:  # noqa: FBT001  # the flag is what it is about
    return Documents(lines=lines) if as_json else Screen()


@contextmanager
def connected(
    screen: Screen,
    target: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    in_clear: bool,  # noqa: FBT001  # one option of four, in the order of the help
    *,
    tool: str | None = None,
    about: About = "calls",
) -> Iterator[Callgate]:
    """Give a client, and turn what it raises into what is shown and the exit status.

    `tool` is what is called, and `about` what the command deals with, so that its advice fits.
    """
    with usage_errors():
        settings = load(target=target, token_file=token_file)
        gateway = Callgate(
            settings.target,
            token=settings.token,
            tls=False if in_clear else None,
            ca_file=ca_file,
            send_token_in_clear=in_clear,
        )
    with gateway:
        try:
            yield gateway
        except CallRefused as refusal:
            takes = _takes(gateway, tool) if refusal.reason == "invalid_arguments" else None
            screen.refusal(refusal, takes, about)
            if settings.assumed and refusal.reason == "unauthenticated":
                screen.note(_ASSUMED)
            raise typer.Exit(REFUSED) from None
        except GatewayUnreachable as error:
            screen.unreachable(error)
            if settings.assumed:
                screen.note(_ASSUMED)
            raise typer.Exit(UNREACHABLE) from None
        except UnicodeEncodeError:
            usage("an argument is not text in UTF-8")


def _takes(gateway: Callgate, tool: str | None) -> str | None:
    """Say what a tool takes, if the gateway tells."""
    if tool is None:
        return None
    try:
        arguments = describe(gateway.tool(tool).input)
    except CallgateError:
        return None
    listed = [
        f"{name} ({kind}, {needed})" if needed else f"{name} ({kind})" for name, (kind, needed, _) in arguments.items()
    ]
    return ", ".join(listed) or "no arguments"


@contextmanager
def usage_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        usage(str(error) if error.filename is None else f"{error.filename}: {error.strerror}")
    except ValueError as error:
        usage(str(error))


def usage(message: str) -> NoReturn:
    raise typer.BadParameter(message)
