import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.ledger.record import MAX_CLEAR_BYTES, MAX_DEPTH, MAX_LEAVES, recorded
from callgate_server.model.strict_json import encode

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=30
)


def digest(data):
    return hmac.new(b"key", data, hashlib.sha256).hexdigest()


def hidden(value, name="x"):
    return recorded({name: value}, (), digest)[name]


def strings(value):
    if isinstance(value, dict):
        for key, child in value.items():
            yield key
            yield from strings(child)
    elif isinstance(value, list):
        for child in value:
            yield from strings(child)
    else:
        yield value


@given(VALUES)
def test_nothing_of_a_value_is_left(value):
    for text in strings(hidden(value)):
        assert isinstance(text, str)
        assert text.startswith("hmac:")
        assert len(text) == len("hmac:") + 32


@given(VALUES)
def test_equal_values_in_the_same_place_can_be_recognised(value):
    assert hidden(value) == hidden(value)


@pytest.mark.parametrize("value", [4711, 0, True, False, None, 2.5, "4711", "", [], {}])
def test_small_values_are_hidden_too(value):
    assert hidden(value) == "hmac:" + digest(encode([["x"], value]))[:32]


def test_values_of_other_types_and_in_other_places_do_not_correlate():
    assert len({hidden(1), hidden("1"), hidden(True), hidden(1.0), hidden(None)}) == 5
    assert hidden("secret", "password") != hidden("secret", "user")
    first, second = hidden(["same", "same"])
    assert first != second
    assert hidden("same") not in strings(hidden(["same"]))


def test_names_below_the_first_level_may_be_a_callers_text_and_are_hidden():
    (name,) = hidden({"alice@example.com": 1})
    assert name.startswith("hmac:")
    assert list(recorded({"x": 1}, (), digest)) == ["x"]


def test_the_shape_of_a_small_value_is_kept():
    shape = hidden({"a": [1, {"b": 2}]})
    ((first, second),) = shape.values()
    assert isinstance(first, str)
    assert isinstance(second, dict)


@pytest.mark.parametrize(
    "large",
    [
        list(range(MAX_LEAVES + 1)),
        [[0] * 10] * 10,
        {str(number): number for number in range(MAX_LEAVES + 1)},
        [[[[[[[1]]]]]]],
        [[]] * (MAX_LEAVES + 1),
        list(range(1_000_000)),
    ],
)
def test_a_large_or_deep_value_collapses_to_one_hash(large):
    assert isinstance(hidden(large), str)
    assert hidden(large) != hidden([*large, 1] if isinstance(large, list) else large | {"y": 1})


@given(VALUES)
def test_the_record_is_bounded(value):
    assert len(encode(hidden(value))) <= MAX_LEAVES * 64 * 4


def test_fields_marked_clear_stand_as_they_are():
    assert recorded({"city": "Bern", "pin": 4711}, ("city", "absent"), digest) == {
        "city": "Bern",
        "pin": hidden(4711, "pin"),
    }
    assert recorded({"x": {"deep": [1]}}, ("x",), digest) == {"x": {"deep": [1]}}


def test_a_clear_field_that_is_too_large_is_hidden():
    fits, too_large = "a" * (MAX_CLEAR_BYTES - 2), "a" * (MAX_CLEAR_BYTES - 1)
    assert recorded({"x": fits}, ("x",), digest) == {"x": fits}
    assert recorded({"x": too_large}, ("x",), digest) == {"x": hidden(too_large)}


def test_a_clear_field_that_is_nested_deeply_is_hidden_so_that_the_record_can_be_read():
    value = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert recorded({"x": value}, ("x",), digest) == {"x": value}
    assert recorded({"x": [value]}, ("x",), digest) == {"x": hidden([value])}


def test_a_name_is_clear_at_the_first_level_only():
    assert "Bern" not in str(recorded({"address": {"city": "Bern"}}, ("city",), digest))
