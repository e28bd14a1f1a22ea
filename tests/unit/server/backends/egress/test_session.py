"""The life of a call's connections: budgets, silence, the deadline, the end of the call, and what is recorded of it."""

import asyncio
import json
import socket
import struct

import pytest

from callgate_server.backends.egress import lookups
from callgate_server.execution.breaker import BreakerRules
from callgate_server.execution.breakers import Breakers
from callgate_server.execution.egress import EgressBudget
from callgate_server.execution.framing import Frame, FrameType
from callgate_server.model.egress import PROXY_PORT
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.verdict import Ruling, Verdict
from support.egress_rig import ALLOWED, credential, internal, rig, rule, until
from support.upstreams import Upstream

HOST = "db.example.com"


@pytest.fixture(autouse=True)
def _names(monkeypatch):
    def answer(*_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(lookups.socket, "getaddrinfo", answer)


@pytest.fixture
def upstream():
    with Upstream() as made:
        yield made


def tcp(upstream, local_port=5432):
    return rule(HOST, upstream.port, scheme="tcp", local_port=local_port)


def open_rig(folder, *rules, **options):
    return rig(folder, rules, internal=[internal(HOST)], **options)


async def get(port, path="/bytes?n=5", version="1.0"):
    """Ask an upstream through a local port, and return all that comes until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/{version}\r\nHost: a\r\n\r\n".encode())
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


def proxied(upstream, path):
    return f"http://{HOST}:{upstream.port}{path}"


async def ask(gate, upstream, path, *, until_end=False):
    """Ask over the proxy; return the status and all that came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gate.ports[PROXY_PORT])
    try:
        writer.write(
            f"GET {proxied(upstream, path)} HTTP/1.1\r\nHost: {HOST}:{upstream.port}\r\nConnection: close\r\n\r\n".encode()
        )
        data = await reader.read()
        return (int(data.split(b" ")[1]) if data else 0), data
    except ConnectionError:
        return 0, b""
    finally:
        writer.transport.abort()


async def test_a_port_leads_to_its_destination_and_nowhere_else(tmp_path, upstream):
    with Upstream() as other:
        async with open_rig(tmp_path, tcp(upstream), tcp(other, 5433)) as gate:
            assert (await get(gate.ports[5432])).endswith(b"xxxxx")
            assert (await get(gate.ports[5433], "/other")).startswith(b"HTTP/1.1 200")
            await until(lambda: len(gate.recorded("egress_closed")) == 2)
            usage = await gate.session.close()
        assert [request["target"] for request in upstream.seen] == ["/bytes?n=5"]
        assert [request["target"] for request in other.seen] == ["/other"]
    assert usage.connections == 2
    assert usage.refused == 0
    closed = gate.recorded("egress_closed")
    assert usage.sent_bytes == sum(one["sent_bytes"] for one in closed)
    assert usage.received_bytes == sum(one["received_bytes"] for one in closed)
    assert {one["how"] for one in closed} == {"ended"}


async def test_a_refused_destination_is_closed_without_a_word(tmp_path, upstream):
    denied = Verdict(Ruling.DENY, ("no-databases",), "v1")
    async with open_rig(tmp_path, tcp(upstream), consent=lambda _: denied) as gate:
        assert await get(gate.ports[5432]) == b""
        usage = await gate.session.close()
    assert gate.recorded("egress_refused") == [
        {"scheme": "tcp", "host": HOST, "port": upstream.port, "why": "policy_denied", "policies": ["no-databases"]}
    ]
    assert (usage.refused, upstream.connections) == (1, 0)


async def test_a_port_that_no_rule_declares_leads_nowhere(tmp_path):
    async with open_rig(tmp_path) as gate:
        gate.session.feed(Frame(FrameType.EGRESS_OPEN, struct.pack(">IH", 1, 5432)))
        await until(lambda: gate.events)
        await gate.session.close()
    assert gate.refusals == ["no_rule"]


async def test_connections_are_bounded_in_all(tmp_path, upstream):
    budget = EgressBudget(bytes=1_000_000, connections=2, requests=9, concurrent=9)
    async with open_rig(tmp_path, tcp(upstream), budget=budget) as gate:
        answers = [await get(gate.ports[5432]) for _ in range(5)]
        usage = await gate.session.close()
    assert [bool(answer) for answer in answers] == [True, True, False, False, False]
    assert gate.refusals == ["connections_spent"]
    assert (usage.connections, usage.refused) == (2, 3)


async def test_connections_are_bounded_at_once(tmp_path, upstream):
    budget = EgressBudget(bytes=1_000_000, connections=9, requests=9, concurrent=2)
    async with open_rig(tmp_path, tcp(upstream), budget=budget) as gate:
        held = [await asyncio.open_connection("127.0.0.1", gate.ports[5432]) for _ in range(2)]
        await until(lambda: upstream.connections == 2)
        assert await get(gate.ports[5432]) == b""
        for _, writer in held:
            writer.transport.abort()
        await until(lambda: len(gate.recorded("egress_closed")) == 2)
        assert await get(gate.ports[5432])
    assert gate.refusals == ["too_many_at_once"]


@pytest.mark.parametrize("path", ["/endless", "/endless-hints"])
async def test_bytes_are_bounded_and_both_sides_closed(tmp_path, upstream, path):
    budget = EgressBudget(bytes=1_000_000, connections=9, requests=9, concurrent=9)
    async with open_rig(tmp_path, rule(HOST, upstream.port, scheme="http"), budget=budget) as gate:
        _, data = await ask(gate, upstream, path)
        usage = await gate.session.close()
    assert len(data) < 1_000_000
    # What had arrived when the budget was found to be spent, and no more.
    assert usage.bytes < 1_000_000 + 65536
    assert gate.recorded("egress_closed")[0]["how"] == "bytes_spent"


async def test_after_the_bytes_are_spent_nothing_new_begins(tmp_path, upstream):
    budget = EgressBudget(bytes=1000, connections=9, requests=9, concurrent=9)
    async with open_rig(tmp_path, tcp(upstream), budget=budget) as gate:
        await get(gate.ports[5432], "/bytes?n=2000")
        assert await get(gate.ports[5432]) == b""
    assert upstream.connections == 1
    assert gate.refusals == ["bytes_spent"]


async def test_an_upstream_that_says_nothing_is_not_waited_for(tmp_path, upstream):
    async with open_rig(tmp_path, rule(HOST, upstream.port, scheme="http"), idle_s=0.2) as gate:
        status, data = await ask(gate, upstream, "/silent")
        await gate.session.close()
    assert (status, json.loads(data.rpartition(b"\r\n")[2])["why"]) == (504, "idle")
    assert gate.recorded("egress_closed")[0]["how"] == "idle"


async def test_a_connection_on_which_nothing_moves_is_ended(tmp_path, upstream, monkeypatch):
    monkeypatch.setattr("callgate_server.backends.egress.session._ANSWER_S", 0)
    async with open_rig(tmp_path, tcp(upstream), idle_s=0.2) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.ports[5432])
        assert await reader.read() == b""
        writer.transport.abort()
    assert gate.recorded("egress_closed")[0]["how"] == "idle"


async def test_the_deadline_ends_what_only_drips(tmp_path, upstream):
    async with open_rig(tmp_path, tcp(upstream), idle_s=30, deadline_s=2) as gate:
        assert (await get(gate.ports[5432], "/dripping", "1.1")).startswith(b"HTTP/1.1 200")
    assert gate.recorded("egress_closed")[0]["how"] == "deadline"


async def test_a_tool_that_leaves_takes_its_connection_along(tmp_path, upstream):
    async with open_rig(tmp_path, tcp(upstream)) as gate:
        _, writer = await asyncio.open_connection("127.0.0.1", gate.ports[5432])
        await until(lambda: upstream.connections)
        writer.transport.abort()
        await until(lambda: gate.recorded("egress_closed"))
    assert gate.recorded("egress_closed")[0]["how"] in ("ended", "tool_gone")


async def test_the_end_of_the_call_ends_every_connection_and_records_it(tmp_path, upstream):
    async with open_rig(tmp_path, tcp(upstream), rule(HOST, upstream.port, scheme="http")) as gate:
        waiting = [
            asyncio.create_task(get(gate.ports[5432], "/silent")),
            asyncio.create_task(ask(gate, upstream, "/silent")),
        ]
        await until(lambda: len(upstream.seen) == 2)
        first, second = await gate.session.close(), await gate.session.close()
        assert first == second
        assert first.connections == 2
        # Nothing is said to a wire that nobody reads any more.
        assert [one["how"] for one in gate.recorded("egress_closed")] == ["call_ended", "call_ended"]
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def test_after_the_end_nothing_begins(tmp_path, upstream):
    async with open_rig(tmp_path, tcp(upstream)) as gate:
        await gate.session.close()
        gate.session.feed(Frame(FrameType.EGRESS_OPEN, struct.pack(">IH", 1, 5432)))
        await asyncio.sleep(0.05)
    assert upstream.connections == 0


async def test_a_frame_that_breaks_the_protocol_is_an_error(tmp_path):
    async with open_rig(tmp_path) as gate:
        with pytest.raises(ValueError, match="connection"):
            gate.session.feed(Frame(FrameType.EGRESS_DATA, struct.pack(">I", 7) + b"x"))


async def test_without_a_record_nothing_is_sent(tmp_path, upstream):
    def record(event, _):
        raise CallError(Reason.AUDIT_UNAVAILABLE, "The record cannot be written.")

    async with open_rig(tmp_path, tcp(upstream), record=record) as gate:
        assert await get(gate.ports[5432]) == b""
        await gate.session.close()
    assert upstream.connections == 0
    assert [error.reason for error in gate.reports] == [Reason.AUDIT_UNAVAILABLE]


async def test_a_fault_of_one_connection_is_only_that_ones(tmp_path, upstream):
    turns = []

    def consent(_):
        turns.append(1)
        if len(turns) == 1:
            raise RuntimeError("a fault of the gateway")
        return ALLOWED

    async with open_rig(tmp_path, tcp(upstream), consent=consent) as gate:
        assert await get(gate.ports[5432]) == b""
        assert await get(gate.ports[5432])
    assert [str(error) for error in gate.reports] == ["a fault of the gateway"]


async def test_a_panic_of_compiled_code_is_only_that_of_its_connection(tmp_path, upstream):
    class PanicError(BaseException):
        """What policy throws when it panics."""

    def consent(_):
        if not gate.reports:
            raise PanicError
        return ALLOWED

    async with open_rig(tmp_path, tcp(upstream), consent=consent) as gate:
        assert await get(gate.ports[5432]) == b""
        await until(lambda: gate.reports)
        assert await get(gate.ports[5432])
    assert [type(error.__cause__) for error in gate.reports] == [PanicError]


async def test_a_fault_while_a_connection_is_turned_away_or_left_is_only_that_ones(tmp_path, upstream):
    async def broken(_):
        raise RuntimeError("a fault of the wire")

    def record(*_):
        raise RuntimeError("a fault of the record")

    budget = EgressBudget(bytes=1000, connections=1, requests=1, concurrent=1)
    async with open_rig(tmp_path, tcp(upstream), budget=budget, record=record, outlet=broken) as gate:
        for number in (1, 2):
            gate.session.feed(Frame(FrameType.EGRESS_OPEN, struct.pack(">IH", number, 5432)))
        await until(lambda: len(gate.reports) >= 2)
        # The gate's group lives: it would have been cancelled by now.
        await asyncio.sleep(0)
        usage = await gate.session.close()
    assert usage.connections == 1
    assert {type(error) for error in gate.reports} == {RuntimeError}


async def test_a_slow_reader_gets_all_of_an_answer(tmp_path, upstream):
    async with open_rig(tmp_path, rule(HOST, upstream.port, scheme="http")) as gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.ports[PROXY_PORT], limit=1024)
        head = f"GET {proxied(upstream, '/bytes?n=2000000')} HTTP/1.1\r\nHost: {HOST}:{upstream.port}\r\n\r\n"
        writer.write(head.encode())
        # It says that it has no more to ask, and only then begins to read.
        writer.write_eof()
        await until(lambda: upstream.seen)
        data = await reader.read()
        writer.transport.abort()
    assert data.endswith(b"x" * 2_000_000)


async def test_a_secret_of_one_rule_is_hidden_in_the_answers_of_another(tmp_path, upstream):
    with Upstream() as other:
        rules = [
            rule(HOST, upstream.port, scheme="http", secret="key"),
            rule(HOST, other.port, scheme="http"),
        ]
        value = b"sk-test-0123456789abcdefghij"
        async with open_rig(tmp_path, *rules, credentials=[credential("key", value)]) as gate:
            _, data = await ask(gate, other, f"/redirect?to=/{value.decode()}")
    assert value not in data
    assert b"[REDACTED:key]" in data
    assert not other.headers_seen("Authorization")


async def test_a_destination_that_nobody_answers_at_is_left_alone_after_a_while(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    rules = BreakerRules(window=4, min_calls=2, failure_rate=0.5)
    breakers = Breakers({"upstream": rules}, lambda _: None)
    declared = rule(HOST, port, scheme="tcp", local_port=5432)
    async with open_rig(tmp_path, declared, breakers=breakers, tenant="rival") as gate:
        for _ in range(3):
            assert await get(gate.ports[5432]) == b""
        await until(lambda: gate.refusals == ["circuit_open"])
        assert [fields["how"] for fields in gate.recorded("egress_closed")] == ["unreachable"] * 2
    assert list(breakers.list()) == [f"upstream:rival/{HOST}:{port}"]


async def test_a_tool_that_hangs_up_says_nothing_of_its_destination(tmp_path, upstream):
    breakers = Breakers({}, lambda _: None)
    async with open_rig(tmp_path, tcp(upstream), breakers=breakers) as gate:
        for _ in range(6):
            reader, writer = await asyncio.open_connection("127.0.0.1", gate.ports[5432])
            writer.write(b"GET /silent HTTP/1.0\r\n\r\n")
            await writer.drain()
            await until(lambda: gate.recorded("egress_allowed"))
            # A reset, not the end of one side.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            assert await reader.read() == b""
        await until(lambda: len(gate.recorded("egress_closed")) == 6)
    (view,) = breakers.list().values()
    assert view.failures == 0
