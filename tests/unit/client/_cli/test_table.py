import io

import pytest
from rich.console import Console
from rich.text import Text

from callgate._cli.table import write_table

ID = "task-01890a5d-ac96-774b-bcce-b302099a8057"


def written(width: int, head: tuple[str, ...], *rows: tuple[str, ...]) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, highlight=False, markup=False, emoji=False)
    write_table(console, head, [[Text(cell) for cell in row] for row in rows])
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_cells_stand_below_their_heads() -> None:
    assert written(80, ("call", "tool", "age"), ("c1", "a.b", "3h"), ("c2", "text.diff", "4h")) == [
        "call  tool       age",
        "c1    a.b        3h",
        "c2    text.diff  4h",
    ]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_the_first_cell_is_never_shortened_and_nothing_is_lost(width: int) -> None:
    cells = ("compare many texts", "0 of 20", "2026-01-02 03:04 UTC (in 59m)")
    lines = written(width, ("task", "name", "calls", "ends"), (ID, *cells), (ID[::-1], *cells))
    for first in (ID, ID[::-1]):
        assert [line for line in lines if line.startswith(first)]
    shown = "".join("".join(lines).split())
    assert all(shown.count(letter) >= 2 * "".join(cells).count(letter) for letter in set("".join(cells)) - {" "})
    assert all(len(line) <= max(width, len(ID)) for line in lines)


def test_where_there_is_little_room_the_other_cells_fold() -> None:
    assert written(56, ("task", "name"), (ID, "compare many texts")) == [
        f"{'task':41}  name",
        f"{ID}  compare many",
        f"{'':41}  texts",
    ]


def test_where_there_is_no_room_they_stand_below() -> None:
    assert written(48, ("task", "name", "calls", "", "age"), (ID, "compare texts", "3", "", "3h")) == [
        "task",
        "  name  calls  age",
        ID,
        "  compare texts  3  3h",
    ]
    assert written(10, ("task", ""), (ID, "")) == ["task", ID]
