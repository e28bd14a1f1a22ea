import sys
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.model.strict_json import Json
from callgate_server.result.sanitize import clean, json_strings, text_view

# Format characters that show: marks that stand before a number or a word.
VISIBLE_FORMAT = set("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
TRICKY = st.text(
    st.one_of(
        st.sampled_from(
            "\r\n\t\x00\x1b\x7f\x85\u200b\u200c\u200d\ufe0e\ufe0f\u202e\u20e3\U000e0041\u2764\U0001f680\u0645a1\\"
        ),
        st.characters(),
    )
)


@pytest.mark.parametrize(
    ("hidden", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]52;c;cm0gLXJmIC8=\x07", r"\x1b]52;c;cm0gLXJmIC8=\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\x00b", r"a\x00b"),
        ("safe\roops", r"safe\x0doops"),
        ("back\x08\x7f", r"back\x08\x7f"),
        ("admin\u202enimda", r"admin\u{202e}nimda"),
        ("pass\u200bword", r"pass\u{200b}word"),
        ("\ufeffstart", r"\u{feff}start"),
        ("soft\xadhyphen", r"soft\xadhyphen"),
        ("hi\U000e0068\U000e0069", r"hi\u{e0068}\u{e0069}"),
        ("x\U000e0100\ufe00", r"x\u{e0100}\u{fe00}"),
        ("x\ufe0f\u200dy", r"x\u{fe0f}\u{200d}y"),
        ("a\ufff9b\ufffac\ufffb", r"a\u{fff9}b\u{fffa}c\u{fffb}"),
        ("line\u2028sep", r"line\u{2028}sep"),
        ("\ue000\U0010fffd\ufdd0\uffff\U0001fffe", r"\u{e000}\u{10fffd}\u{fdd0}\u{ffff}\u{1fffe}"),
        ("\u3164\u115f\uffa0\u034f\u180e", r"\u{3164}\u{115f}\u{ffa0}\u{034f}\u{180e}"),
        ("\ud800", r"\u{d800}"),
    ],
)
def test_what_cannot_be_seen_is_shown_as_an_escape(hidden: str, shown: str) -> None:
    assert clean(hidden) == shown


@pytest.mark.parametrize(
    "text",
    [
        "plain\ttext\nwith lines\r\n",
        "Grüße, 世界, שלום, مرحبا, नमस्ते, \u00a0\u2003.",
        "\u2764\ufe0f 1\ufe0f\u20e3 \u00a9\ufe0f \u2615\ufe0e",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\U0001f3f3\ufe0f\u200d\U0001f308 \U0001f469\U0001f3fd\u200d\U0001f680",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0915\u094d\u200d\u0937",
        r"C:\x1b\u{202e}",
        "\ufffd",
    ],
)
def test_ordinary_writing_is_kept(text: str) -> None:
    assert clean(text) == text
    assert text_view(text.encode()) == (text, False)


def test_bytes_that_are_not_utf8_are_shown_and_flagged() -> None:
    assert text_view(b"ok \xff\xc3 \xed\xa0\x80.") == (r"ok \xff\xc3 \xed\xa0\x80.", True)


def test_a_cleaned_view_is_flagged() -> None:
    assert text_view(b"a\x1bb") == (r"a\x1bb", True)


def test_no_control_or_invisible_character_of_unicode_comes_through_alone() -> None:
    missed = [
        f"U+{point:04X}"
        for point in range(sys.maxunicode + 1)
        if unicodedata.category(chr(point)) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
        and chr(point) not in VISIBLE_FORMAT | set("\t\n")
        and clean(chr(point)) == chr(point)
    ]
    assert missed == []


def test_noncharacters_do_not_come_through() -> None:
    points = [
        *range(0xFDD0, 0xFDF0),
        *(plane + last for plane in range(0, 0x110000, 0x10000) for last in (0xFFFE, 0xFFFF)),
    ]
    assert [point for point in points if clean(chr(point)) == chr(point)] == []


@given(TRICKY)
def test_cleaning_what_is_clean_changes_nothing(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@given(TRICKY)
def test_cleaning_loses_nothing_that_can_be_seen(text: str) -> None:
    kept = iter(clean(text))
    assert all(character in kept for character in text if character.isalnum())


@given(st.binary())
def test_any_bytes_have_a_view_that_can_be_encoded(data: bytes) -> None:
    text, changed = text_view(data)
    assert changed == (text.encode() != data)


@given(TRICKY)
def test_a_result_that_was_cleaned_is_stable(text: str) -> None:
    shown, hidden = json_strings({text: [text]})
    assert hidden == (shown != {text: [text]})
    assert json_strings(shown) == (shown, False)


def test_a_result_keeps_its_control_characters_and_shows_the_invisible() -> None:
    value: Json = {"diff": "a\r\n\x0c\x1b[1m", "n": 3, "note": "see\u200b\U000e0041", "list": [None, True, 1.5]}
    shown, hidden = json_strings(value)
    assert hidden
    assert shown == {
        "diff": "a\r\n\x0c\x1b[1m",
        "n": 3,
        "note": r"see\u{200b}\u{e0041}",
        "list": [None, True, 1.5],
    }


def test_a_result_that_hides_nothing_is_not_flagged() -> None:
    value: Json = {"ключ": ["значение \U0001f680", "\t\r\n"]}
    assert json_strings(value) == (value, False)


def test_members_whose_keys_become_equal_are_all_kept() -> None:
    shown, hidden = json_strings({"a\u200b": 1, r"a\u{200b}": 2})
    assert hidden
    assert isinstance(shown, dict)
    assert sorted(shown.values()) == [1, 2]


@pytest.mark.parametrize(
    "character", ["\x00", "\u200d", "\ufe0f", "\U000e0041", "\r", "\U0001f680\u200d", "\u0645\u200c"]
)
def test_a_flood_of_one_character_takes_time_linear_in_its_length(character: str) -> None:
    started_s = time.process_time()
    clean(character * 100_000)
    assert time.process_time() - started_s < 5
