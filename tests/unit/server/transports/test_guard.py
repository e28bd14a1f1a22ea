import asyncio
from typing import Any

import pytest

from callgate_server.transports.guard import Guard
from callgate_server.transports.limits import TransportLimits
from support.edge import CANARY, Edge, edge, in_memory

HOST = (b"host", b"gate.example:8443")


class Exchange:
    """One request to a guard around `app`, and what came back."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def send(self, message: Any) -> None:
        self.messages.append(message)

    async def receive(self) -> Any:
        raise AssertionError("nothing may be read of a refused request")

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def body(self) -> str:
        return b"".join(message["body"] for message in self.messages[1:]).decode()


async def ok(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def ask(
    edge: Edge,
    *headers: tuple[bytes, bytes],
    app: Any = ok,
    path: str = "/v1/tools",
    hosts: frozenset[str] = frozenset(),
    origins: frozenset[str] = frozenset(),
) -> Exchange:
    exchange = Exchange()
    scope = {"type": "http", "method": "GET", "path": path, "headers": list(headers)}
    await Guard(app, edge.gate, edge.limits, edge.places, hosts, origins)(scope, exchange.receive, exchange.send)
    return exchange


async def test_every_answer_forbids_caching_sniffing_and_framing() -> None:
    async with edge() as world:
        for exchange in (await ask(world, HOST), await ask(world, HOST, HOST)):
            assert exchange.headers[b"cache-control"] == b"no-store"
            assert exchange.headers[b"x-content-type-options"] == b"nosniff"
            assert b"default-src 'none'" in exchange.headers[b"content-security-policy"]


@pytest.mark.parametrize("origin", [b"https://evil.example", b"null", b"http://localhost:8443", b"\xff"])
async def test_a_browser_page_is_refused(origin: bytes) -> None:
    async with edge() as world:
        exchange = await ask(world, HOST, (b"origin", origin))
    assert exchange.status == 403
    assert "evil" not in exchange.body


async def test_a_page_of_an_allowed_origin_is_served() -> None:
    async with edge() as world:
        origins = frozenset({"https://Console.example"})
        assert (await ask(world, HOST, (b"origin", b"https://console.example"), origins=origins)).status == 200
        assert (await ask(world, HOST, (b"origin", b"https://console.example.evil"), origins=origins)).status == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"localhost", 200),
        (b"localhost:1", 200),
        (b"LOCALHOST:65535", 200),
        (b"[::1]:80", 200),
        (b"[::1]", 200),
        (b"rebound.evil.example", 403),
        (b"localhost.evil.example", 403),
        (b"localhost:80:80", 403),
        (b"localhost@evil", 403),
        (b"", 403),
        (b"\xff", 403),
    ],
)
async def test_only_the_configured_hosts_are_served(host: bytes, status: int) -> None:
    async with edge() as world:
        exchange = await ask(world, (b"host", host), hosts=frozenset({"localhost", "[::1]"}))
    assert exchange.status == status


async def test_a_request_without_a_host_is_refused_where_hosts_are_configured() -> None:
    async with edge() as world:
        assert (await ask(world, hosts=frozenset({"localhost"}))).status == 403


@pytest.mark.parametrize(
    "name", [b"authorization", b"content-length", b"content-type", b"host", b"idempotency-key", b"origin"]
)
async def test_a_header_that_decides_something_may_be_there_once(name: bytes) -> None:
    async with edge() as world:
        exchange = await ask(world, (name, b"0"), (name, b"0"))
    assert (exchange.status, name.decode() in exchange.body) == (400, True)


@pytest.mark.parametrize(
    ("length", "status"), [(b"100", 200), (b"101", 413), (b"9" * 5000, 413), (b"-1", 400), (b"1e3", 400), (b"", 400)]
)
async def test_an_announced_body_is_refused_before_it_is_read(length: bytes, status: int) -> None:
    async with edge(TransportLimits(body_bytes=100)) as world:
        assert (await ask(world, (b"content-length", length))).status == status


async def test_too_many_header_fields_are_refused() -> None:
    async with edge(TransportLimits(headers=3)) as world:
        fields = [(b"x-%d" % number, b"") for number in range(4)]
        assert (await ask(world, *fields[:3])).status == 200
        assert (await ask(world, *fields)).status == 431


async def test_beyond_the_ceiling_requests_are_refused_at_once_and_probes_are_not() -> None:
    async with edge(TransportLimits(concurrent_requests=1, retry_after_ms=2500)) as world:
        inner: dict[str, Exchange] = {}
        guard: Guard

        async def crowded(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/v1/tools" and not inner:
                for path in ("/v1/tools", "/healthz", "/readyz"):
                    inner[path] = Exchange()
                    await guard({**scope, "path": path}, receive, inner[path].send)
            await ok(scope, receive, send)

        guard = Guard(crowded, world.gate, world.limits, world.places, frozenset(), frozenset())
        outer, after = Exchange(), Exchange()
        scope = {"type": "http", "method": "GET", "path": "/v1/tools", "headers": []}
        await guard(scope, outer.receive, outer.send)
        await guard(scope, after.receive, after.send)
    assert {path: exchange.status for path, exchange in inner.items()} == {
        "/v1/tools": 503, "/healthz": 200, "/readyz": 200
    }  # fmt: skip
    assert inner["/v1/tools"].headers[b"retry-after"] == b"3"
    assert (outer.status, after.status) == (200, 200)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/stops", 200),
        ("/v1/stops/resume", 200),
        ("/v1/breakers", 200),
        ("/v1/approvals/c1/decision", 200),
        ("/v1/dead-letters/c1/redrive", 200),
        ("/v1/calls/c1/settle", 200),
        ("/metrics", 200),
        ("/v1/calls/c1", 503),
        ("/v1/tools/settle", 503),
        ("/v1/tasks", 503),
    ],
)
async def test_what_operators_do_is_let_in_beyond_the_ceiling(path: str, status: int) -> None:
    async with edge(TransportLimits(concurrent_requests=1)) as world:
        taken = world.places.at("http")
        taken.enter()
        assert (await ask(world, path=path)).status == status
        taken.leave()
    assert len(world.places) == 0


async def test_a_place_is_given_back_whatever_becomes_of_its_request() -> None:
    async def broken(_scope: Any, _receive: Any, _send: Any) -> None:
        raise RuntimeError(CANARY)

    async def cancelled(_scope: Any, _receive: Any, _send: Any) -> None:
        raise asyncio.CancelledError

    async with edge() as world:
        await ask(world, app=broken)
        await ask(world, HOST, HOST)
        with pytest.raises(asyncio.CancelledError):
            await ask(world, app=cancelled)
    assert len(world.places) == 0


async def test_an_unexpected_error_is_reported_and_its_text_is_kept_from_the_client() -> None:
    async def broken(_scope: Any, _receive: Any, _send: Any) -> None:
        raise RuntimeError(CANARY)

    async with edge() as world:
        exchange = await ask(world, app=broken)
        again = await ask(world, app=ok)
    [(error_id, error)] = world.unexpected
    assert (exchange.status, CANARY in str(error), CANARY in exchange.body) == (500, True, False)
    assert error_id in exchange.body
    assert again.status == 200


async def test_an_error_after_the_answer_began_is_not_followed_by_a_second_answer() -> None:
    async def halfway(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError(CANARY)

    async with edge() as world:
        exchange = await ask(world, app=halfway)
    assert len(exchange.messages) == 1


async def test_the_access_log_sees_route_and_status_and_no_text_of_the_callers() -> None:
    async with edge() as world:
        await ask(world, (b"authorization", b"Bearer " + CANARY.encode()), path=f"/v1/{CANARY}")
        await ask(world, (b"origin", b"https://evil.example"))
    assert [(access.method, access.route, access.status) for access in world.accessed] == [
        ("GET", "", "200"),
        ("GET", "", "403"),
    ]
    assert CANARY not in repr(world.accessed)


async def test_the_access_log_names_a_caller_that_is_known_and_a_client_that_left() -> None:
    async def left(_scope: Any, _receive: Any, _send: Any) -> None:
        return

    async with edge() as world:
        async with in_memory(world) as client:
            await client.get("/v1/calls/none")
            await client.get("/v1/calls/none", headers={"authorization": f"Bearer {CANARY}"})
        await ask(world, HOST, app=left)
    assert [(access.caller, access.route, access.status) for access in world.accessed] == [
        ("acme/bot", "/v1/calls/{call_id}", "404"),
        ("", "/v1/calls/{call_id}", "401"),
        ("", "", "499"),
    ]


async def test_anything_but_http_is_refused() -> None:
    async with edge() as world:
        with pytest.raises(ValueError, match="websocket"):
            await Guard(ok, world.gate, world.limits, world.places, frozenset(), frozenset())(
                {"type": "websocket"}, Exchange().receive, Exchange().send
            )
