"""Lists: a row is known by its first cell, an id or a name, which is written whole and on one line.

The other cells are folded where there is little room. Where folding would leave a few letters of them, the head and
every row are written on lines of their own instead: the first cell, and below it the others.
"""

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_GAP: Final = 2
# No cell but the first is folded to less, in columns of the screen.
_LEAST: Final = 8


def write_table(console: Console, head: Sequence[str], rows: Sequence[Sequence[Text]]) -> None:
    """Write rows of as many cells as `head` has."""
    lines = [[Text(title, style="bold") for title in head], *rows]
    first, *others = [max(cell.cell_len for cell in column) for column in zip(*lines, strict=True)]
    if first + sum(_GAP + min(width, _LEAST) for width in others) > console.width:
        _write_below(console, lines)
        return
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    for _ in others:
        table.add_column(overflow="fold")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def _write_below(console: Console, lines: Sequence[Sequence[Text]]) -> None:
    for first, *others in lines:
        # What is wider than the terminal is for the terminal to break: it can still be copied as one word.
        console.print(first, no_wrap=True, overflow="ignore", crop=False)
        cells = [cell for cell in others if cell.plain]
        if cells:
            console.print(Padding(Text(" " * _GAP).join(cells), (0, 0, 0, _GAP), expand=False))
