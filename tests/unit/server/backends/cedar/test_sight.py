import pytest

from callgate_server.backends.cedar.sight import mentions, visible
from callgate_server.backends.cedar.source import read_sources
from callgate_server.model.verdict import Ruling
from support.cedar_catalog import DEVELOPER, PYTHON, SHELL, SIGN, VOCABULARY, policy

SCRIPT = 'context.arguments has script && context.arguments.script == "x"'


def seen(condition: str, action: str = 'action in Action::"call"') -> dict[str, set[str]]:
    text = f'@id("p") forbid(principal, {action}, resource) when {{ {condition} }};'
    found = visible(VOCABULARY.arguments, read_sources({"a.cedar": text}, VOCABULARY))
    return {tool: set(record.attributes) for tool, record in found.items()}


NOTHING: dict[str, set[str]] = {"python.run": set(), "shell.run": set(), "webhooks.sign": set(), "web.fetch": set()}
ALL = {
    "python.run": {"code", "seed"},
    "shell.run": {"argv", "script"},
    "webhooks.sign": {"payload"},
    "web.fetch": {"url"},
}


@pytest.mark.parametrize("condition", ["true", "context has task", 'context.now > datetime("2026-01-01")'])
def test_arguments_that_no_policy_mentions_are_not_shown(condition: str) -> None:
    assert seen(condition) == NOTHING


@pytest.mark.parametrize(
    "condition",
    [
        SCRIPT,
        "context has arguments.script",
        'context["arguments"] has script && context["arguments"]["script"] == "x"',
        f'if principal in Role::"x" then true else ({SCRIPT})',
    ],
)
def test_mentioned_arguments_are_shown(condition: str) -> None:
    assert seen(condition) == NOTHING | {"shell.run": {"script"}}


@pytest.mark.parametrize(
    "condition",
    [
        "context.arguments == context.arguments",
        'context.arguments == {payload: "x"}',
        "[context.arguments].contains(context.arguments)",
        "context == context",
        "(if context has task then context else context).arguments == context.arguments",
    ],
)
def test_arguments_taken_as_a_whole_are_all_shown(condition: str) -> None:
    assert seen(condition, 'action == Action::"call:webhooks.sign"') == ALL


def test_comparison_of_whole_arguments_sees_every_one() -> None:
    rules = policy(
        '@id("all") permit(principal, action, resource);'
        '@id("exact") forbid(principal, action == Action::"call:webhooks.sign", resource)'
        ' when { context.arguments == {payload: "x"} };'
    )
    assert rules.decide(DEVELOPER, SIGN, {"payload": "x"}).ruling is Ruling.DENY
    assert rules.decide(DEVELOPER, SIGN, {"payload": "y"}).ruling is Ruling.ALLOW


def test_argument_that_nobody_looks_at_does_not_matter() -> None:
    rules = policy(f'@id("p") permit(principal, action in Action::"call", resource) unless {{ {SCRIPT} }};')
    assert rules.decide(DEVELOPER, PYTHON, {"code": "", "seed": 10**100}).ruling is Ruling.ALLOW
    assert rules.decide(DEVELOPER, SHELL, {"script": "x"}).ruling is Ruling.DENY


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("true", False),
        (SCRIPT, False),
        ('principal in Role::"x"', False),
        ('context.now > datetime("2026-01-01")', True),
        ('context has task && context.task == "x"', True),
        ("context has task", True),
        ("context == context", True),
        ("context.arguments == context.arguments", True),
    ],
)
def test_policies_that_can_look_at_time_or_task_are_told_from_others(condition: str, expected: bool) -> None:
    text = f'@id("p") forbid(principal, action == Action::"call:shell.run", resource) when {{ {condition} }};'
    assert mentions({"now", "task"}, read_sources({"a.cedar": text}, VOCABULARY)) is expected
