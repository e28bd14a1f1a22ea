"""What a run of the bench is made into: rows with their promise beside them, and notes that outlive the next run."""

import json
from datetime import UTC, datetime

import pytest

from figures import GOALS, Figure, rates, sizes, times
from report import NO_NOTE, Report, document, notes_of, results

BARE = times("bare python3", [10.0, 10.0, 10.0])
PHASES = {"fork, one caller": {"admission": 0.5, "run": 4.25}}


def report(*figures: Figure) -> Report:
    return Report(datetime(2026, 3, 2, 12, 30, tzinfo=UTC), {"cores": "2"}, [BARE, *figures], PHASES)


@pytest.mark.parametrize(("ms", "verdict"), [(10.0, "aim"), (10.1, "must"), (15.0, "must"), (15.1, "short")])
def test_a_ratio_is_held_against_what_was_promised_of_it(ms: float, verdict: str) -> None:
    assert times("fork, one caller", [ms], BARE).verdict == verdict


@pytest.mark.parametrize(("per_s", "verdict"), [(100.0, "aim"), (50.0, "must"), (49.0, "short")])
def test_more_is_better_where_calls_are_counted(per_s: float, verdict: str) -> None:
    bare = rates("bare", [100.0])
    assert rates("fork, sustained, 8 callers", [per_s], bare).verdict == verdict


@pytest.mark.parametrize(("ms", "verdict"), [(1.5, "aim"), (3.0, "must"), (3.1, "short")])
def test_a_value_is_held_against_what_was_promised_of_it(ms: float, verdict: str) -> None:
    assert times("refused by policy", [ms]).verdict == verdict


def test_of_a_yardstick_nothing_was_promised() -> None:
    assert (BARE.goal, BARE.verdict, BARE.ratio) == (None, None, None)


def test_percentiles_are_of_the_slow_end() -> None:
    slow = times("a", [float(number) for number in range(1, 101)])
    assert (slow.p50, slow.p95, slow.p99, slow.runs) == (50.5, 96.0, 100.0, 100)
    few = rates("a", [float(number) for number in range(1, 101)])
    assert (few.p50, few.p95, few.p99) == (50.5, 6.0, 2.0)


def test_programs_get_every_row_with_its_pair_and_its_promise() -> None:
    body = json.loads(document(report(times("fork, one caller", [12.0, 14.0], BARE))))
    row = body["figures"][1]
    assert {key: row[key] for key in ("figure", "value", "unit", "runs", "paired_with", "ratio", "verdict")} == {
        "figure": "fork, one caller", "value": 13.0, "unit": "ms", "runs": 2, "paired_with": "bare python3", "ratio": 1.3,
        "verdict": "must",
    }  # fmt: skip
    assert row["goal"] == {"of": "ratio", "sense": "≤", "must": 1.5, "aim": 1.0}
    assert {"p50", "p95", "p99"} < row.keys()
    assert body["phases_ms"] == PHASES
    assert body["measured_at"] == "2026-03-02T12:30:00+00:00"


def test_people_get_a_row_of_each_figure_with_must_and_aim() -> None:
    text = results(report(times("fork, one caller", [12.0], BARE), sizes("mounts left", "", [0])))
    assert "2026-03-02 12:30 UTC; cores: 2" in text
    assert "| fork, one caller | 12.00 | 12.00 | 12.00 | ms | 1 | 1.2 × bare python3 | ≤ 1.5 × | ≤ 1 × | ✓ |" in text
    assert "| mounts left | 0.00 | 0.00 | 0.00 |  | 1 |  | ≤ 0 | ≤ 0 | ✓✓ |" in text


def test_only_what_is_short_of_its_aim_has_a_place_for_a_note_with_the_phases_beside_it() -> None:
    text = results(report(times("fork, one caller", [12.0], BARE), times("refused by policy", [1.0])))
    _, _, short = text.partition("## Short of the aim")
    assert "### refused by policy" not in short
    assert "Phases of `fork, one caller`: admission 0.50, run 4.25." in short
    assert NO_NOTE in short
    assert notes_of(text) == {}


def test_a_note_is_kept_until_the_aim_is_reached() -> None:
    slow, quick = (times("fork, one caller", [ms], BARE) for ms in (12.0, 9.0))
    first = results(report(slow, times("refused by policy", [2.0])))
    note = "> The engine relays the wire.\n> Twice."
    head, _, tail = first.partition("### fork, one caller")
    noted = f"{head}### fork, one caller{tail.replace(NO_NOTE, note, 1)}"
    again = results(report(slow, times("refused by policy", [2.0])), noted)
    assert notes_of(again) == {"fork, one caller": note}
    assert again == noted
    assert notes_of(results(report(quick), again)) == {}


def test_every_promise_is_possible_to_keep() -> None:
    for goal in GOALS.values():
        assert goal.verdict(goal.aim) == "aim"
        assert goal.verdict(goal.must) in ("must", "aim")
