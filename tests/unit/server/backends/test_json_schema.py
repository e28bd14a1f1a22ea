import json
import re
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.admission.validate import MAX_VIOLATIONS
from callgate_server.backends.json_schema import CompiledSchemas, check_constant, check_schema, fits, grantable
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.errors import Violation
from callgate_server.model.manifest import Manifest

OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": False}
CANARY = "CANARY-4471"


def tool(input_schema: dict[str, Any], output: dict[str, Any] | None = None, name: str = "test.tool") -> Tool:
    manifest = Manifest.model_validate(
        {
            "tool": name,
            "version": "1.0.0",
            "summary": "A tool.",
            "image": "python",
            "run": {"python": "tool:run"},
            "input": input_schema,
            "output": output or {"type": "object"},
            "effect": "read",
        }
    )
    return Tool.pin(manifest, "sha256:" + "0" * 64)


def violations(properties: dict[str, Any], value: Any, **schema: Any) -> list[Violation]:
    pinned = tool(OBJECT | {"properties": properties} | schema)
    return list(CompiledSchemas.of(Catalog.of(pinned)).input_violations(pinned, value))


def one(schema: dict[str, Any], value: Any) -> Violation:
    (found,) = violations({"a": schema}, {"a": value})
    return found


def test_arguments_that_fit_have_no_violations() -> None:
    assert violations({"n": {"type": "integer"}}, {"n": 3}) == []


def test_output_is_checked_against_the_output_schema() -> None:
    pinned = tool(OBJECT, {"type": "object", "required": ["signature"]})
    schemas = CompiledSchemas.of(Catalog.of(pinned))
    assert schemas.output_violations(pinned, {"signature": "x"}) == []
    assert schemas.output_violations(pinned, {}) == [Violation("", "required", "`signature` is missing")]


@pytest.mark.parametrize(
    ("schema", "value", "rule", "message"),
    [
        ({"type": "integer"}, CANARY, "type", "must be of type integer"),
        ({"type": ["string", "null"]}, 1, "type", "must be of type null or string"),
        ({"enum": ["x", 1, None]}, CANARY, "enum", 'must be one of ["x",1,null]'),
        ({"const": {"k": 1}}, CANARY, "const", 'must be {"k":1}'),
        ({"format": "date"}, CANARY, "format", "must be a valid date"),
        ({"pattern": "^a+$"}, CANARY, "pattern", "must match ^a+$"),
        ({"minLength": 99}, CANARY, "minLength", "must have at least 99 characters"),
        ({"maxLength": 3}, CANARY, "maxLength", "must have at most 3 characters"),
        ({"minimum": 3}, 2, "minimum", "must be at least 3"),
        ({"maximum": 3}, 10**40, "maximum", "must be at most 3"),
        ({"exclusiveMinimum": 3}, 3, "exclusiveMinimum", "must be more than 3"),
        ({"exclusiveMaximum": 3}, 3, "exclusiveMaximum", "must be less than 3"),
        ({"multipleOf": 2}, 3, "multipleOf", "must be a multiple of 2"),
        ({"minItems": 2}, [CANARY], "minItems", "must have at least 2 items"),
        ({"maxItems": 0}, [CANARY], "maxItems", "must have at most 0 items"),
        ({"minProperties": 1}, {}, "minProperties", "must have at least 1 keys"),
        ({"maxProperties": 0}, {"x": CANARY}, "maxProperties", "must have at most 0 keys"),
        ({"uniqueItems": True}, [CANARY, CANARY], "uniqueItems", "must not have equal items"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, CANARY, "anyOf", "must be of type integer or null"),
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"x": CANARY}, "oneOf", "needs one of `a`, `b`"),
        (
            {"oneOf": [{"type": "string"}, {"minLength": 1}]},
            CANARY,
            "oneOf",
            "fits more than one of the alternatives of the schema",
        ),
        ({"anyOf": [{"minLength": 99}, {"type": "null"}]}, CANARY, "anyOf", None),
        ({"contains": {"type": "integer"}}, [CANARY], "contains", None),
        ({"not": {"type": "string"}}, CANARY, "not", None),
        ({"propertyNames": {"maxLength": 1}}, {CANARY: 1}, "propertyNames", None),
        ({"prefixItems": [{}], "unevaluatedItems": False}, [1, CANARY], "unevaluatedItems", None),
    ],
)
def test_each_keyword_has_a_text_that_names_the_rule_and_no_value(
    schema: dict[str, Any], value: Any, rule: str, message: str | None
) -> None:
    found = one(schema, value)
    assert (found.path, found.rule) == ("/a", rule)
    assert message is None or found.message == message
    assert found.message != "does not fit the schema"
    assert CANARY not in found.message


def test_missing_key_is_named_from_the_schema() -> None:
    assert violations({"a": True}, {}, required=["a"]) == [Violation("", "required", "`a` is missing")]


def test_every_unknown_key_is_a_violation_at_its_own_path() -> None:
    found = violations({"code": {"type": "string"}}, {"code": "x", "runtime": "runc", "env": {"LD_PRELOAD": CANARY}})
    assert sorted(found, key=lambda violation: violation.path) == [
        Violation("/env", "additionalProperties", "unknown key"),
        Violation("/runtime", "additionalProperties", "unknown key"),
    ]


def test_keys_of_a_caller_are_cut_and_escaped_in_paths() -> None:
    found = violations({}, {"a/b~": 1, "\x1b[31m": 1, "k" * 65: 1})
    assert sorted(violation.path for violation in found) == ["/a~1b~0", "/…", "/…"]


def test_path_leads_to_the_bad_field() -> None:
    files = {"type": "array", "items": {"type": "object", "additionalProperties": {"type": "string"}}}
    assert violations({"files": files}, {"files": [{}, {"in/put": 5}]})[0].path == "/files/1/in~1put"


def test_violations_are_capped() -> None:
    assert len(violations({}, {f"k{number}": 1 for number in range(100)})) == MAX_VIOLATIONS


def test_many_bad_items_are_reported_by_argument_only() -> None:
    numbers = {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]}
    found = violations({"numbers": numbers, "ok": {}}, {"ok": [], "numbers": [CANARY] * 100_000})
    assert found == [Violation("/numbers", "schema", "does not fit its schema; too large to say where")]


def test_large_arguments_still_name_what_is_small_in_them() -> None:
    found = violations(
        {"large": {}, "text": {"maxLength": 9}, "deep": {"properties": {"n": {"type": "integer"}}}, "b": {}},
        {"large": [0] * 1000, "text": CANARY * 100_000, "deep": {"n": CANARY}, "x": 1},
        required=["b"],
    )
    assert found == [
        Violation("", "required", "`b` is missing"),
        Violation("/text", "maxLength", "must have at most 9 characters"),
        Violation("/deep/n", "type", "must be of type integer"),
        Violation("/x", "additionalProperties", "unknown key"),
    ]


def test_large_arguments_that_break_a_rule_of_the_whole_are_refused() -> None:
    found = violations({"a": {}}, {"a": [0] * 1000}, maxProperties=0)
    assert found == [Violation("", "schema", "does not fit the schema; too large to say where")]


def test_large_result_may_have_keys_that_an_open_schema_does_not_name() -> None:
    pinned = tool(OBJECT, {"type": "object", "properties": {"n": {"type": "integer"}}})
    found = CompiledSchemas.of(Catalog.of(pinned)).output_violations(pinned, {"n": CANARY, "more": [0] * 1000})
    assert found == [Violation("/n", "type", "must be of type integer")]


def test_large_value_that_is_no_object_is_refused() -> None:
    assert [violation.rule for violation in violations({}, [0] * 1000)] == ["schema"]


def test_many_unknown_keys_of_large_arguments_are_capped() -> None:
    assert len(violations({}, {f"k{number}": "x" * 1000 for number in range(1000)})) == MAX_VIOLATIONS


@pytest.mark.parametrize("name", ["a b%é", '"\n', "a/b~c", "", "$ref"])
def test_arguments_with_odd_names_are_found_in_large_values(name: str) -> None:
    found = violations({name: {"type": "integer"}, "large": {}}, {"large": [0] * 1000, name: CANARY})
    assert [violation.rule for violation in found] == ["type"]


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def test_value_nested_beyond_the_engine_is_a_violation() -> None:
    assert violations({"a": {"const": 1}}, {"a": nested(300)}) == [
        Violation("", "json", "the value cannot be checked against the schema")
    ]


def test_text_that_is_not_unicode_is_a_violation() -> None:
    assert violations({"a": {"pattern": "^a"}}, {"a": "\ud800"})[0].rule == "json"


@pytest.mark.parametrize("number", [10**127, -(10**127), 2**63, 1e308])
def test_huge_numbers_are_judged_and_not_quoted(number: float) -> None:
    found = one({"type": "number", "minimum": -5, "maximum": 5}, number)
    assert found.rule in ("minimum", "maximum")
    assert str(number) not in found.message


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)
CLOSED = tool(
    OBJECT
    | {
        "properties": {
            "s": {"type": "string", "maxLength": 3, "pattern": "^[a-z]*$"},
            "n": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]},
            "l": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True},
        }
    }
)
CLOSED_SCHEMAS = CompiledSchemas.of(Catalog.of(CLOSED))


@given(st.dictionaries(st.sampled_from(["s", "n", "l", "x"]), VALUES) | VALUES)
def test_any_value_is_judged_without_raising(value: Any) -> None:
    for violation in CLOSED_SCHEMAS.input_violations(CLOSED, value):
        assert violation.message
        assert violation.path == "" or violation.path.startswith("/")


@given(st.text(alphabet=string.ascii_uppercase, min_size=6, max_size=20))
def test_message_never_quotes_a_value(secret: str) -> None:
    arguments = {"s": secret, "n": secret, "l": [secret, secret]}
    for violation in CLOSED_SCHEMAS.input_violations(CLOSED, arguments):
        assert secret not in violation.message
        assert secret not in violation.path


def diamonds(levels: int) -> dict[str, Any]:
    definitions: dict[str, Any] = {"d0": {"type": "string"}}
    for level in range(1, levels + 1):
        reference = {"$ref": f"#/$defs/d{level - 1}"}
        definitions[f"d{level}"] = {"allOf": [reference, reference]}
    return {"$defs": definitions, "$ref": f"#/$defs/d{levels}"}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


def aliased(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"enum": [1]}
    for _ in range(levels):
        schema = {"allOf": [schema, schema]}
    return schema


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"$ref": "http://127.0.0.1:9/x"}, "at /$ref: only references"),
        ({"$ref": "file:///etc/passwd"}, "at /$ref: only references"),
        ({"$ref": "other.json"}, "at /$ref: only references"),
        ({"$ref": "#"}, "at /$ref: only references"),
        ({"$ref": "#/$defs/a/properties/b"}, "at /$ref: only references"),
        ({"$ref": 5}, "at /$ref: only references"),
        ({"$ref": "#/$defs/a"}, "`$defs` has no `a`"),
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}, "`a` refers to itself"),
        (
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
            "refers to itself",
        ),
        ({"$id": "http://127.0.0.1:9/x"}, "at /$id: `$id` is not a keyword"),
        ({"items": {"$schema": "http://127.0.0.1:9/x"}}, "at /items/$schema"),
        ({"$schema": "http://127.0.0.1:9/x"}, "at /$schema: must be"),
        ({"$dynamicRef": "#a"}, "at /$dynamicRef"),
        ({"properties": {"a": {"tpye": "string"}}}, "at /properties/a/tpye: `tpye` is not a keyword"),
        ({"properties": {"a": {"type": "objekt"}}}, "at /properties/a/type"),
        ({"properties": {"a": 5}}, "at /properties/a: must be a schema"),
        ({"properties": 5}, "at /properties: must hold schemas"),
        ({"$defs": 5}, "at /$defs: must be an object"),
        ({"pattern": "(?=a)b"}, "at /pattern"),
        ({"pattern": r"(a)\1"}, "at /pattern"),
        ({"pattern": "((a{100}){100}){100}"}, "at /pattern"),
        ({"patternProperties": {"(?=a)b": {}}}, "at /patternProperties"),
        ({"format": "no-such-format"}, "Unknown format"),
        ({"enum": [set()]}, "a value that JSON cannot hold"),
        ({"maximum": float("nan")}, "a value that JSON cannot hold"),
        ({"const": {1: 2}}, "a key that is not a string"),
        ({"description": "x" * 300_000}, "is larger than"),
        ({"enum": list(range(30_000))}, "has more than"),
        (deep(100), "is nested deeper than"),
        (aliased(14), "has more than"),
        (diamonds(12), "follows more than"),
        ({"$defs": {"a": {"prefixItems": [{}] * 100}}, "allOf": [{"$ref": "#/$defs/a"}] * 30}, "grows to more than"),
        ({"allOf": [{"$ref": "#/$defs/a"}] * 300, "$defs": {"a": True}}, "follows more than"),
    ],
)
def test_unacceptable_schema_is_refused_with_its_place(schema: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)):
        check_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"$schema": "https://json-schema.org/draft/2020-12/schema"},
        {"properties": {"$ref": {"type": "string"}, "tpye": True}},
        {"enum": [{"$ref": "http://127.0.0.1:9/x"}], "default": {"$id": "x"}},
        {"$defs": {"a": {"type": "string", "format": "date-time"}}, "items": {"$ref": "#/$defs/a"}},
        diamonds(5),
    ],
)
def test_ordinary_schemas_are_accepted(schema: dict[str, Any]) -> None:
    check_schema(schema)


def test_catalog_with_an_unacceptable_schema_names_the_tool() -> None:
    bad = tool(OBJECT, {"$ref": "file:///etc/hostname"}, name="bad.tool")
    with pytest.raises(ValueError, match=r"^the output schema of bad\.tool: at /\$ref: "):
        CompiledSchemas.of(Catalog.of(tool(OBJECT), bad))


def test_patterns_stay_linear() -> None:
    found = one({"pattern": "^(a+)+$"}, "a" * 100_000 + "!")
    assert found.rule == "pattern"


def test_long_texts_of_a_schema_are_cut() -> None:
    found = one({"enum": ["x" * 5000]}, 1)
    assert len(found.message) <= 200
    assert json.dumps("x" * 5000) not in found.message


def test_one_value_is_held_against_one_schema() -> None:
    assert fits({"type": "string", "maxLength": 3}, "abc")
    assert not fits({"type": "string", "maxLength": 3}, "abcd")
    with pytest.raises(ValueError, match="ref"):
        fits({"$ref": "https://example.com/schema"}, "abc")


@pytest.mark.parametrize(("constant", "fits"), [({"rate": 1}, True), ({"rate": "x"}, False), ({}, False)])
def test_a_constant_fallback_must_fit_the_output(constant: dict[str, Any], fits: bool) -> None:
    output = {"type": "object", "properties": {"rate": {"type": "integer"}}, "required": ["rate"]}
    plain = tool(OBJECT, output).manifest.model_dump(by_alias=True)
    declared = Tool.pin(Manifest.model_validate(plain | {"fallback": {"constant": constant}}), "sha256:" + "0" * 64)
    if fits:
        CompiledSchemas.of(Catalog.of(declared))
        check_constant(declared.manifest)
        return
    fault = r"does not fit the `output` of test.tool at .*: .*; change either"
    with pytest.raises(ValueError, match=f"^fallback.constant: {fault}$") as at_the_start:
        CompiledSchemas.of(Catalog.of(declared))
    with pytest.raises(ValueError, match=f"^{fault}$") as in_the_build:
        check_constant(declared.manifest)
    assert str(at_the_start.value) == f"fallback.constant: {in_the_build.value}"


def test_a_schema_of_a_grant_says_where_something_does_not_fit_or_only_that_it_does_not() -> None:
    check = grantable({"properties": {"a": {"type": "integer"}}, "required": ["a"]})
    assert check({"a": 1}, detailed=True) == []
    assert check({"a": CANARY}, detailed=True) == [Violation("/a", "type", "must be of type integer")]
    whole = [Violation("", "schema", "does not fit the schema; too large to say where")]
    assert check({"a": CANARY}, detailed=False) == whole
    assert check({"a": [0] * 1000}, detailed=True) == whole
    assert [found.rule for found in grantable({"pattern": "a"})("\ud800", detailed=True)] == ["json"]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "objekt"},
        {"required": 5},
        {"pattern": "(?=a)b"},
        {"pattern": "(?:a{0,90}b){50}"},
        {"pattern": "(?:[abcd]{0,100}[ab]){0,20}[xyz]"},
    ],
)
def test_what_is_no_schema_or_has_a_large_pattern_is_none_of_a_grant(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at /"):
        grantable(schema)


def test_what_fits_a_schema_fits_it_in_a_grant() -> None:
    schema = {
        "properties": {"s": {"type": "string", "maxLength": 3}, "n": {"anyOf": [{"minimum": 0}, {"const": None}]}}
    }
    for value in ({}, {"s": "abc", "n": 1}, {"s": "abcd"}, {"n": -1}, {"n": None}, []):
        assert bool(grantable(schema)(value, detailed=False)) is not fits(schema, value)
