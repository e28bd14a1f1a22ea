"""`callgated keys`: API keys for agents. A key is shown once, when it is made; only its hash is kept."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from callgate_server.backends import api_keys
from callgate_server.cli.output import document, explained, say

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")

KeysFile = Annotated[Path, typer.Option("--file", help="The key file (`auth.api_keys_file` of the configuration).")]


@app.command()
def create(
    file: KeysFile,
    tenant: Annotated[str, typer.Option(help="Tenant the agent belongs to.")],
    agent: Annotated[str, typer.Option(help="Name of the agent.")],
    role: Annotated[list[str] | None, typer.Option(help="Role for policies; may be given several times.")] = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="Days until the key expires; never, if not given.")
    ] = None,
) -> None:
    """Make a key and print it. It cannot be shown again."""
    now = datetime.now(UTC)
    expires_at = None if days is None else now + timedelta(days=days)
    with explained():
        made = api_keys.create(
            file,
            tenant=tenant,
            agent=agent,
            roles=tuple(role or ()),
            expires_at=expires_at,
            purpose="production",
            now=now,
        )
    typer.echo(made.key.reveal().decode())
    typer.echo(f"Key {made.id} for {tenant}/{agent}. Keep it now: only its hash is stored.", err=True)


@app.command("list")
def list_keys(
    file: KeysFile, *, as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False
) -> None:
    """List keys, without the keys."""
    with explained():
        records = api_keys.load(file).keys
    if as_json:
        document([record.model_dump(mode="json", exclude={"secret_sha256"}) for record in records])
        return
    for record in records:
        state = (
            "revoked" if record.revoked else f"until {record.expires_at:%Y-%m-%d}" if record.expires_at else "active"
        )
        roles = ",".join(record.roles) or "-"
        say(f"{record.id}  {record.tenant}/{record.agent}  roles {roles}  made {record.created_at:%Y-%m-%d}  {state}")


@app.command()
def revoke(
    file: KeysFile, key_id: Annotated[str, typer.Argument(help="Id of the key, as `keys list` shows it.")]
) -> None:
    """Revoke a key. A running gateway refuses it from its next call on, and the tasks that were made with it."""
    with explained(LookupError):
        api_keys.revoke(file, key_id)
    say(f"Key {key_id} is revoked.")
