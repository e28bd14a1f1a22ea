from ipaddress import ip_network
from typing import Any

import pytest
from pydantic import ValidationError

from callgate_server.model.egress import (
    PROXY_PORT,
    Credential,
    EgressRule,
    EgressUsage,
    Fault,
    InternalService,
    named_host,
    refuse,
)
from callgate_server.model.sealed import Sealed


def rule(**fields: Any) -> EgressRule:
    return EgressRule.model_validate({"host": "api.example.com", **fields})


def faults(**fields: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        rule(**fields)
    return [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in caught.value.errors()]


def test_a_rule_without_more_is_https_to_its_usual_port_for_any_request_without_a_secret() -> None:
    found = rule()
    assert (found.scheme, found.port, found.methods, found.paths, found.secret) == ("https", 443, (), (), None)
    assert found.destination == "api.example.com:443"
    assert rule(scheme="http").port == 80
    assert rule(scheme="http", port=8080).port == 8080


def test_a_tcp_rule_is_offered_on_its_own_port_or_on_the_one_it_names() -> None:
    assert rule(scheme="tcp", port=5432).local_port == 5432
    assert rule(scheme="tcp", port=5432, local_port=15432).local_port == 15432
    assert rule(scheme="tcp", port=389, local_port=1389).local_port == 1389


def test_the_document_of_a_rule_reads_back_as_the_same() -> None:
    found = rule(scheme="https", methods=["GET"], paths=["/v1/*"], secret="key")
    assert EgressRule.model_validate(found.model_dump(mode="json")) == found
    assert EgressRule.model_validate(found.model_dump()) == found


@pytest.mark.parametrize("host", ["localhost", "db", "a-b.example", "xn--mnchen-3ya.example", "192.0.2.7", "a.b.c.d.e"])
def test_a_host_is_a_name_or_an_address_in_its_usual_spelling(host: str) -> None:
    assert rule(host=host).host == named_host(host) == host


NO_HOST = (
    *("", "API.example.com", "api.example.com.", ".example", "https://a.example", "a.example:443", "a.example/v1"),
    *("a_b.example", "münchen.example", "a b", "a.example\n", "user@a.example", "[::1]", "::1", "a" * 64 + ".example"),
)
OLD_ADDRESSES = ("127.1", "0x7f.1", "2130706433", "0177.0.0.1", "1.2.3.4.5", "a.0x7f")
WIDE = (
    *("*", "*.com", "*.", "*example.com", "a.*.example.com", "*.*.example.com", "*.1.2", "*.EXAMPLE.com"),
    "**.example.com",
)
ANYBODYS = ("*.co.uk", "*.com.au", "*.github.io", "*.workers.dev")


@pytest.mark.parametrize(
    ("host", "says"),
    [
        *((host, "its name alone and in lower case") for host in NO_HOST),
        *((host, "four decimal numbers") for host in OLD_ADDRESSES),
        *((host, "narrow it") for host in WIDE),
        *((host, "anybody can have a name") for host in ANYBODYS),
    ],
)
def test_a_host_that_is_more_or_less_than_one_is_refused_with_what_to_write(host: str, says: str) -> None:
    ((place, message),) = faults(host=host)
    assert place == "host"
    assert says in message


@pytest.mark.parametrize("host", ["*.example.com", "*.api.example.co.uk", "*.my-bucket.amazonaws.com"])
def test_a_wildcard_with_two_labels_of_somebodys_own_is_accepted(host: str) -> None:
    assert rule(host=host).wildcard


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"port": "443"}, "port"),
        ({"scheme": "ftp"}, "scheme"),
        ({"scheme": "HTTPS"}, "scheme"),
        ({"colour": "red"}, "colour"),
        ({"secret": "Key"}, "secret"),
        ({"secret": "sk-live-12345678"}, "secret"),
        ({"methods": "GET"}, "methods"),
        ({"methods": ["get"]}, "methods"),
        ({"methods": ["*"]}, "methods"),
        ({"methods": ["CONNECT"]}, "methods"),
        ({"methods": ["TRACE"]}, "methods"),
        ({"methods": ["GET"] * 17}, "methods"),
        ({"paths": ["v1"]}, "paths"),
        ({"paths": ["/v1/../admin"]}, "paths"),
        ({"paths": ["/v1/./x"]}, "paths"),
        ({"paths": ["/v1//x"]}, "paths"),
        ({"paths": ["/v1?x=1"]}, "paths"),
        ({"paths": ["/v1/%2e"]}, "paths"),
        ({"paths": ["/v1/a*"]}, "paths"),
        ({"paths": ["/**"]}, "paths"),
        ({"paths": ["/" + "a" * 512]}, "paths"),
        ({"paths": ["/x"] * 65}, "paths"),
        ({"local_port": 5432}, "local_port"),
        ({"scheme": "tcp"}, "port"),
        ({"scheme": "tcp", "port": 25}, "port"),
        ({"scheme": "tcp", "port": 5432, "local_port": 80}, "local_port"),
        ({"scheme": "tcp", "port": PROXY_PORT}, "local_port"),
        ({"scheme": "tcp", "port": 5432, "methods": ["GET"]}, "methods"),
        ({"scheme": "tcp", "port": 5432, "paths": ["/"]}, "paths"),
        ({"scheme": "tcp", "port": 5432, "secret": "key"}, "secret"),
        ({"scheme": "tcp", "port": 5432, "host": "*.db.example.com"}, "host"),
    ],
)
def test_a_rule_that_promises_what_it_cannot_hold_is_refused_at_its_key(fields: dict[str, Any], place: str) -> None:
    assert [found for found, _ in faults(**fields)] == [place]


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v1/*", "/*", "/v1/*/items", "/a-b_c.d~e"])
def test_paths_are_plain_segments_and_stars(path: str) -> None:
    assert rule(paths=[path]).paths == (path,)


def test_a_rule_says_all_that_is_wrong_with_it_and_what_to_change() -> None:
    found = dict(faults(scheme="tcp", host="*.db.example.com", methods=["GET"]))
    assert found == {
        "host": "a tcp rule leads to one host; write its name in full",
        "port": "a tcp rule needs its `port`",
        "methods": "the gate sees no requests on a tcp connection; remove `methods`",
    }


def test_what_is_no_rule_at_all_is_refused() -> None:
    with pytest.raises(ValidationError):
        EgressRule.model_validate("api.example.com")


def test_faults_are_shown_at_their_own_keys_even_with_braces_in_them() -> None:
    with pytest.raises(ValidationError) as caught:
        refuse("Model", [Fault(("a", 0), "write {x}"), Fault((), "all")])
    assert [(fault["loc"], fault["msg"]) for fault in caught.value.errors()] == [(("a", 0), "write {x}"), ((), "all")]


def test_an_internal_service_is_one_host_on_one_port_or_on_all() -> None:
    networks = (ip_network("10.0.0.0/8"),)
    assert InternalService("db", None, networks).covers("db", 1)
    assert InternalService("db", 5432, networks).covers("db", 5432)
    assert not InternalService("db", 5432, networks).covers("db", 22)
    assert not InternalService("db", None, networks).covers("other", 1)


def test_a_credential_shows_everything_but_its_value() -> None:
    assert "hunter2" not in repr(Credential("key", "X-Key", "", Sealed(b"hunter2")))


def test_usage_adds_up_both_directions() -> None:
    assert EgressUsage(sent_bytes=2, received_bytes=3).bytes == 5
