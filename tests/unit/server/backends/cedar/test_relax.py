import cedarpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.backends.cedar.relax import policy_set, scopes, without_context
from callgate_server.backends.cedar.source import read_sources
from callgate_server.model.verdict import Ruling
from support.cedar_catalog import DEVELOPER, SHELL, VOCABULARY, policy

SCRIPT = 'context.arguments has script && context.arguments.script == "x"'


def relaxed(text: str) -> cedarpy.PolicySet:
    return policy_set(without_context(read_sources({"a.cedar": text}, VOCABULARY)))


def rule(text: str) -> str:
    return str(relaxed(f'@id("p") {text};')).replace("\n", " ")


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ('when { %s && resource.name == "n" }', 'when { (resource.name) == "n" };'),
        ('when { resource.name == "n" } when { %s }', 'when { (resource.name) == "n" };'),
        ('unless { (%s) || resource.name == "n" }', 'unless { (resource.name) == "n" };'),
    ],
)
def test_permit_loses_only_what_depends_on_the_context(written: str, kept: str) -> None:
    found = rule('permit(principal, action in Action::"call", resource) ' + written % SCRIPT)
    assert found.endswith(f"resource) {kept}")


def test_condition_that_mixes_context_and_resource_is_dropped() -> None:
    found = rule(
        'permit(principal, action in Action::"call", resource) when { context has task || resource.name == "n" }'
    )
    assert "when" not in found


def test_forbid_that_depends_on_the_context_is_dropped_whole() -> None:
    assert len(relaxed(f'@id("p") forbid(principal, action in Action::"call", resource) when {{ {SCRIPT} }};')) == 0


def test_forbid_on_the_resource_stays() -> None:
    assert len(relaxed('@id("p") forbid(principal, action, resource) unless { principal in Role::"operator" };')) == 1


def test_scopes_are_the_permits_without_conditions() -> None:
    text = f'@id("p") permit(principal, action in Action::"call", resource) when {{ {SCRIPT} }};'
    text += '@id("f") forbid(principal, action, resource);'
    found = str(policy_set(scopes(read_sources({"a.cedar": text}, VOCABULARY))))
    assert '@id("p")' in found
    assert "when" not in found
    assert "forbid" not in found


ATOMS = st.sampled_from(
    [
        'context.arguments has script && context.arguments.script like "*a*"',
        "context.arguments has argv",
        "context has task",
        'resource.effect == Effect::"unsafe"',
        'principal in Role::"developer"',
        'resource.name == "other"',
        'context.now > datetime("2030-01-01")',
    ]
)
CONDITIONS = st.recursive(
    ATOMS,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["&&", "||"]), inner).map(lambda t: f"(({t[0]}) {t[1]} ({t[2]}))")
        | inner.map(lambda condition: f"!({condition})")
    ),
    max_leaves=6,
)
CLAUSES = st.lists(st.tuples(st.sampled_from(["when", "unless"]), CONDITIONS), max_size=2)
POLICIES = st.lists(st.tuples(st.sampled_from(["permit", "forbid"]), CLAUSES), min_size=1, max_size=3)
ARGUMENTS = st.fixed_dictionaries({}, optional={"script": st.text("ab", max_size=3), "argv": st.just(["a"])})


@given(POLICIES, ARGUMENTS)
def test_tool_that_a_call_can_reach_is_never_hidden(
    written: list[tuple[str, list[tuple[str, str]]]], arguments: dict[str, object]
) -> None:
    text = "\n".join(
        f'@id("p{number}") {effect}(principal, action == Action::"call:shell.run", resource) '
        + " ".join(f"{word} {{ {condition} }}" for word, condition in clauses)
        + ";"
        for number, (effect, clauses) in enumerate(written)
    )
    rules = policy(text)
    if rules.decide(DEVELOPER, SHELL, arguments).ruling is Ruling.ALLOW:
        assert rules.could_allow(DEVELOPER, SHELL)
