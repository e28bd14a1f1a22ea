"""What a program sees: with `--json` exactly one JSON document on standard output, or one per line of a stream; with
`--envelope` the answer's text for a model.

The documents are those of the gateway's HTTP interface:

    call, calls ID, cancel                an answer, or the summary of a call
    call --stream, follow                 an event a line, and at the end an answer, or the refusal of the call
    tools, calls, approvals               {"tools": […]}, {"calls": […]}, {"approvals": […]}
    dead-letters                          {"dead_letters": […], "total": n}
    approvals ID, approve, deny           the approval
    dead-letters ID                       the dead letter
    tasks, stops, breakers                {"tasks": […]}, {"stops": […]}, {"breakers": […]}
    tasks ID, tasks end                   the task
    tasks create                          {"task", "token"}
    stop, resume                          {"stopped", "cancelled"}, {"resumed"}
    breakers open, breakers close         the breaker
    dead-letters redrive, discard, settle the summary of the call, of the new one for `redrive`
    any of them that is refused           {"call_id", "error", "policies", "violations"}

Remarks for people still go to standard error.
"""

import sys
from collections.abc import Sequence
from typing import Any

from callgate._cli.advice import About
from callgate._cli.screen import Screen
from callgate._cli.text import clean, to_json_text
from callgate.approval import Approval
from callgate.dead_letter import DeadLetter, DeadLetters
from callgate.errors import CallRefused, GatewayUnreachable
from callgate.operating import Breaker, Stop, Stopped
from callgate.task import NewTask, Task
from callgate.types import Answer, Answered, CallSummary, Event, Tool


class Documents(Screen):
    """A screen for programs. With `lines`, every event of a call is a line, and so is whatever ends it."""

    def __init__(self, *, lines: bool = False) -> None:
        super().__init__()
        self._lines = lines
        self._answered = False

    def event(self, event: Event) -> None:
        self._answered = isinstance(event, Answered)
        self.document(event.to_json())

    def state(self, state: Answer | CallSummary, *, raw: bool = False) -> None:  # noqa: ARG002  # bytes have no JSON
        if not self._answered:
            self.document(state.to_json())

    def refusal(
        self,
        refusal: CallRefused,
        takes: str | None = None,  # noqa: ARG002  # it is for people
        about: About = "calls",  # noqa: ARG002  # it is for people
    ) -> None:
        self.document(refusal.to_json())

    def unreachable(self, error: GatewayUnreachable) -> None:
        self.document(error.to_json())

    def calls(self, calls: Sequence[CallSummary]) -> None:
        self.document({"calls": [call.to_json() for call in calls]})

    def tools(self, tools: Sequence[Tool]) -> None:
        self.document({"tools": [tool.to_json() for tool in tools]})

    def tool(self, tool: Tool) -> None:
        self.document(tool.to_json())

    def approvals(self, approvals: Sequence[Approval]) -> None:
        self.document({"approvals": [approval.to_json() for approval in approvals]})

    def approval(self, approval: Approval) -> None:
        self.document(approval.to_json())

    def judged(self, approval: Approval) -> bool:  # noqa: ARG002  # the decision is the document
        return True

    def decided(self, approval: Approval) -> None:
        self.document(approval.to_json())

    def tasks(self, tasks: Sequence[Task]) -> None:
        self.document({"tasks": [task.to_json() for task in tasks]})

    def task(self, task: Task) -> None:
        self.document(task.to_json())

    def new_task(self, made: NewTask) -> None:
        self.document(made.to_json())

    def stops(self, stops: Sequence[Stop]) -> None:
        self.document({"stops": [stop.to_json() for stop in stops]})

    def stopped(self, stopped: Stopped) -> None:
        self.document(stopped.to_json())

    def resumed(self, agent: str) -> None:
        self.document({"resumed": agent})

    def breakers(self, breakers: Sequence[Breaker]) -> None:
        self.document({"breakers": [breaker.to_json() for breaker in breakers]})

    def breaker(self, breaker: Breaker) -> None:
        self.document(breaker.to_json())

    def dead_letters(self, letters: DeadLetters) -> None:
        self.document(letters.to_json())

    def dead_letter(self, letter: DeadLetter) -> None:
        self.document(letter.to_json())

    def settled(self, what: str, summary: CallSummary) -> None:  # noqa: ARG002  # it is for people
        self.state(summary)

    def document(self, document: Any) -> None:  # noqa: ANN401  # any JSON value
        sys.stdout.write(to_json_text(document, indent=None if self._lines else 2) + "\n")
        sys.stdout.flush()


class Envelopes(Screen):
    """A screen for models: an answer is its envelope on standard output, and nothing else is there."""

    def state(self, state: Answer | CallSummary, *, raw: bool = False) -> None:  # noqa: ARG002  # its bytes are no text
        if isinstance(state, Answer):
            self._write(state.envelope())
            self._status(state)
        else:
            super().state(state)

    def _write(self, text: str) -> None:
        sys.stdout.write(clean(text))
        sys.stdout.flush()
