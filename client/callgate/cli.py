"""The command line `callgate`: call tools, look at them and at calls, cancel a call.

It shows what the SDK returns and decides nothing: what is printed is `_cli.screen`'s, where the gateway is and with
which credential `_cli.settings`'s. Exit status: 0 success, 1 the tool did not succeed, 2 usage, 3 refused, 4 no
answer from the gateway, 130 interrupted.

Example::

    from callgate.cli import main

    sys.exit(main(["--version"]))
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

from callgate._cli.arguments import parse_arguments
from callgate._cli.artifacts import save
from callgate._cli.documents import Documents, Envelopes
from callgate._cli.screen import Screen, describe
from callgate._cli.settings import load
from callgate._sync.client import Callgate
from callgate.errors import CallgateError, CallRefused, GatewayUnreachable
from callgate.types import Accepted, Answer, Answered, CallSummary, Event, OnDisconnect

FAILED: Final = 1
REFUSED: Final = 3
UNREACHABLE: Final = 4
INTERRUPTED: Final = 130

app = typer.Typer(
    name="callgate",
    help="Call tools through a Callgate gateway.",
    epilog=(
        "The gateway and the credential come from --target and --token-file, else from CALLGATE_TARGET, "
        "CALLGATE_TOKEN_FILE and CALLGATE_TOKEN, else from the .callgate/client.json of `callgated dev`.\n\n"
        "Exit status: 0 success, 1 the tool did not succeed, 2 usage, 3 refused, 4 no answer, 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    # Tracebacks with local variables would show arguments and tokens.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_GATEWAY: Final = "Gateway"
Target = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Where the gateway's gRPC is.", rich_help_panel=_GATEWAY),
]
TokenFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A file that holds the credential.", rich_help_panel=_GATEWAY)
]
CaFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="PEM roots to trust instead of the built-in ones.", rich_help_panel=_GATEWAY),
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


@dataclass(frozen=True, slots=True)
class _Wish:
    """One call as it was typed."""

    tool: str
    arguments: Mapping[str, Any]
    idempotency_key: str | None
    deadline_s: float | None
    on_disconnect: OnDisconnect


@app.callback(invoke_without_command=True)
def _root(
    *,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if show_version:
        sys.stdout.write(f"callgate {version('callgate')}\n")
        raise typer.Exit


@app.command(
    help="Call a tool and show what came of it.\n\nThe tool's output goes to standard output and standard error, and "
    "its result to standard output if it printed nothing. Ctrl-C cancels the call and shows what it wrote until then.",
    epilog="Example: callgate call python.run --arg code='print(6 * 7)'",
)
def call(
    *,
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="The tool's name, like python.run.")],
    arg: Annotated[
        list[str] | None,
        typer.Option(
            "--arg", "-a", metavar="NAME=TEXT", help="An argument; NAME:=JSON for numbers, lists and objects."
        ),
    ] = None,
    args_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Arguments as one JSON object; - is standard input.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show output while the tool runs.")] = False,
    deadline: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="When to kill the tool, if nothing earlier is declared for it."),
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The same key with the same arguments does not run twice.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Ctrl-C leaves the call running.")] = False,
    save_artifacts: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save the files that the tool leaves, below DIR.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --save-artifacts replace files.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the tool's bytes to standard output as they are; not to a terminal.")
    ] = False,
    envelope: Annotated[
        bool, typer.Option("--envelope", help="Print the answer as text for a model, between marks no tool can forge.")
    ] = False,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    if raw and (as_json or stream or sys.stdout.isatty()):
        _usage("--raw goes without --json and --stream, and to a file or a pipe")
    if envelope and (as_json or stream or raw):
        _usage("--envelope goes without --json, --stream and --raw")
    with _usage_errors():
        arguments = parse_arguments(arg or (), args_file)
    wish = _Wish(tool, arguments, idempotency_key, deadline, "detach" if detach else "cancel")
    screen = Envelopes() if envelope else _screen(as_json, lines=stream)
    with _gateway(screen, target, token_file, ca_file, send_token_in_clear, tool=tool) as gateway:
        state, interrupted = _follow(gateway, wish, screen.event if stream else _unseen, screen)
    screen.state(state, raw=raw)
    saved = save_artifacts is None or _save(state, save_artifacts, screen, overwrite=force)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if not (isinstance(state, Answer) and state.ok and saved):
        raise typer.Exit(FAILED)


@app.command()
def tools(
    *,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this tool.")] = None,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """List the tools that you may call, or show what one of them takes."""
    screen = _screen(as_json)
    with _gateway(screen, target, token_file, ca_file, send_token_in_clear) as gateway:
        if name is None:
            screen.tools(gateway.tools())
        else:
            screen.tool(gateway.tool(name))


@app.command()
def calls(
    *,
    call_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Show this call.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many to list.")] = 20,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """List your newest calls, or show one with its answer."""
    screen = _screen(as_json)
    with _gateway(screen, target, token_file, ca_file, send_token_in_clear) as gateway:
        if call_id is None:
            screen.calls(gateway.calls(limit))
        else:
            screen.state(gateway.get(call_id))


@app.command()
def cancel(
    *,
    call_id: Annotated[str, typer.Argument(metavar="ID", help="The call, as `callgate calls` shows it.")],
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """Cancel a running call and show what it wrote until then. A call that has ended stays as it is."""
    screen = _screen(as_json)
    with _gateway(screen, target, token_file, ca_file, send_token_in_clear) as gateway:
        screen.state(gateway.cancel(call_id))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape, not a traceback.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        app(args=arguments, prog_name="callgate")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else FAILED
    return 0


def _screen(as_json: bool, *, lines: bool = False) -> Screen:  # noqa: FBT001  # the flag is what it is about
    return Documents(lines=lines) if as_json else Screen()


@contextmanager
def _gateway(
    screen: Screen,
    target: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    in_clear: bool,  # noqa: FBT001  # one option of four, in the order of the help
    *,
    tool: str | None = None,
) -> Iterator[Callgate]:
    """Give a client, and turn what it raises into what is shown and the exit status. `tool` is what is called."""
    with _usage_errors():
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
            screen.refusal(refusal, _takes(gateway, tool) if refusal.reason == "invalid_arguments" else None)
            raise typer.Exit(REFUSED) from None
        except GatewayUnreachable as error:
            screen.unreachable(error)
            raise typer.Exit(UNREACHABLE) from None


def _follow(
    gateway: Callgate, wish: _Wish, on_event: Callable[[Event], None], screen: Screen
) -> tuple[Answer | CallSummary, bool]:
    """Make the call and follow it to its end; the flag says that the person interrupted it."""
    call_id: str | None = None
    with _usage_errors():
        events = gateway.stream(
            wish.tool,
            wish.arguments,
            idempotency_key=wish.idempotency_key,
            deadline_s=wish.deadline_s,
            on_disconnect=wish.on_disconnect,
        )
    try:
        for event in events:
            on_event(event)
            if isinstance(event, Accepted):
                call_id = event.call_id
            if isinstance(event, Answered):
                return event.answer, False
    except KeyboardInterrupt:
        if call_id is None:
            raise
    if call_id is None:
        raise AssertionError("a stream ends with an answer or an exception")
    if wish.on_disconnect == "detach":
        screen.note("Left running.")
        return gateway.get(call_id), True
    screen.note("Cancelling; press Ctrl-C again to leave at once.")
    return gateway.cancel(call_id), True


def _unseen(event: Event) -> None:
    """What becomes of events that nobody asked to see."""


def _save(state: Answer | CallSummary, folder: Path, screen: Screen, *, overwrite: bool) -> bool:
    """Save what was taken of the tool's files; return whether all of it could be saved."""
    complete = True
    for artifact in state.artifacts if isinstance(state, Answer) else ():
        if artifact.rejected is not None:
            continue
        try:
            screen.saved(save(artifact, folder, overwrite=overwrite))
        except FileExistsError:
            screen.not_saved(artifact, "there is something of that name; --force replaces a file")
            complete = False
        except (ValueError, OSError) as error:
            screen.not_saved(artifact, getattr(error, "strerror", None) or str(error))
            complete = False
    return complete


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
def _usage_errors() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        _usage(str(error))


def _usage(message: str) -> NoReturn:
    raise typer.BadParameter(message)
