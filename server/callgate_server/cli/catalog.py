"""`callgated catalog`: build images, pin them and the tools, and look at what is pinned."""

from typing import Annotated

import typer

from callgate_server.backends.catalog.build import build as build_catalog
from callgate_server.backends.docker.images import DockerImages
from callgate_server.backends.json_schema import check_constant, check_schema
from callgate_server.cli.output import advice, document, err, explained, fail, say
from callgate_server.cli.places import Config, config_file
from callgate_server.config import deployed_catalog, load
from callgate_server.model.catalog import Tool

app = typer.Typer(no_args_is_help=True, help="Build images and pin tools to them.")


@app.command()
def build(
    config: Config = None,
    *,
    write_schemas: Annotated[
        bool, typer.Option("--write-schemas", help="Write schema files that differ from the tools' type hints.")
    ] = False,
) -> None:
    """Build every image that changed, check every manifest, and write the lock that the gateway starts with."""
    with explained(config=config):
        settings = load(config_file(config))
        report = build_catalog(
            settings.catalog.directories,
            settings.catalog.lock,
            images=DockerImages(settings.engine.socket, settings.catalog.lock.parent),
            check_schema=check_schema,
            check_constant=check_constant,
            write_schemas=write_schemas,
            progress=lambda text: err.print(text, markup=False),
            internal=settings.internal_services,
        )
    if report.catalog is None:
        names = "\n  ".join(str(path) for path in report.drifted)
        remedy = advice("`callgated catalog build --write-schemas`", config)
        fail(f"schemas differ from their tools' type hints; look, then run {remedy}:\n  {names}")
    tools = ", ".join(report.catalog.tools)
    say(f"{settings.catalog.lock}: pinned {tools} to {len(report.images)} images", style="green")


@app.command("list")
def list_tools(
    config: Config = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List the pinned tools with their images and isolation levels, as a gateway of this configuration serves them."""
    with explained(config=config):
        settings = load(config_file(config))
        catalog = deployed_catalog(settings)
    if as_json:
        document(
            [
                {
                    "tool": t.name,
                    "version": t.manifest.version,
                    "isolation": t.manifest.isolation,
                    "digest": t.digest,
                    "image": t.image_digest,
                }
                for t in catalog
            ]
        )
        return
    for row in map(_row, catalog):
        say(
            f"{row['tool']:<24} {row['version']:<10} {row['isolation']:<10} {row['image']:<10} "
            f"{row['image_digest'][:19]}  {row['summary']}"
        )


def _row(tool: Tool) -> dict[str, str]:
    manifest = tool.manifest
    return {
        "tool": tool.name,
        "version": manifest.version,
        "isolation": manifest.isolation,
        "summary": manifest.summary,
        "digest": tool.digest,
        "image": manifest.image,
        "image_digest": tool.image_digest,
    }
