import asyncio
import socket
import threading
from ipaddress import ip_address

import pytest

from callgate_server.backends.egress import lookups as module
from callgate_server.backends.egress.lookups import Lookups

GOOD = ip_address("93.184.216.34")


class System:
    """Answers at once for every name, except those that begin with `slow`: these wait for `release`."""

    def __init__(self):
        self.release = threading.Event()
        self.asked = []

    def getaddrinfo(self, host, *_, **__):
        self.asked.append(host)
        if host.startswith("slow"):
            assert self.release.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (str(GOOD), 0))]


@pytest.fixture
def system(monkeypatch):
    made = System()
    monkeypatch.setattr(module.socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.release.set()


@pytest.fixture
async def lookups(system):
    made = Lookups(0.5)
    yield made
    made.close()


async def many(lookups, hosts, tenant="acme"):
    return await asyncio.gather(*(lookups.addresses(host, tenant) for host in hosts))


@pytest.mark.parametrize("address", ["fe80::1%eth0", "not an address"])
async def test_an_answer_that_is_no_plain_address_is_none(monkeypatch, lookups, address):
    monkeypatch.setattr(module.socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", (address, 0))])
    assert await lookups.addresses("api.example.com", "acme") == ()


async def test_a_name_that_nobody_answers_for_is_asked_for_once_and_keeps_no_other(system, lookups):
    assert await many(lookups, ["slow.example.com"] * 200) == [()] * 200
    assert await lookups.addresses("slow.example.com", "rival") == ()
    assert await lookups.addresses("api.example.com", "acme") == (GOOD,)
    assert system.asked == ["slow.example.com", "api.example.com"]


async def test_names_that_nobody_answers_for_keep_only_their_tenant_waiting(system, lookups):
    slow = [f"slow-{number}.example.com" for number in range(200)]
    assert await many(lookups, slow) == [()] * 200
    # Their threads are still there, whoever gave up.
    assert await many(lookups, ["api.example.com", "slow-200.example.com"]) == [(), ()]
    assert await lookups.addresses("api.example.com", "rival") == (GOOD,)
    assert sorted(system.asked) == ["api.example.com", *slow[:8]]


async def test_once_their_threads_are_free_a_tenants_names_are_asked_for_again(system):
    lookups = Lookups(5)
    slow = [f"slow-{number}.example.com" for number in range(8)]
    waiting = asyncio.gather(many(lookups, slow), many(lookups, ["api.example.com"] * 2))
    await asyncio.sleep(0.05)
    assert "api.example.com" not in system.asked
    system.release.set()
    assert await waiting == [[(GOOD,)] * 8, [(GOOD,)] * 2]
    assert await lookups.addresses("slow-0.example.com", "acme") == (GOOD,)
    lookups.close()


async def test_an_answer_is_not_kept(system, lookups):
    await many(lookups, ["api.example.com"] * 3)
    await lookups.addresses("api.example.com", "acme")
    assert system.asked == ["api.example.com"] * 2


async def test_more_names_at_once_than_a_tenants_share_wait_for_each_other(system):
    lookups = Lookups(5)
    assert await many(lookups, [f"{number}.example.com" for number in range(100)]) == [(GOOD,)] * 100
    lookups.close()


async def test_after_the_end_nothing_is_asked(system, lookups):
    lookups.close()
    assert await lookups.addresses("api.example.com", "acme") == ()
    assert not system.asked
