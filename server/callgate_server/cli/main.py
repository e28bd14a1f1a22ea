"""The `callgated` program: each command is one function that reads its options and calls what does the work."""

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from callgate_server.cli import audit, catalog, dev, doctor, keys, policy
from callgate_server.cli.check import check
from callgate_server.cli.output import MISTAKE, advice, explained, say, tell
from callgate_server.cli.places import Config, config_file
from callgate_server.cli.serving import serve as run_gateway
from callgate_server.config import load

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.add_typer(catalog.app, name="catalog")
app.add_typer(policy.app, name="policy")

Engine = Annotated[str, typer.Option(help="Address of the container engine.")]
ENGINE = "unix:///var/run/docker.sock"


def _show_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"callgated {version('callgate')}")
        raise typer.Exit


@app.callback()
def program(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Callgate: a sandboxed tool-execution server for AI agents. Start with `callgated dev`."""


@app.command()
def serve(config: Config = None) -> None:
    """Serve in production. Refuses to start without authentication, or with development keys."""
    with explained(config=config):
        run_gateway(
            load(config_file(config)),
            "production",
            lambda gateway: tell(f"callgated: serving http {gateway.endpoints.http} grpc {gateway.endpoints.grpc}"),
        )


@app.command("dev")
def develop(
    state: Annotated[Path, typer.Option(help="Folder for everything this gateway keeps.")] = Path(".callgate"),
    http: Annotated[
        str, typer.Option(help="Loopback address and port for HTTP; port 0 takes a free one.")
    ] = "127.0.0.1:8080",
    grpc: Annotated[
        str, typer.Option(help="Loopback address and port for gRPC; port 0 takes a free one.")
    ] = "127.0.0.1:9090",
    images: Annotated[Path | None, typer.Option(help="A folder with images and tools of your own.")] = None,
    engine: Engine = ENGINE,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "warning",
) -> None:
    """Serve on this machine with everything included: images, secrets, keys, policies. For development only."""
    with explained():
        dev.run(
            state,
            http=http,
            grpc=grpc,
            images=images,
            engine=engine,
            log_level=log_level,
            say=lambda text: tell(f"callgated dev: {text}"),
        )


@app.command("doctor")
def examine(
    engine: Engine = ENGINE,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Say what is missing or weak on this host, and how to mend it. Exit status 1 when Callgate cannot work here."""
    doctor.run(engine, as_json=as_json)


@app.command("check-config")
def check_config(config: Config = None) -> None:
    """Check a configuration, and all that `serve` loads by it before it touches engine, secret store and record."""
    with explained(config=config):
        file = config_file(config)
        settings = load(file)
        remarks = check(settings)
    say(f"{file} is valid: instance {settings.instance}", style="green")
    for remark in remarks:
        say(f"  {advice(remark, config)}")


def main() -> None:
    """Run the program."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape, not a traceback.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        tell("callgated: interrupted")
        sys.exit(MISTAKE)
    except OSError as error:
        # What is left would be written, and fail, once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        tell(f"callgated: the output cannot be written: {error.strerror or error}")
        sys.exit(1)
