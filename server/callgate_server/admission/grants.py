"""What a task's grant may say of arguments: a small part of JSON Schema, and how much one check of it may take.

A manifest is reviewed by whoever deploys it; a grant is an agent's text, and the gateway checks it while everybody
waits. So a grant has no keyword whose cost nobody can foresee, little of everything, and no more than so many steps
for one call: each schema is charged for each value that it would be held against, before the engine does that. Pure;
whether a schema is one at all, and whether arguments fit it, the engine says.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

from callgate_server.model.json_pointer import shown
from callgate_server.model.strict_json import Json, encode

# What JSON Schema calls a schema.
Schema: TypeAlias = "Mapping[str, Any] | bool"

MAX_BYTES: Final = 16 * 1024
MAX_SCHEMAS: Final = 128
MAX_VALUES: Final = 512
MAX_DEPTH: Final = 16
MAX_PATTERNS: Final = 8
MAX_PATTERN: Final = 128
MAX_DIVISOR: Final = 2**53
# A step is about half a microsecond, here and again in the engine.
MAX_STEPS: Final = 20_000

_ONE: Final = frozenset({"items", "additionalProperties"})
_LIST: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAP: Final = frozenset({"properties"})
_PLAIN: Final = frozenset(
    {"type", "enum", "const", "required", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
    | {"minLength", "maxLength", "pattern", "minItems", "maxItems", "minProperties", "maxProperties"}
)
_NOTES: Final = frozenset({"title", "description", "$comment"})
ALLOWED: Final = ", ".join(sorted(_ONE | _LIST | _MAP | _PLAIN))

# What is charged beside one step for each schema, each of its keywords and each value in it.
_OF_A_CHARACTER: Final = 2  # that a pattern is held against: the worst ones of their size take some microseconds
_OF_A_DIVISION: Final = 8
_CHARACTERS: Final = 1024
_KEYS: Final = 16


def check_grant(grant: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a grant that could take too much.

    Raises:
        ValueError: names the tool, the place as a JSON Pointer, and what may be there.
    """
    if len(encode(grant)) > MAX_BYTES:
        raise ValueError(f"the grant is larger than {MAX_BYTES} bytes")
    if _values(grant) > MAX_VALUES:
        raise ValueError(f"the grant has more than {MAX_VALUES} values")
    schemas = patterns = 0
    for tool, schema in grant.items():
        try:
            for found in _schemas(schema, "", MAX_DEPTH):
                schemas += 1
                patterns += "pattern" in found
        except ValueError as error:
            raise ValueError(f"the grant's schema for {tool}: {error}") from None
    if schemas > MAX_SCHEMAS:
        raise ValueError(f"the grant has more than {MAX_SCHEMAS} schemas, those within others included")
    if patterns > MAX_PATTERNS:
        raise ValueError(f"the grant has more than {MAX_PATTERNS} patterns")


def steps_left(schema: Schema, value: Json, left: int = MAX_STEPS) -> int:
    """What is left of so many steps when a value was held against every part of a schema, below 0 if they do not do.

    `check_grant` and the engine have accepted the schema.
    """
    if isinstance(schema, bool):
        return left - 1
    left -= len(schema) + sum(
        _values(schema[keyword]) for keyword in ("enum", "const", "required") if keyword in schema
    )
    left -= _OF_A_DIVISION * ("multipleOf" in schema)
    if isinstance(value, str):
        left -= len(value) * _OF_A_CHARACTER if "pattern" in schema else len(value) // _CHARACTERS
    elif isinstance(value, dict):
        left -= len(schema.get("properties", ())) + len(value) // (1 if "additionalProperties" in schema else _KEYS)
    left -= 1
    for part, child in _parts(schema, value):
        if left < 0:
            break
        left = steps_left(part, child, left)
    return left


def _parts(schema: Mapping[str, Any], value: Json) -> Iterator[tuple[Schema, Json]]:
    """Each schema within this one, with each value that it is held against."""
    for keyword in ("allOf", "anyOf", "oneOf"):
        for branch in schema.get(keyword, ()):
            yield branch, value
    if isinstance(value, dict):
        named, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for key in value if isinstance(others, Mapping) else named.keys() & value.keys():
            yield named.get(key, others), value[key]
    elif isinstance(value, list):
        first, rest = schema.get("prefixItems", ()), schema.get("items", True)
        for index, child in enumerate(value if isinstance(rest, Mapping) else value[: len(first)]):
            yield first[index] if index < len(first) else rest, child


def _schemas(schema: object, at: str, levels: int) -> Iterator[Mapping[str, Any]]:
    """The schema and each within it.

    Raises:
        ValueError: as `check_grant`.
    """
    if not levels:
        raise ValueError(f"is nested deeper than {MAX_DEPTH} schemas")
    if isinstance(schema, bool):
        schema = {}
    if not isinstance(schema, Mapping):
        raise ValueError(f"at {at or '/'}: must be a schema: an object, true or false")
    yield schema
    for keyword, value in schema.items():
        where = f"{at}/{shown(keyword)}"
        if keyword in _ONE:
            yield from _schemas(value, where, levels - 1)
        elif keyword in _LIST or keyword in _MAP:
            for key, child in _children(keyword, value, where):
                yield from _schemas(child, f"{where}/{key}", levels - 1)
        elif keyword in _PLAIN:
            _refuse_costly(keyword, value, where)
        elif keyword not in _NOTES:
            raise ValueError(f"at {where}: not a keyword that grants may use. They may use {ALLOWED}")


def _children(keyword: str, value: object, where: str) -> Iterator[tuple[str, object]]:
    if keyword in _MAP and isinstance(value, Mapping):
        yield from ((shown(key), child) for key, child in value.items())
    elif keyword in _LIST and isinstance(value, list):
        yield from ((str(index), child) for index, child in enumerate(value))
    else:
        raise ValueError(f"at {where}: must be {'an object' if keyword in _MAP else 'a list'} of schemas")


def _refuse_costly(keyword: str, value: object, where: str) -> None:
    if keyword == "pattern" and isinstance(value, str) and len(value) > MAX_PATTERN:
        raise ValueError(f"at {where}: a pattern of a grant has at most {MAX_PATTERN} characters")
    # Division by a fraction is done exactly, which takes the engine a hundred times as long.
    if keyword == "multipleOf" and not (isinstance(value, int) and value <= MAX_DIVISOR):
        raise ValueError(f"at {where}: must be a whole number, at most 2^53")


def _values(value: object) -> int:
    if isinstance(value, Mapping):
        return 1 + sum(map(_values, value.values()))
    return 1 + sum(map(_values, value)) if isinstance(value, list) else 1
