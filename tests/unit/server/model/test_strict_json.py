import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.model.strict_json import MAX_DEPTH, decode, encode

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(10**100), 10**100) | st.floats(allow_nan=False, allow_infinity=False)
REFUSALS = "not JSON|not UTF-8|twice|too large|digits|lone surrogate"
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXT, children, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_encoded_decodes_to_the_same(value):
    assert decode(encode(value)) == value


@given(st.dictionaries(TEXT, NUMBERS | TEXT, min_size=2))
def test_equal_objects_encode_to_equal_bytes_whatever_their_order(value):
    assert encode(dict(reversed(value.items()))) == encode(value)


@given(st.binary(max_size=60))
def test_any_bytes_are_decoded_or_refused_as_a_value_error(document):
    try:
        value = decode(document)
    except ValueError:
        return
    assert json.loads(document.decode()) == value


@pytest.mark.parametrize(
    "document",
    [
        b'{"tool":"a","tool":"b"}',
        b'{"outer":{"x":1,"x":1}}',
        b'[{"a":1,"\\u0061":2}]',
        b"NaN",
        b'{"x":Infinity}',
        b"[-Infinity]",
        b"1e400",
        b"-1e400",
        b'{"x":' + b"9" * 129 + b"}",
        b"-" + b"9" * 128,
        b'"\\ud800"',
        b'{"\\uDC00":1}',
        b'"\\ud83d\\ud83d"',
        b"\xff",
        b"\xef\xbb\xbf1",
        b'"\xed\xa0\x80"',
        b"",
        b"{",
        b'{"a":1,}',
        b"'a'",
        b"01",
        b'"a\nb"',
        b"1 2",
        b"[1]]",
    ],
)
def test_what_decoders_usually_let_pass_is_refused(document):
    with pytest.raises(ValueError, match=REFUSALS):
        decode(document)


def test_a_surrogate_pair_is_one_character():
    assert decode(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_integers_keep_every_digit():
    assert decode(b"9007199254740993") == 9007199254740993
    assert decode(b"9" * 128) == int("9" * 128)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_a_hundred_thousand_levels_are_refused_without_recursion(opening):
    with pytest.raises(ValueError, match="nested deeper"):
        decode(opening * 100_000)


def test_the_deepest_nesting_that_is_taken_is_the_limit():
    assert decode(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(ValueError, match="nested deeper than 64"):
        decode(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))
    assert decode(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), max_depth=MAX_DEPTH + 1)


def test_many_brackets_side_by_side_or_in_strings_are_not_depth():
    assert decode(b"[" + b"[]," * 500 + b"[]]") == [[]] * 501
    assert decode(b'["' + b"[" * 500 + b'\\"[[[ \\\\"]') == ["[" * 500 + '"[[[ \\']


@pytest.mark.parametrize("document", [b'{"password":"hunter2",}', b'["hunter2\n"]', b'{"hunter2":1,"hunter2":2}'])
def test_the_message_never_quotes_the_document(document):
    with pytest.raises(ValueError, match=REFUSALS) as refusal:
        decode(document)
    assert "hunter2" not in str(refusal.value)
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf], "\ud800"])
def test_what_is_not_json_is_not_encoded(value):
    with pytest.raises(ValueError, match=r"JSON compliant|surrogates"):
        encode(value)


def test_canonical_form_has_sorted_keys_no_spaces_and_plain_utf8():
    assert encode({"b": [1, 2.5, None], "a": {"é": True}}) == '{"a":{"é":true},"b":[1,2.5,null]}'.encode()
