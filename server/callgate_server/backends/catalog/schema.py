"""Generates the schemas of a Python tool from its type hints and docstring.

Reads the module's syntax tree and never imports it: a tool's code runs in a sandbox, not on the gateway's host.
What has no exact JSON Schema is refused, so that no tool is typed more loosely than it looks.

Types: str int float bool None, list[T], dict[str, T], Literal, X | Y, TypedDict classes and aliases of the same
module (those under `if TYPE_CHECKING` too), `Json` for any JSON value (an alias of Any, so that nothing is open by
mistake), and Annotated with a description or JSON Schema keywords as pairs: `Annotated[str, "Why.", ("maxLength", 9)]`
(pairs, because Python must be able to hash them). The parameter `secrets` is the gateway's.
"""

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from callgate_server.model.manifest import JsonSchema

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
SECRETS: Final = "secrets"

_PRIMITIVES: Final = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_KEYWORDS: Final = frozenset(
    {"title", "format", "pattern", "minLength", "maxLength", "minimum", "maximum"}
    | {"exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "uniqueItems"}
    | {"minProperties", "maxProperties"}
)
_MAX_NESTING: Final = 16
_ENTRY: Final = re.compile(r"(\w+)\s*(?:\([^)]*\))?:\s*(.*)")


@dataclass(frozen=True, slots=True)
class Schemas:
    input: JsonSchema
    output: JsonSchema


def generate(module: Path, function: str) -> Schemas:
    """Return the schemas of `function` in the file `module`.

    Raises:
        ValueError: no such function, a missing hint, or a type without an exact schema; names file and line.
        OSError: the module cannot be read.
    """
    return _Module(module).schemas(function)


def text_of(schema: JsonSchema) -> str:
    """A schema as its file holds it."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def find_function(module: Path, function: str) -> ast.FunctionDef:
    """Return a tool's function.

    Raises:
        ValueError: the module is not Python, or has no such function.
        OSError: the module cannot be read.
    """
    return _Module(module).function(function)


class _Module:
    """One module's syntax tree, with its aliases and TypedDict classes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{path}: not Python: line {getattr(error, 'lineno', 1)}") from None
        self._named = dict(_definitions(self._tree.body))
        self._nesting = 0

    def function(self, name: str) -> ast.FunctionDef:
        found = [node for node in self._tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        if not found:
            raise ValueError(f"{self._path} has no function `{name}`")
        return found[-1]

    def schemas(self, name: str) -> Schemas:
        function = self.function(name)
        if function.returns is None:
            raise self._fault(function, "say what the tool returns")
        documented = _Docstring(function)
        output = {"$schema": DIALECT, **self._type(function.returns)}
        if documented.returns:
            output["description"] = documented.returns
        return Schemas(self._input(function, documented), output)

    def _input(self, function: ast.FunctionDef, documented: "_Docstring") -> JsonSchema:
        spec = function.args
        if spec.posonlyargs or spec.vararg or spec.kwarg:
            raise self._fault(function, "a tool's arguments are all passed by name")
        defaults = dict(zip(reversed(spec.args), reversed(spec.defaults), strict=False))
        defaults |= {arg: default for arg, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True) if default}
        properties, required = {}, []
        for arg in [*spec.args, *spec.kwonlyargs]:
            if arg.arg == SECRETS:
                continue
            properties[arg.arg] = self._property(arg, documented.entries.get(arg.arg), defaults.get(arg))
            if arg not in defaults:
                required.append(arg.arg)
        if unknown := documented.entries.keys() - properties.keys():
            raise self._fault(function, f"the docstring describes {min(unknown)}, which is not an argument")
        head: JsonSchema = {"$schema": DIALECT, "type": "object"}
        if documented.summary:
            head["description"] = documented.summary
        return head | {"properties": properties, "required": required, "additionalProperties": False}

    def _property(self, arg: ast.arg, description: str | None, default: ast.expr | None) -> JsonSchema:
        if arg.annotation is None:
            raise self._fault(arg, f"`{arg.arg}` has no type")
        schema = self._type(arg.annotation)
        if description:
            schema = {**schema, "description": description}
        if default is not None:
            schema = {**schema, "default": self._literal(default)}
        return schema

    def _type(self, node: ast.expr) -> JsonSchema:
        self._nesting += 1
        if self._nesting > _MAX_NESTING:
            raise self._fault(node, "types are nested too deeply, or refer to themselves")
        try:
            return self._typed(node)
        finally:
            self._nesting -= 1

    def _typed(self, node: ast.expr) -> JsonSchema:
        match node:
            case ast.Constant(value=None):
                return {"type": "null"}
            case ast.Constant(value=str(text)):
                return self._type(ast.copy_location(ast.parse(text, mode="eval").body, node))
            case ast.Name(id="Json"):
                return {}
            case ast.Name(id=name) if name in _PRIMITIVES:
                return {"type": _PRIMITIVES[name]}
            case ast.Name(id=name) if name in self._named:
                named = self._named[name]
                return self._typed_dict(named) if isinstance(named, ast.ClassDef) else self._type(named)
            case ast.BinOp(op=ast.BitOr()):
                return _union([self._type(part) for part in _parts(node)])
            case ast.Subscript(value=ast.Name(id=name) | ast.Attribute(attr=name), slice=inner):
                return self._generic(node, name, inner)
            case _:
                raise self._fault(node, f"`{ast.unparse(node)}` has no exact JSON Schema")

    def _generic(self, node: ast.expr, name: str, inner: ast.expr) -> JsonSchema:
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        match name, parts:
            case "list", [item]:
                return {"type": "array", "items": self._type(item)}
            case "dict", [ast.Name(id="str"), value]:
                return {"type": "object", "additionalProperties": self._type(value)}
            case "Literal", _:
                return _enumeration([self._literal(part) for part in parts])
            case "Annotated", [kind, *notes]:
                schema = self._type(kind)
                for note in notes:
                    schema = {**schema, **self._keywords(note)}
                return schema
            case _:
                raise self._fault(node, f"`{ast.unparse(node)}` has no exact JSON Schema")

    def _keywords(self, note: ast.expr) -> JsonSchema:
        match self._literal(note):
            case str(description):
                return {"description": description}
            case (str(keyword), value) if keyword in _KEYWORDS:
                return {keyword: value}
            case _:
                raise self._fault(note, 'Annotated takes a description, or a keyword like ("maxLength", 100)')

    def _typed_dict(self, node: ast.ClassDef) -> JsonSchema:
        if len(node.bases) != 1 or _name(node.bases[0]) != "TypedDict":
            raise self._fault(node, f"`{node.name}` is not a plain TypedDict")
        total = not any(word.arg == "total" and self._literal(word.value) is False for word in node.keywords)
        properties, required = {}, []
        for field in (item for item in node.body if isinstance(item, ast.AnnAssign)):
            name, annotation, needed = _name(field.target), field.annotation, total
            if isinstance(annotation, ast.Subscript) and _name(annotation.value) in ("NotRequired", "Required"):
                needed = _name(annotation.value) == "Required"
                annotation = annotation.slice
            properties[name] = self._type(annotation)
            if needed:
                required.append(name)
        summary = ast.get_docstring(node)
        head: JsonSchema = {"type": "object"} | ({"description": _first_paragraph(summary)} if summary else {})
        return head | {"properties": properties, "required": required, "additionalProperties": False}

    def _literal(self, node: ast.expr) -> Any:  # noqa: ANN401 - a literal
        try:
            value = ast.literal_eval(node)
            json.dumps(value, allow_nan=False)
        except (ValueError, TypeError, SyntaxError):
            raise self._fault(node, f"`{ast.unparse(node)}` is not a literal that JSON can hold") from None
        return value

    def _fault(self, node: ast.expr | ast.stmt | ast.arg, message: str) -> ValueError:
        return ValueError(f"{self._path}: line {node.lineno}: {message}")


class _Docstring:
    """A docstring in Google's style: its first paragraph, what it says of each argument, and of the result."""

    def __init__(self, function: ast.FunctionDef) -> None:
        text = ast.get_docstring(function) or ""
        self.summary = _first_paragraph(text)
        self.entries = dict(_entries(_section(text, "Args:")))
        self.returns = " ".join(line.strip() for line in _section(text, "Returns:"))


def _first_paragraph(text: str) -> str:
    return " ".join(text.strip().split("\n\n", 1)[0].split())


def _section(text: str, title: str) -> list[str]:
    """The indented lines below `title`, without their indentation."""
    lines = text.splitlines()
    if title not in lines:
        return []
    found = []
    for line in lines[lines.index(title) + 1 :]:
        if line and not line.startswith(" "):
            break
        found.append(line)
    return inspect.cleandoc("\n".join(found)).splitlines()


def _entries(lines: list[str]) -> Iterator[tuple[str, str]]:
    name, words = "", list[str]()
    for line in lines:
        entry = _ENTRY.fullmatch(line)
        if entry:
            if name:
                yield name, " ".join(words)
            name, words = entry[1], [entry[2]]
        elif line.strip():
            words.append(line.strip())
    if name:
        yield name, " ".join(words)


def _definitions(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.ClassDef | ast.expr]]:
    for node in body:
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=only_for_types):
                yield from _definitions(only_for_types)
            case ast.ClassDef(name=name):
                yield name, node
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value


def _parts(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _parts(node.left)
        yield from _parts(node.right)
    else:
        yield node


def _name(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def _enumeration(values: list[Any]) -> JsonSchema:
    if all(isinstance(value, str) for value in values):
        return {"type": "string", "enum": values}
    return {"enum": values}


def _union(parts: list[JsonSchema]) -> JsonSchema:
    """Join types. A single type that may be null stays one schema: its other keywords do not concern null."""
    others = [part for part in parts if part != {"type": "null"}]
    simple: Callable[[JsonSchema], bool] = lambda part: isinstance(part.get("type"), str) and "enum" not in part  # noqa: E731
    if len(others) == 1 and len(parts) > 1 and simple(others[0]):
        return {**others[0], "type": [others[0]["type"], "null"]}
    if all(part.keys() == {"type"} and simple(part) for part in parts):
        return {"type": [part["type"] for part in parts]}
    return {"anyOf": parts}
