"""Arguments as policies see them: the Cedar type of a tool's input schema, and values of that type.

Cedar is typed, JSON Schema is not, so only what has one certain Cedar type is shown: strings, booleans,
integers, sets of these, and objects with declared keys. Left out are fractional numbers, maps with free keys,
tuples and choices between types. What is left out does not exist in the type, so a policy that needs it is
refused at load; it can never pass in silence. `null` is an absent key. Sets have neither order nor repetition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, assert_never

from callgate_server.model.strict_json import Json

_MAX_DEPTH: Final = 16
_LONG_MIN: Final = -(2**63)
_LONG_MAX: Final = 2**63 - 1


class Scalar(Enum):
    STRING = "String"
    LONG = "Long"
    BOOL = "Bool"


@dataclass(frozen=True, slots=True)
class SetOf:
    item: "Type"


@dataclass(frozen=True, slots=True)
class Attribute:
    """`required`: always there, so that a policy may use it without `has`. `nullable`: `null` is taken as absence."""

    type: "Type"
    required: bool
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    attributes: Mapping[str, Attribute]


Type = Scalar | SetOf | Record


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a schema says of its values: `type` None means nothing but null."""

    type: Type | None
    nullable: bool


def type_of(schema: Mapping[str, Any]) -> Record:
    """Return the type of the arguments of a tool with this input schema. An argument without a type is left out."""
    definitions = schema.get("$defs", {})
    return _record(schema, definitions if isinstance(definitions, Mapping) else {}, depth=0)


def render(of: Type) -> str:
    """Write a type in Cedar's schema syntax."""
    match of:
        case Scalar():
            return of.value
        case SetOf():
            return f"Set<{render(of.item)}>"
        case Record():
            return "{ " + ", ".join(_render_attribute(name, of.attributes[name]) for name in of.attributes) + " }"
        case _:
            assert_never(of)


def convert(value: Json, to: Type) -> Json:
    """Return a value in Cedar's JSON form. It is built from the type, so no key of a caller's gets in.

    Raises:
        ValueError: the value is not of this type, or an integer does not fit 64 bits. Never quotes it.
    """
    match to:
        case Scalar.LONG:
            return _long(value)
        case Scalar.STRING if isinstance(value, str):
            return value
        case Scalar.BOOL if isinstance(value, bool):
            return value
        case SetOf() if isinstance(value, list):
            return [convert(item, to.item) for item in value]
        case Record() if isinstance(value, dict):
            return _convert_record(value, to)
        case _:
            raise ValueError("a value does not have the type that its schema says")


def quote(text: str) -> str:
    """Write a Cedar string literal."""
    plain = (
        char if char.isascii() and (char.isalnum() or char in " _.:/-") else f"\\u{{{ord(char):x}}}" for char in text
    )
    return f'"{"".join(plain)}"'


def _render_attribute(name: str, attribute: Attribute) -> str:
    mark = "" if attribute.required else "?"
    return f"{quote(name)}{mark}: {render(attribute.type)}"


def _long(value: Json) -> int:
    # JSON Schema's "integer" admits 5.0.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError("a value is not an integer")
    # Left out instead, it would slip past every forbid that looks at it.
    if not _LONG_MIN <= value <= _LONG_MAX:
        raise ValueError("an integer does not fit 64 bits")
    return value


def _convert_record(value: dict[str, Json], to: Record) -> dict[str, Json]:
    converted: dict[str, Json] = {}
    for name, attribute in to.attributes.items():
        if name in value and not (value[name] is None and attribute.nullable):
            converted[name] = convert(value[name], attribute.type)
        elif attribute.required:
            raise ValueError("a required value is missing")
    return converted


def _record(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int) -> Record:
    required = schema.get("required", ())
    attributes: dict[str, Attribute] = {}
    for name, child in sorted(schema.get("properties", {}).items()):
        shape = _shape(child, definitions, depth + 1)
        # Cedar reads keys like `__entity` in a request as its own escapes.
        if shape is not None and shape.type is not None and not name.startswith("__"):
            attributes[name] = Attribute(shape.type, name in required and not shape.nullable, shape.nullable)
    return Record(attributes)


def _shape(schema: object, definitions: Mapping[str, Any], depth: int) -> _Shape | None:
    """Return what is certain of the values, or None. Keywords only narrow each other: any one that decides will do."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return None
    if "type" in schema:
        return _by_type(schema, definitions, depth)
    if "const" in schema:
        return _by_values([schema["const"]])
    if "enum" in schema:
        return _by_values(schema["enum"])
    if "$ref" in schema:
        return _shape(definitions.get(str(schema["$ref"]).removeprefix("#/$defs/")), definitions, depth + 1)
    choices = schema.get("anyOf", schema.get("oneOf"))
    return _by_choices([_shape(choice, definitions, depth + 1) for choice in choices]) if choices else None


def _by_type(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int) -> _Shape | None:
    names = [schema["type"]] if isinstance(schema["type"], str) else list(schema["type"])
    nullable = "null" in names
    match [name for name in names if name != "null"]:
        case []:
            return _Shape(None, nullable=True)
        case ["string"]:
            return _Shape(Scalar.STRING, nullable)
        case ["integer"]:
            return _Shape(Scalar.LONG, nullable)
        case ["boolean"]:
            return _Shape(Scalar.BOOL, nullable)
        case ["array"] if "prefixItems" not in schema:
            item = _shape(schema.get("items"), definitions, depth + 1)
            return _Shape(SetOf(item.type), nullable) if item and item.type and not item.nullable else None
        case ["object"]:
            record = _record(schema, definitions, depth)
            return _Shape(record, nullable) if record.attributes else None
        case _:
            return None


def _by_values(values: Sequence[object]) -> _Shape | None:
    kinds = {type(value) for value in values}
    nullable = type(None) in kinds
    match kinds - {type(None)}:
        case empty if not empty:
            return _Shape(None, nullable)
        case only if only == {str}:
            return _Shape(Scalar.STRING, nullable)
        case only if only == {int}:
            return _Shape(Scalar.LONG, nullable)
        case only if only == {bool}:
            return _Shape(Scalar.BOOL, nullable)
        case _:
            return None


def _by_choices(choices: Sequence[_Shape | None]) -> _Shape | None:
    known = [choice for choice in choices if choice is not None]
    types = [choice.type for choice in known if choice.type is not None]
    if len(known) != len(choices) or any(other != types[0] for other in types):
        return None
    return _Shape(types[0] if types else None, any(choice.nullable for choice in known))
