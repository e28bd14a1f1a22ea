import asyncio
import signal
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from callgate_proto.v1 import gateway_pb2, gateway_pb2_grpc
from callgate_server.transports.limits import TransportLimits
from callgate_server.transports.server import GrpcServer, HttpServer, TlsFiles
from support.edge import AUTHORIZED, LARGE, edge, http_port, metadata


@pytest.fixture
def tls(tmp_path: Path) -> TlsFiles:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


async def test_http_is_served_over_tls(tls: TlsFiles) -> None:
    async with edge() as world:
        server = HttpServer(world.app(), "127.0.0.1", 0, world.limits, tls=tls)
        await server.start()
        trust = ssl.create_default_context(cafile=str(tls.certificate))
        async with httpx.AsyncClient(verify=trust, headers=AUTHORIZED) as client:
            reply = await client.get(f"https://localhost:{server.port}/v1/tools")
        await server.stop()
    assert reply.status_code == 200


async def test_old_tls_is_not_spoken(tls: TlsFiles) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(tls.certificate)
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with edge() as world:
        server = HttpServer(world.app(), "127.0.0.1", 0, world.limits, tls=tls)
        await server.start()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("localhost", server.port, ssl=old)
        await server.stop()


async def test_grpc_is_served_over_tls(tls: TlsFiles) -> None:
    async with edge() as world:
        server = GrpcServer(world.gate, "127.0.0.1", 0, world.limits, world.places, tls=tls)
        await server.start()
        trust = grpc.ssl_channel_credentials(tls.certificate.read_bytes())
        async with grpc.aio.secure_channel(f"localhost:{server.port}", trust) as channel:
            stub = gateway_pb2_grpc.GatewayStub(channel)
            reply = await stub.ListTools(gateway_pb2.ListToolsRequest(), metadata=metadata())
        await server.stop()
    assert len(reply.tools) == 1


@pytest.mark.parametrize("kind", ["http", "grpc"])
async def test_a_missing_certificate_stops_the_start(kind: str, tmp_path: Path) -> None:
    absent = TlsFiles(tmp_path / "no.crt", tmp_path / "no.key")
    async with edge() as world:
        server = (
            HttpServer(world.app(), "127.0.0.1", 0, world.limits, tls=absent)
            if kind == "http"
            else GrpcServer(world.gate, "127.0.0.1", 0, world.limits, world.places, tls=absent)
        )
        with pytest.raises(FileNotFoundError):
            await server.start()
        await server.stop()


@pytest.mark.parametrize("kind", ["http", "grpc"])
async def test_a_port_in_use_stops_the_start(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with edge() as world:
            server = (
                HttpServer(world.app(), "127.0.0.1", port, world.limits)
                if kind == "http"
                else GrpcServer(world.gate, "127.0.0.1", port, world.limits, world.places)
            )
            with pytest.raises(OSError, match=str(port)):
                await server.start()
            await server.stop()


async def test_signals_stay_the_apps() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with edge() as world, http_port(world):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_stopping_lets_a_request_be_answered_and_takes_no_new_one() -> None:
    async with edge() as world:
        server = HttpServer(world.app(), "127.0.0.1", 0, world.limits)
        await server.start()
        base = f"http://127.0.0.1:{server.port}"
        async with httpx.AsyncClient(base_url=base, headers=AUTHORIZED) as client:
            asked = asyncio.ensure_future(client.post("/v1/tools/demo.wait/calls", json={"arguments": {}}))
            await world.played.waiting.wait()
            stopping = asyncio.ensure_future(server.stop(30))
            await asyncio.sleep(0)
            with pytest.raises(ConnectionError):
                await asyncio.open_connection("127.0.0.1", server.port)
            world.played.release.set()
            reply = await asked
        await stopping
    assert reply.json()["result"] == "released"


async def test_stopping_sends_what_is_answered_to_its_end() -> None:
    async with edge() as world:
        server = HttpServer(world.app(), "127.0.0.1", 0, world.limits)
        await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST /v1/tools/text.large/calls HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b"content-length: 16\r\nauthorization: "
            + AUTHORIZED["authorization"].encode()
            + b'\r\n\r\n{"arguments":{}}'
        )
        await world.handled.wait()
        stopping = asyncio.ensure_future(server.stop(30))
        received = await reader.read(-1)
        writer.close()
        await stopping
    assert len(received) > LARGE


async def test_stopping_cuts_what_takes_too_long_and_leaves_the_call_alone() -> None:
    async with edge(TransportLimits()) as world:
        server = HttpServer(world.app(), "127.0.0.1", 0, world.limits)
        await server.start()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", headers=AUTHORIZED) as client:
            asked = asyncio.ensure_future(client.post("/v1/tools/demo.wait/calls", json={"arguments": {}}))
            await world.played.waiting.wait()
            await server.stop(0.01)
            with pytest.raises(httpx.TransportError):
                await asked
        [running] = world.played.calls_seen
        assert not running.cancelled.is_set()
        world.played.release.set()
        assert (await running.wait())["state"] == "succeeded"
