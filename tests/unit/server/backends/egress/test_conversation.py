"""One connection of a tool, over the whole gate, to upstreams on loopback: what is said to the tool, and to them."""

import asyncio
import json
import socket
import ssl

import pytest

from callgate_server.backends.egress import lookups
from callgate_server.execution.egress import EgressBudget
from support.egress_rig import MARK, credential, internal, rig, rule
from support.upstreams import TestAuthority, Upstream

HOST = "api.example.com"
KEY = b"sk-test-0123456789abcdefghij"


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    return TestAuthority(tmp_path_factory.mktemp("upstreams"))


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """Every name is this machine; what the gate asks for is kept."""
    asked = []

    def answer(host, *_, **__):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(lookups.socket, "getaddrinfo", answer)
    return asked


@pytest.fixture
def plain():
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def secure(signer):
    with Upstream(tls=signer.context(HOST)) as upstream:
        yield upstream


class Client:
    """Says exactly what it is told to, on one connection."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, proxy):
        return cls(*await asyncio.open_connection("127.0.0.1", int(proxy.rpartition(":")[2])))

    async def say(self, text):
        self.writer.write(text.encode("latin-1"))
        await self.writer.drain()

    async def hear(self, *, head=False):
        """Return status, headers and body of one answer."""
        raw = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in raw[1:-2])
        status = int(raw[0].split(" ")[1])
        if head:
            return status, headers, b""
        if headers.get("transfer-encoding") == "chunked":
            return status, headers, await self._chunks()
        return status, headers, await self.reader.readexactly(int(headers.get("content-length", 0)))

    async def _chunks(self):
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += await self.reader.readexactly(size)
            await self.reader.readline()
        await self.reader.readline()
        return body

    async def ask(self, text):
        await self.say(text)
        return await self.hear()

    async def secure(self, port, authority, name=HOST):
        """CONNECT, and TLS inside."""
        await self.say(f"CONNECT {HOST}:{port} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n")
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        context = ssl.create_default_context(cadata=authority.decode())
        await self.writer.start_tls(context, server_hostname=name)

    async def ended(self):
        """Whether the gate ended the connection, in order or not."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True

    def close(self):
        self.writer.transport.abort()


def plain_request(port, path="/", method="GET", headers="", host=HOST):
    return f"{method} http://{host}:{port}{path} HTTP/1.1\r\nHost: {host}:{port}\r\n{headers}\r\n"


def inner_request(port, path="/", method="GET", headers=""):
    return f"{method} {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n{headers}\r\n"


def open_rig(folder, signer, *rules, **options):
    return rig(folder, rules, internal=[internal(HOST)], ca_file=signer.ca_file, **options)


def why(body):
    return json.loads(body)["why"]


async def test_a_plain_request_goes_to_its_upstream(tmp_path, signer, plain):
    async with open_rig(tmp_path, signer, rule(HOST, plain.port, scheme="http")) as gate:
        client = await Client.to(gate.proxy)
        status, _, body = await client.ask(plain_request(plain.port, "/a%20b?c=d", headers="X-Mine: 1\r\n"))
        client.close()
    seen = json.loads(body)
    assert (status, seen["target"], seen["headers"]["x-mine"]) == (200, "/a%20b?c=d", "1")
    assert seen["headers"]["host"] == f"{HOST}:{plain.port}"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_the_gate_says_bears_the_mark_of_the_call(tmp_path, signer, plain, method):
    async with open_rig(tmp_path, signer, rule(HOST, plain.port, scheme="http", paths=["/ok"])) as gate:
        client = await Client.to(gate.proxy)
        for path, status, said in (("/no", 403, f"{MARK} egress_refused no_rule".lower()), ("/ok", 200, None)):
            await client.say(plain_request(plain.port, path, method))
            heard, headers, _ = await client.hear(head=method == "HEAD")
            assert (heard, headers.get("callgate-egress")) == (status, said)
        client.close()
    assert not any("callgate-egress" in request["headers"] or MARK in str(request) for request in plain.seen)


async def test_each_request_on_one_connection_is_a_decision_of_its_own(tmp_path, signer, plain, names):
    rules = [rule(HOST, plain.port, scheme="http", paths=["/ok/*"])]
    async with open_rig(tmp_path, signer, *rules) as gate:
        client = await Client.to(gate.proxy)
        answers = [await client.ask(plain_request(plain.port, path)) for path in ("/ok/1", "/no", "/ok/2")]
        client.close()
    assert [status for status, *_ in answers] == [200, 403, 200]
    assert json.loads(answers[1][2]) == {"error": "egress_refused", "why": "no_rule"}
    assert [request["target"] for request in plain.seen] == ["/ok/1", "/ok/2"]
    # The connection to the upstream stayed, and with it the address.
    assert plain.connections == 1
    assert names == [HOST]


async def test_several_requests_at_once_are_answered_in_turn(tmp_path, signer, plain):
    async with open_rig(tmp_path, signer, rule(HOST, plain.port, scheme="http")) as gate:
        client = await Client.to(gate.proxy)
        await client.say(plain_request(plain.port, "/bytes?n=1") + plain_request(plain.port, "/bytes?n=2"))
        bodies = [(await client.hear())[2] for _ in range(2)]
        client.close()
    assert bodies == [b"x", b"xx"]


async def test_another_upstream_gets_a_connection_of_its_own(tmp_path, signer, plain):
    with Upstream() as other:
        rules = [rule(HOST, upstream.port, scheme="http") for upstream in (plain, other)]
        async with open_rig(tmp_path, signer, *rules) as gate:
            client = await Client.to(gate.proxy)
            for upstream in (plain, other, plain):
                assert (await client.ask(plain_request(upstream.port)))[0] == 200
            client.close()
        assert (plain.connections, other.connections) == (2, 1)


async def test_an_upstream_that_closed_in_between_is_dialled_again(tmp_path, signer, plain):
    async with open_rig(tmp_path, signer, rule(HOST, plain.port, scheme="http")) as gate:
        client = await Client.to(gate.proxy)
        answers = [await client.ask(plain_request(plain.port, path)) for path in ("/closing", "/closing")]
        client.close()
    assert [status for status, *_ in answers] == [200, 200]
    assert plain.connections == 2


async def test_bodies_go_up_whole_in_both_framings(tmp_path, signer, plain):
    body = "x" * 300_000
    async with open_rig(tmp_path, signer, rule(HOST, plain.port, scheme="http")) as gate:
        client = await Client.to(gate.proxy)
        await client.ask(plain_request(plain.port, "/bytes?n=0", "POST", f"Content-Length: {len(body)}\r\n") + body)
        chunked = f"{len(body):x}\r\n{body}\r\n0\r\n\r\n"
        await client.ask(plain_request(plain.port, "/bytes?n=0", "POST", "Transfer-Encoding: chunked\r\n") + chunked)
        client.close()
    assert [len(request["body"]) for request in plain.seen] == [300_000, 300_000]


async def test_whoever_waits_for_a_word_before_the_body_gets_it_when_it_is_allowed(tmp_path, signer, plain):
    expecting = "Content-Length: 4\r\nExpect: 100-continue\r\n"
    async with open_rig(tmp_path, signer, rule(HOST, plain.port, scheme="http", paths=["/ok"])) as gate:
        client = await Client.to(gate.proxy)
        await client.say(plain_request(plain.port, "/ok", "POST", expecting))
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        assert (await client.ask("body"))[0] == 200
        status, headers, _ = await client.ask(plain_request(plain.port, "/no", "POST", expecting))
        assert (status, headers["connection"]) == (403, "close")
        client.close()
    assert [request["body"] for request in plain.seen] == [b"body"]
    assert not plain.headers_seen("Expect")


async def test_a_body_may_take_its_time_as_long_as_it_moves(tmp_path, signer, plain):
    async with open_rig(tmp_path, signer, rule(HOST, plain.port, scheme="http"), idle_s=3) as gate:
        client = await Client.to(gate.proxy)
        await client.say(plain_request(plain.port, "/bytes?n=1", "POST", "Content-Length: 10\r\n"))
        for _ in range(5):
            await asyncio.sleep(0.7)
            await client.say("xx")
        assert (await client.hear())[2] == b"x"
        client.close()


async def test_an_answer_before_the_end_of_the_body_ends_the_request(tmp_path, signer, plain):
    async with open_rig(tmp_path, signer, rule(HOST, plain.port, scheme="http")) as gate:
        client = await Client.to(gate.proxy)
        answer = await client.ask(
            plain_request(plain.port, "/early-413", "POST", "Content-Length: 1000000\r\n") + "x" * 10
        )
        assert answer[0] == 413
        assert await client.ended()
        client.close()


async def test_a_head_request_keeps_its_length_and_has_no_body(tmp_path, signer, plain):
    async with open_rig(tmp_path, signer, rule(HOST, plain.port, scheme="http")) as gate:
        client = await Client.to(gate.proxy)
        await client.say(plain_request(plain.port, "/bytes?n=50", "HEAD"))
        assert (await client.hear(head=True))[1]["content-length"] == "50"
        assert (await client.ask(plain_request(plain.port, "/bytes?n=3")))[2] == b"xxx"
        client.close()


@pytest.mark.parametrize(
    "said",
    [
        "nonsense\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
        "GET http://api.example.com/ HTTP/1.1\r\nHost: api.example.com\r\nHost: b\r\n\r\n",
        "GET http://api.example.com/ HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        "POST http://api.example.com/ HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "TRACE http://api.example.com/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_answered_and_recorded_and_not_forwarded(tmp_path, signer, names, said):
    async with open_rig(tmp_path, signer, rule(HOST, 80, scheme="http")) as gate:
        client = await Client.to(gate.proxy)
        status, _, body = await client.ask(said)
        client.close()
        await gate.session.close()
    assert (status, why(body)) == (400, "bad_request")
    assert gate.refusals == ["bad_request"]
    assert not names


async def test_a_malformed_body_reaches_nobody_as_a_whole_one(tmp_path, signer, plain):
    async with open_rig(tmp_path, signer, rule(HOST, plain.port, scheme="http")) as gate:
        client = await Client.to(gate.proxy)
        await client.say(plain_request(plain.port, "/", "POST", "Transfer-Encoding: chunked\r\n") + "zz\r\n")
        status, _, body = await client.hear()
        client.close()
    assert (status, why(body)) == (400, "bad_request")
    assert not plain.seen


async def test_tls_ends_at_the_gate_where_the_request_must_be_seen(tmp_path, signer, secure):
    rules = [rule(HOST, secure.port, methods=["GET"], paths=["/v1/*"])]
    async with open_rig(tmp_path, signer, *rules) as gate:
        client = await Client.to(gate.proxy)
        await client.secure(secure.port, gate.authority)
        answers = [
            await client.ask(inner_request(secure.port, "/v1/a")),
            await client.ask(inner_request(secure.port, "/v1/a", "DELETE")),
            await client.ask(inner_request(secure.port, "/v2/a")),
            await client.ask(inner_request(secure.port, "/v1/%2e%2e/v2")),
            await client.ask(inner_request(secure.port, "/v1/a%2Fb")),
            await client.ask(inner_request(secure.port, "/v1/b")),
        ]
        client.close()
    assert [status for status, *_ in answers] == [200, 403, 403, 403, 403, 200]
    assert [why(body) for status, _, body in answers if status == 403] == ["no_rule", "no_rule", "bad_path", "bad_path"]
    assert [request["target"] for request in secure.seen] == ["/v1/a", "/v1/b"]


async def test_inside_tls_no_other_host_can_be_named(tmp_path, signer, secure):
    async with open_rig(tmp_path, signer, rule(HOST, secure.port, methods=["GET"])) as gate:
        client = await Client.to(gate.proxy)
        await client.secure(secure.port, gate.authority)
        assert (await client.ask("GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n"))[0] == 400
        assert (await client.ask("GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n"))[0] == 400
        connect = f"CONNECT {HOST}:{secure.port} HTTP/1.1\r\nHost: {HOST}:{secure.port}\r\n\r\n"
        assert (await client.ask(connect))[0] == 400
        client.close()
    assert not secure.seen


async def test_tls_for_another_name_than_that_of_the_connection_is_refused(tmp_path, signer, secure):
    async with open_rig(tmp_path, signer, rule(HOST, secure.port, methods=["GET"])) as gate:
        client = await Client.to(gate.proxy)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await client.secure(secure.port, gate.authority, name="other.example.com")
        client.close()
        await gate.session.close()
    assert gate.refusals == ["tls_failed"]
    assert secure.connections == 0


async def test_a_tunnel_is_carried_untouched(tmp_path, signer, secure):
    async with open_rig(tmp_path, signer, rule(HOST, secure.port)) as gate:
        client = await Client.to(gate.proxy)
        # The upstream's own certificate: the gate is not in between.
        await client.secure(secure.port, signer.ca_file.read_bytes())
        status, _, body = await client.ask(
            inner_request(secure.port, "/bytes?n=200000", headers="Connection: close\r\n")
        )
        assert (status, len(body)) == (200, 200_000)
        assert await client.ended()
        client.close()
        await gate.session.close()
    assert gate.recorded("egress_closed")[0]["received_bytes"] > 200_000
    assert "method" not in gate.recorded("egress_allowed")[0]


@pytest.mark.parametrize("said", ["GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n", "SSH-2.0-x\r\n"])
async def test_a_tunnel_is_for_tls_only(tmp_path, signer, secure, said):
    async with open_rig(tmp_path, signer, rule(HOST, secure.port)) as gate:
        client = await Client.to(gate.proxy)
        await client.say(f"CONNECT {HOST}:{secure.port} HTTP/1.1\r\nHost: {HOST}:{secure.port}\r\n\r\n{said}")
        await client.reader.readuntil(b"\r\n\r\n")
        assert await client.ended()
        client.close()
        await gate.session.close()
    assert gate.recorded("egress_closed")[0] == {
        "scheme": "https",
        "host": HOST,
        "port": secure.port,
        "sent_bytes": 0,
        "received_bytes": 0,
        "how": "other_name",
    }


async def test_a_tunnel_to_a_host_does_not_lead_to_its_neighbour_at_the_same_address(tmp_path, signer, secure):
    async with open_rig(tmp_path, signer, rule(HOST, secure.port)) as gate:
        client = await Client.to(gate.proxy)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await client.secure(secure.port, signer.ca_file.read_bytes(), name="neighbour.example.com")
        client.close()
    assert not secure.seen


async def test_a_tunnel_that_no_rule_allows_is_refused_in_words(tmp_path, signer, names):
    async with open_rig(tmp_path, signer, rule(HOST, 443)) as gate:
        client = await Client.to(gate.proxy)
        refusals = [
            await client.ask(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
            for target in ("evil.test:443", f"{HOST}:8443", "127.0.0.1:443", "0x7f.1:443")
        ]
        client.close()
    assert [(status, why(body)) for status, _, body in refusals] == [
        (403, "no_rule"),
        (403, "no_rule"),
        (403, "no_rule"),
        (403, "bad_host"),
    ]
    assert not names


async def test_the_upstream_gets_the_credential_and_the_tool_does_not(tmp_path, signer, secure):
    rules = [rule(HOST, secure.port, secret="key")]
    async with open_rig(tmp_path, signer, *rules, credentials=[credential("key", KEY)]) as gate:
        client = await Client.to(gate.proxy)
        await client.secure(secure.port, gate.authority)
        heard = []
        for path in ("/demand?key=Bearer%20" + KEY.decode(), "/echo", "/echo-header", "/echo-slowly"):
            status, headers, body = await client.ask(
                inner_request(secure.port, path, headers="Authorization: mine\r\n")
            )
            assert status == 200
            heard.append((headers, body))
        client.close()
    assert set(secure.headers_seen("Authorization")) == {f"Bearer {KEY.decode()}"}
    assert KEY.decode() not in str(heard)
    assert "[REDACTED:key]" in str(heard).replace("[redacted", "[REDACTED")


async def test_an_echo_in_a_form_that_cannot_be_read_does_not_come_back(tmp_path, signer, secure):
    rules = [rule(HOST, secure.port, secret="key")]
    async with open_rig(tmp_path, signer, *rules, credentials=[credential("key", KEY)]) as gate:
        client = await Client.to(gate.proxy)
        await client.secure(secure.port, gate.authority)
        status, _, body = await client.ask(
            inner_request(secure.port, "/echo-gzip", headers="Accept-Encoding: gzip\r\n")
        )
        client.close()
    assert (status, why(body)) == (502, "encoded_answer")
    assert secure.headers_seen("Accept-Encoding") == ["identity"]


@pytest.mark.parametrize("path", ["/nonsense", "/two-lengths", "/upgrade"])
async def test_what_is_no_answer_is_a_bad_gateway(tmp_path, signer, plain, path):
    async with open_rig(tmp_path, signer, rule(HOST, plain.port, scheme="http")) as gate:
        client = await Client.to(gate.proxy)
        status, _, body = await client.ask(plain_request(plain.port, path))
        assert (status, why(body)) == (502, "bad_answer")
        # Nothing of it is taken for the answer to the next request.
        assert (await client.ask(plain_request(plain.port, "/bytes?n=1")))[2] == b"x"
        client.close()


async def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(tmp_path, signer, plain):
    async with open_rig(tmp_path, signer, rule(HOST, plain.port, scheme="http")) as gate:
        client = await Client.to(gate.proxy)
        await client.say(plain_request(plain.port, "/half"))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.hear()
        client.close()
        await gate.session.close()
    assert gate.recorded("egress_closed")[0]["how"] == "bad_answer"


async def test_an_upstream_that_cannot_be_reached_is_a_bad_gateway(tmp_path, signer):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with open_rig(tmp_path, signer, rule(HOST, port, scheme="http")) as gate:
            client = await Client.to(gate.proxy)
            status, _, body = await client.ask(plain_request(port))
            client.close()
    assert (status, json.loads(body)) == (502, {"error": "egress_failed", "why": "unreachable"})


async def test_requests_are_counted_whatever_becomes_of_them(tmp_path, signer, plain):
    budget = EgressBudget(bytes=1_000_000, connections=9, requests=3, concurrent=9)
    async with open_rig(tmp_path, signer, rule(HOST, plain.port, scheme="http", paths=["/ok"]), budget=budget) as gate:
        client = await Client.to(gate.proxy)
        for path, status in (("/ok", 200), ("/no", 403), ("/ok", 200)):
            assert (await client.ask(plain_request(plain.port, path)))[0] == status
        status, headers, body = await client.ask(plain_request(plain.port, "/ok"))
        assert (status, why(body), headers["connection"]) == (403, "requests_spent", "close")
        assert await client.ended()
        client.close()
    assert len(plain.seen) == 2


async def test_a_wish_to_speak_something_else_is_not_passed_on(tmp_path, signer, plain):
    wish = (
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c, websocket\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    )
    async with open_rig(tmp_path, signer, rule(HOST, plain.port, scheme="http")) as gate:
        client = await Client.to(gate.proxy)
        answers = [await client.ask(plain_request(plain.port, headers=wish)) for _ in range(2)]
        client.close()
    assert [status for status, *_ in answers] == [200, 200]
    assert not plain.headers_seen("Upgrade")
    assert not plain.headers_seen("HTTP2-Settings")


async def test_an_old_client_is_answered_in_its_own_version(tmp_path, signer, plain):
    async with open_rig(tmp_path, signer, rule(HOST, plain.port, scheme="http")) as gate:
        client = await Client.to(gate.proxy)
        await client.say(f"GET http://{HOST}:{plain.port}/echo-slowly HTTP/1.0\r\n\r\n")
        answer = await client.reader.read()
        client.close()
    assert b"chunked" not in answer.lower()
    assert answer.endswith(b"before none after")
