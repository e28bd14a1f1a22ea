from typing import Any

import pytest
from pydantic import ValidationError

from callgate_server.model.manifest import Manifest, SecretRef

SECRET = {"name": "key", "from": "kv/data/{tenant}/webhooks#key", "deliver": "file"}


def declare(**fields: Any) -> Manifest:
    document = {
        "tool": "webhooks.sign",
        "version": "1.0.0",
        "summary": "Sign a payload.",
        "image": "python",
        "run": {"python": "webhooks:sign"},
        "input": {"type": "object", "properties": {"payload": {}}, "additionalProperties": False},
        "output": {"type": "object"},
        "effect": "read",
    }
    return Manifest.model_validate(document | fields)


def refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        declare(**fields)
    return str(caught.value)


def test_smallest_manifest_has_the_strictest_defaults() -> None:
    manifest = declare()
    assert (manifest.isolation, manifest.secrets, manifest.record_clear, manifest.egress) == ("container", (), (), ())
    assert (manifest.retry.attempts, manifest.fallback, manifest.runtime) == (1, None, None)
    assert manifest.limits.artifacts == 0


def test_document_of_a_manifest_reads_back_as_the_same() -> None:
    manifest = declare(secrets=[SECRET], record_clear=["payload"], run={"command": ["/usr/bin/jq", "-c"]})
    assert Manifest.model_validate(manifest.model_dump(mode="json", by_alias=True)) == manifest


def test_manifest_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        declare().effect = "unsafe"  # type: ignore[misc]


@pytest.mark.parametrize("effect", ["read", "idempotent", "unsafe"])
def test_each_effect_is_accepted(effect: str) -> None:
    assert declare(effect=effect).effect == effect


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"colour": "red"}, "colour"),
        ({"limits": {"wall_ms": 5}}, "limits.wall_ms"),
        ({"run": {"python": "a:b", "shell": "sh"}}, "run.shell"),
        ({"secrets": [SECRET | {"mode": 7}]}, "secrets.0.mode"),
        ({"retry": {"attempts": 1, "delay": 1}}, "retry.delay"),
        ({"egress": [{"host": "a.example", "address": "x"}]}, "egress.<rules>.0.address"),
    ],
)
def test_unknown_key_is_refused_at_every_level(fields: dict[str, Any], place: str) -> None:
    assert f"\n{place}\n  Extra inputs are not permitted" in refusal(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"retry": {"attempts": 6}},
        {"fallback": {}},
        {"fallback": {"constant": {}, "last_good_s": 5.0}},
        {"if_match": "text"},
        {"verify": "other.tool"},
        {"fallback": "other.tool"},
        {"isolation": "vm"},
        {"secrets": [SECRET | {"deliver": "env"}]},
    ],
)
def test_what_the_gateway_does_not_do_cannot_be_declared(fields: dict[str, Any]) -> None:
    refusal(**fields)


@pytest.mark.parametrize(
    "tool", ["sign", "Webhooks.sign", "webhooks.", ".sign", "a..b", "a.b\n", "a.b/c", "a." + "b" * 127]
)
def test_tool_name_is_namespace_and_verb(tool: str) -> None:
    assert "namespace.verb" in refusal(tool=tool)


@pytest.mark.parametrize("version", ["1.0", "01.0.0", "1.0.0+build", "v1.0.0", "1.0.0\n", "1.0.0-" + "a" * 64, ""])
def test_version_is_semantic(version: str) -> None:
    assert "\nversion\n" in refusal(version=version)


@pytest.mark.parametrize(
    "summary", ["", "a" * 201, "two\nlines", "\x1b[31mred", "hidden\u202e", "zero\u200bwidth", "\ud800"]
)
def test_summary_is_one_line_that_shows_all_it_says(summary: str) -> None:
    assert "\nsummary\n" in refusal(summary=summary)


@pytest.mark.parametrize(
    "image", ["", "../python", "python:latest", "registry/python", "Python", "python\n", "python@sha256:0"]
)
def test_image_is_a_folder_not_a_reference(image: str) -> None:
    assert "\nimage\n" in refusal(image=image)


@pytest.mark.parametrize(
    "run",
    [
        {},
        {"python": "a:b", "command": ["/bin/x"]},
        {"python": "a"},
        {"python": "a.b:c"},
        {"python": "os:system()"},
        {"python": "a:b\n"},
        {"python": "a:b", "result": "stdout"},
        {"command": []},
        {"command": "/bin/x"},
        {"command": ["jq"]},
        {"command": ["./jq"]},
        {"command": ["/"]},
        {"command": ["/usr/../proc/self/exe"]},
        {"command": ["/proc/self/exe"]},
        {"command": ["//proc/self/exe"]},
        {"command": ["/./proc/self/exe"]},
        {"command": ["/dev/shm/x"]},
        {"command": ["/sys/x"]},
        {"command": ["/bin/x", "a\0b"]},
        {"command": ["/bin/x", "\ud800"]},
        {"command": ["/bin/x", 5]},
        {"command": ["/bin/x"] * 257},
        {"command": ["/bin/x"], "result": "stderr"},
    ],
)
def test_way_to_start_that_is_not_exactly_one_known_way_is_refused(run: dict[str, Any]) -> None:
    assert "\nrun" in refusal(run=run)


@pytest.mark.parametrize("result", ["descriptor", "stdout"])
def test_command_may_say_where_its_result_is(result: str) -> None:
    run = declare(run={"command": ["/usr/bin/jq", "-c", "."], "result": result}).run
    assert (run.command, run.result) == (("/usr/bin/jq", "-c", "."), result)


@pytest.mark.parametrize(
    "limits",
    [
        {"wall_s": 0},
        {"wall_s": -1},
        {"wall_s": 3601},
        {"wall_s": float("nan")},
        {"wall_s": float("inf")},
        {"wall_s": "5"},
        {"wall_s": True},
        {"cpu": "1"},
        {"cpu": 65},
        {"memory_mb": 31},
        {"memory_mb": 64.0},
        {"memory_mb": "64"},
        {"pids": True},
        {"pids": 7},
        {"output_kb": 0},
        {"result_kb": 4097},
        {"scratch_mb": 0},
        {"scratch_files": 15},
        {"open_files": 15},
        {"artifacts": -1},
        {"artifacts_kb": 65537},
        {"egress_kb": 0},
        {"egress_connections": 4097},
        {"egress_requests": 0},
        None,
    ],
)
def test_limit_that_is_no_limit_is_refused(limits: Any) -> None:
    assert "\nlimits" in refusal(limits=limits)


def test_seconds_and_cores_may_be_fractions() -> None:
    limits = declare(limits={"wall_s": 0.5, "cpu": 2}).limits
    assert (limits.wall_s, limits.cpu) == (0.5, 2)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "additionalProperties": {}},
        {"type": "object", "additionalProperties": 0},
        {"type": ["object", "null"], "additionalProperties": False},
        {"type": "object", "additionalProperties": False, "patternProperties": {".*": {}}},
    ],
)
def test_input_that_is_not_a_closed_object_is_refused(schema: dict[str, Any]) -> None:
    assert "\ninput\n" in refusal(input=schema)


@pytest.mark.parametrize(
    "secret",
    [
        {"name": "Key"},
        {"name": "../key"},
        {"name": "key\n"},
        {"name": "k" * 64},
        {"from": "kv"},
        {"from": "kv/data/x"},
        {"from": "kv/data/../x#key"},
        {"from": "/kv/data/x#key"},
        {"from": "kv//x#key"},
        {"from": "kv/data/x#key\n"},
        {"from": "kv/data/x?y#key"},
        {"from": "kv/data/x%2e#key"},
        {"from": "kv/data/{agent}/x#key"},
        {"from": "kv/data/{tenant/x#key"},
        {"from": "kv/data/tenant}/x#key"},
        {"from": "kv/data/{{tenant}}/x#key"},
        {"from": "kv/data/x#{tenant}"},
        {"from": "kv/data/x#a#b"},
    ],
)
def test_secret_that_is_not_plainly_named_and_placed_is_refused(secret: dict[str, str]) -> None:
    assert "\nsecrets.0." in refusal(secrets=[SECRET | secret])


def test_secrets_have_names_of_their_own() -> None:
    assert "two secrets have the same name" in refusal(secrets=[SECRET, SECRET])


KEY = {"name": "key", "from": "kv/data/{tenant}/app#key", "deliver": "egress"}
RULE = {"host": "api.example.com", "secret": "key"}


def faults(**fields: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        declare(**fields)
    return {".".join(map(str, fault["loc"])): fault["msg"] for fault in caught.value.errors()}


def test_a_tool_reaches_what_its_manifest_says_and_by_default_nothing() -> None:
    assert declare().rules == ()
    assert declare(egress=[]).rules == ()
    assert [rule.destination for rule in declare(egress=[RULE], secrets=[KEY]).rules] == ["api.example.com:443"]


def test_a_tool_may_leave_its_destinations_to_the_deployment_and_reaches_nothing_until_then() -> None:
    manifest = declare(egress="configured", secrets=[KEY])
    assert (manifest.egress, manifest.rules) == ("configured", ())


@pytest.mark.parametrize(
    ("egress", "place"),
    [
        ("open", "egress.<configured>"),
        ("", "egress.<configured>"),
        (None, "egress.<rules>"),
        (True, "egress.<rules>"),
        ({"host": "a.example"}, "egress.<rules>"),
        (["configured"], "egress.<rules>.0"),
        ([RULE] * 65, "egress.<rules>"),
    ],
)
def test_anything_else_than_rules_or_that_word_is_refused(egress: object, place: str) -> None:
    assert place in faults(egress=egress)


def test_a_document_with_rules_and_their_secrets_reads_back_as_the_same() -> None:
    for egress in ([RULE, {"host": "db", "scheme": "tcp", "port": 5432}], "configured"):
        manifest = declare(egress=egress, secrets=[KEY])
        assert Manifest.model_validate(manifest.model_dump(mode="json", by_alias=True)) == manifest


def test_rules_and_secrets_that_do_not_fit_each_other_are_named_at_their_places() -> None:
    assert list(faults(egress=[RULE])) == ["egress.0.secret"]
    assert list(faults(secrets=[KEY])) == ["secrets.0.deliver"]
    assert list(faults(egress=[RULE, RULE | {"secret": None}], secrets=[KEY])) == ["egress.1"]


@pytest.mark.parametrize("egress", [[{"host": "api.example.com"}], "configured"])
def test_a_fork_has_no_way_out(egress: object) -> None:
    assert "needs `isolation: container`" in faults(egress=egress, isolation="fork")["isolation"]
    assert declare(egress=[], isolation="fork").isolation == "fork"


@pytest.mark.parametrize(
    ("given", "header", "prefix"),
    [
        ({}, "Authorization", "Bearer "),
        ({"prefix": "Token "}, "Authorization", "Token "),
        ({"prefix": ""}, "Authorization", ""),
        ({"header": "X-Api-Key"}, "X-Api-Key", ""),
        ({"header": "X-Api-Key", "prefix": "v1="}, "X-Api-Key", "v1="),
        ({"encode": "basic"}, "Authorization", "Basic "),
        ({"header": "authorization"}, "authorization", "Bearer "),
    ],
)
def test_a_secret_for_the_gate_has_a_header_and_a_prefix(given: dict[str, str], header: str, prefix: str) -> None:
    secret = SecretRef.model_validate(KEY | given)
    assert (secret.header, secret.prefix) == (header, prefix)
    assert SecretRef.model_validate(secret.model_dump(by_alias=True)) == secret


@pytest.mark.parametrize(
    "given",
    [
        *({"header": name} for name in ("Host", "content-length", "Transfer-Encoding", "CONNECTION", "TE", "Upgrade")),
        *({"header": name} for name in ("Trailer", "Proxy-Authorization", "proxy-x", "X-Forwarded-Host", "Expect")),
        *(
            {"header": name}
            for name in ("", ":authority", "X Key", "X-Key:", "X-Kéy", "X_Key", "X-Key\r\nHost", "a" * 65)
        ),
        *({"prefix": prefix} for prefix in ("a b", "Bearer  ", " Bearer", "Bearer\n", "é ", "a" * 33)),
        *({"encode": word} for word in ("base64", "")),
    ],
)
def test_a_header_that_decides_more_than_who_asks_is_refused(given: dict[str, str]) -> None:
    assert f"secrets.0.{next(iter(given))}" in faults(egress="configured", secrets=[KEY | given])


@pytest.mark.parametrize("given", [{"header": "X-Key"}, {"prefix": ""}, {"encode": "basic"}])
def test_a_secret_for_the_sandbox_has_no_header(given: dict[str, str]) -> None:
    (key,) = given
    assert "remove it" in faults(secrets=[SECRET | given])[f"secrets.0.{key}"]


def test_path_of_a_secret_is_the_tenants_own() -> None:
    secret = SecretRef.model_validate(SECRET)
    assert (secret.path("acme"), secret.field) == ("kv/data/acme/webhooks", "key")


def test_a_fixed_argument_is_not_a_callers_too() -> None:
    assert declare(fixed={"database": "orders"}).fixed == {"database": "orders"}
    with pytest.raises(ValueError, match="`fixed` gives payload"):
        declare(fixed={"payload": "x"})


def test_only_arguments_of_the_tool_may_be_recorded_in_clear() -> None:
    assert declare(record_clear=["payload"]).record_clear == ("payload",)
    assert "`record_clear` names paylaod" in refusal(record_clear=["paylaod"])


CONDITIONAL = {
    "input": {
        "type": "object",
        "properties": {"etag": {"type": "string"}, "n": {"type": "integer"}, "open": True},
        "required": ["etag", "n", "open"],
        "additionalProperties": False,
    },
    "effect": "idempotent",
}


def test_a_conditional_tool_names_the_argument_that_holds_its_condition() -> None:
    assert declare(**CONDITIONAL, if_match="etag").if_match == "etag"


@pytest.mark.parametrize("argument", ["n", "open", "absent"])
def test_a_condition_that_a_call_could_leave_out_is_none(argument: str) -> None:
    assert "`if_match` names a required argument" in refusal(**CONDITIONAL, if_match=argument)


def test_what_has_a_condition_is_declared_idempotent() -> None:
    assert "is `effect: idempotent`" in refusal(**CONDITIONAL | {"effect": "unsafe"}, if_match="etag")


def test_only_what_must_not_run_twice_is_verified() -> None:
    assert declare(effect="unsafe", verify="orders.look").verify == "orders.look"
    assert "`verify` is for `effect: unsafe`" in refusal(effect="read", verify="orders.look")


@pytest.mark.parametrize("given", [{"tool": "a.b"}, {"constant": {"text": ""}}, {"last_good_s": 60.0}])
def test_a_fallback_is_one_of_three(given: dict[str, Any]) -> None:
    fallback = declare(fallback=given).fallback
    assert fallback is not None
    assert fallback.model_dump(exclude_none=True) == given
