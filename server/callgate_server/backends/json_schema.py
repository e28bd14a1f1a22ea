"""JSON Schema 2020-12 by jsonschema-rs: which schemas a tool may declare, and what of a value does not fit one.

A schema is checked in our own words before the engine sees it, because the engine would fetch `http:` and
`file:` references, ignore misspelt keywords, and fill all memory with the errors of a recursive `anyOf`.
So: known keywords only, references only into the schema's own `$defs`, no recursion, and a cap on what the
schema grows to when every reference is written out. Patterns run on the linear engine (no look-around, no
back-references), unknown formats are errors, and a retriever that refuses stands behind all of it.

The engine quotes values in its messages, so its messages are never used: each keyword has a text here, made
of what the schema says. The only words of a caller that appear are names of keys, cut and escaped.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final, NoReturn

import jsonschema_rs

from callgate_server.admission.tasks import Check
from callgate_server.admission.validate import MAX_VIOLATIONS
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.errors import Violation
from callgate_server.model.json_pointer import escaped, shown, visible
from callgate_server.model.manifest import Manifest
from callgate_server.model.strict_json import Json, encode

MAX_SCHEMA_BYTES: Final = 256 * 1024
MAX_SCHEMA_DEPTH: Final = 32
MAX_SCHEMA_NODES: Final = 20_000
MAX_REFS: Final = 200
# Subschemas after every reference is written out: the factor by which checking one value can grow.
MAX_EXPANDED: Final = 2_000
# The engine collects every error before it yields the first, each with a copy of the value it is about. Details are
# only asked of values that are small: so many values, with a text counting as one for each 128 characters.
_SMALL: Final = 500
_CHARACTERS: Final = 128
_REGEX_BYTES: Final = 1 << 20
_GRANT_REGEX_BYTES: Final = 1 << 14
_TEXT_LIMIT: Final = 200

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_LOCAL_REF: Final = re.compile(r"#/\$defs/([A-Za-z0-9_.-]+)")
_ONE: Final = frozenset(
    {"additionalProperties", "items", "contains", "propertyNames", "not", "if", "then", "else"}
    | {"unevaluatedItems", "unevaluatedProperties"}
)
_LIST: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAP: Final = frozenset({"properties", "patternProperties", "dependentSchemas"})
_PLAIN: Final = frozenset(
    {"type", "enum", "const", "format", "pattern", "minLength", "maxLength", "minimum", "maximum"}
    | {"exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "uniqueItems"}
    | {"minContains", "maxContains", "minProperties", "maxProperties", "required", "dependentRequired"}
    | {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
)


@dataclass(frozen=True, slots=True)
class _Compiled:
    whole: jsonschema_rs.Validator
    # One validator for each subschema, by `#/…` pointer.
    parts: jsonschema_rs.ValidatorMap
    properties: frozenset[str]
    required: tuple[str, ...]
    # Nothing but `properties` may be there.
    closed: bool


class CompiledSchemas:
    """The schemas of a catalog, compiled once for each tool digest."""

    def __init__(self, inputs: Mapping[str, _Compiled], outputs: Mapping[str, _Compiled]) -> None:
        self._inputs = inputs
        self._outputs = outputs

    @classmethod
    def of(cls, catalog: Catalog) -> "CompiledSchemas":
        """Compile every schema of the catalog.

        Raises:
            ValueError: a schema is unacceptable, or a `fallback.constant` does not fit one; the message names the
                tool, the place and the fault.
        """
        inputs: dict[str, _Compiled] = {}
        outputs: dict[str, _Compiled] = {}
        for tool in catalog:
            for side, schema, compiled in (
                ("input", tool.manifest.input, inputs),
                ("output", tool.manifest.output, outputs),
            ):
                try:
                    compiled[tool.digest] = _compile(schema)
                except ValueError as error:
                    raise ValueError(f"the {side} schema of {tool.name}: {error}") from None
            if fault := _constant_fault(tool.manifest, outputs[tool.digest]):
                raise ValueError(f"fallback.constant: {fault}")
        return cls(inputs, outputs)

    def input_violations(self, tool: Tool, arguments: Json) -> Sequence[Violation]:
        """See `admission.validate.Schemas`. A tool that is not of this catalog raises KeyError."""
        return _violations(self._inputs[tool.digest], arguments)

    def output_violations(self, tool: Tool, result: Json) -> Sequence[Violation]:
        """See `admission.validate.Schemas`. A tool that is not of this catalog raises KeyError."""
        return _violations(self._outputs[tool.digest], result)


def _constant_fault(manifest: Manifest, output: _Compiled) -> str:
    """Say why what is answered instead of a tool's result does not fit where that result would have to; else empty."""
    fallback = manifest.fallback
    if fallback is None or fallback.constant is None:
        return ""
    found = _violations(output, fallback.constant)
    if not found:
        return ""
    return f"does not fit the `output` of {manifest.tool} at {found[0].path or '/'}: {found[0].message}; change either"


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that no manifest may declare.

    Raises:
        ValueError: too large or deep, a keyword outside the table above, a reference that leaves `$defs` or
            recurses, a size that explodes when references are written out, not valid by the meta-schema, a
            pattern that needs backtracking, an unknown format. Names the place as a JSON Pointer.
    """
    _compile(schema)


def check_constant(manifest: Manifest) -> None:
    """Refuse a manifest whose `fallback.constant` its own `output` does not allow.

    Raises:
        ValueError: names the tool, the place as a JSON Pointer and what the schema asks for there; or see
            `check_schema`.
    """
    if fault := _constant_fault(manifest, _compile(manifest.output)):
        raise ValueError(fault)


def fits(schema: Mapping[str, Any], value: Json) -> bool:
    """Tell whether a value fits a schema that a manifest declares.

    Raises:
        ValueError: the schema is not one that a manifest may declare, or stands on definitions beside it.
    """
    return not _violations(_compile(schema), value)


def grantable(schema: Mapping[str, Any]) -> Check:
    """Return what says where a value does not fit a schema of a grant, which `check_grant` has accepted.

    It is compiled again for each value: agents have many grants, and what the engine makes of them is large.

    Raises:
        ValueError: it is not valid by the meta-schema, or a pattern is too large or needs backtracking.
    """
    _compile_grant(schema)
    return partial(_grant_violations, schema)


def _grant_violations(schema: Mapping[str, Any], value: Json, *, detailed: bool) -> list[Violation]:
    whole = _compile_grant(schema)
    try:
        if whole.is_valid(value):
            return []
        if detailed and _is_small(value):
            return list(islice(_detailed(whole, value), MAX_VIOLATIONS))
    except ValueError:
        return [Violation("", "json", "the value cannot be checked against the schema")]
    return [Violation("", "schema", "does not fit the schema; too large to say where")]


def _compile_grant(schema: Mapping[str, Any]) -> jsonschema_rs.Validator:
    try:
        return jsonschema_rs.Draft202012Validator(dict(schema), **_options(_GRANT_REGEX_BYTES))
    except ValueError as error:
        raise ValueError(_explain_refusal(error)) from None


def _compile(schema: Mapping[str, Any]) -> _Compiled:
    _refuse_large(schema)
    definitions = _definitions(schema)
    _Expansion(definitions).count(schema, "", depth=0, root=True)
    try:
        validator = jsonschema_rs.Draft202012Validator(dict(schema), **_options())
        parts = jsonschema_rs.validator_map_for(dict(schema), **_options())
    except ValueError as error:
        raise ValueError(_explain_refusal(error)) from None
    closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
    properties = frozenset(schema.get("properties", {}))
    return _Compiled(validator, parts, properties, tuple(schema.get("required", ())), closed)


def _options(regex_bytes: int = _REGEX_BYTES) -> dict[str, Any]:
    return {
        "retriever": _refuse_retrieval,
        "pattern_options": jsonschema_rs.RegexOptions(size_limit=regex_bytes, dfa_size_limit=regex_bytes),
        "validate_formats": True,
        "ignore_unknown_formats": False,
        "mask": "the value",
    }


def _refuse_retrieval(_uri: str) -> NoReturn:
    raise ValueError("schemas are never fetched")


def _explain_refusal(error: ValueError) -> str:
    """What the engine says of a schema, without the schema's text around it."""
    if isinstance(error, jsonschema_rs.ValidationError):
        return f"at {_pointer(error.instance_path) or '/'}: {_clip(error.message)}"
    return _clip(str(error))


def _refuse_large(schema: object) -> None:
    """Bound size and depth without recursion: what a YAML alias makes of a few lines may be endless."""
    nodes = 0
    stack: list[tuple[object, int]] = [(schema, 1)]
    while stack:
        value, depth = stack.pop()
        nodes += 1
        if nodes > MAX_SCHEMA_NODES:
            raise ValueError(f"has more than {MAX_SCHEMA_NODES} values")
        if depth > MAX_SCHEMA_DEPTH:
            raise ValueError(f"is nested deeper than {MAX_SCHEMA_DEPTH} levels")
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) for key in value):
                raise ValueError("has a key that is not a string")
            stack.extend((child, depth + 1) for child in value.values())
        elif isinstance(value, list | tuple):
            stack.extend((child, depth + 1) for child in value)
    try:
        size = len(encode(schema))  # type: ignore[arg-type]  # what is not JSON raises TypeError, as wanted
    except (TypeError, ValueError):
        raise ValueError("has a value that JSON cannot hold") from None
    if size > MAX_SCHEMA_BYTES:
        raise ValueError(f"is larger than {MAX_SCHEMA_BYTES} bytes")


def _definitions(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    definitions = schema.get("$defs", {})
    if not isinstance(definitions, Mapping):
        raise ValueError("at /$defs: must be an object of schemas")
    return definitions


class _Expansion:
    """Walks a schema with every reference written out, refusing what is unknown, recursive or explosive."""

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._definitions = definitions
        self._open: list[str] = []
        self._subschemas = 0
        self._refs = 0

    def count(self, schema: object, at: str, *, depth: int, root: bool = False) -> None:
        self._subschemas += 1
        if self._subschemas > MAX_EXPANDED:
            raise ValueError(f"grows to more than {MAX_EXPANDED} subschemas when its references are written out")
        if depth > MAX_SCHEMA_DEPTH:
            raise ValueError(f"is nested deeper than {MAX_SCHEMA_DEPTH} levels when its references are written out")
        if isinstance(schema, bool):
            return
        if not isinstance(schema, Mapping):
            raise ValueError(f"at {at or '/'}: must be a schema: an object, true or false")
        for keyword, value in schema.items():
            where = f"{at}/{escaped(keyword)}"
            if root and keyword == "$schema":
                _require_dialect(value)
            else:
                self._keyword(keyword, value, where, depth, root=root)

    def _keyword(self, keyword: str, value: object, where: str, depth: int, *, root: bool) -> None:
        if keyword == "$ref":
            self._follow(value, where, depth)
        elif keyword in _ONE:
            self.count(value, where, depth=depth + 1)
        elif keyword in _LIST or keyword in _MAP or (root and keyword == "$defs"):
            self._children(value, where, depth)
        elif keyword not in _PLAIN:
            raise ValueError(f"at {where}: `{visible(keyword)}` is not a keyword that schemas of tools may use")

    def _children(self, value: object, where: str, depth: int) -> None:
        if isinstance(value, Mapping):
            for key, child in value.items():
                self.count(child, f"{where}/{escaped(key)}", depth=depth + 1)
        elif isinstance(value, list | tuple):
            for index, child in enumerate(value):
                self.count(child, f"{where}/{index}", depth=depth + 1)
        else:
            raise ValueError(f"at {where}: must hold schemas")

    def _follow(self, reference: object, where: str, depth: int) -> None:
        match = _LOCAL_REF.fullmatch(reference) if isinstance(reference, str) else None
        if match is None:
            raise ValueError(f"at {where}: only references of the form `#/$defs/name` are allowed")
        name = match[1]
        if name not in self._definitions:
            raise ValueError(f"at {where}: `$defs` has no `{name}`")
        if name in self._open:
            raise ValueError(f"at {where}: `{name}` refers to itself; recursive schemas are not allowed")
        self._refs += 1
        if self._refs > MAX_REFS:
            raise ValueError(f"follows more than {MAX_REFS} references")
        self._open.append(name)
        self.count(self._definitions[name], f"/$defs/{name}", depth=depth + 1)
        self._open.pop()


def _require_dialect(value: object) -> None:
    if value != _DIALECT:
        raise ValueError(f"at /$schema: must be {_DIALECT}, or absent")


def _violations(compiled: _Compiled, value: Json) -> list[Violation]:
    try:
        if compiled.whole.is_valid(value):
            return []
        if _is_small(value):
            return list(islice(_detailed(compiled.whole, value), MAX_VIOLATIONS))
        return list(islice(_by_argument(compiled, value), MAX_VIOLATIONS))
    except ValueError:
        # Nested beyond the engine's own limit, or text that is not Unicode.
        return [Violation("", "json", "the value cannot be checked against the schema")]


def _is_small(value: Json) -> bool:
    budget = _SMALL
    stack: list[Json] = [value]
    while stack and budget >= 0:
        head = stack.pop()
        budget -= 1
        if isinstance(head, str):
            budget -= len(head) // _CHARACTERS
        elif isinstance(head, dict):
            stack.extend(islice(head.keys(), _SMALL))
            stack.extend(islice(head.values(), _SMALL))
        elif isinstance(head, list):
            stack.extend(islice(head, _SMALL + 1))
    return budget >= 0


def _detailed(validator: jsonschema_rs.Validator, value: Json) -> Iterator[Violation]:
    for error in validator.iter_errors(value):
        path = _pointer(error.instance_path)
        kind = error.kind
        if kind.name in ("additionalProperties", "unevaluatedProperties"):
            for key in kind.value:
                yield Violation(f"{path}/{shown(key)}", kind.name, "unknown key")
        else:
            yield Violation(path, kind.name, _text(kind))


def _by_argument(compiled: _Compiled, value: Json) -> Iterator[Violation]:
    """Ask each argument by itself whether it fits: yes or no costs little, however large the value is."""
    arguments = value if isinstance(value, dict) else {}
    found = [Violation("", "required", f"`{name}` is missing") for name in compiled.required if name not in arguments]
    for key, child in arguments.items():
        found.extend(_argument_violations(compiled, key, child))
        if len(found) >= MAX_VIOLATIONS:
            break
    yield from found or [Violation("", "schema", "does not fit the schema; too large to say where")]


def _argument_violations(compiled: _Compiled, key: str, child: Json) -> Iterator[Violation]:
    path = f"/{shown(key)}"
    part = compiled.parts.get(f"#/properties/{escaped(key)}") if key in compiled.properties else None
    if part is None:
        if compiled.closed:
            yield Violation(path, "additionalProperties", "unknown key")
    elif part.is_valid(child):
        return
    elif isinstance(child, str) or _is_small(child):
        for violation in _detailed(part, child):
            yield Violation(path + violation.path, violation.rule, violation.message)
    else:
        yield Violation(path, "schema", "does not fit its schema; too large to say where")


_TEXTS: Final[dict[str, Callable[[Any], str]]] = {
    "type": lambda types: f"must be of type {' or '.join(types)}",
    "required": lambda name: f"`{name}` is missing",
    "enum": lambda options: f"must be one of {_quote(options)}",
    "const": lambda expected: f"must be {_quote(expected)}",
    "format": lambda name: f"must be a valid {name}",
    "pattern": lambda pattern: f"must match {pattern}",
    "minLength": lambda limit: f"must have at least {limit} characters",
    "maxLength": lambda limit: f"must have at most {limit} characters",
    "minimum": lambda limit: f"must be at least {limit}",
    "maximum": lambda limit: f"must be at most {limit}",
    "exclusiveMinimum": lambda limit: f"must be more than {limit}",
    "exclusiveMaximum": lambda limit: f"must be less than {limit}",
    "multipleOf": lambda divisor: f"must be a multiple of {divisor}",
    "minItems": lambda limit: f"must have at least {limit} items",
    "maxItems": lambda limit: f"must have at most {limit} items",
    "minProperties": lambda limit: f"must have at least {limit} keys",
    "maxProperties": lambda limit: f"must have at most {limit} keys",
    "uniqueItems": lambda _: "must not have equal items",
    "contains": lambda _: "must have the right number of items of the kind that the schema asks for",
    "anyOf": lambda branches: _alternatives(branches),
    "oneOf": lambda branches: _alternatives(branches),
    "not": lambda _: "has a form that the schema excludes",
    "propertyNames": lambda _: "has a key whose name is not allowed",
    "unevaluatedItems": lambda _: "has more items than the schema allows",
    "additionalItems": lambda _: "has more items than the schema allows",
    "falseSchema": lambda _: "is not allowed here",
}


def _text(kind: jsonschema_rs.ValidationErrorKind) -> str:
    """Say what the schema asks for. Every argument of a text above comes from the schema, none from the value."""
    text = _TEXTS.get(kind.name)
    return _clip(text(kind.value)) if text else "does not fit the schema"


def _alternatives(branches: list[list[jsonschema_rs.ValidationError]]) -> str:
    """Say what would fit, where each alternative fails by one type or one missing key."""
    firsts = [errors[0] for errors in branches if len(errors) == 1]
    if not all(branches):
        return "fits more than one of the alternatives of the schema"
    if len(firsts) == len(branches) and all(error.kind.name == "type" for error in firsts):
        return f"must be of type {' or '.join(name for error in firsts for name in error.kind.value)}"
    if len(firsts) == len(branches) and all(error.kind.name == "required" for error in firsts):
        return f"needs one of {', '.join(f'`{error.kind.value}`' for error in firsts)}"
    return "fits none of the alternatives of the schema"


def _quote(value: Any) -> str:  # noqa: ANN401  # what a schema holds
    return encode(value).decode()


def _clip(text: str) -> str:
    return text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 1] + "…"


def _pointer(path: Sequence[str | int]) -> str:
    """JSON Pointer (RFC 6901) of a path."""
    return "".join(f"/{part if isinstance(part, int) else shown(part)}" for part in path)
