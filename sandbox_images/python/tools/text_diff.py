"""`text.diff`: what changed between two texts. Pure."""

import difflib
from collections.abc import Iterator
from typing import Annotated, TypedDict


class Difference(TypedDict):
    diff: Annotated[str, "Unified diff; empty when the texts are equal."]
    added: Annotated[int, "Number of added lines.", ("minimum", 0)]
    removed: Annotated[int, "Number of removed lines.", ("minimum", 0)]
    equal: bool


def diff(
    before: Annotated[str, ("maxLength", 200_000)],
    after: Annotated[str, ("maxLength", 200_000)],
    context: Annotated[int, ("minimum", 0), ("maximum", 100)] = 3,
) -> Difference:
    """Compare two texts line by line.

    Args:
        before: The old text.
        after: The new text.
        context: Unchanged lines to show around each change.
    """
    # A number like 3.0 is an integer for JSON Schema, and a float for Python.
    lines = list(_unified(_lines(before), _lines(after), int(context)))
    return {
        "diff": "".join(lines),
        "added": sum(line.startswith("+") for line in lines[2:]),
        "removed": sum(line.startswith("-") for line in lines[2:]),
        "equal": before == after,
    }


def _unified(before: list[str], after: list[str], context: int) -> Iterator[str]:
    for line in difflib.unified_diff(before, after, "before", "after", n=context):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(text: str) -> list[str]:
    """Lines as other diffs see them: only a line feed ends one, unlike `str.splitlines`."""
    *whole, rest = text.split("\n")
    return [f"{line}\n" for line in whole] + ([rest] if rest else [])
