"""What a person sees. A tool's output goes where the tool wrote it, everything about the call to standard error.

Nothing that came from the gateway is read as markup, and all of it is cleaned first (see `text`). Colour and
wrapping are for terminals only.
"""

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from callgate._cli.text import clean, one_line, to_json_text
from callgate.errors import CallRefused, GatewayUnreachable
from callgate.types import Answer, Artifact, CallSummary, Event, Fallback, Output, OutputChunk, Tool

_STYLES: Final = {"succeeded": "green", "running": "cyan", "cancelled": "yellow"}
_WIDE: Final = 200
_NEXT: Final = {
    "unauthenticated": "Give a credential with --token-file, CALLGATE_TOKEN_FILE or CALLGATE_TOKEN.",
    "unknown_tool": "List the tools you may call: callgate tools",
    "unknown_call": "List your calls: callgate calls",
    "invalid_arguments": "Show what a tool takes: callgate tools NAME",
    "policy_denied": "Ask the gateway's operator; they can look up the call's id.",
    "policy_error": "Tell the gateway's operator the call's id: the policies need mending.",
    "approval_required": "Ask the gateway's operator to approve it.",
    "idempotency_conflict": "Use another --idempotency-key for other arguments.",
}


class Screen:
    """Prints for a person. `streamed` keeps what was shown while a call ran, so that nothing is shown twice."""

    def __init__(self) -> None:
        self._streamed = {"stdout": "", "stderr": ""}

    def event(self, event: Event) -> None:
        """Show the next piece of a running tool's output."""
        if isinstance(event, OutputChunk) and event.stream in self._streamed:
            self._streamed[event.stream] += event.text
            _write(sys.stdout if event.stream == "stdout" else sys.stderr, event.text)

    def state(self, state: Answer | CallSummary, *, raw: bool = False) -> None:
        """Show a call: its answer, or how far it is. With `raw`, standard output gets the bytes as they are."""
        if isinstance(state, CallSummary):
            self._summary(state)
            return
        if raw:
            sys.stdout.buffer.write(state.stdout.content)
            sys.stdout.buffer.flush()
        else:
            self._rest("stdout", state.stdout, sys.stdout)
        self._rest("stderr", state.stderr, sys.stderr)
        if state.result is not None and not state.stdout.total_bytes:
            self.document(state.result)
        self._status(state)

    def saved(self, path: Path) -> None:
        self._say(Text(f"saved {one_line(str(path))}"))

    def not_saved(self, artifact: Artifact, why: str) -> None:
        self._say(Text(f"not saved: {one_line(artifact.name)}: {one_line(why)}", style="red"))

    def refusal(self, refusal: CallRefused, takes: str | None = None) -> None:
        """Show why a call was refused, what decided, and what to do next. `takes` says what the tool takes."""
        self._say(Text().append("refused: ", style="red").append(one_line(refusal.reason), style="bold red"))
        self._say(Text(f"  {one_line(refusal.message)}"))
        for violation in refusal.violations:
            where = one_line(violation.path) or "the arguments"
            self._say(Text().append(f"  {where}", style="bold").append(f" {one_line(violation.message)}"))
        if refusal.policies:
            self._say(Text(f"  decided by: {', '.join(map(one_line, refusal.policies))}"))
        if takes is not None:
            self._say(Text(f"  it takes: {one_line(takes)}"))
        advice = _advice(refusal)
        if advice is not None:
            self._say(Text(f"  next: {advice}"))
        if refusal.call_id is not None:
            self._say(Text(f"  call {one_line(refusal.call_id)}", style="dim"))

    def unreachable(self, error: GatewayUnreachable) -> None:
        self._say(Text().append("no answer: ", style="red").append(one_line(str(error))))

    def note(self, text: str) -> None:
        self._say(Text(one_line(text), style="yellow"))

    def calls(self, calls: Sequence[CallSummary]) -> None:
        if not calls:
            self.note("No calls yet.")
            return
        table = _table("call", "tool", "state", "age")
        for call in calls:
            state = call.error.reason if call.error is not None else call.state
            table.add_row(
                Text(one_line(call.call_id), no_wrap=True),
                Text(one_line(call.tool)),
                Text(one_line(state), style=_STYLES.get(call.state, "red")),
                Text(_age(call.received_at), no_wrap=True),
            )
        _console(sys.stdout).print(table)

    def tools(self, tools: Sequence[Tool]) -> None:
        if not tools:
            self.note("No tool that you may call. Ask the gateway's operator for a policy that permits one.")
            return
        table = _table("tool", "version", "effect", "summary")
        for tool in tools:
            table.add_row(*(Text(one_line(cell)) for cell in (tool.tool, tool.version, tool.effect, tool.summary)))
        _console(sys.stdout).print(table)

    def tool(self, tool: Tool) -> None:
        """Show one tool: what it does, what it takes, and its limits."""
        console = _console(sys.stdout)
        console.print(Text().append(one_line(tool.tool), style="bold").append(f" {one_line(tool.version)}"))
        console.print(Text(one_line(tool.summary)))
        console.print(Text(f"effect {one_line(tool.effect)}, isolation {one_line(tool.isolation)}", style="dim"))
        console.print(
            Text(
                f"at most {tool.limits.wall_s:g} s, {tool.limits.memory_mb} MiB, {tool.limits.cpu:g} cpu, "
                f"{tool.limits.pids} processes",
                style="dim",
            )
        )
        table = _table("argument", "type", "", "description")
        for name, (kind, required, description) in describe(tool.input).items():
            table.add_row(*(Text(one_line(cell)) for cell in (name, kind, required, description)))
        if table.row_count:
            console.print()
            console.print(table)

    def document(self, document: Any) -> None:  # noqa: ANN401  # any JSON value
        """Show a JSON document on standard output."""
        sys.stdout.write(to_json_text(document) + "\n")

    def _status(self, answer: Answer) -> None:
        line = Text().append(one_line(answer.state), style=_STYLES.get(answer.state, "red"))
        line.append(f"{_cause(answer)} in {_duration(answer.usage.wall_ms)}")
        notes = ["replayed, nothing ran now"] if answer.replayed else []
        notes += [f"attempt {answer.attempt}"] if answer.attempt > 1 else []
        notes += _truncations(answer)
        if answer.result is not None and answer.stdout.total_bytes:
            notes.append("result in --json")
        line.append("".join(f" · {note}" for note in notes), style="yellow")
        line.append(f" · call {one_line(answer.call_id)}", style="dim")
        self._say(line)
        if answer.error is not None:
            self._say(Text(one_line(answer.error.message), style="red"))
        if answer.fallback is not None:
            self._say(Text(_fallback_line(answer.fallback), style="bold yellow"))
        for artifact in answer.artifacts:
            self._say(Text(_artifact_line(artifact), style="dim"))

    def _summary(self, summary: CallSummary) -> None:
        line = Text().append(one_line(summary.state), style=_STYLES.get(summary.state, "red"))
        line.append(f" · {one_line(summary.tool)} {one_line(summary.version)}")
        line.append(f" · received {_age(summary.received_at)} ago")
        line.append(f" · call {one_line(summary.call_id)}", style="dim")
        self._say(line)
        if summary.error is not None:
            self._say(Text(f"{one_line(summary.error.reason)}: {one_line(summary.error.message)}", style="red"))

    def _rest(self, stream: str, output: Output, file: TextIO) -> None:
        """Show what was not streamed. Where the middle was left out, the live text was only the head."""
        streamed = self._streamed[stream]
        rest = output.text[len(streamed) :] if output.text.startswith(streamed) else ""
        _write(file, rest)
        shown = streamed + rest
        if shown and not shown.endswith("\n") and file.isatty():
            file.write("\n")

    def _say(self, text: Text) -> None:
        _console(sys.stderr).print(text)


def describe(schema: Mapping[str, Any]) -> dict[str, tuple[str, str, str]]:
    """Return each argument of a tool's input schema with its type, whether it is needed, and its description."""
    properties = schema.get("properties")
    required = schema.get("required")
    described = {}
    for name, of in properties.items() if isinstance(properties, dict) else ():
        details = of if isinstance(of, dict) else {}
        kind = details.get("type", "any")
        needed = "required" if isinstance(required, list) and name in required else ""
        described[str(name)] = (
            " or ".join(map(str, kind)) if isinstance(kind, list) else str(kind),
            needed,
            str(details.get("description", "")),
        )
    return described


def _write(file: TextIO, text: str) -> None:
    file.write(clean(text))
    file.flush()


def _console(file: TextIO) -> Console:
    terminal = file.isatty()
    return Console(
        file=file, highlight=False, markup=False, emoji=False, soft_wrap=not terminal, width=None if terminal else _WIDE
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _cause(answer: Answer) -> str:
    parts = []
    if answer.error is not None and answer.error.reason != answer.state:
        parts.append(one_line(answer.error.reason))
    if answer.exit.signal is not None:
        parts.append(f"signal {answer.exit.signal}")
    elif answer.exit.code:
        parts.append(f"exit code {answer.exit.code}")
    return f" ({', '.join(parts)})" if parts else ""


def _fallback_line(fallback: Fallback) -> str:
    """Say that the result is not the tool's, whose it is, and why."""
    age = "" if fallback.age_s is None else f", {_duration(fallback.age_s * 1000)} old"
    tool = "" if fallback.tool is None else f" of {one_line(fallback.tool)}"
    call = "" if fallback.call_id is None else f", call {one_line(fallback.call_id)}"
    why = f"{one_line(fallback.error.reason)}: {one_line(fallback.error.message)}"
    return f"fallback ({one_line(fallback.kind)}{tool}{age}{call}), not the tool's own result: {why}"


def _truncations(answer: Answer) -> list[str]:
    outputs = (("stdout", answer.stdout), ("stderr", answer.stderr))
    return [f"{name} truncated from {_size(output.total_bytes)}" for name, output in outputs if output.truncated]


def _artifact_line(artifact: Artifact) -> str:
    if artifact.rejected is not None:
        return f"artifact not taken: {one_line(artifact.name)}: {one_line(artifact.rejected)}"
    return f"artifact {one_line(artifact.name)}, {_size(artifact.size_bytes)}"


def _advice(refusal: CallRefused) -> str | None:
    if refusal.retryable:
        wait = f" in {_duration(refusal.retry_after_ms)}" if refusal.retry_after_ms else ""
        return f"Try again{wait}."
    return _NEXT.get(refusal.reason)


def _duration(milliseconds: float) -> str:
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds / 1000:.1f} s"


def _age(moment: datetime | None) -> str:
    if moment is None:
        return "?"
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 1024:.0f} KiB" if count < 1024 * 1024 else f"{count / 1024 / 1024:.1f} MiB"
