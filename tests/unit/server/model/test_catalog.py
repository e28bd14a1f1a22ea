import re

import pytest

from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.manifest import Manifest

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


def test_a_tool_at_another_isolation_level_is_another_tool_and_the_others_are_the_same():
    one, two = Tool.pin(manifest("a.b"), IMAGE), Tool.pin(manifest("c.d"), IMAGE)
    catalog = Catalog.of(one, two)
    changed = catalog.isolated({"c.d": "fork"})
    assert [tool.manifest.isolation for tool in changed] == ["container", "fork"]
    assert changed.tools["a.b"] == one
    assert changed.tools["c.d"].digest != two.digest
    assert changed.digest != catalog.digest
    assert catalog.isolated({"c.d": "container"}) == catalog.isolated({}) == catalog


def test_an_isolation_level_for_a_tool_that_is_not_there_is_refused_by_name():
    with pytest.raises(ValueError, match=r"`tools` sets .* for no\.such, which"):
        Catalog.of(Tool.pin(manifest("a.b"), IMAGE)).isolated({"a.b": "fork", "no.such": "fork"})
