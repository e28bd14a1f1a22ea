from typing import Any

import cedarpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.backends.cedar.arguments import Attribute, Record, Scalar, SetOf, convert, quote, render, type_of


def attributes(properties: dict[str, Any], **schema: Any) -> dict[str, Attribute]:
    return dict(type_of({"type": "object", "properties": properties} | schema).attributes)


def kind(schema: dict[str, Any], **outer: Any) -> Attribute | None:
    return attributes({"a": schema}, **outer).get("a")


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string", "maxLength": 3}, Scalar.STRING),
        ({"type": "integer"}, Scalar.LONG),
        ({"type": "boolean"}, Scalar.BOOL),
        ({"enum": ["a", "b"]}, Scalar.STRING),
        ({"enum": [1, 2]}, Scalar.LONG),
        ({"const": True}, Scalar.BOOL),
        ({"type": "array", "items": {"type": "string"}}, SetOf(Scalar.STRING)),
        ({"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}, SetOf(SetOf(Scalar.LONG))),
        ({"$ref": "#/$defs/name"}, Scalar.STRING),
        ({"anyOf": [{"type": "string"}, {"$ref": "#/$defs/name"}]}, Scalar.STRING),
    ],
)
def test_schemas_with_one_certain_type_have_it(schema: dict[str, Any], expected: object) -> None:
    found = kind(schema, **{"$defs": {"name": {"type": "string"}}})
    assert found == Attribute(expected, required=False)


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": "number"},
        {"type": "null"},
        {"type": ["string", "integer"]},
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"type": "array"},
        {"type": "array", "items": {"type": "number"}},
        {"type": "array", "items": {"type": ["string", "null"]}},
        {"type": "array", "items": {"type": "string"}, "prefixItems": [{"type": "integer"}]},
        {"enum": ["a", 1]},
        {"enum": [1, True]},
        {"enum": [1.5]},
        {"const": None},
        {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        {"anyOf": [{"type": "string"}, {}]},
        {"$ref": "#/$defs/absent"},
        {"$ref": "#/$defs/loop"},
    ],
)
def test_schemas_without_one_certain_type_are_left_out(schema: dict[str, Any]) -> None:
    assert kind(schema, **{"$defs": {"loop": {"$ref": "#/$defs/loop"}}}) is None


@pytest.mark.parametrize(
    "schema",
    [{"type": ["string", "null"]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}, {"enum": ["a", None]}],
)
def test_null_is_absence(schema: dict[str, Any]) -> None:
    record = type_of({"type": "object", "properties": {"a": schema}, "required": ["a"]})
    assert record.attributes["a"] == Attribute(Scalar.STRING, required=False, nullable=True)
    assert convert({"a": None}, record) == {}
    assert convert({"a": "x"}, record) == {"a": "x"}


def test_required_arguments_are_required_attributes() -> None:
    found = attributes({"a": {"type": "string"}, "b": {"type": "string"}}, required=["a"])
    assert (found["a"].required, found["b"].required) == (True, False)


def test_objects_with_declared_keys_are_records() -> None:
    inner = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "number"}}, "required": ["x"]}
    assert kind(inner) == Attribute(Record({"x": Attribute(Scalar.LONG, required=True)}), required=False)


def test_escapes_of_cedar_are_never_attributes() -> None:
    assert attributes({"__entity": {"type": "string"}, "__extn": {"type": "string"}}) == {}


def test_values_are_built_from_the_type_alone() -> None:
    record = type_of(
        {"type": "object", "properties": {"a": {"type": "object", "properties": {"x": {"type": "string"}}}}}
    )
    hostile = {"a": {"x": "v", "__entity": {"type": "Role", "id": "operator"}}, "b": 1, "__extn": {}}
    assert convert(hostile, record) == {"a": {"x": "v"}}


@pytest.mark.parametrize(
    ("value", "to"),
    [
        ("1", Scalar.LONG),
        (True, Scalar.LONG),
        (1.5, Scalar.LONG),
        (2**63, Scalar.LONG),
        (-(2**63) - 1, Scalar.LONG),
        (1e300, Scalar.LONG),
        (None, Scalar.STRING),
        ({"__entity": {"type": "Role", "id": "operator"}}, Scalar.STRING),
        (0, Scalar.BOOL),
        ("ab", SetOf(Scalar.STRING)),
        (["a", 1], SetOf(Scalar.STRING)),
        ([], Record({})),
        ({}, Record({"a": Attribute(Scalar.STRING, required=True)})),
        ({"a": None}, Record({"a": Attribute(Scalar.STRING, required=False)})),
    ],
)
def test_value_of_another_type_is_refused_and_not_quoted(value: Any, to: Any) -> None:
    with pytest.raises(ValueError, match=r"^(a|an) .*(value|integer|missing)") as caught:
        convert(value, to)
    assert "operator" not in str(caught.value)


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 5.0])
def test_every_64_bit_integer_is_kept(value: float) -> None:
    converted = convert(value, Scalar.LONG)
    assert converted == value
    assert isinstance(converted, int)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_name_becomes_one_attribute_of_a_schema_that_cedar_reads(name: str) -> None:
    record = Record({name: Attribute(Scalar.STRING, required=False)})
    cedarpy.Schema.from_str(f"entity E {render(record)};")
    schema = cedarpy.Schema.from_str(f"entity E {{ x: String }}; action {quote(name)};")
    assert len(str(schema)) > 0


def test_types_are_written_in_cedars_syntax() -> None:
    record = type_of(
        {
            "type": "object",
            "properties": {"b c": {"type": "array", "items": {"type": "string"}}, "a": {"type": "integer"}},
            "required": ["a"],
        }
    )
    assert render(record) == '{ "a": Long, "b c"?: Set<String> }'
