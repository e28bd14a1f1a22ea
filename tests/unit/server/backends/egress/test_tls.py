import asyncio
import ssl

import pytest

from callgate_server.backends.egress.authority import Authority
from callgate_server.backends.egress.tls import EndedTls
from support.pipes import TlsClient, client_hello, pair, read_all

HOST = "api.example.com"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority.load(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def trusting(authority):
    return ssl.create_default_context(cadata=authority.pem.decode())


async def agreed(authority, trusting):
    gate_end, tool_end = pair()
    tls, client = EndedTls(gate_end, authority.context(HOST), b""), TlsClient(tool_end, trusting, HOST)
    await asyncio.gather(tls.handshake(), client.handshake())
    return tls, client, gate_end, tool_end


async def test_what_the_tool_says_is_read_and_answered(authority, trusting):
    tls, client, *_ = await agreed(authority, trusting)
    await client.write(b"question")
    assert await tls.read() == b"question"
    await tls.write(b"answer")
    assert await client.read() == b"answer"


async def test_much_goes_both_ways_at_once(authority, trusting):
    tls, client, *_ = await agreed(authority, trusting)
    data = bytes(range(256)) * 4096

    async def all_of(end):
        got = b""
        while len(got) < len(data):
            got += await end.read()
        return got

    sent = await asyncio.gather(tls.write(data), client.write(data), all_of(tls), all_of(client))
    assert sent[2] == sent[3] == data


async def test_what_was_read_before_is_part_of_it(authority, trusting):
    gate_end, tool_end = pair()
    client = TlsClient(tool_end, trusting, HOST)
    greeting = asyncio.create_task(client.handshake())
    early = await gate_end.read()
    await EndedTls(gate_end, authority.context(HOST), early).handshake()
    await greeting


async def test_a_tool_that_asks_for_another_host_is_told_so_and_left(authority):
    gate_end, tool_end = pair()
    tls = EndedTls(gate_end, authority.context(HOST), client_hello("other.example.com"))
    with pytest.raises(ConnectionError):
        await tls.handshake()
    # An alert of TLS, fatal, and no certificate.
    alert = await tool_end.read()
    assert alert[0] == 21
    assert len(alert) == 7


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\0" * 100])
async def test_what_is_no_tls_is_refused(authority, said):
    gate_end, _ = pair()
    with pytest.raises(ConnectionError):
        await EndedTls(gate_end, authority.context(HOST), said).handshake()


async def test_a_tool_that_leaves_before_it_agreed_is_an_error(authority):
    gate_end, tool_end = pair()
    await tool_end.finish()
    with pytest.raises(ConnectionError):
        await EndedTls(gate_end, authority.context(HOST), b"").handshake()


async def test_an_end_without_farewell_is_an_end(authority, trusting):
    tls, client, _, tool_end = await agreed(authority, trusting)
    await client.write(b"half")
    await tool_end.finish()
    assert [await tls.read(), await tls.read()] == [b"half", b""]


async def test_a_spoilt_record_breaks_the_connection(authority, trusting):
    tls, _, _, tool_end = await agreed(authority, trusting)
    await tool_end.write(b"\x17\x03\x03\x00\x20" + b"\0" * 32)
    with pytest.raises(ConnectionError):
        await tls.read()


async def test_the_end_is_said_in_tls_and_below(authority, trusting):
    tls, client, gate_end, _ = await agreed(authority, trusting)
    await tls.write(b"last")
    await tls.finish()
    assert [await client.read(), await client.read()] == [b"last", b""]
    assert gate_end.finished


async def test_an_abort_ends_the_pipe_below(authority, trusting):
    tls, _, gate_end, _ = await agreed(authority, trusting)
    await tls.abort()
    assert gate_end.aborted


async def test_old_versions_are_not_spoken(authority):
    gate_end, tool_end = pair()
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    client = TlsClient(tool_end, old, HOST)
    results = await asyncio.gather(
        EndedTls(gate_end, authority.context(HOST), b"").handshake(), client.handshake(), return_exceptions=True
    )
    assert isinstance(results[0], ConnectionError)
    await tool_end.abort()


async def test_what_goes_over_the_pipe_is_not_what_was_said(authority, trusting):
    tls, _, gate_end, tool_end = await agreed(authority, trusting)
    await tls.write(b"plain words")
    await gate_end.finish()
    assert b"plain words" not in await read_all(tool_end)
