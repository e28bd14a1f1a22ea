import json

import h11
import pytest

from callgate_server.backends.egress.credentials import Header
from callgate_server.backends.egress.messages import (
    connect_ask,
    has_body,
    is_readable,
    plain_answer,
    request_ask,
    request_headers,
    response_for_tool,
)
from callgate_server.backends.egress.pipes import RefusedError
from callgate_server.execution.egress_rules import Why
from callgate_server.model.egress import EgressAsk

HOST = "api.example.com"
KEY = Header(b"X-Api-Key", b"s3cr3t")
ASK = EgressAsk("https", HOST, 443, "GET", "/")


def request(target="/", method="GET", host=HOST, headers=()):
    named = [] if host is None else [("Host", host)]
    return h11.Request(
        method=method, target=target, headers=[*named, *headers], http_version=b"1.1" if named else b"1.0"
    )


def why_not(act, *args):
    with pytest.raises(RefusedError) as refused:
        act(*args)
    return refused.value.why


def test_inside_tls_the_destination_is_that_of_the_tls():
    ask, target = request_ask(request("/v1/a?b=c"), (HOST, 443))
    assert ask == EgressAsk("https", HOST, 443, "GET", "/v1/a")
    assert target == b"/v1/a?b=c"


def test_a_proxys_request_names_its_destination():
    ask, target = request_ask(request("http://API.example.com:8080/a%20b?q", host="api.example.com:8080"), None)
    assert ask == EgressAsk("http", HOST, 8080, "GET", "/a b")
    assert target == b"/a%20b?q"


def test_the_usual_port_need_not_be_named():
    assert request_ask(request("http://api.example.com/", host="api.example.com:80"), None)[0].port == 80
    assert request_ask(request("/", host="api.example.com:443"), (HOST, 443))[0].port == 443
    assert request_ask(request("http://api.example.com/", host=None), None)[0].host == HOST


@pytest.mark.parametrize(
    "host", ["evil.test", "api.example.com:444", "api.example.com@evil.test", "", "api.example.com,b"]
)
def test_a_host_header_that_names_another_is_refused(host):
    assert why_not(request_ask, request("/", host=host), (HOST, 443)) is Why.BAD_REQUEST
    assert why_not(request_ask, request("http://api.example.com/", host=host), None) is Why.BAD_REQUEST


@pytest.mark.parametrize(
    "target", ["/", "*", "https://api.example.com/", "ftp://api.example.com/", "api.example.com:80"]
)
def test_a_target_that_is_not_a_proxys_is_refused(target):
    assert why_not(request_ask, request(target), None) is Why.BAD_REQUEST


@pytest.mark.parametrize(
    "target", ["http://api.example.com/", "https://evil.test/", "*", "//evil.test@", "/a/../b", "/%00"]
)
def test_a_target_inside_tls_is_a_plain_path(target):
    if target == "//evil.test@":
        # A path like any other: nobody takes it for a host here.
        assert request_ask(request(target), (HOST, 443))[0].host == HOST
    else:
        assert why_not(request_ask, request(target), (HOST, 443)) is Why.BAD_PATH


@pytest.mark.parametrize("authority", ["0x7f.1", "2130706433", "user@api.example.com", "api_example.com", "a:99999"])
def test_a_host_that_can_be_read_in_two_ways_is_refused(authority):
    assert why_not(request_ask, request(f"http://{authority}/"), None) is Why.BAD_HOST
    assert why_not(connect_ask, request(f"{authority}:443", "CONNECT")) is Why.BAD_HOST


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "TRACK", "get", "M-SEARCH", "A" * 21])
def test_a_method_that_turns_the_request_into_another_is_refused(method):
    assert why_not(request_ask, request("/", method), (HOST, 443)) is Why.BAD_REQUEST


def test_two_ways_to_find_the_end_of_a_body_are_refused():
    both = [("Transfer-Encoding", "chunked"), ("Content-Length", "5")]
    assert why_not(request_ask, request("/", "POST", headers=both), (HOST, 443)) is Why.BAD_REQUEST


@pytest.mark.parametrize("version", [b"0.9", b"1.2", b"2.0"])
def test_another_version_is_refused(version):
    other = h11.Request(method="GET", target="/", headers=[("Host", HOST)], http_version=version)
    assert why_not(request_ask, other, (HOST, 443)) is Why.BAD_REQUEST


def test_a_tunnel_is_asked_for_by_host_and_port():
    assert connect_ask(request("API.example.com:443", "CONNECT")) == EgressAsk("https", HOST, 443)
    assert connect_ask(request("[::1]:443", "CONNECT", host="[::1]:443")) == EgressAsk("https", "::1", 443)


@pytest.mark.parametrize(
    ("target", "host", "headers", "why"),
    [
        ("api.example.com", HOST, (), Why.BAD_HOST),
        ("api.example.com:443", "evil.test:443", (), Why.BAD_REQUEST),
        ("api.example.com:443", HOST, [("Content-Length", "3")], Why.BAD_REQUEST),
        ("http://api.example.com/", HOST, (), Why.BAD_HOST),
    ],
)
def test_any_other_tunnel_is_refused(target, host, headers, why):
    assert why_not(connect_ask, request(target, "CONNECT", host, headers)) is why


def test_whether_a_body_follows():
    assert not has_body(request())
    assert not has_body(request(headers=[("Content-Length", "0")]))
    assert has_body(request(headers=[("Content-Length", "10")]))
    assert has_body(request(headers=[("Transfer-Encoding", "chunked")]))


def test_headers_of_one_connection_do_not_go_on():
    given = [
        ("Connection", "close, X-Private"),
        ("X-Private", "1"),
        ("Keep-Alive", "5"),
        ("Proxy-Authorization", "Basic x"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "trailers"),
        ("Trailer", "X"),
        ("Upgrade", "websocket"),
        ("HTTP2-Settings", "x"),
        ("Expect", "100-continue"),
        ("Accept", "text/plain"),
    ]
    assert request_headers(request(headers=given), ASK, None) == [(b"host", HOST.encode()), (b"accept", b"text/plain")]


def test_a_host_header_cannot_be_taken_away():
    headers = request_headers(request(headers=[("Connection", "host, x-api-key")]), ASK, KEY)
    assert (b"host", HOST.encode()) in headers
    assert (b"X-Api-Key", b"s3cr3t") in headers


@pytest.mark.parametrize(
    ("scheme", "host", "port", "expected"),
    [
        ("https", HOST, 443, b"api.example.com"),
        ("http", HOST, 443, b"api.example.com:443"),
        ("https", "::1", 8443, b"[::1]:8443"),
    ],
)
def test_the_host_header_is_the_gates(scheme, host, port, expected):
    assert request_headers(request(), EgressAsk(scheme, host, port), None)[0] == (b"host", expected)


def test_the_body_keeps_its_framing():
    assert (b"content-length", b"4") in request_headers(request(headers=[("Content-Length", "4")]), ASK, None)
    assert (b"transfer-encoding", b"chunked") in request_headers(
        request(headers=[("Transfer-Encoding", "Chunked")]), ASK, None
    )


@pytest.mark.parametrize("name", ["X-Api-Key", "x-api-key", "X_Api_Key", "x_api-key"])
def test_a_credential_takes_the_place_of_whatever_the_tool_put_there(name):
    headers = request_headers(request(headers=[(name, "mine"), (name, "also mine")]), ASK, KEY)
    assert [value for _, value in headers if value in (b"mine", b"also mine", b"s3cr3t")] == [b"s3cr3t"]


@pytest.mark.parametrize(
    "name", ["X-HTTP-Method-Override", "X_HTTP_Method_Override", "X-Method-Override", "x-http-method", "X-Original-URL"]
)
def test_a_header_that_makes_it_another_request_than_the_judged_one_is_refused(name):
    assert why_not(request_ask, request(headers=[(name, "DELETE")]), (HOST, 443)) is Why.BAD_REQUEST


@pytest.mark.parametrize("name", ["Forwarded", "Via", "X-Forwarded-For", "X_Forwarded_Host", "X-Real-IP"])
def test_a_tool_does_not_speak_as_the_proxy_before_an_upstream(name):
    assert dict(request_headers(request(headers=[(name, "10.0.0.1"), ("X-Mine", "1")]), ASK, None)) == {
        b"host": HOST.encode(),
        b"x-mine": b"1",
    }


@pytest.mark.parametrize("name", ["Transfer_Encoding", "Content_Length", "Proxy_Authorization", "Keep_Alive"])
def test_a_header_that_ends_here_does_not_go_on_under_a_name_that_upstreams_read_as_the_same(name):
    assert dict(request_headers(request(headers=[(name, "1")]), ASK, None)) == {b"host": HOST.encode()}


def test_with_a_credential_the_answer_is_asked_for_whole_and_as_text():
    given = [("Accept-Encoding", "gzip"), ("Range", "bytes=0-3"), ("If-Range", "x")]
    headers = dict(request_headers(request(headers=given), ASK, KEY))
    assert headers[b"accept-encoding"] == b"identity"
    assert not {b"range", b"if-range"} & set(headers)


def test_without_a_credential_the_tools_own_headers_pass():
    given = [("X-Api-Key", "mine"), ("Accept-Encoding", "gzip"), ("Range", "bytes=0-3")]
    headers = dict(request_headers(request(headers=given), ASK, None))
    assert headers[b"x-api-key"] == b"mine"
    assert headers[b"accept-encoding"] == b"gzip"
    assert headers[b"range"] == b"bytes=0-3"


def answer(status=200, headers=(), reason="OK"):
    return h11.Response(status_code=status, headers=list(headers), reason=reason)


def hide(text):
    return text.replace(b"s3cr3t", b"[hidden]")


def test_an_answer_goes_on_without_headers_of_one_connection():
    given = [
        ("Content-Length", "3"),
        ("Connection", "X-Private"),
        ("X-Private", "1"),
        ("Proxy-Authenticate", "x"),
        ("ETag", "e"),
    ]
    shown = response_for_tool(answer(headers=given), head=False, strip=None)
    assert list(shown.headers) == [(b"etag", b"e"), (b"content-length", b"3")]


def test_an_answer_shows_no_secret_in_its_head():
    given = [("X-Echo", "a s3cr3t b"), ("Location", "https://evil.test/?s3cr3t"), ("X-s3cr3t", "1")]
    shown = response_for_tool(answer(headers=given, reason="s3cr3t"), head=False, strip=hide)
    assert list(shown.headers) == [(b"x-echo", b"a [hidden] b"), (b"location", b"https://evil.test/?[hidden]")]
    assert shown.reason == b"OK"


def test_a_body_that_may_change_its_length_loses_the_old_one():
    given = [("Content-Length", "30")]
    assert not response_for_tool(answer(headers=given), head=False, strip=hide).headers
    assert response_for_tool(answer(headers=given), head=True, strip=hide).headers
    assert response_for_tool(answer(304, given), head=False, strip=hide).headers


def test_an_unknown_status_has_no_phrase():
    assert response_for_tool(answer(599, reason="s3cr3t"), head=False, strip=None).reason == b""


def test_a_compressed_body_is_not_readable():
    gzipped = answer(headers=[("Content-Encoding", "gzip")])
    assert not is_readable(gzipped, head=False)
    assert is_readable(gzipped, head=True)
    assert is_readable(answer(304, [("Content-Encoding", "gzip")]), head=False)
    assert is_readable(answer(headers=[("Content-Encoding", "Identity")]), head=False)
    assert is_readable(answer(), head=False)


@pytest.mark.parametrize(
    ("why", "status"),
    [(Why.NO_RULE, 403), (Why.PRIVATE_ADDRESS, 403), (Why.BAD_REQUEST, 400), (Why.UNREACHABLE, 502), (Why.IDLE, 504)],
)
def test_the_gates_own_answer_is_one_word(why, status):
    response, body = plain_answer("egress_refused", why, "mark", last=False)
    assert response.status_code == status
    assert json.loads(body) == {"error": "egress_refused", "why": why.value}
    assert dict(response.headers)[b"content-length"] == str(len(body)).encode()
    assert dict(response.headers)[b"callgate-egress"] == f"mark egress_refused {why.value}".encode()


def test_the_last_answer_says_that_it_is():
    assert dict(plain_answer("egress_refused", Why.NO_RULE, "mark", last=True)[0].headers)[b"connection"] == b"close"
    assert b"connection" not in dict(plain_answer("egress_refused", Why.NO_RULE, "mark", last=False)[0].headers)


def test_who_is_to_come_again_is_told_when_in_whole_seconds():
    response, _ = plain_answer("egress_refused", Why.CIRCUIT_OPEN, "mark", last=False, retry_after_s=4.2)
    assert (response.status_code, dict(response.headers)[b"retry-after"]) == (503, b"5")
    assert b"retry-after" not in dict(plain_answer("egress_refused", Why.NO_RULE, "mark", last=False)[0].headers)
