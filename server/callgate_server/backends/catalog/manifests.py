"""Reads manifests from files: which YAML is acceptable, where a schema may come from, and who says what is wrong.

YAML here is JSON with comments: plain scalars are what YAML 1.2 makes of them, and anchors, aliases, tags, keys
given twice and keys that are not text are refused. Does not judge schemas (`json_schema.py`) or pin anything
(`lock.py`). A schema may be a file beside its manifest and nothing else: no other folder, no address.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import ValidationError

from callgate_server.model.manifest import EGRESS_FORMS, JsonSchema, Manifest
from callgate_server.model.strict_json import decode

MAX_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 32

Side = Literal["input", "output"]
SIDES: Final[tuple[Side, Side]] = ("input", "output")

_Lines = dict[tuple[str | int, ...], int]
_SCHEMA_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.json")
_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef", "$id")
_CONSTANTS: Final[Mapping[str, bool | None]] = {"": None, "~": None, "null": None, "true": True, "false": False}
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,63})")
_REAL: Final = re.compile(r"-?(0|[1-9][0-9]{0,63})(\.[0-9]{1,64})?([eE][-+]?[0-9]{1,2})?")


@dataclass(frozen=True, slots=True)
class Declaration:
    """A manifest's file before its schemas are looked up."""

    path: Path
    document: Mapping[str, Any]
    _lines: _Lines

    @property
    def tools(self) -> Path:
        """The folder of the tool: its code, its manifest, its schemas."""
        return self.path.parent

    def schema_file(self, side: Side) -> Path | None:
        """The file that `input` or `output` names, whether it exists or not; None for an inline schema.

        Raises:
            ValueError: it names something else than a file beside the manifest.
        """
        match self.document.get(side):
            case {"$ref": str(name)} if not name.startswith("#"):
                if len(self.document[side]) > 1:
                    raise self.fault((side,), "`$ref` stands alone")
                if not _SCHEMA_FILE.fullmatch(name):
                    raise self.fault((side, "$ref"), "`$ref` names a .json file beside the manifest, nothing else")
                return self.tools / name
            case _:
                return None

    def manifest(self) -> Manifest:
        """Resolve the schemas and validate.

        Raises:
            ValueError: names the file, the line and the key.
        """
        resolved = dict(self.document)
        for side in SIDES:
            file = self.schema_file(side)
            schema = resolved.get(side) if file is None else self._schema_of(side, file)
            _refuse_references(schema, self, (side,))
            resolved[side] = schema
        try:
            manifest = Manifest.model_validate(resolved)
        except ValidationError as error:
            faults = [str(self.fault(_keys(fault["loc"]), fault["msg"])) for fault in error.errors()]
            raise ValueError("\n".join(faults)) from None
        if manifest.tool != self.path.stem:
            raise self.fault(("tool",), f"the file of {manifest.tool} must be called {manifest.tool}.yaml")
        if manifest.image != self.tools.parent.name:
            raise self.fault(("image",), "a manifest lies in the `tools` folder of its image")
        return manifest

    def fault(self, loc: tuple[str | int, ...], message: str) -> ValueError:
        line = next((self._lines[loc[:n]] for n in range(len(loc), -1, -1) if loc[:n] in self._lines), 1)
        key = ".".join(str(part) for part in loc)
        return ValueError(f"{self.path}: line {line}: {key}: {message}" if key else f"{self.path}: {message}")

    def _schema_of(self, side: Side, file: Path) -> JsonSchema:
        if not file.resolve().is_relative_to(self.tools.resolve()):
            raise self.fault((side, "$ref"), "the schema file is a link that leads out of its folder")
        try:
            schema = decode(_read(file))
        except OSError:
            raise self.fault((side, "$ref"), "no such schema file; run `callgated catalog build`") from None
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        if not isinstance(schema, dict):
            raise ValueError(f"{file}: a schema is an object")
        return schema


def read(path: Path) -> Declaration:
    """Read one manifest's file.

    Raises:
        ValueError: not acceptable YAML, or not a mapping; names the file and the line.
        OSError: it cannot be read.
    """
    document, lines = _parse(path)
    if not isinstance(document, dict):
        raise ValueError(f"{path}: a manifest is a mapping")
    return Declaration(path, document, lines)


def load_yaml(path: Path) -> Any:  # noqa: ANN401 - a decoded document; who asked validates it
    """Decode a file as strict YAML.

    Raises:
        ValueError: not acceptable; names the file and the line, never a value.
        OSError: it cannot be read.
    """
    return _parse(path)[0]


def image_folders(directories: Iterable[Path]) -> dict[str, Path]:
    """Return the folders of images (those with a Dockerfile) in `directories`, by name.

    Raises:
        ValueError: two have the same name, or a directory has none.
        OSError: a directory cannot be read.
    """
    found: dict[str, Path] = {}
    for directory in directories:
        folders = sorted(entry for entry in directory.iterdir() if (entry / "Dockerfile").is_file())
        if not folders:
            raise ValueError(f"{directory} has no folder with a Dockerfile")
        for folder in folders:
            if folder.name in found:
                raise ValueError(f"{found[folder.name]} and {folder} are images of the same name")
            found[folder.name] = folder
    return found


def declarations(folders: Iterable[Path]) -> list[Declaration]:
    """Read every manifest of these images.

    Raises:
        ValueError, OSError: as `read` does.
    """
    return [read(path) for folder in folders for path in sorted((folder / "tools").glob("*.yaml"))]


def _keys(loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The keys of a place in a manifest, without what validation adds of its own."""
    return tuple(part for part in loc if part not in EGRESS_FORMS)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: larger than {MAX_BYTES} bytes")
    return content


def _parse(path: Path) -> tuple[Any, _Lines]:
    content = _read(path)
    lines: _Lines = {}
    try:
        node = yaml.compose(content.decode("utf-8"), Loader=_Loader)
        return None if node is None else _plain(node, (), lines), lines
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8") from None
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{path}: {where}{error.problem}") from None
    except yaml.YAMLError:
        raise ValueError(f"{path}: not YAML; it has characters that YAML does not allow") from None


class _Loader(yaml.SafeLoader):
    """Composes nodes only. What a plain scalar means is decided below, so nothing is resolved or constructed here."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - replaces the parent's
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]  # its stubs
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _fault(event, "anchors and aliases are not accepted; write it out")
        if getattr(event, "tag", None) is not None:
            raise _fault(event, "tags are not accepted")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _fault(event, f"nested deeper than {MAX_DEPTH} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _fault(at: yaml.Event | yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    mark = at.start_mark
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark if isinstance(mark, yaml.Mark) else None)


def _plain(node: yaml.Node, loc: tuple[str | int, ...], lines: _Lines) -> Any:  # noqa: ANN401 - a decoded document
    lines.setdefault(loc, node.start_mark.line + 1)
    match node:
        case yaml.MappingNode():
            return _mapping(node, loc, lines)
        case yaml.SequenceNode():
            return [_plain(item, (*loc, index), lines) for index, item in enumerate(node.value)]
        case yaml.ScalarNode():
            return _scalar(node)
        case _:
            raise _fault(node, "only mappings, sequences and scalars are accepted")


def _mapping(node: yaml.MappingNode, loc: tuple[str | int, ...], lines: _Lines) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise _fault(key_node, "a key must be text")
        if key in mapping:
            raise _fault(key_node, f"the key `{key}` is given twice")
        lines[*loc, key] = key_node.start_mark.line + 1
        mapping[key] = _plain(value_node, (*loc, key), lines)
    return mapping


def _scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    text: str = node.value
    if node.style is not None:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _REAL.fullmatch(text) else text


def _refuse_references(value: object, declaration: Declaration, loc: tuple[str | int, ...]) -> None:
    """Refuse what would make a schema engine look anywhere but into the schema itself."""
    match value:
        case dict():
            for key, item in value.items():
                if key in _REFERENCES and isinstance(item, str) and not item.startswith("#"):
                    raise declaration.fault((*loc, key), f"`{key}` may only point into the same schema, like #/$defs/x")
                _refuse_references(item, declaration, (*loc, key))
        case list():
            for index, item in enumerate(value):
                _refuse_references(item, declaration, (*loc, index))
