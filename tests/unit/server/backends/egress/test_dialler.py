import asyncio
import re
import socket
import ssl
from ipaddress import ip_address, ip_network

import pytest

from callgate_server.backends.egress import lookups
from callgate_server.backends.egress.dialler import Dialler
from callgate_server.backends.egress.pipes import FailedError
from callgate_server.execution.egress_rules import Why
from callgate_server.model.egress import InternalService
from support.upstreams import TestAuthority, Upstream

HOST = "api.example.com"
LOOPBACK = ip_address("127.0.0.1")


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    return TestAuthority(tmp_path_factory.mktemp("upstreams"))


@pytest.fixture
def dialler(signer):
    internal = InternalService(HOST, None, (ip_network("127.0.0.0/8"),))
    made = Dialler(internal=[internal], ca_file=signer.ca_file, dns_timeout_s=5, connect_timeout_s=5)
    yield made
    made.close()


def answering(monkeypatch, *turns):
    """Let the system answer with these addresses, one list after the other; return the names it was asked for."""
    asked = []

    def answer(host, *_, **__):
        asked.append(host)
        addresses = turns[min(len(asked), len(turns)) - 1]
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(lookups.socket, "getaddrinfo", answer)
    return asked


async def test_a_name_is_asked_for_once_and_gives_all_its_addresses(monkeypatch, dialler):
    asked = answering(monkeypatch, ["127.0.0.1", "127.0.0.2", "127.0.0.1"])
    assert await dialler.resolve(HOST, 443, "acme") == (LOOPBACK, ip_address("127.0.0.2"))
    assert asked == [HOST]


async def test_one_bad_address_refuses_the_name(monkeypatch, dialler):
    answering(monkeypatch, ["93.184.216.34", "169.254.169.254"])
    assert await dialler.resolve("other.example.com", 443, "acme") is Why.METADATA_ADDRESS


async def test_an_unknown_name_leads_nowhere(monkeypatch, dialler):
    answering(monkeypatch, [])
    assert await dialler.resolve(HOST, 443, "acme") is Why.UNRESOLVED


async def test_after_the_end_nothing_is_resolved(dialler):
    dialler.close()
    assert await dialler.resolve(HOST, 443, "acme") is Why.UNRESOLVED


async def test_a_link_carries_bytes_both_ways(dialler):
    with Upstream() as upstream:
        link = await dialler.dial([LOOPBACK], upstream.port, None)
        await link.write(b"GET /bytes?n=5 HTTP/1.0\r\n\r\n")
        await link.finish()
        data = b""
        while piece := await link.read():
            data += piece
        assert data.endswith(b"xxxxx")
        assert link.address == LOOPBACK
        assert not link.usable
        await link.abort()


async def test_dialling_needs_no_name(monkeypatch, dialler):
    asked = answering(monkeypatch, [])
    with Upstream() as upstream:
        await (await dialler.dial([LOOPBACK], upstream.port, None)).abort()
    assert not asked


async def test_the_next_address_is_tried_when_one_does_not_answer(dialler):
    with Upstream() as upstream:
        link = await dialler.dial([ip_address("127.0.0.9"), LOOPBACK], upstream.port, None)
        assert link.address == LOOPBACK
        await link.abort()


async def test_when_none_answers_it_is_unreachable(dialler):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(FailedError, match="unreachable"):
            await dialler.dial([LOOPBACK], taken.getsockname()[1], None)


async def test_an_upstream_that_does_not_answer_is_not_waited_for(signer):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dialler = Dialler(internal=(), ca_file=signer.ca_file, dns_timeout_s=1, connect_timeout_s=0.2)
        # It accepts, and never says a word of TLS.
        with pytest.raises(FailedError, match="unreachable"):
            await dialler.dial([LOOPBACK], silent.getsockname()[1], HOST)
        dialler.close()


async def test_a_certificate_for_the_host_is_enough(dialler, signer):
    with Upstream(tls=signer.context(HOST)) as upstream:
        link = await dialler.dial([LOOPBACK], upstream.port, HOST)
        await link.write(b"GET /bytes?n=5 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200" in await link.read()
        assert link.usable
        await link.finish()
        await link.abort()
        await asyncio.sleep(0)


@pytest.mark.parametrize(("name", "expired"), [("other.example.com", False), ("*.com", False), (HOST, True)])
async def test_any_other_certificate_is_not(dialler, signer, name, expired):
    with Upstream(tls=signer.context(name, expired=expired)) as upstream:
        with pytest.raises(FailedError, match="untrusted_certificate"):
            await dialler.dial([LOOPBACK], upstream.port, HOST)
        assert not upstream.seen


async def test_a_stranger_s_certificate_is_not(dialler, tmp_path):
    stranger = TestAuthority(tmp_path).context(HOST)
    with Upstream(tls=stranger) as upstream, pytest.raises(FailedError, match="untrusted_certificate"):
        await dialler.dial([LOOPBACK], upstream.port, HOST)


async def test_an_upstream_without_tls_is_a_failure_of_tls(dialler):
    with Upstream() as upstream, pytest.raises(FailedError, match="tls_failed"):
        await dialler.dial([LOOPBACK], upstream.port, HOST)


async def test_old_versions_of_tls_are_not_spoken(dialler, signer):
    context = signer.context(HOST)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with Upstream(tls=context) as upstream, pytest.raises(FailedError, match="tls_failed"):
        await dialler.dial([LOOPBACK], upstream.port, HOST)


@pytest.mark.parametrize(("content", "error"), [(None, OSError), ("", ValueError), ("no certificate", ValueError)])
def test_a_file_of_roots_that_cannot_be_used_is_found_at_once_and_named(tmp_path, content, error):
    path = tmp_path / "roots.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=re.escape(str(path))):
        Dialler(internal=(), ca_file=path, dns_timeout_s=1, connect_timeout_s=1)
