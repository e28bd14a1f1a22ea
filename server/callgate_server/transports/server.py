"""Starting and stopping both edges in the running event loop. Signals, logging and configuration are the app's."""

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.server import ServerState

from callgate_proto.v1 import gateway_pb2
from callgate_server.transports.gate import Gate
from callgate_server.transports.grpc import Door, GatewayService, Health
from callgate_server.transports.limits import TransportLimits
from callgate_server.transports.places import Places
from callgate_server.transports.receipt import Receipt

# Long enough to send what is already answered.
GRACE_S: Final = 2.0
SERVICE: Final = gateway_pb2.DESCRIPTOR.services_by_name["Gateway"].full_name


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the certificate with its chain, and its key."""

    certificate: Path
    key: Path


class HttpServer:
    """Serves an ASGI application over HTTP/1.1.

    uvicorn gives the protocol; its server is not used, because it takes over signals and prints.
    """

    def __init__(
        self, app: ASGIApp, host: str, port: int, limits: TransportLimits, *, tls: TlsFiles | None = None
    ) -> None:
        self._host = host
        self._limits = limits
        self._tls = tls
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        # The port it listens on, once it does.
        self.port = port
        self._config = Config(
            app,
            http=Receipt,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=int(limits.idle_s),
        )

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be bound, or a TLS file cannot be read.
        """
        self._config.load()
        context = None if self._tls is None else _ssl_context(self._tls)
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Receipt(self._limits, self._config, self._state),
                self._host,
                self.port,
                ssl=context,
                ssl_handshake_timeout=self._limits.receive_s if context else None,
                backlog=self._limits.connections,
            )
        except OSError as error:
            raise _cannot_listen("http", f"{_bracketed(self._host)}:{self.port}") from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Accept nothing more, let requests be answered for `grace_s`, then cut. Calls themselves are not touched."""
        if self._server is None:
            return
        self._server.close()
        connections = [one for one in self._state.connections if isinstance(one, Receipt)]
        for connection in connections:
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                for connection in connections:
                    await connection.lost.wait()
        for task in list(self._state.tasks):
            task.cancel()
        for connection in connections:
            if not connection.lost.is_set():
                connection.transport.abort()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)


def _ssl_context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(files.certificate, files.key)
    return context


class GrpcServer:
    """Serves `callgate.v1.Gateway` and health; reflection, which describes both to anybody, only if asked."""

    def __init__(
        self,
        gate: Gate,
        host: str,
        port: int,
        limits: TransportLimits,
        places: Places,
        *,
        tls: TlsFiles | None = None,
        reflection: bool = False,
    ) -> None:
        self._host = _bracketed(host)
        self.port = port
        self._tls = tls
        self._health = Health()
        self._server = grpc.aio.server(
            interceptors=(Door(gate, limits, places),),
            options=_options(limits),
            # Far more than the door lets in: the library refuses without looking who it is, and for what.
            maximum_concurrent_rpcs=4 * limits.concurrent_requests + limits.operator_requests,
        )
        GatewayService(gate).add_to(self._server)
        self._health.add_to(self._server)
        if reflection:
            from grpc_reflection.v1alpha import reflection as reflected

            reflected.enable_server_reflection((SERVICE, reflected.SERVICE_NAME), self._server)

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be bound, or a TLS file cannot be read.
        """
        address = f"{self._host}:{self.port}"
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                pair = (self._tls.key.read_bytes(), self._tls.certificate.read_bytes())
                self.port = self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        except RuntimeError as error:
            raise _cannot_listen("grpc", address) from error
        await self._server.start()

    def set_serving(self, *, serving: bool) -> None:
        """Switch what the health service says."""
        self._health.set(SERVICE, serving=serving)

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Accept nothing more, let RPCs be answered for `grace_s`, then cut. Calls themselves are not touched."""
        self.set_serving(serving=False)
        await self._server.stop(grace_s)


def _cannot_listen(setting: str, address: str) -> OSError:
    return OSError(f"cannot listen on {address}: stop what listens there, or choose another `{setting}.listen`")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _options(limits: TransportLimits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.body_bytes),
        ("grpc.max_send_message_length", limits.answer_bytes),
        ("grpc.max_metadata_size", limits.header_bytes),
        ("grpc.absolute_max_metadata_size", limits.header_bytes),
        # Far more than can run: who floods is told RESOURCE_EXHAUSTED, where a refused stream is UNAVAILABLE and
        # the client's library queues or repeats by itself.
        ("grpc.max_concurrent_streams", 8 * limits.concurrent_requests),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", int(limits.receive_s * 1000)),
        ("grpc.max_connection_idle_ms", int(limits.idle_s * 1000)),
        # Find dead peers, and close on those that ping more often than twice in half a minute.
        ("grpc.keepalive_time_ms", int(limits.idle_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(limits.receive_s * 1000)),
        ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
        ("grpc.http2.max_ping_strikes", 2),
        # A second process on the same port would get a share of the calls, and of their credentials.
        ("grpc.so_reuseport", 0),
    ]
