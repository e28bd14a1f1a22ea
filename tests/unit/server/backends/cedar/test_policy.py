import dataclasses
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import cedarpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.backends.cedar import policy as policy_module
from callgate_server.backends.cedar.policy import CedarPolicy, digest
from callgate_server.backends.cedar.vocabulary import Vocabulary
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Adjustment, Tool
from callgate_server.model.egress import EgressAsk
from callgate_server.model.manifest import Isolation
from callgate_server.model.verdict import Ruling
from support.cedar_catalog import CATALOG, DEVELOPER, FETCH, NOON, PYTHON, SHELL, SIGN, VOCABULARY, policy, tool

SET = """
@id("developers-run-python")
permit(principal in Role::"developer", action in Action::"call", resource in Namespace::"python");
@id("acme-signs")
permit(principal in Tenant::"acme", action == Action::"call:webhooks.sign", resource);
@id("acme-uses-its-key")
permit(principal in Tenant::"acme", action == Action::"use", resource in Tool::"webhooks.sign");
@id("operators-run-shell")
permit(principal in Role::"operator", action == Action::"call:shell.run", resource);
@id("no-rm")
forbid(principal, action == Action::"call:shell.run", resource)
when { context.arguments has script && context.arguments.script like "*rm -rf*" };
"""
OPERATOR = Caller("acme", "root", ("operator",))
# Adds to the largest integer: what the validator cannot foresee and the evaluator refuses.
OVERFLOW = "context.arguments has seed && context.arguments.seed + 9223372036854775807 > 0"


def ruling(text: str, caller: Caller, tool: Tool, arguments: dict[str, Any]) -> tuple[Ruling, tuple[str, ...]]:
    verdict = policy(text).decide(caller, tool, arguments)
    return verdict.ruling, verdict.policies


def test_permit_that_applies_allows_and_is_named() -> None:
    assert ruling(SET, DEVELOPER, PYTHON, {"code": "1"}) == (Ruling.ALLOW, ("developers-run-python",))


def test_no_policy_at_all_denies() -> None:
    assert ruling("", OPERATOR, PYTHON, {"code": "1"}) == (Ruling.DENY, ())


def test_no_permit_that_applies_denies_without_a_policy() -> None:
    assert ruling(SET, Caller("other", "bot"), PYTHON, {"code": "1"}) == (Ruling.DENY, ())


def test_forbid_wins_and_is_named() -> None:
    assert ruling(SET, OPERATOR, SHELL, {"script": "ls"}) == (Ruling.ALLOW, ("operators-run-shell",))
    assert ruling(SET, OPERATOR, SHELL, {"script": "rm -rf /"}) == (Ruling.DENY, ("no-rm",))


def test_call_needs_the_use_of_every_secret() -> None:
    allowed = ("acme-signs", "acme-uses-its-key")
    assert ruling(SET, DEVELOPER, SIGN, {"payload": "x"}) == (Ruling.ALLOW, allowed)
    without_use = SET.replace('Action::"use"', 'Action::"call:shell.run"').replace(
        ", resource in Tool", ", resource == Tool"
    )
    assert ruling(without_use, DEVELOPER, SIGN, {"payload": "x"}) == (Ruling.DENY, ())


def test_forbidden_use_names_the_forbid() -> None:
    text = (
        SET + '@id("no-keys") forbid(principal, action == Action::"use", resource) when { resource.deliver == "file" };'
    )
    assert ruling(text, DEVELOPER, SIGN, {"payload": "x"}) == (Ruling.DENY, ("no-keys",))


def test_agents_of_one_name_in_two_tenants_are_two_principals() -> None:
    text = '@id("one") permit(principal == Agent::"acme/bot", action in Action::"call", resource);'
    assert ruling(text, Caller("acme", "bot"), PYTHON, {"code": ""})[0] is Ruling.ALLOW
    assert ruling(text, Caller("evil", "bot"), PYTHON, {"code": ""})[0] is Ruling.DENY


def test_resource_attributes_are_the_manifests() -> None:
    text = """@id("x") permit(principal, action in Action::"call", resource) when {
        resource.effect == Effect::"unsafe" && resource.isolation == Isolation::"container"
        && resource.image == "shell" && resource.version == "1.0.0" && resource.runtime == "default" };"""
    assert ruling(text, DEVELOPER, SHELL, {})[0] is Ruling.ALLOW
    assert ruling(text, DEVELOPER, PYTHON, {"code": ""})[0] is Ruling.DENY


FORKS_FORBIDDEN = SET + (
    '@id("no-forks") forbid(principal, action in Action::"call", resource) when { resource.isolation == Isolation::"fork" };'
)


def at_level(level: Isolation, text: str, caller: Caller, name: str) -> tuple[Ruling, tuple[str, ...]]:
    """What is decided where the operator has set every tool to a level; those with egress have no choice."""
    free = [tool.name for tool in CATALOG if not tool.manifest.egress]
    catalog = CATALOG.adjusted(dict.fromkeys(free, Adjustment(isolation=level)))
    decided = CedarPolicy({"a.cedar": text}, Vocabulary.of(catalog), [].append, lambda: NOON)
    verdict = decided.decide(caller, catalog.tools[name], {"code": ""} if name == "python.run" else {})
    return verdict.ruling, verdict.policies


def test_the_isolation_level_can_be_forbidden_whatever_else_is_permitted() -> None:
    permitted = (Ruling.ALLOW, ("developers-run-python",))
    assert at_level("container", FORKS_FORBIDDEN, DEVELOPER, "python.run") == permitted
    assert at_level("fork", FORKS_FORBIDDEN, DEVELOPER, "python.run") == (Ruling.DENY, ("no-forks",))
    assert at_level("fork", SET, DEVELOPER, "python.run") == permitted


def test_the_isolation_level_can_be_forbidden_to_some() -> None:
    to_operators = FORKS_FORBIDDEN.replace(
        "forbid(principal, action in", 'forbid(principal in Role::"operator", action in'
    )
    assert at_level("fork", to_operators, OPERATOR, "shell.run") == (Ruling.DENY, ("no-forks",))
    assert at_level("container", to_operators, OPERATOR, "shell.run")[0] is Ruling.ALLOW
    assert at_level("fork", to_operators, DEVELOPER, "python.run")[0] is Ruling.ALLOW


def test_a_level_that_does_not_exist_is_refused_when_policies_are_read() -> None:
    with pytest.raises(ValueError, match="Isolation"):
        policy(FORKS_FORBIDDEN.replace('Isolation::"fork"', 'Isolation::"none"'))


def test_task_is_in_the_context() -> None:
    text = '@id("x") permit(principal, action in Action::"call", resource) when { context has task && context.task == "t1" };'
    assert ruling(text, dataclasses.replace(DEVELOPER, task="t1"), SHELL, {})[0] is Ruling.ALLOW
    assert ruling(text, dataclasses.replace(DEVELOPER, task="t2"), SHELL, {})[0] is Ruling.DENY
    assert ruling(text, DEVELOPER, SHELL, {})[0] is Ruling.DENY


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (datetime(2026, 3, 2, 8, 59, tzinfo=UTC), Ruling.DENY),
        (datetime(2026, 3, 2, 9, 0, tzinfo=UTC), Ruling.ALLOW),
        (datetime(2026, 3, 2, 9, 0, tzinfo=timezone(timedelta(hours=5))), Ruling.DENY),
    ],
)
def test_time_is_in_the_context_in_utc(moment: datetime, expected: Ruling) -> None:
    text = '@id("x") permit(principal, action in Action::"call", resource) when { context.now.toTime() >= duration("9h") };'
    rules = CedarPolicy({"a.cedar": text}, VOCABULARY, [].append, lambda: moment)
    assert rules.decide(DEVELOPER, SHELL, {}).ruling is expected


def test_approval_is_asked_for_when_only_such_permits_apply() -> None:
    text = '@id("ask") @approval("operators") permit(principal, action in Action::"call", resource);'
    verdict = policy(text).decide(DEVELOPER, SHELL, {})
    assert (verdict.ruling, verdict.policies, verdict.group) == (Ruling.NEEDS_APPROVAL, ("ask",), "operators")
    plain = text + '@id("free") permit(principal in Role::"developer", action in Action::"call", resource);'
    assert ruling(plain, DEVELOPER, SHELL, {}) == (Ruling.ALLOW, ("free",))
    forbidden = text + '@id("never") forbid(principal, action, resource);'
    assert ruling(forbidden, DEVELOPER, SHELL, {}) == (Ruling.DENY, ("never",))


def test_approval_for_a_secret_counts_for_the_call() -> None:
    text = SET.replace('@id("acme-uses-its-key")', '@id("acme-uses-its-key") @approval("keepers")')
    verdict = policy(text).decide(DEVELOPER, SIGN, {"payload": ""})
    assert (verdict.ruling, verdict.group) == (Ruling.NEEDS_APPROVAL, "keepers")


def test_approvals_by_two_groups_are_an_error_not_one_of_them() -> None:
    alarms: list[str] = []
    text = SET.replace('@id("acme-uses-its-key")', '@id("acme-uses-its-key") @approval("keepers")')
    text = text.replace('@id("acme-signs")', '@id("acme-signs") @approval("signers")')
    verdict = policy(text, alarms).decide(DEVELOPER, SIGN, {"payload": ""})
    assert (verdict.ruling, verdict.policies) == (Ruling.ERROR, ("acme-signs", "acme-uses-its-key"))
    assert len(alarms) == 1


@pytest.mark.parametrize("effect", ["forbid", "permit"])
def test_one_policy_that_fails_refuses_a_call_that_others_allow(effect: str) -> None:
    alarms: list[str] = []
    text = SET + f'@id("failing") {effect}(principal, action in Action::"call", resource) when {{ {OVERFLOW} }};'
    rules = policy(text, alarms)
    assert rules.decide(DEVELOPER, PYTHON, {"code": "1"}).ruling is Ruling.ALLOW
    assert alarms == []
    verdict = rules.decide(DEVELOPER, PYTHON, {"code": "1", "seed": 7713})
    assert (verdict.ruling, verdict.policies) == (Ruling.ERROR, ("failing",))
    assert len(alarms) == 1
    assert "failing" in alarms[0]
    assert "7713" not in alarms[0]


@pytest.mark.parametrize(
    ("caller", "called", "arguments"),
    [
        (Caller("a/b", "c", ("developer",)), PYTHON, {"code": "CANARY"}),
        (DEVELOPER, PYTHON, {"code": {"__entity": {"type": "Role", "id": "CANARY"}}}),
        (DEVELOPER, PYTHON, {"code": None}),
        (DEVELOPER, PYTHON, {}),
        (DEVELOPER, PYTHON, {"code": "CANARY", "seed": 2**63}),
        (DEVELOPER, PYTHON, {"code": "CANARY", "seed": 10**100}),
        (DEVELOPER, PYTHON, {"code": "CANARY\ud800"}),
        (DEVELOPER, tool("other.tool", {}), {}),
        (DEVELOPER, tool("python.run", {}), {}),
    ],
)
def test_what_cannot_be_judged_is_an_error_and_an_alarm_without_values(
    caller: Caller, called: Tool, arguments: dict[str, Any]
) -> None:
    alarms: list[str] = []
    looking = "context.arguments has seed && context.arguments has code"
    text = f'@id("p") permit(principal, action in Action::"call", resource) unless {{ {looking} && false }};'
    verdict = policy(text, alarms).decide(caller, called, arguments)
    assert (verdict.ruling, verdict.policies) == (Ruling.ERROR, ())
    assert len(alarms) == 1
    assert "CANARY" not in alarms[0]


def test_no_decision_of_the_engine_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A context that does not fit the schema: the engine returns NoDecision instead of raising."""
    alarms: list[str] = []
    monkeypatch.setattr("callgate_server.backends.cedar.policy.convert", lambda *_: {"CANARY": "CANARY"})
    rules = policy('@id("all") permit(principal, action, resource);', alarms)
    verdict = rules.decide(DEVELOPER, PYTHON, {"code": "1"})
    assert (verdict.ruling, verdict.policies) == (Ruling.ERROR, ())
    assert alarms == ["policy could not be evaluated for python.run called by acme/bot: the request itself"]


RUN = 'permit(principal, action == Action::"call:python.run", resource)'


def engine_asked(monkeypatch: pytest.MonkeyPatch, text: str, calls: list[tuple[Caller, Tool, dict[str, Any]]]) -> int:
    """How often one set asks Cedar about these calls, each of which a set that has seen no other rules on alike."""
    afresh = [policy(text).decide(*call) for call in calls]
    rules, asked, batch = policy(text), [], cedarpy.is_authorized_batch
    with monkeypatch.context() as patch:
        patch.setattr(cedarpy, "is_authorized_batch", lambda *given: asked.append(given) or batch(*given))
        assert [rules.decide(*call) for call in calls] == afresh
    return len(asked)


def test_what_depends_on_caller_and_tool_alone_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = f'@id("run") {RUN};'
    same = [(DEVELOPER, PYTHON, {"code": code}) for code in "abc"]
    assert engine_asked(monkeypatch, text, same) == 1
    assert engine_asked(monkeypatch, text, [*same, (OPERATOR, PYTHON, {}), (DEVELOPER, SHELL, {})]) == 3


@pytest.mark.parametrize(
    "condition",
    [
        'context.arguments.code == "a"',
        'context.now > datetime("2026-01-01")',
        "context has task",
        "context.arguments == context.arguments",
    ],
)
def test_what_depends_on_more_is_asked_every_time(monkeypatch: pytest.MonkeyPatch, condition: str) -> None:
    text = f'@id("run") {RUN} when {{ {condition} }};'
    assert engine_asked(monkeypatch, text, [(DEVELOPER, PYTHON, {"code": code}) for code in "aba"]) == 3


def test_a_failed_evaluation_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = policy(f'@id("run") {RUN};')
    with monkeypatch.context() as patch:
        patch.setattr(cedarpy, "is_authorized_batch", lambda *_: [cedarpy.AuthzResult({"decision": "NoDecision"})])
        assert rules.decide(DEVELOPER, PYTHON, {"code": ""}).ruling is Ruling.ERROR
    assert rules.decide(DEVELOPER, PYTHON, {"code": ""}).ruling is Ruling.ALLOW


def test_a_tool_of_another_catalog_is_not_taken_for_one_that_is_remembered() -> None:
    rules = policy(f'@id("run") {RUN};')
    assert rules.decide(DEVELOPER, PYTHON, {"code": ""}).ruling is Ruling.ALLOW
    other = dataclasses.replace(PYTHON, digest="sha256:" + "f" * 64)
    assert rules.decide(DEVELOPER, other, {"code": ""}).ruling is Ruling.ERROR


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_module, "_RULINGS_KEPT", 2)
    rules = policy('@id("acme") permit(principal in Tenant::"acme", action in Action::"call", resource);')
    for number in range(5):
        assert rules.decide(Caller("acme", f"bot-{number}"), PYTHON, {}).ruling is Ruling.ALLOW
        assert rules.decide(Caller("rival", f"bot-{number}"), PYTHON, {}).ruling is Ruling.DENY
    assert len(rules._rulings) <= 2


def test_decision_carries_the_digest_of_its_set() -> None:
    files = {"test.cedar": SET}
    assert policy(SET).decide(DEVELOPER, PYTHON, {"code": ""}).policy_version == digest(files)
    assert digest(files) != digest({"test.cedar": SET + " "}) != digest({"other.cedar": SET})


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["__entity", "__extn"]), inner),
    max_leaves=8,
)
GUARDED = policy(
    '@id("all") permit(principal, action, resource);'
    '@id("no-rm") forbid(principal, action == Action::"call:shell.run", resource)'
    ' when { context.arguments has script && context.arguments.script like "*rm*" };'
    '@id("no-curl") forbid(principal, action == Action::"call:shell.run", resource)'
    ' when { context.arguments has argv && context.arguments.argv.contains("curl") };'
)


@given(st.dictionaries(st.sampled_from(["script", "argv", "x", "__entity"]), ANYTHING))
def test_any_arguments_are_ruled_on_and_no_forbidden_one_passes(arguments: dict[str, Any]) -> None:
    verdict = GUARDED.decide(DEVELOPER, SHELL, arguments)
    script, argv = arguments.get("script"), arguments.get("argv")
    if isinstance(script, str) and "rm" in script:
        assert verdict.ruling is not Ruling.ALLOW
    if isinstance(argv, list) and "curl" in argv:
        assert verdict.ruling is not Ruling.ALLOW


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_forbidden_text_is_found_wherever_it_hides(before: str, after: str) -> None:
    verdict = GUARDED.decide(DEVELOPER, SHELL, {"script": f"{before}rm{after}"})
    assert (verdict.ruling, verdict.policies) == (Ruling.DENY, ("no-rm",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ('@id("p") permit(principal, action in Action::"call", resource);', True),
        ('@id("p") permit(principal in Role::"operator", action in Action::"call", resource);', False),
        ('@id("p") permit(principal, action in Action::"call", resource in Namespace::"python");', False),
        ('@id("p") permit(principal, action in Action::"call", resource) when { context has task };', True),
        ('@id("p") @approval("ops") permit(principal, action in Action::"call", resource);', True),
        (
            '@id("p") permit(principal, action in Action::"call", resource)'
            ' when { context has task && resource.effect == Effect::"read" };',
            False,
        ),
        (
            '@id("p") permit(principal, action, resource);'
            '@id("f") forbid(principal, action == Action::"call:shell.run", resource) when { context has task };',
            True,
        ),
        (
            '@id("p") permit(principal, action, resource);'
            '@id("f") forbid(principal, action, resource) unless { principal in Role::"operator" };',
            False,
        ),
    ],
)
def test_tool_is_listed_when_some_call_could_pass(text: str, expected: bool) -> None:
    assert policy(text).could_allow(DEVELOPER, SHELL) is expected


def test_tool_whose_secret_is_out_of_reach_is_not_listed() -> None:
    call = '@id("c") permit(principal, action in Action::"call", resource);'
    assert not policy(call).could_allow(DEVELOPER, SIGN)
    assert policy(call + '@id("u") permit(principal, action == Action::"use", resource);').could_allow(DEVELOPER, SIGN)


def test_listing_that_cannot_be_judged_hides_and_alarms() -> None:
    alarms: list[str] = []
    rules = policy('@id("all") permit(principal, action, resource);', alarms)
    assert not rules.could_allow(Caller("a/b", "c"), PYTHON)
    assert not rules.could_allow(DEVELOPER, tool("other.tool", {}))
    assert len(alarms) == 2


def test_explanation_shows_what_decided_and_what_nearly_did() -> None:
    explanation = policy(SET).explain(OPERATOR, SHELL, {"script": "rm -rf /"})
    assert explanation.verdict.ruling is Ruling.DENY
    (part,) = explanation.parts
    assert (part.part.action, part.part.resource) == ("call:shell.run", "shell.run")
    assert [(source.id, source.file, source.line) for source in part.deciding] == [("no-rm", "test.cedar", 10)]
    assert part.deciding[0].text.startswith('@id("no-rm")\nforbid(')
    assert part.nearly == ()


def test_explanation_names_a_permit_whose_condition_is_not_met() -> None:
    text = '@id("tasks") permit(principal, action in Action::"call", resource) when { context has task };'
    (part,) = policy(text).explain(DEVELOPER, SHELL, {}).parts
    assert part.deciding == ()
    assert [source.id for source in part.nearly] == ["tasks"]


def test_explanation_has_a_part_for_each_secret_and_the_words_of_errors() -> None:
    parts = policy(SET).explain(DEVELOPER, SIGN, {"payload": ""}).parts
    assert [(part.part.action, part.part.resource) for part in parts] == [
        ("call:webhooks.sign", "webhooks.sign"),
        ("use", "webhooks.sign/key"),
    ]
    failing = SET + f'@id("failing") forbid(principal, action in Action::"call", resource) when {{ {OVERFLOW} }};'
    (part,) = policy(failing).explain(DEVELOPER, PYTHON, {"code": "", "seed": 3}).parts
    assert part.part.ruling is Ruling.ERROR
    assert "overflow" in part.part.errors[0]


def test_explanation_of_unfit_arguments_is_refused() -> None:
    text = '@id("p") permit(principal, action == Action::"call:python.run", resource) when { context.arguments.code == "" };'
    with pytest.raises(ValueError, match="required value is missing"):
        policy(text).explain(DEVELOPER, PYTHON, {})


REACH = """
@id("developers-read-example")
permit(principal in Role::"developer", action == Action::"connect", resource)
when { resource.name like "*.example.com" && resource.scheme == "https" && resource.port == 443 };
@id("only-reading")
forbid(principal, action == Action::"connect", resource)
when { context has method && context.method != "GET" };
@id("not-the-admin")
forbid(principal, action == Action::"connect", resource == Host::"admin.example.com");
@id("no-exports")
forbid(principal, action == Action::"connect", resource) when { context has path && context.path like "/export/*" };
"""
API = EgressAsk("https", "api.example.com", 443)


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (API, (Ruling.ALLOW, ("developers-read-example",))),
        (dataclasses.replace(API, method="GET", path="/v1"), (Ruling.ALLOW, ("developers-read-example",))),
        (dataclasses.replace(API, method="POST", path="/v1"), (Ruling.DENY, ("only-reading",))),
        (dataclasses.replace(API, method="GET", path="/export/all"), (Ruling.DENY, ("no-exports",))),
        (dataclasses.replace(API, host="admin.example.com"), (Ruling.DENY, ("not-the-admin",))),
        (dataclasses.replace(API, host="evil.example"), (Ruling.DENY, ())),
        (dataclasses.replace(API, port=8443), (Ruling.DENY, ())),
        (dataclasses.replace(API, scheme="http"), (Ruling.DENY, ())),
        (EgressAsk("tcp", "db.example.com", 443), (Ruling.DENY, ())),
    ],
)
def test_what_a_tool_may_reach_is_ruled_on_by_host_port_scheme_and_request(
    ask: EgressAsk, expected: tuple[Ruling, tuple[str, ...]]
) -> None:
    rules = policy(REACH)
    verdict = rules.consent(DEVELOPER, FETCH, ask)
    assert (verdict.ruling, verdict.policies) == expected
    assert verdict.policy_version == rules.version


def test_without_a_permit_to_connect_nothing_is_reached() -> None:
    calls = '@id("c") permit(principal, action in Action::"call", resource);'
    for text in ("", calls, calls + '@id("u") permit(principal, action == Action::"use", resource);'):
        assert policy(text).consent(DEVELOPER, FETCH, API).ruling is Ruling.DENY


def test_who_reaches_counts_and_with_which_tool() -> None:
    by_tool = (
        '@id("x") permit(principal, action == Action::"connect", resource) when { context.tool == Tool::"web.fetch" };'
    )
    assert policy(by_tool).consent(DEVELOPER, FETCH, API).ruling is Ruling.ALLOW
    assert policy(by_tool).consent(DEVELOPER, PYTHON, API).ruling is Ruling.DENY
    by_space = by_tool.replace('== Tool::"web.fetch"', 'in Namespace::"web"')
    assert policy(by_space).consent(DEVELOPER, FETCH, API).ruling is Ruling.ALLOW
    assert policy(REACH).consent(OPERATOR, FETCH, API).ruling is Ruling.DENY


def test_the_task_counts_where_something_is_reached() -> None:
    text = (
        '@id("x") permit(principal, action == Action::"connect", resource)'
        ' when { context has task && context.task == "t1" };'
    )
    assert policy(text).consent(dataclasses.replace(DEVELOPER, task="t1"), FETCH, API).ruling is Ruling.ALLOW
    assert policy(text).consent(DEVELOPER, FETCH, API).ruling is Ruling.DENY


def test_a_connection_that_waits_for_an_approval_is_not_allowed() -> None:
    text = '@id("x") @approval("ops") permit(principal, action == Action::"connect", resource);'
    assert policy(text).consent(DEVELOPER, FETCH, API).ruling is Ruling.NEEDS_APPROVAL


@pytest.mark.parametrize(
    ("caller", "called", "ask"),
    [
        (Caller("a/b", "c"), FETCH, API),
        (DEVELOPER, tool("other.tool", {}), API),
        (DEVELOPER, FETCH, dataclasses.replace(API, method="GET", path="/CANARY\ud800")),
        (DEVELOPER, FETCH, dataclasses.replace(API, port=2**64)),
    ],
)
def test_a_connection_that_cannot_be_judged_is_refused_with_an_alarm_without_values(
    caller: Caller, called: Tool, ask: EgressAsk
) -> None:
    alarms: list[str] = []
    verdict = policy('@id("all") permit(principal, action, resource);', alarms).consent(caller, called, ask)
    assert (verdict.ruling, verdict.policies) == (Ruling.ERROR, ())
    assert len(alarms) == 1
    assert "CANARY" not in alarms[0]


HOSTILE = st.text(st.characters(exclude_categories=["Cs"]))
KEPT_IN = policy(
    '@id("all") permit(principal, action, resource);'
    '@id("no") forbid(principal, action == Action::"connect", resource)'
    ' when { resource.name like "*evil*" || (context has path && context.path like "*evil*") };'
)


@given(HOSTILE, HOSTILE, HOSTILE)
def test_whatever_a_tool_asks_for_no_forbid_is_passed(host: str, method: str, path: str) -> None:
    ask = EgressAsk("https", host, 443, method, f"/{path}evil")
    assert KEPT_IN.consent(DEVELOPER, FETCH, ask).policies == ("no",)
    plain = KEPT_IN.consent(DEVELOPER, FETCH, dataclasses.replace(ask, path=None))
    assert plain.ruling is (Ruling.DENY if "evil" in host else Ruling.ALLOW)


def test_what_a_tool_may_reach_does_not_decide_whether_it_is_listed() -> None:
    assert policy('@id("c") permit(principal, action in Action::"call", resource);').could_allow(DEVELOPER, FETCH)
    assert not policy(REACH).could_allow(DEVELOPER, FETCH)


def test_explanation_of_a_connection_names_what_decided_and_what_nearly_did() -> None:
    rules = policy(REACH)
    (part,) = rules.explain_consent(DEVELOPER, FETCH, dataclasses.replace(API, method="POST", path="/v1")).parts
    assert (part.part.action, part.part.resource) == ("connect", "api.example.com")
    assert [source.id for source in part.deciding] == ["only-reading"]
    (part,) = rules.explain_consent(DEVELOPER, FETCH, dataclasses.replace(API, port=8443)).parts
    assert [source.id for source in part.nearly] == ["developers-read-example"]


ADMINISTRATORS = (
    '@id("ops") permit(principal in Role::"operator", action == Action::"administer", resource)'
    ' when { principal.tenant == resource && context.operation != "shared_breakers" };'
)


def test_who_administers_is_a_matter_of_permits_and_absent_means_refuse() -> None:
    live = policy(ADMINISTRATORS)
    assert live.may_administer(OPERATOR, "stop") == dataclasses.replace(
        live.may_administer(OPERATOR, "resume"), ruling=Ruling.ALLOW, policies=("ops",)
    )
    assert live.may_administer(OPERATOR, "shared_breakers").ruling is Ruling.DENY
    assert live.may_administer(DEVELOPER, "stop").ruling is Ruling.DENY
    assert policy(SET).may_administer(OPERATOR, "stop").ruling is Ruling.DENY


def test_the_resource_is_always_the_operators_own_tenant() -> None:
    live = policy('@id("acme") permit(principal, action == Action::"administer", resource == Tenant::"acme");')
    assert live.may_administer(OPERATOR, "stop").ruling is Ruling.ALLOW
    assert live.may_administer(Caller("rival", "root", ("operator",)), "stop").ruling is Ruling.DENY


def test_an_administrator_who_cannot_be_judged_is_refused_and_the_operator_alarmed() -> None:
    alarms: list[str] = []
    verdict = policy(ADMINISTRATORS, alarms).may_administer(Caller("a/b", "root", ("operator",)), "stop")
    assert verdict.ruling is Ruling.ERROR
    assert len(alarms) == 1


def test_explanation_of_an_act_of_an_operator_shows_what_decided_and_what_nearly_did() -> None:
    live = policy(ADMINISTRATORS)
    allowed = live.explain_administration(OPERATOR, "stop")
    assert allowed.verdict == live.may_administer(OPERATOR, "stop")
    (part,) = allowed.parts
    assert (part.part.action, part.part.resource, part.part.ruling) == ("administer", "acme", Ruling.ALLOW)
    assert [source.id for source in part.deciding] == ["ops"]
    (part,) = live.explain_administration(OPERATOR, "shared_breakers").parts
    assert (part.part.ruling, part.deciding) == (Ruling.DENY, ())
    assert [source.id for source in part.nearly] == ["ops"]
    (part,) = live.explain_administration(DEVELOPER, "stop").parts
    assert (part.part.ruling, part.deciding, part.nearly) == (Ruling.DENY, (), ())
