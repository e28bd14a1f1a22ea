import contextlib
import itertools
import re
import time
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from callgate_server.admission.grants import (
    ALLOWED,
    MAX_BYTES,
    MAX_PATTERN,
    MAX_PATTERNS,
    MAX_SCHEMAS,
    MAX_STEPS,
    MAX_VALUES,
    check_grant,
    steps_left,
)
from callgate_server.admission.tasks import LiveTask
from callgate_server.backends.json_schema import grantable
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.spending import Budget
from callgate_server.model.strict_json import decode, encode
from callgate_server.model.task import Task, new_task_id

NOW = datetime(2026, 11, 28, tzinfo=UTC)
# Nothing takes nearly as long that takes so many steps at most.
DEADLINE_S = 2.0
# Of the patterns that the engine's size limit leaves, one of the slowest that a search found.
SLOW = r"\p{Greek}*((?:[ab]+|(?:\b??|(){0,20}){3})?){0,9}${1000}(?i)k{0,2}"


def live(schema) -> LiveTask:
    task_id = new_task_id()
    caller = Caller("acme", "bot", (), task_id)
    grant = decode(encode({"text.diff": schema}))
    return LiveTask.of(Task(task_id, caller, "x", grant, Budget(), NOW, NOW + timedelta(hours=1)), "digest", grantable)


def nested(keyword, levels, width=1):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {keyword: [schema] * width}
    return schema


def unevaluated(levels):
    schema = {}
    for _ in range(levels):
        schema = {"if": schema, "unevaluatedProperties": {"type": "string"}}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"a": True, "b": False}, "required": ["a"], "additionalProperties": False},
        {"properties": {"argv": {"prefixItems": [{"enum": ["jq", "ls"]}], "items": {"type": "string"}, "maxItems": 9}}},
        {"properties": {"n": {"anyOf": [{"minimum": 0, "exclusiveMaximum": 9, "multipleOf": 3}, {"const": None}]}}},
        {"properties": {"url": {"pattern": r"^https://[a-z0-9.-]+\.example\.com/[^\s]*$", "maxLength": 200}}},
        {"properties": {"id": {"pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", "description": "A UUID."}}},
        {"properties": {"pattern": {"title": "A name of an argument, and no keyword."}, "not": {}}},
    ],
)
def test_what_narrows_arguments_is_a_grant(schema):
    assert grantable(schema)
    check_grant({"text.diff": schema})


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"not": {}}, "at /not: not a keyword"),
        (unevaluated(28), "not a keyword"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {}}}, "not a keyword"),
        ({"properties": {"a/b": {"uniqueItems": True}}}, "at /properties/a~1b/uniqueItems: not a keyword"),
        ({"format": "regex"}, "at /format: not a keyword"),
        ({"items": {"contains": {}}}, "at /items/contains: not a keyword"),
        ({"patternProperties": {"a": {}}}, "at /patternProperties: not a keyword"),
        ({"\x1b[31m": 1}, "at /…: not a keyword"),
        ({"multipleOf": 0.1}, "at /multipleOf: must be a whole number"),
        ({"multipleOf": 2**53 + 1}, "at /multipleOf: must be a whole number"),
        ({"pattern": "a" * (MAX_PATTERN + 1)}, "at /pattern: a pattern of a grant"),
        ({"properties": [{}]}, "at /properties: must be an object of schemas"),
        ({"allOf": {"a": {}}}, "at /allOf: must be a list of schemas"),
        ({"items": [{}]}, "at /items: must be a schema"),
        (nested("allOf", 17), "nested deeper"),
        ({"anyOf": [{}] * MAX_SCHEMAS}, "more than 128 schemas"),
        ({"allOf": [{"pattern": f"(?:a{{0,{n}}}b){{50}}"} for n in range(MAX_PATTERNS + 1)]}, "more than 8 patterns"),
        ({"enum": list(range(MAX_VALUES))}, "more than 512 values"),
        ({"const": "x" * MAX_BYTES}, "larger than 16384 bytes"),
    ],
)
def test_what_could_take_long_is_no_grant_and_what_may_be_there_is_said(schema, fault):
    with pytest.raises(ValueError, match=re.escape(fault)) as refused:
        check_grant({"text.diff": schema})
    assert ("not a keyword" in fault) == (ALLOWED in str(refused.value))


def test_the_bounds_are_of_a_grant_and_not_of_each_of_its_tools():
    for schema in ({"anyOf": [{}] * 3}, {"pattern": "a"}, {"enum": list(range(20))}, {"const": "x" * 600}):
        with pytest.raises(ValueError, match="grant"):
            check_grant({f"a.t{number}": schema for number in range(50)})


def test_a_refused_grant_is_never_given_to_the_engine():
    def engine(_schema):
        raise AssertionError

    task = replace(live({}).task, grant={"text.diff": unevaluated(28)})
    with pytest.raises(ValueError, match="not a keyword"):
        LiveTask.of(task, "digest", engine)


@pytest.mark.parametrize(
    ("schema", "value", "steps"),
    [
        (True, [1] * 100, 1),
        ({}, {"a": "x" * 100}, 1),
        ({"type": "object"}, {}, 2),
        ({"enum": ["a", ["b", "c"]]}, 1, 2 + 5),
        ({"multipleOf": 3}, 1, 2 + 8),
        ({"pattern": "a"}, "x" * 50, 2 + 100),
        ({"minLength": 1}, "x" * 5000, 2 + 4),
        ({"items": {}}, [1] * 10, 2 + 10),
        ({"prefixItems": [{"type": "string"}]}, [1] * 10, 2 + 2),
        ({"prefixItems": [{}], "items": {"type": "string"}}, [1] * 3, 3 + 1 + 2 * 2),
        ({"allOf": [{"type": "string"}] * 3}, 1, 2 + 6),
        ({"properties": {"a": {"type": "string"}}}, {"a": 1, "b": [1] * 9}, 2 + 1 + 2),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "string"}}, {"a": 1, "b": 1}, 3 + 3 + 1 + 2),
        ({"additionalProperties": False}, {f"k{n}": 1 for n in range(9)}, 2 + 9),
    ],
)
def test_each_schema_is_charged_for_each_value_that_it_is_held_against(schema, value, steps):
    assert MAX_STEPS - steps_left(schema, value) == steps


def test_what_is_too_large_is_noticed_before_all_of_it_was_looked_at():
    many = {"items": nested("oneOf", 5, 2)}
    assert -100 < steps_left(many, [1] * 100_000) < 0


WORST = {
    "the same list by many schemas": {"allOf": [{"items": {"type": "integer"}}] * 60},
    "many alternatives": {"items": {"oneOf": [{"minimum": number} for number in range(120)]}},
    "alternatives of alternatives": {"items": nested("anyOf", 6, 2)},
    "a long enumeration": {"items": {"enum": [f"k{number:03}" for number in range(480)]}},
    "a large constant": {"items": {"const": {f"k{number}": number for number in range(450)}}},
    "many names": {"items": {"required": [f"k{number}" for number in range(450)]}},
    "many properties": {"items": {"properties": {f"k{n}": {"type": "null"} for n in range(120)}}},
    "division": {"items": {"multipleOf": 3}},
    "a slow pattern": {"items": {"pattern": SLOW}},
    "slow patterns": {"allOf": [{"items": {"pattern": SLOW}}] * MAX_PATTERNS},
    "every key": {"additionalProperties": {"type": "string"}},
}
TEXT = "abkK ßж漢" * 125_000
LARGE = {
    "whole numbers": [-(10**127 - 1)] * 8000,
    "numbers": list(range(100_000)),
    "texts": ["k999"] * 140_000,
    "objects": [{f"k{number}": "x" for number in range(100)}] * 1000,
    "keys": {f"k{number}": number for number in range(80_000)},
    "a text": [TEXT],
    "words": [TEXT[at : at + 100] for at in range(0, len(TEXT), 100)],
}


def largest_accepted(schema, value):
    """As much of a value as its check may take."""
    low, high = 0, len(value)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if steps_left(schema, cut(value, middle)) >= 0 else (low, middle - 1)
    return cut(value, low)


def cut(value, length):
    return dict(itertools.islice(value.items(), length)) if isinstance(value, dict) else value[:length]


@pytest.mark.parametrize("name", WORST)
def test_no_grant_that_is_accepted_takes_long_whatever_it_is_held_against(name):
    begun = time.monotonic()
    confined = live(WORST[name])
    schema = confined.task.grant["text.diff"]
    for value in LARGE.values():
        for arguments in (value, largest_accepted(schema, value), value[:400] if isinstance(value, list) else value):
            if steps_left(schema, arguments) >= 0:
                with contextlib.suppress(CallError):
                    confined.confine("text.diff", arguments)
                continue
            with pytest.raises(CallError, match="too large") as refused:
                confined.confine("text.diff", arguments)
            assert refused.value.reason is Reason.OUTSIDE_GRANT
    assert time.monotonic() - begun < DEADLINE_S * 5


def test_the_slowest_pattern_meets_only_so_much_text():
    schema = {"pattern": SLOW}
    most = max(length for length in range(8000, 12000) if steps_left(schema, TEXT[:length]) >= 0)
    assert most == 9999
    begun = time.monotonic()
    live(schema).confine("text.diff", TEXT[:most])
    assert time.monotonic() - begun < DEADLINE_S


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [{"a": number} for number in range(250)]},
        {"properties": {f"k{number}": {"type": "string", "minLength": 1} for number in range(120)}},
        {"allOf": [{"pattern": SLOW}] * MAX_PATTERNS, "enum": ["x" * 30 for _ in range(400)]},
    ],
)
def test_all_grants_that_an_agent_may_have_are_a_few_megabytes(schema):
    live(schema)
    tracemalloc.start()
    try:
        kept = [live(schema) for _ in range(64)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 100 * 1024 * len(kept)
