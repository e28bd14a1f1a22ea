"""The egress gate against upstreams that nobody would want to talk to, in a network of the test's own.

The addresses that must never be reached are really there, on `lo`, with somebody who counts; names come from a
resolver that lies; clients are ordinary ones.
"""

import asyncio
import json
import socket
import ssl
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from callgate_server.execution.egress import EgressBudget
from support.egress_rig import credential, internal, rig, rule, until
from support.network import Resolver, in_own_network
from support.upstreams import Canary, TestAuthority, Upstream

PUBLIC, PUBLIC_TOO, PUBLIC_V6 = "93.184.216.34", "93.184.216.35", "2606:2800:220:1::1"
METADATA = ("169.254.169.254", "fd00:ec2::254", "100.100.100.200")
API, FREE, OTHER = "api.example.com", "free.example.com", "other.example.com"
KEY = b"sk-test-0123456789abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def signer(tmp_path):
    folder = tmp_path / "upstreams"
    folder.mkdir()
    return TestAuthority(folder)


def client(gate, *, cadata=None, **options):
    """An ordinary HTTP client behind the proxy, as a tool would have it."""
    verify = ssl.create_default_context(cadata=(cadata or gate.authority).decode())
    return httpx.AsyncClient(proxy=gate.proxy, verify=verify, trust_env=False, **options)


def memory_kb(name, *, forget_peak=False):
    if forget_peak:
        Path("/proc/self/clear_refs").write_text("5")  # begins the high-water mark anew: proc(5)
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith(name)))


def why(answer):
    return answer.json()["why"]


def test_nobody_reaches_a_metadata_service_by_address_or_by_name(tmp_path):
    names = {f"m{index}.example.com": [[address]] for index, address in enumerate(METADATA)}

    async def scene():
        rules = [rule(name, 80, scheme="http") for name in names]
        rules += [rule(METADATA[0], 80, scheme="http"), rule(METADATA[2], 80, scheme="http"), rule(METADATA[0], 443)]
        # Not even whoever declares everything as internal.
        everything = [internal(name, "0.0.0.0/0", "::/0") for name in (*names, METADATA[0])]
        with ExitStack() as held:
            canaries = [held.enter_context(Canary(address, port)) for address in METADATA for port in (80, 443)]
            held.enter_context(Resolver(names))
            for declared in ((), everything):
                async with rig(tmp_path, rules, internal=declared) as gate, client(gate) as http:
                    for host in (*names, METADATA[0], METADATA[2]):
                        answer = await http.get(f"http://{host}/latest/meta-data/")
                        assert (answer.status_code, why(answer)) == (403, "metadata_address"), host
                    assert (await http.get(f"http://[{METADATA[1]}]/")).status_code == 403
                    with pytest.raises(httpx.ProxyError):
                        await http.get(f"https://{METADATA[0]}/")
                    assert not gate.recorded("egress_allowed")
            assert [canary.hits for canary in canaries] == [0] * 6

    in_own_network(scene, addresses=METADATA)


LOOPBACKS = [
    "0x7f.1",
    "0177.0.0.1",
    "2130706433",
    "127.1",
    "127.0.0.1",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::]",
    "[::1]",
    "0.0.0.0",
    "0",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "localhost",
    "localhost.",
    "LOCALHOST",
    "user@127.0.0.1",
    "api.example.com@127.0.0.1",
    "127.0.0.1%2f@api.example.com",
    "127\u30020\u30020\u30021",
    "\uff11\uff12\uff17.0.0.1",
    "api.example.com#@127.0.0.1",
    "api.example.com\\@127.0.0.1",
    "[::1%25lo]",
    "127.0.0.1.",
    "loop.example.com",
    "mapped.example.com",
]


def test_no_spelling_of_loopback_leads_there(tmp_path):
    names = {"loop.example.com": [["127.0.0.1"]], "mapped.example.com": [["::ffff:127.0.0.1"]]}

    async def scene():
        # Rules as careless as they can be: the address that is meant is judged, not how it is written.
        hosts = ("127.0.0.1", "0.0.0.0", "localhost", "loop.example.com", "mapped.example.com")
        rules = [rule(host, 80, scheme="http") for host in hosts] + [rule(host, 443) for host in hosts]
        with Upstream(port=80) as plain, Canary("127.0.0.1", 443) as secure, Canary("::1", 80) as six, Resolver(names):
            async with rig(tmp_path, rules) as gate:
                for host in LOOPBACKS:
                    absolute = await raw(gate, f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n")
                    assert absolute in (400, 403), host
                    assert await raw(gate, f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n") in (400, 403), (
                        host
                    )
                assert not gate.recorded("egress_allowed")
            assert (plain.connections, secure.hits, six.hits) == (0, 0, 0)

    in_own_network(scene, hosts={"localhost": "127.0.0.1"})


async def raw(gate, text):
    """Say exactly this; return the status of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gate.proxy.rpartition(":")[2]))
    writer.write(text.encode())
    line = await reader.readline()
    writer.transport.abort()
    return int(line.split(b" ")[1])


def test_a_name_that_changes_its_mind_is_asked_once_and_dialled_where_it_was_checked(tmp_path):
    names = {"rebind.example.com": [[PUBLIC], ["127.0.0.1"]]}

    async def scene():
        with Upstream(PUBLIC, 80) as public, Canary("127.0.0.1", 80) as inside, Resolver(names) as resolver:
            async with rig(tmp_path, [rule("rebind.example.com", 80, scheme="http")]) as gate, client(gate) as http:
                first = await http.get("http://rebind.example.com/bytes?n=1")
                assert first.content == b"x"
                assert resolver.asked.count(("rebind.example.com", "A")) == 1
                assert gate.recorded("egress_allowed")[0]["address"] == PUBLIC
                # The same connection, the same address: the second answer of the resolver is not asked for.
                assert (await http.get("http://rebind.example.com/bytes?n=1")).content == b"x"
                assert resolver.asked.count(("rebind.example.com", "A")) == 1
            async with rig(tmp_path, [rule("rebind.example.com", 80, scheme="http")]) as gate, client(gate) as http:
                assert why(await http.get("http://rebind.example.com/")) == "loopback_address"
            assert (public.connections, inside.hits) == (1, 0)

    in_own_network(scene, addresses=[PUBLIC])


def test_one_bad_address_among_good_ones_is_enough(tmp_path):
    names = {"mixed.example.com": [[PUBLIC, "127.0.0.1"]], "sixfour.example.com": [[PUBLIC, "::1"]]}

    async def scene():
        with Upstream(PUBLIC, 80) as public, Canary("127.0.0.1", 80) as four, Canary("::1", 80) as six, Resolver(names):
            async with rig(tmp_path, [rule(name, 80, scheme="http") for name in names]) as gate, client(gate) as http:
                for name in names:
                    assert why(await http.get(f"http://{name}/")) == "loopback_address"
            assert (public.connections, four.hits, six.hits) == (0, 0, 0)

    in_own_network(scene, addresses=[PUBLIC])


def test_ipv6_is_held_to_the_same_rules(tmp_path):
    bad = {
        "unique-local.example.com": ("fd12:3456::1", "private_address"),
        "link-local.example.com": ("fe80::1", "link_local_address"),
        "loopback.example.com": ("::1", "loopback_address"),
        "mapped.example.com": ("::ffff:93.184.216.34", "embedded_address"),
        "translated.example.com": ("64:ff9b::5db8:d822", "embedded_address"),
        "group.example.com": ("ff02::1", "multicast_address"),
    }
    names = {"six.example.com": [[PUBLIC_V6]], **{name: [[address]] for name, (address, _) in bad.items()}}

    async def scene():
        with Upstream(PUBLIC_V6, 80) as public, Canary("fd12:3456::1", 80) as inside, Resolver(names):
            rules = [rule(name, 80, scheme="http") for name in names]
            async with rig(tmp_path, rules) as gate, client(gate) as http:
                assert (await http.get("http://six.example.com/bytes?n=1")).content == b"x"
                assert gate.recorded("egress_allowed")[0]["address"] == PUBLIC_V6
                for name, (_, word) in bad.items():
                    assert why(await http.get(f"http://{name}/")) == word
            assert (public.connections, inside.hits) == (1, 0)

    in_own_network(scene, addresses=[PUBLIC_V6, "fd12:3456::1"])


def test_a_slow_and_a_silent_upstream_cost_no_more_than_their_time(tmp_path):
    async def scene():
        with Upstream(PUBLIC, 80) as upstream, Resolver({FREE: [[PUBLIC]]}):
            rules = [rule(FREE, 80, scheme="http")]
            async with rig(tmp_path, rules, idle_s=0.3) as gate, client(gate, timeout=30) as http:
                silent = await http.get(f"http://{FREE}/silent")
                assert (silent.status_code, why(silent)) == (504, "idle")
                assert gate.recorded("egress_closed")[0]["how"] == "idle"
            async with rig(tmp_path, rules, deadline_s=2) as gate, client(gate, timeout=30) as http:
                with pytest.raises(httpx.TransportError):
                    await http.get(f"http://{FREE}/dripping")
                await until(lambda: gate.recorded("egress_closed"))
                assert gate.recorded("egress_closed")[0]["how"] == "deadline"
            # The upstream's side is closed as well: it can drip no more.
            await until(lambda: upstream.broken == 1)

    in_own_network(scene, addresses=[PUBLIC])


def test_an_endless_body_ends_with_the_budget_and_costs_no_memory(tmp_path):
    budget = EgressBudget(bytes=64 * 1024 * 1024, connections=9, requests=9, concurrent=9)

    async def scene():
        with Upstream(PUBLIC, 80), Resolver({FREE: [[PUBLIC]]}):
            async with rig(tmp_path, [rule(FREE, 80, scheme="http")], budget=budget) as gate, client(gate) as http:
                before_kb = memory_kb("VmRSS", forget_peak=True)
                read = 0
                with pytest.raises(httpx.TransportError):
                    async with http.stream("GET", f"http://{FREE}/endless") as answer:
                        async for data in answer.aiter_raw():
                            read += len(data)
                grown_kb = memory_kb("VmHWM") - before_kb
                usage = await gate.session.close()
            assert read <= budget.bytes < usage.bytes + 65536
            assert usage.bytes < budget.bytes + 65536
            assert grown_kb < 16 * 1024
            assert gate.recorded("egress_closed")[0]["how"] == "bytes_spent"

    in_own_network(scene, addresses=[PUBLIC])


def test_a_compressed_bomb_is_not_unpacked_on_the_way(tmp_path):
    unpacked = 50_000_000

    async def scene():
        with Upstream(PUBLIC, 80), Resolver({FREE: [[PUBLIC]]}):
            async with rig(tmp_path, [rule(FREE, 80, scheme="http")]) as gate, client(gate) as http:
                async with http.stream("GET", f"http://{FREE}/gzip-bomb?n={unpacked}") as answer:
                    packed = b"".join([data async for data in answer.aiter_raw()])
                usage = await gate.session.close()
            assert len(packed) < 100_000
            assert usage.received_bytes < 101_000

    in_own_network(scene, addresses=[PUBLIC])


def test_a_credential_goes_to_its_host_port_method_and_path_and_nowhere_else(tmp_path, signer):
    text = KEY.decode()

    async def scene():
        with ExitStack() as held:
            bound = held.enter_context(Upstream(PUBLIC, 443, signer.context(API)))
            port = held.enter_context(Upstream(PUBLIC, 8443, signer.context(API)))
            stranger = held.enter_context(Upstream(PUBLIC_TOO, 443, signer.context(OTHER)))
            clear = held.enter_context(Upstream(PUBLIC, 80))
            held.enter_context(Resolver({API: [[PUBLIC]], OTHER: [[PUBLIC_TOO]]}))
            rules = [
                rule(API, 443, secret="key", methods=["GET"], paths=["/v1/*"]),
                rule(API, 443, methods=["POST"], paths=["/open"]),
                rule(API, 8443, methods=["GET"]),
                rule(API, 80, scheme="http"),
                rule(OTHER, 443, methods=["GET"]),
            ]
            options = {"credentials": [credential("key", KEY)], "ca_file": signer.ca_file}
            async with rig(tmp_path, rules, **options) as gate, client(gate, follow_redirects=True) as http:
                assert (await http.get(f"https://{API}/v1/demand")).status_code == 200
                assert bound.headers_seen("Authorization") == [f"Bearer {text}"]
                mine = {"Authorization": "Bearer mine"}
                # Another method, port, scheme or host: without it.
                assert (await http.post(f"https://{API}/open", headers=mine)).status_code == 200
                assert (await http.get(f"https://{API}:8443/v1/a", headers=mine)).status_code == 200
                assert (await http.get(f"http://{API}/v1/a", headers=mine)).status_code == 200
                assert (await http.get(f"https://{OTHER}/v1/a", headers=mine)).status_code == 200
                # Another path, or method on that path: not at all.
                for method, path in (("GET", "/v2/a"), ("POST", "/v1/a"), ("GET", "/v1/%2e%2e/v2"), ("GET", "/open")):
                    refused = await http.request(method, f"https://{API}{path}", headers=mine)
                    assert refused.status_code == 403, path
                # After a redirect the next request is judged anew.
                followed = await http.get(f"https://{API}/v1/redirect", params={"to": f"https://{OTHER}/caught"})
                assert followed.status_code == 200
                assert (
                    await http.get(f"https://{API}/v1/redirect", params={"to": f"https://{API}/v2/a"})
                ).status_code == 403
                assert (
                    await http.get(f"https://{API}/v1/redirect", params={"to": "http://169.254.169.254/"})
                ).status_code == 403
            for upstream in (port, clear, stranger):
                assert text not in str(upstream.seen)
            assert stranger.seen[-1]["target"] == "/caught"
            with_key = [request["target"] for request in bound.seen if text in str(request["headers"])]
            assert all(target.startswith("/v1/") for target in with_key)
            assert text not in str(gate.events)

    in_own_network(scene, addresses=[PUBLIC, PUBLIC_TOO])


def test_what_the_upstream_echoes_comes_back_without_the_credential(tmp_path, signer):
    async def scene():
        with Upstream(PUBLIC, 443, signer.context(API)) as upstream, Resolver({API: [[PUBLIC]]}):
            options = {"credentials": [credential("key", KEY)], "ca_file": signer.ca_file}
            async with rig(tmp_path, [rule(API, 443, secret="key")], **options) as gate, client(gate) as http:
                heard = []
                for path in ("/echo", "/echo-header", "/echo-slowly", "/echo-gzip", "/echo-base64", "/echo-url"):
                    for headers in ({}, {"Range": "bytes=0-9"}, {"Accept-Encoding": "gzip"}):
                        answer = await http.get(f"https://{API}{path}", headers=headers)
                        heard.append((answer.status_code, str(answer.headers), answer.text))
                assert KEY.decode() not in str(heard)
                assert KEY.decode()[8:30] not in str(heard)
                assert str(heard).count("[REDACTED:key]") >= 12
                # Neither was it asked for in parts, of which none would look like it.
                assert not upstream.headers_seen("Range")
                assert set(upstream.headers_seen("Accept-Encoding")) == {"identity"}

    in_own_network(scene, addresses=[PUBLIC])


def test_an_upstream_must_prove_to_be_the_declared_host(tmp_path, signer):
    async def scene():
        with ExitStack() as held:
            # The name leads to somebody else's server, with a certificate that is good for him.
            wrong = held.enter_context(Upstream(PUBLIC, 443, signer.context(OTHER)))
            right = held.enter_context(Upstream(PUBLIC_TOO, 443, signer.context(FREE)))
            held.enter_context(Resolver({API: [[PUBLIC]], FREE: [[PUBLIC_TOO]]}))
            rules = [rule(API, 443, secret="key"), rule(FREE, 443, methods=["GET"])]
            options = {"credentials": [credential("key", KEY)], "ca_file": signer.ca_file}
            async with rig(tmp_path, rules, **options) as gate, client(gate) as http:
                answer = await http.get(f"https://{API}/")
                assert (answer.status_code, why(answer)) == (502, "untrusted_certificate")
                assert (await http.get(f"https://{FREE}/")).status_code == 200
            assert not wrong.seen
            assert len(right.seen) == 1

    in_own_network(scene, addresses=[PUBLIC, PUBLIC_TOO])


def test_ordinary_clients_get_through_unchanged(tmp_path, signer):
    """The library of Python, with its old CONNECT, and curl."""

    async def scene():
        with ExitStack() as held:
            held.enter_context(Upstream(PUBLIC, 443, signer.context(API)))
            held.enter_context(Upstream(PUBLIC, 80))
            held.enter_context(Upstream(PUBLIC_TOO, 443, signer.context(FREE)))
            held.enter_context(Resolver({API: [[PUBLIC]], FREE: [[PUBLIC_TOO]]}))
            rules = [rule(API, 443, methods=["GET", "POST"]), rule(API, 80, scheme="http"), rule(FREE, 443)]
            async with rig(tmp_path, rules, ca_file=signer.ca_file) as gate:
                bundle = tmp_path / "bundle.pem"
                bundle.write_bytes(gate.authority + signer.ca_file.read_bytes())
                urls = [f"https://{API}/bytes?n=9", f"http://{API}/bytes?n=9", f"https://{FREE}/bytes?n=9"]
                for url in urls:
                    assert await asyncio.to_thread(with_urllib, gate.proxy, bundle, url) == b"x" * 9
                curled = await with_curl(gate.proxy, bundle, "-d", "@/proc/self/status", f"https://{API}/echo")
                assert json.loads(curled)["method"] == "POST"
                assert await with_curl(gate.proxy, bundle, *urls) == b"x" * 27
                assert not gate.reports

    in_own_network(scene, addresses=[PUBLIC, PUBLIC_TOO])


def with_urllib(proxy, bundle, url):
    handlers = (
        urllib.request.ProxyHandler({"http": proxy, "https": proxy}),
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=bundle)),
    )
    with urllib.request.build_opener(*handlers).open(url, timeout=20) as answer:
        return answer.read()


async def with_curl(proxy, bundle, *arguments):
    command = ("curl", "-sS", "--noproxy", "", "--proxy", proxy, "--cacert", str(bundle), *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output


def test_a_database_is_reached_by_its_port_alone(tmp_path):
    async def scene():
        with Upstream("10.1.2.3", 5432) as database, Canary("10.1.2.4", 5432) as neighbour:
            names = {"db.internal.example": [["10.1.2.3"], ["10.1.2.4"]]}
            database_rule = rule("db.internal.example", 5432, scheme="tcp")
            with Resolver(names):
                async with rig(tmp_path, [database_rule]) as gate:
                    assert await bytes_of(gate.ports[5432]) == b""
                    assert gate.refusals == ["private_address"]
            with Resolver(names):
                declared = [internal("db.internal.example", "10.1.2.3/32")]
                async with rig(tmp_path, [database_rule], internal=declared) as gate:
                    assert (await bytes_of(gate.ports[5432])).endswith(b"xxxxx")
                    assert await bytes_of(gate.ports[5432]) == b""
                    assert gate.refusals == ["undeclared_address"]
            assert (len(database.seen), neighbour.hits) == (1, 0)

    in_own_network(scene, addresses=["10.1.2.3", "10.1.2.4"])


async def bytes_of(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /bytes?n=5 HTTP/1.0\r\n\r\n")
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


def test_the_network_of_a_test_is_its_own(tmp_path):
    async def scene():
        with socket.create_server((PUBLIC, 80)):
            return True

    assert in_own_network(scene, addresses=[PUBLIC])
    with pytest.raises(OSError, match="assign"):
        socket.create_server((PUBLIC, 80))
