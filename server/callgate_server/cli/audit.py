"""`callgated audit`: read the record and check that nobody has changed it. Works while the gateway runs."""

import json
from typing import Annotated

import typer

from callgate_server.backends.sqlite import audit
from callgate_server.backends.sqlite.files import load_key
from callgate_server.cli.output import document, explained, fail, say
from callgate_server.cli.places import Config, config_file
from callgate_server.config import load
from callgate_server.ledger.chain import Head

app = typer.Typer(no_args_is_help=True, help="Read and verify the record of all calls.")


@app.command()
def verify(
    config: Config = None,
    head: Annotated[
        str | None, typer.Option(help="A head that `verify` printed earlier (seq:hash); the chain must contain it.")
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Recompute the whole chain and check every call against it. Keep the printed head somewhere else."""
    with explained(config=config):
        settings = load(config_file(config))
        expected = None if head is None else Head.parse(head)
        report = audit.verify_file(settings.ledger.file, load_key(settings.ledger.key_file), expected)
    if as_json:
        document({"events": report.events, "head": f"{report.events}:{report.head}", "fault": report.fault})
    elif report.fault is None:
        say(f"The chain holds: {report.events} events.\nhead {report.events}:{report.head}", style="green")
    if report.fault is not None:
        fail(f"the record does not hold: {report.fault}")


@app.command()
def show(
    config: Config = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many of the newest events.")] = 20,
    call_id: Annotated[str | None, typer.Option("--call", help="Only events of this call.")] = None,
) -> None:
    """Print events as JSON lines, oldest first. They hold no argument values and no secrets."""
    with explained(config=config):
        settings = load(config_file(config))
        if call_id is None:
            events = audit.tail(settings.ledger.file, limit)
        else:
            events = [event for event in audit.events(settings.ledger.file) if event.call_id == call_id][-limit:]
    if call_id is not None and not events:
        fail(f"the record has no call {call_id}")
    for event in events:
        line = {"seq": event.seq, "at": event.at, "call_id": event.call_id, "kind": event.kind}
        typer.echo(json.dumps(line | {"body": json.loads(event.body), "hash": event.hash}, ensure_ascii=False))
