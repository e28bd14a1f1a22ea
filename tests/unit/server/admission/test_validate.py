import json
from collections.abc import Sequence

import pytest

from callgate_server.admission.validate import MAX_VIOLATIONS, check_arguments, parse_arguments
from callgate_server.backends.json_schema import CompiledSchemas
from callgate_server.model.catalog import Tool
from callgate_server.model.errors import CallError, Reason, Violation
from callgate_server.model.strict_json import Json
from support.cedar_catalog import CATALOG, PYTHON, SHELL

SCHEMAS = CompiledSchemas.of(CATALOG)


def refusal(document: bytes, tool: Tool = PYTHON) -> CallError:
    with pytest.raises(CallError) as caught:
        check_arguments(SCHEMAS, tool, document, may_see=lambda: True)
    return caught.value


def test_who_does_not_see_the_tool_is_not_told_what_does_not_fit() -> None:
    with pytest.raises(CallError) as caught:
        check_arguments(SCHEMAS, PYTHON, b"{}", may_see=lambda: False)
    assert (caught.value.reason, caught.value.violations) == (Reason.POLICY_DENIED, ())
    assert check_arguments(SCHEMAS, PYTHON, b'{"code":"x"}', may_see=lambda: False)[1] == b'{"code":"x"}'


def test_fitting_arguments_come_back_decoded_and_canonical() -> None:
    arguments, canonical = check_arguments(
        SCHEMAS, PYTHON, b' {"seed": 9007199254740993, "code": "\\u00e9"}', may_see=lambda: True
    )
    assert arguments == {"code": "é", "seed": 9007199254740993}
    assert canonical == '{"code":"é","seed":9007199254740993}'.encode()


def test_equal_arguments_have_equal_canonical_bytes() -> None:
    _, one = check_arguments(SCHEMAS, PYTHON, b'{"code":"x","seed":1}', may_see=lambda: True)
    _, two = check_arguments(SCHEMAS, PYTHON, b'{ "seed" : 1, "code" : "\\u0078" }', may_see=lambda: True)
    assert one == two


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff{}",
        b'{"code":"a","code":"b"}',
        b'{"code":"a","\\u0063ode":"b"}',
        b'{"code":"x","seed":NaN}',
        b'{"code":"x","seed":Infinity}',
        b'{"code":"x","seed":-Infinity}',
        b'{"code":"x","seed":1e400}',
        b'{"code":"x","seed":' + b"9" * 10_000 + b"}",
        b'{"code":"\\ud800"}',
        b'{"code":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"code":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b"[" * 1_000_000,
    ],
)
def test_document_that_is_not_plain_json_is_an_invalid_request(document: bytes) -> None:
    assert refusal(document).reason is Reason.INVALID_REQUEST


def test_refusal_of_a_document_does_not_quote_it() -> None:
    assert "CANARY" not in refusal(b'{"code": "CANARY", "CANARY": CANARY}').message


@pytest.mark.parametrize(
    ("arguments", "path", "rule"),
    [
        ({"code": 5}, "/code", "type"),
        ({"code": "x", "seed": "5"}, "/seed", "type"),
        ({"code": "x", "seed": 1.5}, "/seed", "type"),
        ({"code": "x", "runtime": "runc"}, "/runtime", "additionalProperties"),
        ({"code": "x", "timeout": 1e9}, "/timeout", "additionalProperties"),
        ({"code": "x", "env": {"LD_PRELOAD": "/x.so"}}, "/env", "additionalProperties"),
        ({"code": "x", "image": "other"}, "/image", "additionalProperties"),
        ({"code": "x", "net": "*"}, "/net", "additionalProperties"),
        ({"code": "x", "__proto__": {}}, "/__proto__", "additionalProperties"),
        ({}, "", "required"),
    ],
)
def test_unfit_arguments_are_refused_with_the_path_of_the_field(arguments: Json, path: str, rule: str) -> None:
    error = refusal(json.dumps(arguments).encode())
    assert error.reason is Reason.INVALID_ARGUMENTS
    assert [(violation.path, violation.rule) for violation in error.violations] == [(path, rule)]
    assert f"do not fit python.run: at {path or '/'}: " in error.message


def test_refusal_of_arguments_holds_no_value() -> None:
    error = refusal(b'{"argv": ["CANARY-1", 5], "script": {"x": "CANARY-2"}}', SHELL)
    assert {violation.path for violation in error.violations} == {"/argv/1", "/script"}
    assert "CANARY" not in error.message + "".join(violation.message for violation in error.violations)


def test_violations_are_capped_whatever_the_engine_returns() -> None:
    class Endless:
        def input_violations(self, tool: Tool, arguments: Json) -> Sequence[Violation]:
            return [Violation("/x", "type", "must be of type string")] * 1000

        output_violations = input_violations

    with pytest.raises(CallError) as caught:
        check_arguments(Endless(), PYTHON, b"{}", may_see=lambda: True)
    assert len(caught.value.violations) == MAX_VIOLATIONS


def test_arguments_must_be_an_object() -> None:
    assert parse_arguments(b"{}") == {}
    with pytest.raises(CallError, match="must be a JSON object"):
        parse_arguments(b"[1]")
