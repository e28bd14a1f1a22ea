"""The `callgated` program: each command is one function that reads its options and calls what does the work."""

from pathlib import Path
from typing import Annotated

import typer

from callgate_server.cli import audit, catalog, dev, doctor, keys, policy
from callgate_server.cli.output import MISTAKE, explained, fail, say, tell
from callgate_server.cli.serving import serve as run_gateway
from callgate_server.config import load

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Callgate: a sandboxed tool-execution server for AI agents. Start with `callgated dev`.",
)
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.add_typer(catalog.app, name="catalog")
app.add_typer(policy.app, name="policy")

Config = Annotated[Path, typer.Option("--config", "-c", help="The gateway's configuration.")]
Engine = Annotated[str, typer.Option(help="Address of the container engine.")]
ENGINE = "unix:///var/run/docker.sock"


@app.command()
def serve(config: Config = Path("callgate.yaml")) -> None:
    """Serve in production. Refuses to start without authentication, or with development keys."""
    with explained():
        run_gateway(
            load(config),
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
def check_config(config: Config = Path("callgate.yaml")) -> None:
    """Check a configuration file without starting anything."""
    with explained():
        settings = load(config)
    say(f"{config} is valid: instance {settings.instance}", style="green")


def main() -> None:
    """Run the program."""
    try:
        app()
    except KeyboardInterrupt:
        fail("interrupted", MISTAKE)
