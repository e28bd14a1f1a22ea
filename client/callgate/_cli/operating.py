"""What administrators of a tenant do: `callgate stop`, `callgate resume`, `callgate stops`, `callgate breakers`."""

from typing import Annotated

import typer

from callgate._cli.connection import (
    AsJson,
    CaFile,
    InClear,
    Target,
    TokenFile,
    connected,
    screen_for,
    usage,
)

Agent = Annotated[str | None, typer.Argument(metavar="[AGENT]", help="The agent's name, without its tenant.")]
WholeTenant = Annotated[bool, typer.Option("--tenant", help="The whole tenant instead of one agent.")]


def stop(
    *,
    agent: Agent = None,
    tenant: WholeTenant = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for people.")] = "",
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """Refuse every call of an agent, or of your whole tenant, and cancel what runs. For administrators."""
    whom = _whom(agent, tenant=tenant)
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="stops") as gateway:
        screen.stopped(gateway.stop(whom, reason))


def resume(
    *,
    agent: Agent = None,
    tenant: WholeTenant = False,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """Take a stop back. For administrators."""
    whom = _whom(agent, tenant=tenant)
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="stops") as gateway:
        gateway.resume(whom)
        screen.resumed(whom)


def stops(
    *,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """List what is stopped in your tenant. For administrators."""
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="stops") as gateway:
        screen.stops(gateway.stops())


def breakers(
    *,
    act: Annotated[str | None, typer.Argument(metavar="[open|close]", help="What to do with one.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Which, like tool:acme/text.diff.")] = None,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    """List circuit breakers, open one until it is closed by hand, or close one. For administrators."""
    if act not in (None, "open", "close") or (act is None) != (name is None):
        usage("say `breakers`, `breakers open NAME` or `breakers close NAME`")
    screen = screen_for(as_json)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, about="breakers") as gateway:
        if name is None:
            screen.breakers(gateway.breakers())
        else:
            screen.breaker(gateway.set_breaker(name, open=act == "open"))


def _whom(agent: str | None, *, tenant: bool) -> str:
    """Return the agent's name, or an empty one for the whole tenant, which nobody stops by forgetting a word."""
    if (agent is None) != tenant or agent == "":
        usage("name one agent, or say --tenant")
    return agent or ""
