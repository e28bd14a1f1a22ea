import json
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.execution.egress_names import host_matches, path_matches
from callgate_server.model.egress import EgressRule, InternalService
from callgate_server.model.egress_checks import MAX_TCP_RULES, exposed, rule_faults

KEYS = {"key": "egress", "other": "egress", "file": "file"}


def rule(host: str = "api.example.com", **fields: Any) -> EgressRule:
    return EgressRule.model_validate({"host": host, **fields})


def found(*rules: EgressRule, secrets: dict[str, str] | None = None) -> list[tuple[tuple[str | int, ...], str]]:
    return [(fault.at, fault.text) for fault in rule_faults(rules, secrets or {})]


def places(*rules: EgressRule, secrets: dict[str, str] | None = None) -> list[tuple[str | int, ...]]:
    return [at for at, _ in found(*rules, secrets=secrets)]


def test_rules_that_agree_are_fine_and_may_overlap() -> None:
    assert found() == []
    assert found(rule(), rule(methods=["GET"]), rule("*.example.com")) == []
    assert found(rule(secret="key"), rule(secret="key", methods=["GET"]), secrets={"key": "egress"}) == []


def test_a_secret_must_be_declared_and_be_for_the_gate() -> None:
    ((at, text),) = found(rule(secret="key"))
    assert at == ("egress", 0, "secret")
    assert text == "there is no secret key: declare it in `secrets` with `deliver: egress`"
    ((at, text),) = found(rule(secret="key"), secrets={"key": "file"})
    assert at == ("egress", 0, "secret")
    assert "write `deliver: egress`" in text


def test_a_secret_that_no_rule_names_is_a_mistake() -> None:
    ((at, text),) = found(rule(), secrets={"plain": "file", "key": "egress"})
    assert at == ("secrets", 1, "deliver")
    assert "`secret: key`" in text


def test_a_secret_goes_to_no_wildcard() -> None:
    assert places(rule("*.example.com", secret="key"), secrets={"key": "egress"}) == [("egress", 0, "host")]


@pytest.mark.parametrize(
    "other",
    [
        rule(),
        rule(secret="other"),
        rule(methods=["POST", "GET"]),
        rule(paths=["/v1/users"]),
        rule(paths=["/*/users"]),
        rule(paths=["/v2/x", "/v1"]),
        rule("*.example.com"),
    ],
)
def test_rules_that_disagree_about_a_secret_for_some_request_are_refused(other: EgressRule) -> None:
    bound = rule(methods=["GET"], paths=["/v1/*"], secret="key")
    secrets = {"key": "egress"} | ({"other": "egress"} if other.secret else {})
    assert places(bound, other, secrets=secrets) == [("egress", 1)]
    assert places(other, bound, secrets=secrets) == [("egress", 1)]


@pytest.mark.parametrize(
    "other",
    [
        rule("www.example.com"),
        rule("*.other.example.com"),
        rule(port=8443),
        rule(scheme="http", port=443),
        rule(methods=["POST"]),
        rule(paths=["/v2/*"]),
        rule(paths=["/v10"]),
    ],
)
def test_rules_that_share_no_request_may_differ(other: EgressRule) -> None:
    bound = rule(methods=["GET"], paths=["/v1/*"], secret="key")
    assert found(bound, other, secrets={"key": "egress"}) == []


def test_a_tcp_rule_does_not_go_around_the_conditions_of_another() -> None:
    assert places(rule(methods=["GET"]), rule(scheme="tcp", port=443, local_port=8443)) == [("egress", 1)]


def test_two_tcp_rules_share_neither_a_port_nor_a_destination() -> None:
    one = rule("db", scheme="tcp", port=5432)
    assert places(one, rule("db2", scheme="tcp", port=5432)) == [("egress", 1, "local_port")]
    assert places(one, rule("db", scheme="tcp", port=5432, local_port=15432)) == [("egress", 1)]
    assert found(one, rule("db2", scheme="tcp", port=5432, local_port=15432)) == []


def test_a_sandbox_has_only_so_many_ports() -> None:
    wire = json.loads((Path(__file__).parents[4] / "proto/callgate_proto/frames.json").read_text())
    assert wire["limits"]["egress_ports"] == MAX_TCP_RULES
    rules = [rule(f"db{number}", scheme="tcp", port=2000 + number) for number in range(MAX_TCP_RULES + 1)]
    assert found(*rules[:-1]) == []
    assert places(*rules) == [("egress",)]


HOSTS = st.sampled_from(["a.b.c", "*.b.c", "*.a.b.c", "x.a.b.c", "b.c", "d.b.c"])
NAMES = st.sampled_from(["a.b.c", "x.a.b.c", "b.c", "d.b.c", "y.b.c"])
PATHS = st.lists(st.sampled_from(["a", "b", "*"]), max_size=3).map(lambda parts: "/" + "/".join(parts))
ASKED = st.lists(st.sampled_from(["a", "b", "c"]), max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(HOSTS, HOSTS, NAMES, PATHS, PATHS, ASKED)
def test_no_request_that_fits_two_rules_is_left_open(
    one: str, other: str, name: str, path: str, other_path: str, asked: str
) -> None:
    """What the gate's own matching takes for both rules is always found beforehand."""
    both = host_matches(one, name) and host_matches(other, name)
    both = both and path_matches(path, asked) and path_matches(other_path, asked)
    if both:
        rules = (rule(one, paths=[path], secret="key"), rule(other, paths=[other_path]))
        assert ("egress", 1) in places(*rules, secrets={"key": "egress"})


OWN = InternalService("billing", 8080, (ip_network("10.0.0.0/8"),))


def test_a_secret_travels_in_clear_only_to_a_service_of_ones_own() -> None:
    own = rule("billing", scheme="http", port=8080, secret="key")
    assert list(exposed([own, rule(secret="key"), rule(scheme="http")], [OWN])) == []
    for abroad in (rule(scheme="http", secret="key"), rule("billing", scheme="http", secret="key")):
        (fault,) = exposed([rule(), abroad], [OWN])
        assert fault.at == ("egress", 1, "scheme")
        assert "write `scheme: https`" in fault.text
