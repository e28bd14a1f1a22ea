import re

import pytest

from callgate_server.model.catalog import Adjustment, Catalog, Tool
from callgate_server.model.egress import EgressRule
from callgate_server.model.manifest import Manifest, SecretRef

IMAGE = "sha256:" + "a" * 64


def manifest(tool="a.b", **changes):
    known = {
        "tool": tool,
        "version": "1.0.0",
        "summary": "Does something",
        "image": "python",
        "run": {"python": "module:function"},
        "input": {"type": "object", "properties": {"x": {}}, "additionalProperties": False},
        "output": {},
        "effect": "read",
    }
    return Manifest.model_validate(known | changes)


def test_the_same_declaration_and_image_have_the_same_digest():
    assert Tool.pin(manifest(), IMAGE) == Tool.pin(manifest(), IMAGE)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", Tool.pin(manifest(), IMAGE).digest)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "1.0.1"},
        {"effect": "unsafe"},
        {"limits": {"pids": 65}},
        {"input": {"type": "object", "properties": {"x": {}, "y": {}}, "additionalProperties": False}},
        {"record_clear": ["x"]},
        {"secrets": [{"name": "key", "from": "kv/data/x#y", "deliver": "file"}]},
    ],
)
def test_any_change_of_the_declaration_changes_the_digest(change):
    assert Tool.pin(manifest(**change), IMAGE).digest != Tool.pin(manifest(), IMAGE).digest


def test_another_image_is_another_tool():
    assert Tool.pin(manifest(), "sha256:" + "b" * 64).digest != Tool.pin(manifest(), IMAGE).digest


def test_a_catalog_is_named_by_its_content_and_not_by_its_order():
    one, two = Tool.pin(manifest("a.b"), IMAGE), Tool.pin(manifest("c.d"), IMAGE)
    assert Catalog.of(one, two) == Catalog.of(two, one)
    assert Catalog.of(one).digest != Catalog.of(one, two).digest
    assert [tool.name for tool in Catalog.of(two, one)] == ["a.b", "c.d"]


def test_a_tool_is_declared_once():
    with pytest.raises(ValueError, match="same tool"):
        Catalog.of(Tool.pin(manifest(), IMAGE), Tool.pin(manifest(version="2.0.0"), IMAGE))


def test_an_empty_catalog_has_a_name_as_well():
    assert list(Catalog.of()) == []
    assert Catalog.of().digest.startswith("sha256:")


KEY = {"name": "key", "from": "kv/data/{tenant}/app#key", "deliver": "egress"}
OPEN = EgressRule(host="api.example.com")
BOUND = EgressRule(host="api.example.com", secret="key")


def adjusted(adjustment, **changes):
    return Catalog.of(Tool.pin(manifest(**changes), IMAGE)).adjusted({"a.b": adjustment}).tools["a.b"]


def refused(adjustment, **changes):
    with pytest.raises(ValueError, match=r"tools\.a\.b") as caught:
        adjusted(adjustment, **changes)
    return str(caught.value)


def test_a_tool_that_nobody_decides_about_stays_what_it_is():
    catalog = Catalog.of(Tool.pin(manifest(egress=[{"host": "a.example"}]), IMAGE), Tool.pin(manifest("c.d"), IMAGE))
    assert catalog.adjusted({}) == catalog
    assert catalog.adjusted({"a.b": Adjustment()}) == catalog


def test_an_operator_sets_the_isolation_and_the_digest_says_so():
    forked = adjusted(Adjustment(isolation="fork"))
    assert forked.manifest.isolation == "fork"
    assert forked.digest != Tool.pin(manifest(), IMAGE).digest


def test_an_operator_may_call_an_effect_graver_and_never_milder():
    assert adjusted(Adjustment(effect="unsafe")).manifest.effect == "unsafe"
    assert adjusted(Adjustment(effect="idempotent"), effect="idempotent").manifest.effect == "idempotent"
    assert "which is graver" in refused(Adjustment(effect="read"), effect="unsafe")


CLOSED = {
    "type": "object",
    "properties": {"database": {"type": "string"}, "sql": {"type": "string"}},
    "required": ["database", "sql"],
    "additionalProperties": False,
}


def test_an_argument_that_the_operator_fixes_is_no_callers_any_more():
    found = adjusted(Adjustment(fixed={"database": "orders"}), input=CLOSED, record_clear=["database", "sql"]).manifest
    assert found.input == {**CLOSED, "properties": {"sql": {"type": "string"}}, "required": ["sql"]}
    assert (found.fixed, found.record_clear) == ({"database": "orders"}, ("sql",))
    other = adjusted(Adjustment(fixed={"database": "other"}), input=CLOSED)
    assert other.digest != adjusted(Adjustment(fixed={"database": "orders"}), input=CLOSED).digest


def test_an_argument_that_the_tool_does_not_have_cannot_be_fixed():
    assert "fixed.table: the tool has no such argument" in refused(Adjustment(fixed={"table": 1}), input=CLOSED)


def test_an_operator_gives_destinations_and_keys_to_a_tool_that_leaves_them_open():
    found = adjusted(Adjustment(egress=(BOUND,), secrets=(SecretRef.model_validate(KEY),)), egress="configured")
    assert found.manifest.rules == (BOUND,)
    assert [secret.name for secret in found.manifest.secrets] == ["key"]
    assert found.digest != Tool.pin(manifest(egress="configured"), IMAGE).digest


def test_a_tool_that_nobody_gives_destinations_reaches_nothing_and_needs_no_key():
    found = adjusted(Adjustment(), egress="configured", secrets=[KEY])
    assert (found.manifest.egress, found.manifest.secrets) == ((), ())


def test_a_declared_key_is_needed_where_a_rule_names_it():
    plain = KEY | {"name": "plain", "deliver": "file"}
    found = adjusted(Adjustment(egress=(BOUND,)), egress="configured", secrets=[plain, KEY])
    assert [secret.name for secret in found.manifest.secrets] == ["plain", "key"]
    found = adjusted(Adjustment(egress=(OPEN,)), egress="configured", secrets=[plain, KEY])
    assert [secret.name for secret in found.manifest.secrets] == ["plain"]


@pytest.mark.parametrize("egress", [[], [{"host": "a.example"}]])
def test_destinations_that_a_manifest_fixes_are_nobody_elses_to_give(egress):
    assert "does not say `egress: configured`" in refused(Adjustment(egress=(OPEN,)), egress=egress)
    secrets = (SecretRef.model_validate(KEY),)
    assert "does not say `egress: configured`" in refused(Adjustment(secrets=secrets), egress=egress)


def test_what_does_not_fit_is_named_by_its_key_in_the_configuration():
    assert refused(Adjustment(egress=(BOUND,)), egress="configured").startswith("tools.a.b.egress.0.secret: ")
    unused = Adjustment(egress=(OPEN,), secrets=(SecretRef.model_validate(KEY),))
    assert refused(unused, egress="configured").startswith("tools.a.b.secrets.0.deliver: ")
    assert refused(Adjustment(isolation="fork"), egress=[{"host": "a.example"}]).startswith("tools.a.b.isolation: ")
    assert refused(Adjustment(isolation="fork", egress=(OPEN,)), egress="configured").startswith(
        "tools.a.b.isolation: "
    )


def test_a_key_that_would_enter_the_sandbox_cannot_be_added():
    secrets = (SecretRef.model_validate(KEY | {"deliver": "file"}),)
    assert "only secrets of `deliver: egress`" in refused(Adjustment(secrets=secrets), egress="configured")


def test_a_decision_about_a_tool_that_is_not_there_is_a_mistake():
    with pytest.raises(ValueError, match=r"tools\.x\.y: no manifest declares this tool"):
        Catalog.of(Tool.pin(manifest(), IMAGE)).adjusted({"x.y": Adjustment()})


def pinned(tool: str, **changes: object) -> Tool:
    return Tool.pin(manifest(tool, **changes), IMAGE)


def test_a_tool_may_name_another_as_its_fallback_or_as_what_verifies_it():
    catalog = Catalog.of(
        pinned("a.b", fallback={"tool": "a.c"}), pinned("a.c"), pinned("a.d", effect="unsafe", verify="a.c")
    )
    assert set(catalog.tools) == {"a.b", "a.c", "a.d"}


@pytest.mark.parametrize(
    ("tools", "fault"),
    [
        ([pinned("a.b", fallback={"tool": "a.c"})], "a.b: `fallback.tool` names no other tool"),
        ([pinned("a.b", fallback={"tool": "a.b"})], "a.b: `fallback.tool` names no other tool"),
        ([pinned("a.b", effect="unsafe", verify="a.c")], "a.b: `verify` names no other tool"),
        (
            [pinned("a.b", effect="unsafe", verify="a.c"), pinned("a.c", effect="idempotent")],
            "a.b: the tool of `verify` must be `effect: read`",
        ),
        (
            [pinned("a.b", fallback={"tool": "a.c"}), pinned("a.c", fallback={"constant": {}})],
            "a.b: the tool of its `fallback` has one itself",
        ),
    ],
)
def test_a_companion_that_is_absent_or_unfit_is_refused(tools, fault):
    with pytest.raises(ValueError, match=re.escape(fault)):
        Catalog.of(*tools)
