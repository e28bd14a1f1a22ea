import cedarpy
import pytest

from callgate_server.backends.cedar.arguments import Scalar
from callgate_server.backends.cedar.vocabulary import Vocabulary
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Catalog
from callgate_server.model.egress import EgressAsk
from support.cedar_catalog import CATALOG, DEVELOPER, VOCABULARY, tool


def test_each_tool_has_an_action_with_its_own_arguments() -> None:
    assert 'action "call:shell.run" in [Action::"call"]' in VOCABULARY.text
    assert 'arguments: { "argv"?: Set<String>, "script"?: String }' in VOCABULARY.text


def test_generated_schema_is_read_back_by_cedar() -> None:
    assert cedarpy.Schema.from_str(VOCABULARY.text) is not None


def test_names_that_exist_are_the_catalogs() -> None:
    assert VOCABULARY.names == {
        "Tool": frozenset({"python.run", "shell.run", "webhooks.sign", "web.fetch"}),
        "Namespace": frozenset({"python", "shell", "webhooks", "web"}),
        "Secret": frozenset({"webhooks.sign/key"}),
    }


def test_nested_namespaces_are_all_there() -> None:
    vocabulary = Vocabulary.of(Catalog.of(tool("a.b.c", {}), tool("a.b.d", {})))
    assert vocabulary.names["Namespace"] == frozenset({"a", "a.b"})


def test_context_of_a_secret_has_no_arguments() -> None:
    assert set(VOCABULARY.contexts["use"].attributes) == {"now", "task"}
    assert VOCABULARY.contexts["call:python.run"].attributes["now"].type is Scalar.STRING


def test_context_of_a_connection_has_the_tool_and_the_request() -> None:
    assert set(VOCABULARY.contexts["connect"].attributes) == {"now", "task", "tool", "method", "path"}
    assert "Host" not in VOCABULARY.names


def test_a_connection_is_judged_among_its_tool_its_caller_and_its_host_alone() -> None:
    around = VOCABULARY.around(DEVELOPER, "python.run")
    with_host = str(VOCABULARY.with_host(around, EgressAsk("https", "api.example.com", 443)))
    assert all(name in with_host for name in ('"python.run"', '"python"', '"acme/bot"', '"developer"'))
    assert '"api.example.com"' in with_host
    assert '"shell.run"' not in with_host
    assert '"api.example.com"' not in str(around)


def test_empty_catalog_has_a_vocabulary() -> None:
    assert Vocabulary.of(Catalog.of()).contexts.keys() == {"use", "connect", "administer"}


def test_caller_is_added_to_the_catalog() -> None:
    entities = VOCABULARY.with_caller(Caller("acme", "bot", ("developer", "developer")))
    assert len(entities) == len(VOCABULARY.with_caller(DEVELOPER))
    assert '"acme/bot"' in str(entities)


@pytest.mark.parametrize(
    "caller",
    [Caller("a/b", "c"), Caller("a", "b/c"), Caller("", "b"), Caller("a", "b", ("x/y",)), Caller('a"', "b")],
)
def test_names_that_could_be_anothers_are_refused(caller: Caller) -> None:
    with pytest.raises(ValueError, match="a name of the caller"):
        VOCABULARY.with_caller(caller)
    with pytest.raises(ValueError, match="a name of the caller"):
        VOCABULARY.around(caller, "python.run")


def test_catalog_is_kept_for_comparison() -> None:
    assert VOCABULARY.catalog is CATALOG
