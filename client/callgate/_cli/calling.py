"""Making a call and following one: `callgate call` and `callgate follow`."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from callgate._cli.arguments import parse_arguments
from callgate._cli.artifacts import save
from callgate._cli.connection import (
    FAILED,
    INTERRUPTED,
    PENDING,
    AsJson,
    CaFile,
    InClear,
    Target,
    TokenFile,
    connected,
    screen_for,
    usage,
    usage_errors,
)
from callgate._cli.documents import Documents, Envelopes
from callgate._cli.interrupts import Interrupts
from callgate._cli.screen import Screen
from callgate._sync.client import Callgate
from callgate.errors import GatewayUnreachable
from callgate.types import Accepted, Answer, Answered, CallSummary, Event, Waiting

SaveArtifacts = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Save the files that the tool leaves, below DIR.")
]
Force = Annotated[bool, typer.Option("--force", help="Let --save-artifacts replace files.")]
AWAITING_APPROVAL: Final = "awaiting_approval"
# As numbers of events are on the wire.
_LAST_EVENT: Final = 2**63 - 1
CALL_HELP: Final = (
    "Call a tool and show what came of it.\n\nThe tool's output goes to standard output and standard error, and "
    "its result to standard output if it printed nothing. Ctrl-C cancels the call and shows what it wrote until then. "
    "A call that needs an approval is left waiting, exit status 75."
)
CALL_EXAMPLE: Final = "Example: callgate call python.run --arg code='print(6 * 7)'"
FOLLOW_HELP: Final = (
    "Follow a call to its end: its output as it comes, then what came of it.\n\nAlso a call that waits for its turn or "
    "for an approval. Ctrl-C leaves it running. The exit status is that of `callgate call`."
)


@dataclass(frozen=True, slots=True)
class _Wish:
    """One call as it was typed."""

    tool: str
    arguments: Mapping[str, Any]
    idempotency_key: str | None
    deadline_s: float | None
    task: str | None
    purpose: str | None


def call(
    *,
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="The tool's name, like python.run.")],
    arg: Annotated[
        list[str] | None,
        typer.Option(
            "--arg", "-a", metavar="NAME=TEXT", help="An argument; NAME:=JSON for numbers, lists and objects."
        ),
    ] = None,
    args_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Arguments as one JSON object; - is standard input.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show output while the tool runs.")] = False,
    deadline: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="When to kill the tool, if nothing earlier is declared for it."),
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The same key with the same arguments does not run twice.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Ctrl-C leaves the call running.")] = False,
    save_artifacts: SaveArtifacts = None,
    force: Force = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the tool's bytes to standard output as they are; not to a terminal.")
    ] = False,
    envelope: Annotated[
        bool, typer.Option("--envelope", help="Print the answer as text for a model, between marks no tool can forge.")
    ] = False,
    asynchronous: Annotated[
        bool, typer.Option("--async", help="Do not wait: the gateway carries the call on by itself.")
    ] = False,
    priority: Annotated[
        int | None,
        typer.Option(min=0, max=9, help="With --async: the larger, the sooner among your tenant's; 5 by default."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="ID", help="A task of yours whose grant shall hold for the call.")
    ] = None,
    purpose: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Why you want it, for whoever is asked to approve it.")
    ] = None,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    if raw and (as_json or stream or sys.stdout.isatty()):
        usage("--raw goes without --json and --stream, and to a file or a pipe")
    if envelope and (as_json or stream or raw):
        usage("--envelope goes without --json, --stream and --raw")
    if asynchronous and (stream or raw or envelope or detach or save_artifacts is not None):
        usage(
            "--async goes without --stream, --raw, --envelope, --detach and --save-artifacts: nothing is waited for; "
            "save files with `callgate follow ID --save-artifacts DIR`"
        )
    if priority is not None and not asynchronous:
        usage("--priority goes with --async")
    with usage_errors():
        wish = _Wish(tool, parse_arguments(arg or (), args_file), idempotency_key, deadline, task, purpose)
    screen = Envelopes() if envelope else screen_for(as_json, lines=stream)
    with connected(screen, target, token_file, ca_file, send_token_in_clear, tool=tool) as gateway:
        if asynchronous:
            state, interrupted = _submit(gateway, wish, priority)
        else:
            state, interrupted = _run(gateway, wish, screen, shown=stream, detach=detach)
    screen.state(state, raw=raw)
    saved = save_artifacts is None or save_all(state, save_artifacts, screen, overwrite=force)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if isinstance(state, CallSummary):
        raise typer.Exit(0 if asynchronous and state.state != AWAITING_APPROVAL else PENDING)
    if not (state.ok and saved):
        raise typer.Exit(FAILED)


def follow(
    *,
    call_id: Annotated[str, typer.Argument(metavar="ID", help="The call, as `callgate calls` shows it.")],
    after: Annotated[
        int, typer.Option(metavar="N", show_default=False, help="Only what came after event N of the call.")
    ] = -1,
    save_artifacts: SaveArtifacts = None,
    force: Force = False,
    as_json: AsJson = False,
    target: Target = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    send_token_in_clear: InClear = False,
) -> None:
    if not -1 <= after <= _LAST_EVENT:
        usage("--after takes the number of an event, from 0")
    screen = screen_for(as_json, lines=True)
    with connected(screen, target, token_file, ca_file, send_token_in_clear) as gateway:
        answer = _follow(gateway, call_id, after, screen)
    screen.state(answer)
    saved = save_artifacts is None or save_all(answer, save_artifacts, screen, overwrite=force)
    if not (answer.ok and saved):
        raise typer.Exit(FAILED)


def _submit(gateway: Callgate, wish: _Wish, priority: int | None) -> tuple[Answer | CallSummary, bool]:
    """Hand the call over; the flag says that the person interrupted it, which comes too late to undo it."""
    with usage_errors(), Interrupts() as interrupts:
        state = gateway.submit(
            wish.tool,
            wish.arguments,
            idempotency_key=wish.idempotency_key,
            deadline_s=wish.deadline_s,
            priority=priority,
            task=wish.task,
            purpose=wish.purpose,
        )
        return state, interrupts.came


def _run(
    gateway: Callgate, wish: _Wish, screen: Screen, *, shown: bool, detach: bool
) -> tuple[Answer | CallSummary, bool]:
    """Make the call and stay with it to its end, or until it waits for an approval; the flag says that the person
    interrupted it.
    """
    call_id: str | None = None
    with Interrupts() as interrupts:
        try:
            for event in _events(gateway, wish):
                # Whatever else there is to say of a call that is left waiting, its summary says.
                if shown and (isinstance(screen, Documents) or not _needs_approval(event)):
                    screen.event(event)
                if isinstance(event, Answered):
                    return event.answer, False
                if isinstance(event, Accepted):
                    call_id = event.call_id
                    interrupts.release()
                if isinstance(event, Waiting) and _needs_approval(event):
                    return gateway.get(event.call_id), False
        except KeyboardInterrupt:
            if call_id is None:
                raise
        if call_id is None:
            raise AssertionError("a stream ends with an answer or an exception")
        if detach:
            screen.note("Left running.")
            return gateway.get(call_id), True
        screen.note("Cancelling; press Ctrl-C again to leave at once.")
        return gateway.cancel(call_id), True


def _events(gateway: Callgate, wish: _Wish) -> Iterator[Event]:
    with usage_errors():
        return gateway.stream(
            wish.tool,
            wish.arguments,
            idempotency_key=wish.idempotency_key,
            deadline_s=wish.deadline_s,
            # An interrupted call is cancelled by its id. Leaving must not be enough to cancel it: one that waits for
            # an approval is left.
            on_disconnect="detach",
            task=wish.task,
            purpose=wish.purpose,
        )


def _needs_approval(event: Event) -> bool:
    return isinstance(event, Waiting) and event.state == AWAITING_APPROVAL


def _follow(gateway: Callgate, call_id: str, after: int, screen: Screen) -> Answer:
    seen = after
    try:
        for event in gateway.follow(call_id, after):
            seen = event.seq
            screen.event(event)
            if isinstance(event, Answered):
                return event.answer
    except GatewayUnreachable:
        if seen > after:
            screen.note(f"Go on with: callgate follow {call_id} --after {seen}")
        raise
    except KeyboardInterrupt:
        screen.note(f"Left running. Go on with: callgate follow {call_id} --after {seen}")
        raise typer.Exit(INTERRUPTED) from None
    raise AssertionError("a stream ends with an answer or an exception")


def save_all(state: Answer | CallSummary, folder: Path, screen: Screen, *, overwrite: bool) -> bool:
    """Save what was taken of the tool's files; return whether all of it could be saved."""
    if isinstance(state, CallSummary):
        screen.note("Nothing to save: the call has no answer.")
        return False
    complete = True
    for artifact in state.artifacts:
        if artifact.rejected is not None:
            continue
        try:
            screen.saved(save(artifact, folder, overwrite=overwrite))
        except FileExistsError:
            screen.not_saved(artifact, "there is something of that name; --force replaces a file")
            complete = False
        except (ValueError, OSError) as error:
            screen.not_saved(artifact, getattr(error, "strerror", None) or str(error))
            complete = False
    return complete
