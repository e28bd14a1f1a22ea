"""`callgated policy`: why a call would be allowed or refused, before it is made."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from callgate_server.admission.validate import check_arguments, find_tool
from callgate_server.backends.catalog.manifests import load_yaml
from callgate_server.backends.cedar.cases import parse_cases, run_cases
from callgate_server.backends.cedar.directory import PolicyDirectory
from callgate_server.backends.cedar.policy import ExplainedPart
from callgate_server.backends.json_schema import CompiledSchemas
from callgate_server.cli.output import err, explained, say
from callgate_server.config import Settings, deployed_catalog, load
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Catalog
from callgate_server.model.errors import CallError
from callgate_server.model.verdict import Ruling

app = typer.Typer(no_args_is_help=True, help="Explain and test policies without making a call.")

Config = Annotated[Path, typer.Option("--config", "-c", help="The gateway's configuration.")]


@app.command()
def explain(
    tool: Annotated[str, typer.Argument(help="Tool, like shell.run.")],
    tenant: Annotated[str, typer.Option(help="Tenant of the caller.")],
    agent: Annotated[str, typer.Option(help="Name of the agent.")],
    role: Annotated[list[str] | None, typer.Option(help="Role of the agent; may be given several times.")] = None,
    arguments: Annotated[str, typer.Option("--arguments", help="Arguments of the call, as JSON.")] = "{}",
    config: Config = Path("callgate.yaml"),
) -> None:
    """Say what policy rules on one call, which policies decide, and which nearly did. Exit status 1 unless allowed."""
    with explained(CallError):
        settings = load(config)
        catalog, policy = _live(settings)
        chosen = find_tool(catalog, tool)
        decoded, _ = check_arguments(CompiledSchemas.of(catalog), chosen, arguments.encode())
        explanation = policy.explain(Caller(tenant, agent, tuple(role or ())), chosen, decoded)
    ruling = explanation.verdict.ruling
    say(f"{ruling.value}: {tenant}/{agent} calling {tool}", style="green" if ruling is Ruling.ALLOW else "red")
    for part in explanation.parts:
        _show(part)
    if ruling is not Ruling.ALLOW:
        raise typer.Exit(1)


@app.command("test")
def run_tests(
    file: Annotated[Path, typer.Argument(help="YAML file with a list of cases under `cases`.")],
    config: Config = Path("callgate.yaml"),
) -> None:
    """Run cases against the configured policies: who, which tool and arguments, and the ruling to expect."""
    with explained():
        settings = load(config)
        catalog, policy = _live(settings)
        cases = parse_cases(load_yaml(file))
        results = list(run_cases(cases, policy, CompiledSchemas.of(catalog), catalog))
    for result in results:
        say(f"{'FAILED' if result.fault else 'ok':<7} {result.name}{': ' + result.fault if result.fault else ''}")
    failed = sum(bool(result.fault) for result in results)
    say(f"{len(results) - failed} passed, {failed} failed")
    if failed or not results:
        raise typer.Exit(1)


@app.command()
def schema(config: Config = Path("callgate.yaml")) -> None:
    """Print the Cedar schema of this catalog, for authors of policies and their editors."""
    with explained():
        _, policy = _live(load(config))
    typer.echo(policy.schema_text)


def _live(settings: Settings) -> tuple[Catalog, PolicyDirectory]:
    catalog = deployed_catalog(settings)
    alarms: list[str] = []
    return catalog, PolicyDirectory(settings.policy.directory, catalog, alarms.append, lambda: datetime.now(UTC))


def _show(part: ExplainedPart) -> None:
    say(f"  {part.part.action} on {part.part.resource}: {part.part.ruling.value}")
    for source in part.deciding:
        say(f"    decided by {source.id} ({source.file}:{source.line})")
        say("      " + "\n      ".join(source.text.strip().splitlines()))
    if not part.deciding:
        say("    no policy applies")
    for source in part.nearly:
        say(f"    in scope, but its conditions did not hold: {source.id} ({source.file}:{source.line})")
    for error in part.part.errors:
        err.print(f"    error: {error}", style="red", markup=False)
