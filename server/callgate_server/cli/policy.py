"""`callgated policy`: why a call would be allowed or refused, before it is made."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, get_args
from urllib.parse import urlsplit

import typer

from callgate_server.admission.validate import check_arguments, find_tool
from callgate_server.backends.catalog.manifests import load_yaml
from callgate_server.backends.cedar.cases import parse_cases, run_cases
from callgate_server.backends.cedar.directory import PolicyDirectory
from callgate_server.backends.cedar.policy import ExplainedPart, Explanation
from callgate_server.backends.json_schema import CompiledSchemas
from callgate_server.cli.output import err, explained, say
from callgate_server.config import Settings, deployed_catalog, load
from callgate_server.execution.egress_names import plain_authority, plain_path
from callgate_server.execution.egress_rules import decide
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.egress import DEFAULT_PORTS, EgressAsk, EgressRule, Scheme
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
    to: Annotated[
        str | None, typer.Option("--to", help="What the running tool wants to reach, like https://api.example.com/v1.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="Method of the request; without it a connection that nobody sees into."),
    ] = None,
    config: Config = Path("callgate.yaml"),
) -> None:
    """Say what policy rules on one call, which policies decide, and which nearly did. Exit status 1 unless allowed.

    With `--to`: on what the running tool may reach, by its own rules and by policy.
    """
    with explained(CallError):
        settings = load(config)
        catalog, policy = _live(settings)
        chosen = find_tool(catalog, tool)
        caller = Caller(tenant, agent, tuple(role or ()))
        if to is None:
            decoded, _ = check_arguments(CompiledSchemas.of(catalog), chosen, arguments.encode())
            allowed, explanation = True, policy.explain(caller, chosen, decoded)
        else:
            ask = _ask(to, method)
            allowed, explanation = _by_rules(chosen, ask), policy.explain_consent(caller, chosen, ask)
    about = f"{tenant}/{agent} calling {tool}" if to is None else f"{tool}, called by {tenant}/{agent}, reaching {to}"
    if not (_told(explanation, about) and allowed):
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


def _ask(url: str, method: str | None) -> EgressAsk:
    """Return what a tool asks for when it wants this.

    Raises:
        ValueError: it is no address of anything that a tool could reach.
    """
    parts = urlsplit(url)
    schemes: dict[str, Scheme] = {scheme: scheme for scheme in get_args(Scheme)}
    if parts.scheme not in schemes:
        raise ValueError(f"write one of {', '.join(schemes)}, like https://api.example.com/v1")
    host, port = plain_authority(parts.netloc, DEFAULT_PORTS.get(parts.scheme))
    path = None if method is None else plain_path(parts.path or "/")
    return EgressAsk(schemes[parts.scheme], host, port, method, path)


def _by_rules(tool: Tool, ask: EgressAsk) -> bool:
    """Say what the tool's own rules make of it."""
    rule = decide(tool.manifest.rules, ask)
    if isinstance(rule, EgressRule):
        say(f"rules of {tool.name}: {rule.destination}{f' with {rule.secret}' if rule.secret else ''}", style="green")
        return True
    say(f"rules of {tool.name}: {rule.value}", style="red")
    return False


def _told(explanation: Explanation, about: str) -> bool:
    """Show a ruling with its parts; return whether it is an allow."""
    ruling = explanation.verdict.ruling
    allowed = ruling is Ruling.ALLOW
    say(f"{ruling.value}: {about}", style="green" if allowed else "red")
    for part in explanation.parts:
        _show(part)
    return allowed


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
