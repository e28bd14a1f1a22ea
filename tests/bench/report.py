"""Figures for people and for programs: a table on the terminal, `bench.json`, and `RESULTS.md` beside this file.

What people wrote in RESULTS.md (lines that begin with `>` under the heading of a figure) is kept when it is written
anew, for as long as the figure is short of its aim.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from rich.console import Console
from rich.table import Table

from figures import Figure

Phases = Mapping[str, Mapping[str, float]]
NO_NOTE = "> No note yet."
_HEADINGS = ("figure", "p50", "p95", "p99", "unit", "runs", "ratio", "must", "aim", "")
_MARKS = {"aim": "✓✓", "must": "✓", "short": "✗", None: ""}
_SECTION = re.compile(r"^### (?P<figure>.+?)\n(?P<body>.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Report:
    """One run of the bench. `phases` are medians in milliseconds by figure."""

    measured_at: datetime
    machine: Mapping[str, str]
    figures: Sequence[Figure]
    phases: Phases


def show(report: Report) -> None:
    console = Console(width=160)
    table = Table(title="What a call costs, end to end through the SDK over gRPC on loopback")
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading in ("figure", "unit", "ratio", "") else "right")
    for figure in report.figures:
        table.add_row(*_row(figure))
    console.print(table)
    for name, phases in report.phases.items():
        console.print(f"{name}: {_phases(phases)}", highlight=False)


def document(report: Report) -> str:
    """The run as JSON."""
    body = {
        "measured_at": report.measured_at.isoformat(timespec="seconds"),
        "machine": dict(report.machine),
        "figures": [{**asdict(figure), "verdict": figure.verdict} for figure in report.figures],
        "phases_ms": {name: dict(phases) for name, phases in report.phases.items()},
    }
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def results(report: Report, earlier: str = "") -> str:
    """The run as RESULTS.md; `earlier` is what stood there before."""
    notes = notes_of(earlier)
    lines = [
        "# Results",
        "",
        "Written by `make bench RECORD=1`. Only ratios of one run count: what a ratio is of ran interleaved with it. "
        "✓✓ reaches the aim, ✓ what must be, ✗ neither. For rates, p95 and p99 are the slow end's.",
        "",
        f"{report.measured_at:%Y-%m-%d %H:%M} UTC; "
        + ", ".join(f"{name}: {value}" for name, value in report.machine.items()),
        "",
        "| " + " | ".join(_HEADINGS) + " |",
        "|---" * len(_HEADINGS) + "|",
        *("| " + " | ".join(_row(figure)) + " |" for figure in report.figures),
        "",
        "## Where the time goes",
        "",
        "By phase of the gateway, p50 in milliseconds. The outcome's record is written after the answer's phases are "
        "counted, and is in none of them.",
        "",
        *(f"- `{name}`: {_phases(phases)}" for name, phases in report.phases.items()),
        "",
        "## Short of the aim",
        "",
    ]
    for figure in report.figures:
        if figure.verdict in ("must", "short"):
            lines += [f"### {figure.figure}", "", *_near(figure, report.phases)]
            lines += [notes.get(figure.figure, NO_NOTE), ""]
    return "\n".join(lines)


def notes_of(text: str) -> dict[str, str]:
    """What people wrote under the heading of each figure."""
    found = {}
    for section in _SECTION.finditer(text):
        note = "\n".join(line for line in section["body"].splitlines() if line.startswith(">"))
        if note and note != NO_NOTE:
            found[section["figure"]] = note
    return found


def _near(figure: Figure, phases: Phases) -> list[str]:
    """The phases that belong to a figure: those of the same name, or of what its name begins with."""
    own = [name for name in phases if figure.figure.startswith(name)] or [
        name for name in phases if name.partition(",")[0] == figure.figure.partition(",")[0]
    ]
    return [line for name in own for line in (f"Phases of `{name}`: {_phases(phases[name])}.", "")]


def _phases(phases: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {ms:.2f}" for name, ms in phases.items())


def _row(figure: Figure) -> tuple[str, ...]:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.3g} × {figure.paired_with}"
    numbers = (f"{value:.2f}" for value in (figure.p50, figure.p95, figure.p99))
    row = (figure.figure, *numbers, figure.unit, str(figure.runs), ratio)
    if figure.goal is None:
        return (*row, "", "", "")
    goal, sign = figure.goal, "×" if figure.goal.of == "ratio" else figure.unit
    bounds = (f"{goal.sense} {bound:g} {sign}".strip() for bound in (goal.must, goal.aim))
    return (*row, *bounds, _MARKS[figure.verdict])
