"""The command line `callgate`: call tools, look at them and at calls, approve calls, and clear up after failed ones.

It shows what the SDK returns and decides nothing: what is printed is `_cli.screen`'s, where the gateway is and with
which credential `_cli.settings`'s. Exit status: 0 success, 1 the tool did not succeed, nothing was decided or nothing
could be shown, 2 usage, 3 refused, 4 no answer from the gateway, 75 the call waits for an approval, 130 interrupted.

Example::

    from callgate.cli import main

    sys.exit(main(["--version"]))
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated

import typer

from callgate._cli import approving, calling, operating
from callgate._cli.connection import FAILED, AsJson, CaFile, InClear, Target, TokenFile, connected, screen_for, usage
from callgate._cli.dead_letters import dead_letters
from callgate._cli.tasks import tasks

app = typer.Typer(
    name="callgate",
    help="Call tools through a Callgate gateway.",
    epilog=(
        "The gateway and the credential come from --target and --token-file, else from CALLGATE_TARGET, "
        "CALLGATE_TOKEN_FILE and CALLGATE_TOKEN. Where none of these is given, both come from the "
        ".callgate/client.json of `callgated dev`; where only a credential is, it goes to 127.0.0.1:9090.\n\n"
        "Exit status: 0 success, 1 the tool did not succeed, 2 usage, 3 refused, 4 no answer, "
        "75 waits for an approval, 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    # Tracebacks with local variables would show arguments and tokens.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    *,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if show_version:
        sys.stdout.write(f"callgate {version('callgate')}\n")
        raise typer.Exit


app.command(help=calling.CALL_HELP, epilog=calling.CALL_EXAMPLE)(calling.call)
app.command(help=calling.FOLLOW_HELP)(calling.follow)


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
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear) as gateway:
        if name is None:
            screen.tools(gateway.tools())
        else:
            screen.tool(gateway.tool(name))


@app.command()
def calls(
    *,
    call_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Show this call.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many to list.")] = 20,
    save_artifacts: calling.SaveArtifacts = None,
    force: calling.Force = False,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """List your newest calls, or show one with its answer."""
    if save_artifacts is not None and call_id is None:
        usage("--save-artifacts goes with the ID of a call")
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear) as gateway:
        if call_id is None:
            screen.calls(gateway.calls(limit))
            return
        state = gateway.get(call_id)
    screen.state(state)
    if save_artifacts is not None and not calling.save_all(state, save_artifacts, screen, overwrite=force):
        raise typer.Exit(FAILED)


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
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear) as gateway:
        screen.state(gateway.cancel(call_id))


app.command()(approving.approvals)
app.command()(approving.approve)
app.command()(approving.deny)
app.add_typer(dead_letters, name="dead-letters")
app.add_typer(tasks, name="tasks")
app.command()(operating.stop)
app.command()(operating.resume)
app.command()(operating.stops)
app.command()(operating.breakers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape, not a traceback.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except OSError as error:
        return _unwritten(error)
    return status


def _run(arguments: Sequence[str] | None) -> int:
    try:
        app(args=arguments, prog_name="callgate")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else FAILED
    return 0


def _unwritten(error: OSError) -> int:
    """Say that an output is lost, unless its reader left: other files are seen to where they are read and made."""
    with suppress(OSError):
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"callgate: what there is to show cannot be written: {error.strerror}\n")
            sys.stderr.flush()
    # What is left in its buffer would fail once more when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED
