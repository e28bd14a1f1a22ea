import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate._cli.text import clean, one_line, to_json_text

ANY_TEXT = st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, exclude_categories=()))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb\r\n", "a\\x0db\r\n"),
        ("tab\tline\n", "tab\tline\n"),
        ("\u202egnp", "\\u{202e}gnp"),
        ("\U000e0041", "\\u{e0041}"),
        ("\ud800", "\\u{d800}"),
        ("déjà vu 日本 🎉", "déjà vu 日本 🎉"),
    ],
)
def test_what_drives_a_terminal_is_shown_instead(text: str, shown: str) -> None:
    assert clean(text) == shown


@given(ANY_TEXT)
def test_nothing_active_is_left(text: str) -> None:
    cleaned = clean(text)
    controls = {character for character in cleaned if ord(character) < 32 or 127 <= ord(character) < 160}
    assert controls <= {"\n", "\t", "\r"}
    assert "\r" not in cleaned.replace("\r\n", "")
    assert clean(cleaned) == cleaned


@given(ANY_TEXT)
def test_one_line_is_one_line(text: str) -> None:
    assert len(one_line(text).splitlines()) <= 1


@given(st.recursive(st.none() | st.booleans() | st.integers() | ANY_TEXT, st.lists))
def test_json_means_the_same_and_is_printable(document: object) -> None:
    text = to_json_text(document)
    assert json.loads(text) == document
    assert all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.parametrize("blank", ["\u3164", "\u115f", "\u2800", "\ufe0f", "\uffa0", "\u034f"])
def test_json_shows_letters_that_look_like_nothing(blank: str) -> None:
    written = to_json_text({blank: blank})
    assert blank not in written
    assert json.loads(written) == {blank: blank}
