"""Policies as they are written: cut into single policies with file and line, and refused when anything is amiss.

Cedar's validator finds misspelt attributes, actions and types. It takes some mistakes in silence that would make
a `forbid` never apply or a `permit` wider than meant, so these are refused here: a missing or repeated `@id`, an
unknown annotation (a misspelt `@approval` would permit outright), a tool, namespace or secret that does not
exist, a host that is not spelt as hosts are asked for, and `has` on an argument that no tool has.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import cedarpy
from cedarpy import pst

from callgate_server.backends.cedar.arguments import Record, Type
from callgate_server.backends.cedar.vocabulary import CALL, Vocabulary
from callgate_server.model.egress import named_host
from callgate_server.model.identifiers import PRINCIPAL_NAME

_POLICY_ID: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?")
_ANNOTATIONS: Final = frozenset({"id", "approval", "description"})
_TOKEN: Final = re.compile(r'\s+|//[^\n]*|"(?:\\.|[^"\\])*"|;|[^\s";/]+|.', re.DOTALL)
_POSITIONAL: Final = re.compile(r"for policy `policy0`[,:] ")
_MESSAGE_LIMIT: Final = 400


@dataclass(frozen=True, slots=True)
class Source:
    """One policy. `approval` is the group whose approval a permit asks for."""

    id: str
    file: str
    line: int
    text: str
    approval: str | None
    template: pst.Template

    @property
    def permits(self) -> bool:
        return self.template.effect == "permit"


@dataclass(frozen=True, slots=True)
class _Piece:
    file: str
    line: int
    text: str


def read_sources(files: Mapping[str, str], vocabulary: Vocabulary) -> tuple[Source, ...]:
    """Read the policies of some files, by name.

    Raises:
        ValueError: one line for each fault, with file, line and policy.
    """
    sources: dict[str, Source] = {}
    faults: list[str] = []
    for piece in (piece for name in sorted(files) for piece in _pieces(name, files[name])):
        try:
            source = _read(piece, vocabulary)
            if source.id in sources:
                first = sources[source.id]
                raise ValueError(f"policy `{source.id}`: the id is taken by {first.file}:{first.line}")
            sources[source.id] = source
        except ValueError as error:
            faults.extend(f"{piece.file}:{piece.line}: {line}" for line in str(error).splitlines())
    if faults:
        raise ValueError("\n".join(faults))
    return tuple(sources.values())


def _pieces(file: str, text: str) -> Iterator[_Piece]:
    """Cut at each `;` outside strings and comments: in Cedar it ends a policy and stands nowhere else."""
    start: int | None = None
    for token in _TOKEN.finditer(text):
        if token[0].isspace() or token[0].startswith("//"):
            continue
        if start is None:
            start = token.start()
        if token[0] == ";":
            yield _Piece(file, text.count("\n", 0, start) + 1, text[start : token.end()])
            start = None
    if start is not None:
        yield _Piece(file, text.count("\n", 0, start) + 1, text[start:].rstrip())


def _read(piece: _Piece, vocabulary: Vocabulary) -> Source:
    template = _parse(piece.text)
    name = template.annotations.get("id", "")
    if not _POLICY_ID.fullmatch(name):
        raise ValueError('every policy needs an annotation like @id("some-name"), of a-z, 0-9, dots and dashes')
    faults = [f"policy `{name}`: {fault}" for fault in _faults(piece.text, template, vocabulary)]
    if faults:
        raise ValueError("\n".join(faults))
    return Source(
        name,
        piece.file,
        piece.line,
        piece.text,
        template.annotations.get("approval"),
        dataclasses.replace(template, id=name),
    )


def _parse(text: str) -> pst.Template:
    try:
        parsed = cedarpy.policies_to_pst(text)
    except ValueError as error:
        raise ValueError(f"not a Cedar policy: {_one_line(str(error))}") from None
    if parsed.templates or len(parsed.static_policies) != 1:
        raise ValueError("templates are not supported: name the principal and the resource")
    (template,) = parsed.static_policies.values()
    return template


def _faults(text: str, template: pst.Template, vocabulary: Vocabulary) -> Iterator[str]:
    yield from _annotation_faults(template)
    result = cedarpy.validate_policies(text, vocabulary.schema)
    yield from (_POSITIONAL.sub("", _one_line(error.error)) for error in result.errors)
    if not result.validation_passed and not result.errors:
        yield "does not fit the schema"
    yield from _name_faults(template, vocabulary)
    yield from _has_faults(template, vocabulary)


def _annotation_faults(template: pst.Template) -> Iterator[str]:
    for unknown in sorted(set(template.annotations) - _ANNOTATIONS):
        yield f"unknown annotation @{unknown}; there are {', '.join('@' + known for known in sorted(_ANNOTATIONS))}"
    group = template.annotations.get("approval")
    if group is not None and template.effect == "forbid":
        yield "@approval stands on a forbid; only a permit can ask for an approval"
    if group is not None and not PRINCIPAL_NAME.fullmatch(group):
        yield '@approval needs the name of a group, like @approval("operators")'


def _name_faults(template: pst.Template, vocabulary: Vocabulary) -> Iterator[str]:
    for entity in sorted(pst.entity_uids(template), key=str):
        known = vocabulary.names.get(str(entity.type))
        if known is not None and entity.id not in known:
            yield f"{entity} does not exist in the catalog"
        elif str(entity.type) == "Host":
            yield from _host_faults(entity.id)


def _host_faults(name: str) -> Iterator[str]:
    # A host in capitals or with a port is never asked for: a forbid of it would forbid nothing.
    try:
        named_host(name)
    except ValueError as error:
        yield f'Host::"{name}" is never asked for: {error}; for several hosts compare `resource.name` with `like`'


def _has_faults(template: pst.Template, vocabulary: Vocabulary) -> Iterator[str]:
    contexts = _contexts(template.action, vocabulary)
    for node in nodes(template.clauses):
        if not isinstance(node, pst.HasAttr):
            continue
        path = _path(node.base)
        if path is None or path[0] != "context":
            yield "`has` is for the context; principals and resources always have all their attributes"
        elif not any(_exists(context, (*path[1:], *node.attrs)) for context in contexts):
            yield f"no call that this policy applies to can have `{'.'.join((*path, *node.attrs))}`"


def _contexts(action: pst.ActionConstraint, vocabulary: Vocabulary) -> list[Record]:
    if isinstance(action, pst.ScopeAny):
        return list(vocabulary.contexts.values())
    named = {action.entity.id} if isinstance(action, pst.ActionEq) else {entity.id for entity in action.entities}
    return [
        record
        for name, record in vocabulary.contexts.items()
        if name in named or (CALL in named and name.startswith(f"{CALL}:"))
    ]


def _path(expression: pst.Expr) -> tuple[str, ...] | None:
    """`context.arguments.code` as its parts; None for anything but a chain of names."""
    parts: list[str] = []
    while isinstance(expression, pst.GetAttr):
        parts.append(expression.attr)
        expression = expression.base
    return (expression.name, *reversed(parts)) if isinstance(expression, pst.Var) else None


def _exists(record: Type, path: tuple[str, ...]) -> bool:
    for name in path:
        if not isinstance(record, Record) or name not in record.attributes:
            return False
        record = record.attributes[name].type
    return True


def nodes(root: object) -> Iterator[Any]:
    """Every node of a policy's tree, without recursion."""
    stack: list[Any] = [root]
    while stack:
        value = stack.pop()
        if isinstance(value, Mapping):
            stack.extend(value.values())
        elif isinstance(value, tuple):
            stack.extend(value)
        elif dataclasses.is_dataclass(value):
            yield value
            stack.extend(getattr(value, field.name) for field in dataclasses.fields(value))


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= _MESSAGE_LIMIT else joined[: _MESSAGE_LIMIT - 1] + "…"
