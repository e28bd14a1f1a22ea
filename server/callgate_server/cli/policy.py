"""`callgated policy`: why a call, or what an administrator does, would be allowed or refused."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, get_args
from urllib.parse import urlsplit

import typer

from callgate_server.admission.authorize import OPERATIONS, Operation
from callgate_server.admission.validate import check_arguments, find_tool
from callgate_server.backends.catalog.manifests import load_yaml
from callgate_server.backends.cedar.cases import parse_cases, run_cases
from callgate_server.backends.cedar.directory import PolicyDirectory
from callgate_server.backends.cedar.policy import ExplainedPart, Explanation
from callgate_server.backends.json_schema import CompiledSchemas
from callgate_server.cli.output import DENIED, MISTAKE, err, explained, say
from callgate_server.cli.places import Config, config_file
from callgate_server.config import Settings, deployed_catalog, load
from callgate_server.execution.egress_names import plain_authority, plain_path
from callgate_server.execution.egress_rules import Why, decide, for_destination
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.egress import DEFAULT_PORTS, EgressAsk, EgressRule, Scheme
from callgate_server.model.errors import CallError
from callgate_server.model.verdict import Ruling

app = typer.Typer(no_args_is_help=True, help="Explain and test policies without making a call.")


@app.command()
def explain(
    tool: Annotated[str | None, typer.Argument(help="Tool, like shell.run; none with --administer.")] = None,
    *,
    tenant: Annotated[str, typer.Option(help="Tenant of the caller.")],
    agent: Annotated[str, typer.Option(help="Name of the agent.")],
    role: Annotated[list[str] | None, typer.Option(help="Role of the agent; may be given several times.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Task of the caller, as policies see it (context.task); without it, none.")
    ] = None,
    arguments: Annotated[
        str | None, typer.Option("--arguments", help="Arguments of the call, as JSON; without it, {}.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="What the running tool wants to reach, like https://api.example.com/v1.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="Method of the request; without it a connection that nobody sees into."),
    ] = None,
    administer: Annotated[
        Operation | None,
        typer.Option(
            "--administer",
            help="What an administrator wants to do; shared_breakers and metrics are of all tenants.",
        ),
    ] = None,
    config: Config = None,
) -> None:
    """Say what policy rules on one call, which policies decide, and which nearly did.

    With `--to`: on what the running tool may reach, by its own rules and by policy.

    With `--administer`, and no tool: on what an administrator does for the whole tenant.

    Exit status 0: allowed; 1: not allowed; 2: the question cannot be answered (a mistake in it, or a file).
    """
    _refuse_mixed(tool, arguments, to, method, administer)
    caller = Caller(tenant, agent, tuple(role or ()), task)
    with explained(CallError, config=config, code=MISTAKE):
        catalog, policy = _live(load(config_file(config)))
        if administer is not None:
            allowed = _act_told(policy, caller, administer)
        else:
            chosen = find_tool(catalog, tool or "")
            if to is not None:
                allowed = _connection_told(policy, caller, chosen, to, method)
            else:
                decoded, _ = check_arguments(
                    CompiledSchemas.of(catalog), chosen, (arguments or "{}").encode(), may_see=lambda: True
                )
                allowed = _told(policy.explain(caller, chosen, decoded), f"{caller.name} calling {chosen.name}")
    if not allowed:
        raise typer.Exit(DENIED)


@app.command("test")
def run_tests(
    file: Annotated[Path, typer.Argument(help="YAML file with a list of cases under `cases`.")],
    config: Config = None,
) -> None:
    """Run cases against the configured policies: who, which tool and arguments, and the ruling to expect."""
    with explained(config=config):
        settings = load(config_file(config))
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
def schema(config: Config = None) -> None:
    """Print the Cedar schema of this catalog, for authors of policies and their editors."""
    with explained(config=config):
        _, policy = _live(load(config_file(config)))
    typer.echo(policy.schema_text)


def _live(settings: Settings) -> tuple[Catalog, PolicyDirectory]:
    catalog = deployed_catalog(settings)
    alarms: list[str] = []
    return catalog, PolicyDirectory(settings.policy.directory, catalog, alarms.append, lambda: datetime.now(UTC))


def _refuse_mixed(
    tool: str | None, arguments: str | None, to: str | None, method: str | None, administer: Operation | None
) -> None:
    """Refuse what asks two questions at once, or none: part of it would be passed over in silence.

    Raises:
        typer.BadParameter: says what to leave out, or what to add.
    """
    if administer is not None:
        given = {"TOOL": tool, "--arguments": arguments, "--to": to, "--method": method}
        if mixed := ", ".join(name for name, value in given.items() if value is not None):
            raise typer.BadParameter(f"--administer is about no call: leave out {mixed}, or leave out --administer")
    elif tool is None:
        raise typer.BadParameter(f"name a tool, or give --administer with one of {', '.join(OPERATIONS)}")
    elif to is not None and arguments is not None:
        raise typer.BadParameter("with --to nothing looks at arguments: leave out one of --to and --arguments")
    elif to is None and method is not None:
        raise typer.BadParameter("--method is that of a request: say with --to what the tool wants to reach")


def _act_told(policy: PolicyDirectory, caller: Caller, operation: Operation) -> bool:
    """Say whether an administrator may do this; nobody can be asked to approve it."""
    explanation = policy.explain_administration(caller, operation)
    allowed = _told(explanation, f"{caller.name} administering {caller.tenant}: {operation}")
    if explanation.verdict.ruling is Ruling.NEEDS_APPROVAL:
        say("  refused: what administrators do cannot be approved; permit it without `@approval`, or do not", "red")
    return allowed


def _connection_told(policy: PolicyDirectory, caller: Caller, tool: Tool, to: str, method: str | None) -> bool:
    """Say whether a running tool may reach this: its own rules and policy both have to allow it."""
    ask = _ask(to, method)
    rule = decide(tool.manifest.rules, ask)
    explanation = policy.explain_consent(caller, tool, ask)
    named = isinstance(rule, EgressRule)
    ruling = explanation.verdict.ruling if named else Ruling.DENY
    _headline(ruling, f"{tool.name}, called by {caller.name}, reaching {to}")
    say(f"  rules of {tool.name}: {_ruled(tool, ask, rule)}", style="green" if named else "red")
    for part in explanation.parts:
        _show(part)
    return ruling is Ruling.ALLOW


def _ask(url: str, method: str | None) -> EgressAsk:
    """Return what a tool asks for when it wants this.

    Raises:
        ValueError: it is no address of anything that a tool could reach.
    """
    parts = urlsplit(url)
    schemes: dict[str, Scheme] = {scheme: scheme for scheme in get_args(Scheme)}
    if parts.scheme not in schemes:
        raise ValueError(f"write one of {', '.join(schemes)}, like https://api.example.com/v1")
    if parts.scheme == "tcp" and (method is not None or not parts.netloc.rpartition(":")[2].isdigit()):
        raise ValueError("write tcp with its port, like tcp://db.example.com:5432, and without --method")
    host, port = plain_authority(parts.netloc, DEFAULT_PORTS.get(parts.scheme))
    path = None if method is None else plain_path(parts.path or "/")
    return EgressAsk(schemes[parts.scheme], host, port, method and method.upper(), path)


def _ruled(tool: Tool, ask: EgressAsk, rule: EgressRule | Why) -> str:
    """What the tool's own rules make of it, in the gate's own word and in others."""
    if isinstance(rule, EgressRule):
        return f"{rule.destination}{f' with {rule.secret}' if rule.secret else ''}"
    if rule is not Why.NO_RULE:
        return rule.value
    if ask.method is None and for_destination(tool.manifest.rules, ask.scheme, ask.host, ask.port):
        return f"{rule.value}: those for this host look at each request; say it with --method"
    return f"{rule.value}: no egress rule of {tool.name} names this host, method and path"


def _told(explanation: Explanation, about: str) -> bool:
    """Show a ruling with its parts; return whether it is an allow."""
    ruling = explanation.verdict.ruling
    _headline(ruling, about)
    for part in explanation.parts:
        _show(part)
    return ruling is Ruling.ALLOW


def _headline(ruling: Ruling, about: str) -> None:
    say(f"{ruling.value}: {about}", style="green" if ruling is Ruling.ALLOW else "red")


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
