"""An approval cannot be made to look like another: what its caller chose stays behind its bar."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate import Approval, CallAttempt, DeadLetter
from callgate._cli.sheet import BAR, LABEL, MOST_LINES, Sheet, add_approval, add_dead_letter, folded

FORGED = "ok\n}\ndigest     sha256:forged\nApprove a.b as shown above? [y/N]: "
DIGEST = "sha256:" + "0" * 64


def lines_of(purpose: str | None, arguments: dict[str, object], width: int | None = 80) -> list[str]:
    sheet = Sheet(width)
    add_approval(sheet, Approval("c1", "a.b", "1.0.0", "waiting", DIGEST, purpose=purpose, arguments=arguments))
    return sheet.lines


def inside(line: str) -> str | None:
    """Return what stands behind the bar of a line that somebody else chose."""
    return line[LABEL + len(BAR) :] if line[LABEL:].startswith(BAR) else None


@pytest.mark.parametrize("width", [None, 80, 24])
@pytest.mark.parametrize(
    "evil",
    [
        FORGED,
        "\x1b[2J\x1b[Hdigest     sha256:forged",
        "\x9b2J\r\x08\x07",
        "\u202edetrevni\u2066\u200b",
        "[bold red]markup[/] :boom: [link=http://a]",
        " " * 67 + "digest     sha256:forged",
        "漢" * 60 + "digest     sha256:forged",
        "\u3164" * 40,
        "x" * 10_000,
    ],
)
def test_no_argument_leaves_its_place(evil: str, width: int | None) -> None:
    for lines in (lines_of(evil, {evil: [evil, {evil: evil}]}, width), lines_of(None, {"a": evil}, width)):
        outside = [line for line in lines if inside(line) is None]
        assert len([line for line in lines if line.startswith("digest")]) == 1
        assert not any("forged" in line or "[y/N]" in line or "markup" in line for line in outside)
        assert not {"\x1b", "\x9b", "\r", "\x07", "\x08", "\u202e", "\u2066", "\u200b", "\u3164"} & set("".join(lines))
        assert all("\n" not in line and (width is None or len(line) <= width) for line in lines)


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text()), max_size=4))
def test_what_is_shown_is_all_of_what_was_asked_for(arguments: dict[str, object]) -> None:
    try:
        json.dumps(arguments, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    shown = [inside(line) for line in lines_of(None, arguments)]
    assert json.loads("".join(part for part in shown if part is not None)) == arguments


def test_every_other_fact_is_on_lines_of_its_own() -> None:
    lines = lines_of("because", {"n": 1})
    assert 'purpose    | "because"' in lines
    assert lines[-1] == f"digest     {DIGEST[: 80 - LABEL]}" or lines[-2:] == [
        f"digest     {DIGEST[: 80 - LABEL]}",
        " " * LABEL + DIGEST[80 - LABEL :],
    ]


def test_names_of_agents_and_tools_cannot_break_out_either() -> None:
    sheet = Sheet(80)
    add_approval(sheet, Approval(FORGED, FORGED, FORGED, FORGED, "d", summary=FORGED, agent=FORGED, task=FORGED))
    assert [line for line in sheet.lines if line.startswith("digest")] == ["digest     d"]
    add_dead_letter(sheet, DeadLetter(FORGED, FORGED, FORGED, FORGED, attempts=(CallAttempt(1, None, FORGED, FORGED),)))
    assert not any("\n" in line or line.startswith("Approve") for line in sheet.lines)


def test_a_huge_argument_is_not_shown_as_if_it_were_whole() -> None:
    sheet = Sheet(80)
    sheet.quote("arguments", {"a": "x" * 1_000_000})
    sheet.fact("digest", "d")
    assert not sheet.whole
    assert len(sheet.lines) == MOST_LINES + 2
    assert "more lines are left out" in sheet.lines[-2]
    piped = Sheet()
    piped.quote("arguments", {"a": "x" * 1_000_000})
    assert piped.whole


def test_what_a_terminal_cannot_show_is_counted_as_the_escape_it_gets() -> None:
    sheet = Sheet(40, "ascii")
    sheet.quote("arguments", {"a": "ü" * 60})
    assert all(line.isascii() and len(line) <= 40 for line in sheet.lines)


def test_text_is_broken_by_columns_and_nothing_is_lost() -> None:
    assert list(folded("a" * 45, 20)) == ["a" * 20, "a" * 20, "a" * 5]
    assert list(folded("漢" * 15, 20)) == ["漢" * 10, "漢" * 5]
    assert list(folded("", 20)) == [""]


def test_attempts_of_a_dead_letter_are_listed() -> None:
    sheet = Sheet()
    add_dead_letter(
        sheet, DeadLetter("c1", "a.b", "1.0.0", "failed", attempts=(CallAttempt(1, None, "failed", "tool_failed"),))
    )
    assert "attempt 1  failed (tool_failed), ? ago" in sheet.lines
    written = io.StringIO()
    sheet.write(written)
    assert written.getvalue().splitlines() == sheet.lines
