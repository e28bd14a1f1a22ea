import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.execution.egress_rules import Why, decide, for_destination, is_seen, listening_rule
from callgate_server.model.egress import EgressAsk, EgressRule

HOST = "api.example.com"


def rule(**fields):
    return EgressRule(**{"host": HOST, "port": 443, **fields})


def ask(**fields):
    return EgressAsk(**{"scheme": "https", "host": HOST, "port": 443, "method": "GET", "path": "/v1/a", **fields})


def test_without_rules_nothing_is_allowed():
    assert decide((), ask()) is Why.NO_RULE


def test_a_rule_allows_its_destination():
    only = rule()
    assert decide((only,), ask()) is only
    assert decide((only,), ask(method=None, path=None)) is only


@pytest.mark.parametrize(
    "other",
    [{"host": "evil.test"}, {"port": 8443}, {"scheme": "http"}, {"scheme": "tcp"}, {"host": "a.api.example.com"}],
)
def test_another_host_port_or_scheme_is_not_allowed(other):
    assert decide((rule(),), ask(**other)) is Why.NO_RULE


# The credential is bound to method and path as well.
@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({}, True),
        ({"method": "POST"}, False),
        ({"method": "get"}, False),
        ({"path": "/v2/a"}, False),
        ({"path": "/v1"}, False),
        ({"path": None}, False),
        ({"method": None, "path": None}, False),
    ],
)
def test_methods_and_paths_are_conditions(fields, allowed):
    only = rule(methods=("GET",), paths=("/v1/*",), secret="key")
    assert decide((only,), ask(**fields)) == (only if allowed else Why.NO_RULE)


@pytest.mark.parametrize("seen", [{"methods": ("GET",)}, {"paths": ("/*",)}, {"secret": "key"}])
def test_a_rule_that_must_see_requests_allows_none_unseen(seen):
    only = rule(**seen)
    assert is_seen(only)
    assert decide((only,), ask(method=None, path=None)) is Why.NO_RULE


def test_a_rule_without_conditions_need_not_see_requests():
    assert not is_seen(rule())


def test_a_path_that_may_mean_another_meets_no_condition():
    assert decide((rule(paths=("/v1/*",)),), ask(path="/v1/a%2Fb")) is Why.BAD_PATH
    assert decide((rule(paths=("/v1/*",)), rule()), ask(path="/v1/a%2Fb")) is Why.BAD_PATH


def test_without_conditions_on_paths_any_path_will_do():
    only = rule(methods=("GET",))
    assert decide((only,), ask(path="/v1/a%2Fb")) is only


def test_conditions_of_another_method_do_not_count():
    get, post = rule(methods=("GET",), paths=("/v1/*",)), rule(methods=("POST",))
    assert decide((get, post), ask(method="POST", path="/x%2Fy")) is post


def test_rules_that_add_different_things_cancel_each_other():
    assert decide((rule(secret="one", paths=("/v1/*",)), rule(secret="two")), ask()) is Why.AMBIGUOUS_RULES
    assert decide((rule(secret="one"), rule()), ask()) is Why.AMBIGUOUS_RULES


def test_rules_that_add_the_same_do_not():
    first = rule(secret="one", methods=("GET",))
    assert decide((first, rule(secret="one")), ask()) is first


@given(st.permutations([rule(secret="one", paths=("/v1/*",)), rule(secret="one"), rule(methods=("POST",))]))
def test_the_order_of_the_rules_decides_nothing_about_secrets(rules):
    found = decide(rules, ask())
    assert isinstance(found, EgressRule)
    assert found.secret == "one"
    assert decide(rules, ask(method="POST")) is Why.AMBIGUOUS_RULES


def test_the_rules_of_a_destination_are_found_by_wildcards_too():
    wild, exact = rule(host="*.example.com"), rule()
    assert for_destination((wild, exact), "https", HOST, 443) == (wild, exact)
    assert for_destination((wild, exact), "https", "b.example.com", 443) == (wild,)


def test_a_port_of_the_sandbox_leads_to_one_rule():
    first = EgressRule(host="db.example.com", scheme="tcp", port=5432)
    second = EgressRule(host="db2.example.com", scheme="tcp", port=5432, local_port=15432)
    assert listening_rule((first, second, rule()), 5432) is first
    assert listening_rule((first, second), 15432) is second
    assert listening_rule((first, second), 443) is None
    assert listening_rule((rule(),), 443) is None


def test_two_rules_behind_one_port_lead_nowhere():
    first = EgressRule(host="db.example.com", scheme="tcp", port=5432)
    second = EgressRule(host="db2.example.com", scheme="tcp", port=5432)
    assert listening_rule((first, second), 5432) is None
