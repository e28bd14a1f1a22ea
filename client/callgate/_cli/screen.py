"""What a person sees. A tool's output goes where the tool wrote it, everything about the call to standard error.

Nothing that came from the gateway is read as markup, and all of it is cleaned first (see `text`). Colour and
wrapping are for terminals only.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

from rich.console import Console
from rich.text import Text

from callgate._cli.advice import About, advice
from callgate._cli.sheet import Sheet, add_approval, add_dead_letter
from callgate._cli.table import write_table
from callgate._cli.text import clean, one_line, to_json_text
from callgate._cli.times import age, duration, until
from callgate.approval import Approval, CallApproval
from callgate.dead_letter import DeadLetter, DeadLetters
from callgate.errors import CallRefused, GatewayUnreachable
from callgate.operating import Breaker, Stop, Stopped
from callgate.task import NewTask, Task
from callgate.types import Answer, Artifact, CallSummary, Event, Fallback, Output, OutputChunk, Tool, Waiting

_STYLES: Final = {
    "succeeded": "green",
    "running": "cyan",
    "admitted": "cyan",
    "awaiting_approval": "yellow",
    "waiting": "yellow",
    "approved": "green",
    "cancelled": "yellow",
}
# A call in one of these goes on.
_GOES_ON: Final = ("admitted", "awaiting_approval", "running")
_WIDE: Final = 200


class Screen:
    """Prints for a person. `streamed` keeps what was shown while a call ran, so that nothing is shown twice."""

    def __init__(self) -> None:
        self._streamed = {"stdout": "", "stderr": ""}

    def event(self, event: Event) -> None:
        """Show the next piece of a running tool's output, or what a call waits for."""
        if isinstance(event, OutputChunk) and event.stream in self._streamed:
            self._streamed[event.stream] += event.text
            _write(sys.stdout if event.stream == "stdout" else sys.stderr, event.text)
        if isinstance(event, Waiting):
            approval = CallApproval(event.group, event.expires_at) if event.group is not None else None
            self.note(f"Waits for {_wanted(approval)}.")

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

    def refusal(self, refusal: CallRefused, takes: str | None = None, about: About = "calls") -> None:
        """Show why something was refused, what decided, and what to do next. `takes` says what the tool takes."""
        self._say(Text().append("refused: ", style="red").append(one_line(refusal.reason), style="bold red"))
        self._say(Text(f"  {one_line(refusal.message)}"))
        for violation in refusal.violations:
            where = one_line(violation.path) or "the arguments"
            self._say(Text().append(f"  {where}", style="bold").append(f" {one_line(violation.message)}"))
        if refusal.policies:
            self._say(Text(f"  decided by: {', '.join(map(one_line, refusal.policies))}"))
        if takes is not None:
            self._say(Text(f"  it takes: {one_line(takes)}"))
        to_do = advice(refusal, about)
        if to_do is not None:
            self._say(Text(f"  next: {to_do}"))
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
        rows = [
            (
                *_cells(call.call_id, call.tool),
                _state(call.state, call.state if call.error is None else call.error.reason),
                Text(age(call.received_at)),
            )
            for call in calls
        ]
        write_table(_console(sys.stdout), ("call", "tool", "state", "age"), rows)

    def tools(self, tools: Sequence[Tool]) -> None:
        if not tools:
            self.note("No tool that you may call. Ask the gateway's operator for a policy that permits one.")
            return
        rows = [_cells(tool.tool, tool.version, tool.effect, tool.summary) for tool in tools]
        write_table(_console(sys.stdout), ("tool", "version", "effect", "summary"), rows)

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
        rows = [_cells(name, *described) for name, described in describe(tool.input).items()]
        if rows:
            console.print()
            write_table(console, ("argument", "type", "", "description"), rows)

    def approvals(self, approvals: Sequence[Approval]) -> None:
        if not approvals:
            self.note("Nothing waits for your approval.")
            return
        rows = [
            (*_cells(one.call_id, one.tool, one.agent), _state(one.state), Text(age(one.requested_at)))
            for one in approvals
        ]
        write_table(_console(sys.stdout), ("call", "tool", "asked by", "state", "age"), rows)

    def approval(self, approval: Approval) -> None:
        """Show one approval, and how to decide it."""
        self.judged(approval)
        if approval.waits:
            call_id = one_line(approval.call_id)
            self._say(Text(f"next: callgate approve {call_id}\n  or: callgate deny {call_id}"))

    def judged(self, approval: Approval) -> bool:
        """Show one approval to somebody who is asked about it; return whether all of it is on the screen."""
        sheet = _sheet()
        add_approval(sheet, approval)
        sheet.write(sys.stdout)
        return sheet.whole

    def decided(self, approval: Approval) -> None:
        line = Text().append_text(_state(approval.state))
        line.append(f" · {one_line(approval.tool)} {one_line(approval.version)}")
        line.append(f" · call {one_line(approval.call_id)}", style="dim")
        self._say(line)

    def dead_letters(self, letters: DeadLetters) -> None:
        if not letters.dead_letters:
            self.note("No dead letters.")
            return
        rows = [
            (
                *_cells(letter.call_id, letter.tool),
                _state(letter.state, letter.state if letter.error is None else letter.error.reason),
                Text(age(letter.finished_at)),
            )
            for letter in letters.dead_letters
        ]
        write_table(_console(sys.stdout), ("call", "tool", "error", "age"), rows)
        self.note(f"{len(letters.dead_letters)} of {letters.total}.")

    def dead_letter(self, letter: DeadLetter) -> None:
        """Show one dead letter, and what can become of it."""
        sheet = _sheet()
        add_dead_letter(sheet, letter)
        sheet.write(sys.stdout)
        ways = ["redrive"] if letter.redrivable else []
        ways += ["settle"] if letter.state == "unknown" else []
        for number, way in enumerate([*ways, "discard"]):
            option = " --happened|--did-not-happen" if way == "settle" else ""
            label = "next:" if number == 0 else "  or:"
            self._say(Text(f"{label} callgate dead-letters {way} {one_line(letter.call_id)}{option}"))

    def settled(self, what: str, summary: CallSummary) -> None:
        """Say what was done about a call, and what it is now."""
        self.note(what)
        self.state(summary)

    def tasks(self, tasks: Sequence[Task]) -> None:
        if not tasks:
            self.note("No tasks yet. Make one: callgate tasks create NAME --tool TOOL")
            return
        rows = [
            _cells(task.task_id, task.name, _spent(task.spent.calls, task.budget.calls), _ends(task)) for task in tasks
        ]
        write_table(_console(sys.stdout), ("task", "name", "calls", "ends"), rows)

    def task(self, task: Task) -> None:
        """Show one task: its grant, and what it has spent of its budget."""
        sheet = Sheet()
        sheet.fact("task", task.task_id)
        sheet.fact("name", task.name)
        sheet.fact("agent", task.agent)
        for tool, schema in sorted(task.tools.items()):
            sheet.fact("may call", tool)
            if schema:
                sheet.quote("", schema)
        sheet.fact("calls", _spent(task.spent.calls, task.budget.calls))
        sheet.fact("cpu", f"{_spent(task.spent.cpu_s, task.budget.cpu_s)} s")
        sheet.fact("egress", f"{_spent(task.spent.egress_bytes, task.budget.egress_bytes)} bytes")
        sheet.fact("cost", _spent(task.spent.cost, task.budget.cost))
        sheet.fact("ends", _ends(task))
        sheet.write(sys.stdout)

    def new_task(self, made: NewTask) -> None:
        """Show a task that was just made. Its credential alone goes to standard output."""
        self.note(f"Task {made.task.task_id} is made. This is its credential; it is shown this once.")
        sys.stdout.write(one_line(made.token) + "\n")

    def stops(self, stops: Sequence[Stop]) -> None:
        if not stops:
            self.note("Nothing is stopped.")
            return
        rows = [_cells(stop.agent or "(the whole tenant)", stop.by, age(stop.at), stop.reason) for stop in stops]
        write_table(_console(sys.stdout), ("agent", "by", "age", "reason"), rows)

    def stopped(self, stopped: Stopped) -> None:
        whom = stopped.stop.agent
        self.note(f"{f'Agent {whom}' if whom else 'The whole tenant'} is stopped; {stopped.cancelled} calls cancelled.")
        self.note(f"To go on: callgate resume {whom or '--tenant'}")

    def resumed(self, agent: str) -> None:
        self.note(f"{f'Agent {agent}' if agent else 'The tenant'} goes on.")

    def breakers(self, breakers: Sequence[Breaker]) -> None:
        if not breakers:
            self.note("No circuit breaker has been needed yet.")
            return
        rows = []
        for breaker in breakers:
            counts = map(str, (breaker.calls, breaker.failures, breaker.slow))
            left = "" if breaker.retry_after_ms is None else duration(breaker.retry_after_ms)
            rows.append(_cells(breaker.name, breaker.state, *counts, left))
        write_table(_console(sys.stdout), ("breaker", "state", "calls", "failed", "slow", "retry in"), rows)

    def breaker(self, breaker: Breaker) -> None:
        self.note(f"{breaker.name} is {breaker.state}.")

    def document(self, document: Any) -> None:  # noqa: ANN401  # any JSON value
        """Show a JSON document on standard output."""
        sys.stdout.write(to_json_text(document) + "\n")

    def _status(self, answer: Answer) -> None:
        line = Text().append_text(_state(answer.state))
        line.append(f"{_cause(answer)} in {duration(answer.usage.wall_ms)}")
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
        line = Text().append_text(_state(summary.state))
        line.append(f" · {one_line(summary.tool)} {one_line(summary.version)}")
        line.append(f" · received {age(summary.received_at)} ago")
        self._say(line)
        if summary.error is not None:
            self._say(Text(f"{one_line(summary.error.reason)}: {one_line(summary.error.message)}", style="red"))
        for fact in _facts(summary):
            self._say(Text(f"  {fact}"))
        self._say(Text(f"  call {one_line(summary.call_id)}", style="dim"))
        if summary.state in _GOES_ON:
            self._say(Text(f"  next: callgate follow {one_line(summary.call_id)}"))

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


def _cells(*texts: str) -> tuple[Text, ...]:
    return tuple(Text(one_line(text)) for text in texts)


def _state(state: str, text: str | None = None) -> Text:
    """Return a state, or `text` in its place, in the state's colour."""
    return Text(one_line(state if text is None else text), style=_STYLES.get(state, "red"))


def _sheet() -> Sheet:
    """Return an empty sheet that fits standard output."""
    width = _console(sys.stdout).width if sys.stdout.isatty() else None
    return Sheet(width, sys.stdout.encoding or "utf-8")


def _wanted(approval: CallApproval | None) -> str:
    if approval is None:
        return "its turn"
    until_when = "" if approval.expires_at is None else f", until {until(approval.expires_at)}"
    return f"an approval by {one_line(approval.group)}{until_when}"


def _facts(summary: CallSummary) -> list[str]:
    """Say what else is known of a call: its approval, its task, its attempt, and the call it follows."""
    facts = []
    if summary.state == "admitted":
        facts.append(f"waits for {_wanted(None)}")
    if summary.approval is not None and summary.state == "awaiting_approval":
        facts.append(f"waits for {_wanted(summary.approval)}")
    elif summary.approval is not None and summary.approval.decided_by is not None:
        facts.append(f"decided by {one_line(summary.approval.decided_by)}, for {one_line(summary.approval.group)}")
    if summary.task is not None:
        facts.append(f"task {one_line(summary.task)}")
    if summary.attempt is not None and summary.attempt > 1:
        facts.append(f"attempt {summary.attempt}")
    if summary.follows is not None:
        facts.append(f"follows call {one_line(summary.follows)}")
    return facts


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
    old = "" if fallback.age_s is None else f", {duration(fallback.age_s * 1000)} old"
    tool = "" if fallback.tool is None else f" of {one_line(fallback.tool)}"
    call = "" if fallback.call_id is None else f", call {one_line(fallback.call_id)}"
    why = f"{one_line(fallback.error.reason)}: {one_line(fallback.error.message)}"
    return f"fallback ({one_line(fallback.kind)}{tool}{old}{call}), not the tool's own result: {why}"


def _truncations(answer: Answer) -> list[str]:
    outputs = (("stdout", answer.stdout), ("stderr", answer.stderr))
    return [f"{name} truncated from {_size(output.total_bytes)}" for name, output in outputs if output.truncated]


def _artifact_line(artifact: Artifact) -> str:
    if artifact.rejected is not None:
        return f"artifact not taken: {one_line(artifact.name)}: {one_line(artifact.rejected)}"
    return f"artifact {one_line(artifact.name)}, {_size(artifact.size_bytes)}"


def _ends(task: Task) -> str:
    return "over" if task.is_over else until(task.expires_at)


def _spent(spent: float | None, most: float | None) -> str:
    return f"{spent or 0:g}" if most is None else f"{spent or 0:g} of {most:g}"


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 1024:.0f} KiB" if count < 1024 * 1024 else f"{count / 1024 / 1024:.1f} MiB"
