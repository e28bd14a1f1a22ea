"""What a program sees: with `--json` exactly one JSON document on standard output, or one per line of a stream; with
`--envelope` the answer's text for a model.

The documents are those of the gateway's HTTP interface; a refusal is `{call_id, error, policies, violations}`.
Remarks for people still go to standard error.
"""

import sys
from collections.abc import Sequence
from typing import Any

from callgate._cli.screen import Screen
from callgate._cli.text import clean, to_json_text
from callgate.errors import CallRefused, GatewayUnreachable
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

    def refusal(self, refusal: CallRefused, takes: str | None = None) -> None:  # noqa: ARG002  # it is for people
        self.document(refusal.to_json())

    def unreachable(self, error: GatewayUnreachable) -> None:
        self.document(error.to_json())

    def calls(self, calls: Sequence[CallSummary]) -> None:
        self.document({"calls": [call.to_json() for call in calls]})

    def tools(self, tools: Sequence[Tool]) -> None:
        self.document({"tools": [tool.to_json() for tool in tools]})

    def tool(self, tool: Tool) -> None:
        self.document(tool.to_json())

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
