"""Policies without what they say of the context: what could be allowed, before a call's arguments are known.

Every condition on arguments, task or time is taken to come out in the caller's favour: it is dropped from a
permit, and a forbid that depends on one is dropped whole. So a set of relaxed policies allows at least what the
set itself can allow, and never hides a tool that some call could reach. Conditions on principal and resource stay.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import cedarpy
from cedarpy import pst

from callgate_server.backends.cedar.source import Source, nodes


def policy_set(templates: Iterable[pst.Template]) -> cedarpy.PolicySet:
    """Collect policies under their own ids."""
    by_id = pst.FrozenMap({template.id: template for template in templates})
    return cedarpy.PolicySet.from_pst(
        pst.PolicySet(templates=pst.FrozenMap(), static_policies=by_id, template_links=())
    )


def without_context(sources: Iterable[Source]) -> Iterator[pst.Template]:
    """Yield the relaxed policies."""
    for source in sources:
        clauses = [clause for whole in source.template.clauses for clause in _split(whole)]
        kept = tuple(clause for clause in clauses if not _mentions_context(clause))
        if source.permits or len(kept) == len(clauses):
            yield dataclasses.replace(source.template, clauses=kept)


def scopes(sources: Iterable[Source]) -> Iterator[pst.Template]:
    """Yield the permits without any condition: whom and what they are about."""
    for source in sources:
        if source.permits:
            yield dataclasses.replace(source.template, clauses=())


def _split(clause: pst.Clause) -> Iterator[pst.Clause]:
    """`when { a && b }` is `when { a } when { b }`; `unless { a || b }` is `unless { a } unless { b }`."""
    operator = "and" if isinstance(clause, pst.When) else "or"
    stack = [clause.expr]
    while stack:
        expression = stack.pop()
        if isinstance(expression, pst.BinaryOp) and expression.op == operator:
            stack += [expression.right, expression.left]
        else:
            yield dataclasses.replace(clause, expr=expression)


def _mentions_context(clause: pst.Clause) -> bool:
    return any(isinstance(node, pst.Var) and node.name == "context" for node in nodes(clause))
