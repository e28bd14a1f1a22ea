"""A sheet: labelled facts below each other, for somebody who has to judge a call.

Facts may be the words of whoever wants something approved. They are shown so that they cannot look like another fact,
like a question or like the end of the sheet: on a terminal no line is longer than it is wide, every further line of a
fact is indented, and quoted words have a bar before each of their lines. Where something had to be left out, the
sheet says so and is not `whole`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

from callgate._cli.text import one_line, to_json_text
from callgate._cli.times import age, until
from callgate.approval import Approval
from callgate.dead_letter import DeadLetter

LABEL: Final = 11
BAR: Final = "| "
MOST_LINES: Final = 200
_NARROWEST: Final = 2


@dataclass(slots=True)
class Sheet:
    """Lines as they are written. `width` is that of the terminal, or None where no line is broken."""

    width: int | None = None
    encoding: str = "utf-8"
    lines: list[str] = field(default_factory=list)
    whole: bool = True

    def fact(self, label: str, text: str | None) -> None:
        """Add a fact of one line; what is absent is left out."""
        if text:
            self._add(label, list(self._folded(one_line(text), LABEL)))

    def quote(self, label: str, document: Any) -> None:  # noqa: ANN401  # any JSON value
        """Add a JSON value that somebody else chose, each line behind a bar."""
        indented = to_json_text(document).split("\n")
        lines = [BAR + part for line in indented for part in self._folded(line, LABEL + len(BAR))]
        if self.width is not None and len(lines) > MOST_LINES:
            left_out = len(lines) - MOST_LINES
            remark = f"({left_out} more lines are left out; all of it is in --json)"
            lines = [*lines[:MOST_LINES], *self._folded(remark, LABEL)]
            self.whole = False
        self._add(label, lines)

    def write(self, file: TextIO) -> None:
        file.write("".join(f"{line}\n" for line in self.lines))
        file.flush()

    def _add(self, label: str, lines: list[str]) -> None:
        self.lines += [f"{label if number == 0 else '':{LABEL}}{line}" for number, line in enumerate(lines)]

    def _folded(self, text: str, taken: int) -> Iterator[str]:
        # As the terminal will get it: what it cannot show is longer as an escape.
        text = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
        return folded(text, None if self.width is None else self.width - taken)


def folded(text: str, width: int | None) -> Iterator[str]:
    """Break text into pieces of at most `width` columns.

    Every character that is not ASCII counts as two columns: terminals do not agree on how wide those are, and a line
    that a terminal breaks by itself goes on at its left edge.
    """
    if width is None:
        yield text
        return
    width, start, used = max(width, _NARROWEST), 0, 0
    for at, character in enumerate(text):
        cells = 1 if character.isascii() else 2
        if used + cells > width:
            yield text[start:at]
            start, used = at, 0
        used += cells
    yield text[start:]


def add_approval(sheet: Sheet, approval: Approval) -> None:
    """Add what there is to judge. What the caller chose stands before what the gateway says of all of it."""
    sheet.fact("call", approval.call_id)
    sheet.fact("tool", f"{approval.tool} {approval.version}")
    sheet.fact("does", approval.summary)
    sheet.fact("effect", approval.effect)
    sheet.fact("asked by", f"{approval.tenant}/{approval.agent}, {age(approval.requested_at)} ago")
    sheet.fact("task", approval.task)
    if approval.purpose is not None:
        sheet.quote("purpose", approval.purpose)
    if approval.arguments is not None:
        sheet.quote("arguments", approval.arguments)
    sheet.fact("policies", ", ".join(approval.policies))
    sheet.fact("group", approval.group)
    sheet.fact("state", approval.state)
    if approval.waits:
        sheet.fact("expires", until(approval.expires_at))
    if approval.decided_by is not None:
        sheet.fact("decided by", f"{approval.decided_by}, {age(approval.decided_at)} ago")
    sheet.fact("digest", approval.digest)


def add_dead_letter(sheet: Sheet, letter: DeadLetter) -> None:
    """Add what is known of a call that failed for good."""
    sheet.fact("call", letter.call_id)
    sheet.fact("tool", f"{letter.tool} {letter.version}")
    sheet.fact("effect", letter.effect)
    sheet.fact("asked by", f"{letter.tenant}/{letter.agent}, {age(letter.received_at)} ago")
    sheet.fact("task", letter.task)
    sheet.fact("follows", letter.follows)
    for attempt in letter.attempts:
        cause = f" ({attempt.reason})" if attempt.reason and attempt.reason != attempt.state else ""
        sheet.fact(f"attempt {attempt.attempt}", f"{attempt.state}{cause}, {age(attempt.at)} ago")
    sheet.fact("state", letter.state)
    if letter.error is not None:
        sheet.fact("error", f"{letter.error.reason}: {letter.error.message}")
