"""What of a call a set of policies looks at. Arguments that it does not are not shown to Cedar: a large text that no
policy mentions would cost about 30 µs per KiB of it, with the interpreter locked.

Something is mentioned when its name is an attribute anywhere in any policy. A policy that takes arguments or context
as a whole, such as comparing two records, looks at all of them.
"""

from collections.abc import Collection, Iterable, Mapping

from cedarpy import pst

from callgate_server.backends.cedar.arguments import Record
from callgate_server.backends.cedar.source import Source, nodes


def visible(arguments: Mapping[str, Record], sources: Iterable[Source]) -> dict[str, Record]:
    """Return the argument types of each tool with only what these policies can look at."""
    seen = _nodes_of(sources)
    if _take_the_whole(seen):
        return dict(arguments)
    names = _attributes(seen)
    return {
        tool: Record({name: attribute for name, attribute in record.attributes.items() if name in names})
        for tool, record in arguments.items()
    }


def mentions(names: Collection[str], sources: Iterable[Source]) -> bool:
    """Whether these policies can look at a member of the context that has one of these names."""
    seen = _nodes_of(sources)
    return _take_the_whole(seen) or not _attributes(seen).isdisjoint(names)


def _nodes_of(sources: Iterable[Source]) -> list[object]:
    return [node for source in sources for node in nodes(source.template.clauses)]


def _attributes(seen: list[object]) -> set[str]:
    names = {node.attr for node in seen if isinstance(node, pst.GetAttr)}
    names.update(name for node in seen if isinstance(node, pst.HasAttr) for name in node.attrs)
    return names


def _take_the_whole(seen: list[object]) -> bool:
    """Whether `context` or `context.arguments` stands anywhere but before a dot or a `has`."""
    before_a_dot = sum(_is_context(node.base) for node in seen if isinstance(node, pst.GetAttr | pst.HasAttr))
    everywhere = sum(_is_context(node) for node in seen)
    return everywhere != before_a_dot


def _is_context(node: object) -> bool:
    if isinstance(node, pst.GetAttr):
        return node.attr == "arguments" and _is_context(node.base)
    return isinstance(node, pst.Var) and node.name == "context"
