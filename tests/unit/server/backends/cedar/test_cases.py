import pytest

from callgate_server.backends.cedar.cases import parse_cases, run_cases
from callgate_server.backends.json_schema import CompiledSchemas
from support.cedar_catalog import CATALOG, policy

POLICY = policy(
    '@id("shell") permit(principal in Role::"operator", action == Action::"call:shell.run", resource);'
    '@id("no-rm") forbid(principal, action, resource == Tool::"shell.run")'
    " when { context has task };"
    '@id("reach") permit(principal, action == Action::"connect", resource == Host::"api.example.com")'
    ' when { resource.port == 443 && !(context has method && context.method == "DELETE") };'
)
SCHEMAS = CompiledSchemas.of(CATALOG)
CASE = {"name": "n", "tenant": "acme", "agent": "bot", "tool": "shell.run", "expect": "allow"}
OPERATOR = CASE | {"roles": ["operator"]}


def faults(*cases: dict[str, object]) -> list[str]:
    return [result.fault for result in run_cases(parse_cases({"cases": list(cases)}), POLICY, SCHEMAS, CATALOG)]


def test_case_that_is_as_expected_has_no_fault() -> None:
    assert faults(OPERATOR, OPERATOR | {"policies": ["shell"]}, CASE | {"expect": "deny", "policies": []}) == [
        "",
        "",
        "",
    ]


API = CASE | {"connect": {"host": "api.example.com"}}


def test_case_may_be_about_what_the_tool_reaches() -> None:
    request = {"host": "api.example.com", "method": "DELETE", "path": "/v1"}
    assert faults(
        API | {"policies": ["reach"]},
        CASE | {"connect": request, "expect": "deny", "policies": []},
        CASE | {"connect": {"host": "db", "scheme": "tcp", "port": 5432}, "expect": "deny"},
    ) == ["", "", ""]
    assert faults(API | {"expect": "deny"}) == ["expected deny, got allow by reach"]


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        (CASE, "expected allow, got deny"),
        (OPERATOR | {"expect": "deny"}, "expected deny, got allow by shell"),
        (OPERATOR | {"task": "nightly"}, "expected allow, got deny by no-rm"),
        (OPERATOR | {"policies": ["other"]}, "expected allow by other, got it by shell"),
        (CASE | {"expect": "deny", "policies": ["no-rm"]}, "expected deny by no-rm, got it by none"),
        (OPERATOR | {"tool": "no.tool"}, "there is no tool no.tool"),
        (OPERATOR | {"arguments": {"scirpt": "ls"}}, "the arguments do not fit the tool: at /scirpt: unknown key"),
        (OPERATOR | {"tenant": "a/b"}, "expected allow, got error"),
    ],
)
def test_case_that_is_not_as_expected_says_what_came_instead(case: dict[str, object], fault: str) -> None:
    assert faults(case) == [fault]


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        ([], "one key, `cases`"),
        ({"cases": [], "more": 1}, "one key, `cases`"),
        ({"cases": {}}, "one key, `cases`"),
        ({"cases": [CASE, {}]}, "^case 2: name: "),
        ({"cases": [5]}, "^case 1: the case: "),
        ({"cases": [CASE | {"expects": "deny"}]}, "^case 1: expects: "),
        ({"cases": [CASE | {"expect": "maybe"}]}, "^case 1: expect: "),
        ({"cases": [CASE | {"roles": "operator"}]}, "^case 1: roles: "),
        ({"cases": [CASE | {"tenant": 5}]}, "^case 1: tenant: "),
        ({"cases": [CASE | {"connect": {"host": "API.example.com"}}]}, "^case 1: connect.host: "),
        ({"cases": [CASE | {"connect": {"host": "db", "scheme": "tcp"}}]}, "^case 1: connect: "),
        ({"cases": [CASE | {"connect": {"host": "a", "path": "x"}}]}, "^case 1: connect.path: "),
        ({"cases": [API | {"arguments": {"script": "ls"}}]}, "^case 1: the case: "),
    ],
)
def test_unfit_document_is_refused_with_its_place(document: object, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_cases(document)


def test_case_may_be_about_what_an_operator_does() -> None:
    text = (
        '@id("ops") permit(principal in Role::"operator", action == Action::"administer", resource)'
        ' when { principal.tenant == resource && context.operation == "stop" };'
    )
    admin = {"name": "n", "tenant": "acme", "agent": "root", "roles": ["operator"], "administer": "stop"}
    cases = [
        admin | {"expect": "allow", "policies": ["ops"]},
        admin | {"expect": "deny"},
        admin | {"administer": "resume", "expect": "deny", "policies": []},
    ]
    results = run_cases(parse_cases({"cases": cases}), policy(text), SCHEMAS, CATALOG)
    assert [result.fault for result in results] == ["", "expected deny, got allow by ops", ""]


@pytest.mark.parametrize(
    "case",
    [
        {"administer": "stop", "tool": "shell.run"},
        {"administer": "stop", "tool": "", "arguments": {"a": 1}},
        {"administer": "everything", "tool": ""},
        {"tool": ""},
    ],
)
def test_case_about_two_things_or_none_is_refused(case: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="case 1"):
        parse_cases({"cases": [CASE | case]})
