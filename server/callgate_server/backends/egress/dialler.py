"""Names to addresses, and addresses to connections: each name is resolved once, and only what was checked is dialled.

Decides nothing about what may be reached: `resolve` returns addresses that are all acceptable or refuses, and `dial`
takes exactly these. No name is given to the system after that, so that no second answer can lead elsewhere.
"""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from callgate_server.backends.egress.lookups import Lookups
from callgate_server.backends.egress.pipes import CHUNK_BYTES, FailedError
from callgate_server.execution.egress_addresses import Address, refuse_addresses
from callgate_server.execution.egress_rules import Why
from callgate_server.model.egress import InternalService

# Of a name's addresses, this many are tried.
_MOST_TRIED: Final = 4


class Link:
    """A connection to an upstream. Implements `Pipe`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: Address) -> None:
        self._reader = reader
        self._writer = writer
        self.address = address

    @property
    def usable(self) -> bool:
        """Whether the upstream has not closed it, as far as is known."""
        return not (self._reader.at_eof() or self._reader.exception() or self._writer.is_closing())

    async def read(self) -> bytes:
        """See `Pipe`."""
        try:
            return await self._reader.read(CHUNK_BYTES)
        except OSError as error:
            raise ConnectionResetError("the upstream broke the connection") from error

    async def write(self, data: bytes) -> None:
        """See `Pipe`."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise ConnectionResetError("the upstream broke the connection") from error

    async def finish(self) -> None:
        """See `Pipe`. TLS has no half end here."""
        if self._writer.can_write_eof() and not self._writer.is_closing():
            try:
                self._writer.write_eof()
            except OSError as error:
                raise ConnectionResetError("the upstream broke the connection") from error

    async def abort(self) -> None:
        """See `Pipe`."""
        self._writer.transport.abort()


class Dialler:
    """Resolves and dials for all calls. `close` when the gate ends."""

    def __init__(
        self,
        *,
        internal: Sequence[InternalService],
        ca_file: Path | None,
        dns_timeout_s: float,
        connect_timeout_s: float,
    ) -> None:
        """`ca_file` adds to the system's roots.

        Raises:
            OSError: `ca_file` cannot be read.
            ValueError: it holds no certificate.
        """
        self._internal = tuple(internal)
        self._trust = trust(ca_file)
        self._lookups = Lookups(dns_timeout_s)
        self._connect_timeout_s = connect_timeout_s

    def close(self) -> None:
        self._lookups.close()

    async def resolve(self, host: str, port: int, tenant: str) -> tuple[Address, ...] | Why:
        """Return the addresses of a plain host, all of them acceptable, or why none may be dialled."""
        addresses = await self._lookups.addresses(host, tenant)
        return refuse_addresses(addresses, host, port, self._internal) or addresses

    async def dial(self, addresses: Sequence[Address], port: int, tls_name: str | None) -> Link:
        """Connect to the first of `addresses` that answers; with `tls_name`, see that it proves to be that host.

        Raises:
            FailedError: `unreachable`, `untrusted_certificate` or `tls_failed`.
        """
        tried = addresses[:_MOST_TRIED]
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                for left, address in zip(range(len(tried), 0, -1), tried, strict=True):
                    connection = await _connect(address, port, self._connect_timeout_s / left)
                    if connection is not None:
                        return await self._link(connection, address, tls_name)
        except TimeoutError:
            pass
        raise FailedError(Why.UNREACHABLE)

    async def _link(self, connection: socket.socket, address: Address, tls_name: str | None) -> Link:
        try:
            reader, writer = await asyncio.open_connection(
                sock=connection,
                limit=CHUNK_BYTES,
                ssl=None if tls_name is None else self._trust,
                server_hostname=tls_name,
            )
        except BaseException as error:
            connection.close()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise FailedError(Why.UNTRUSTED_CERTIFICATE) from error
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise FailedError(Why.UNREACHABLE if tls_name is None else Why.TLS_FAILED) from error
            raise
        return Link(reader, writer, address)


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """What upstreams' certificates are checked with: the system's roots, and those in the file.

    Raises:
        ValueError: it holds none.
        OSError: it cannot be read.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cadata=ca_file.read_text(encoding="utf-8"))
        except (ssl.SSLError, ValueError):
            raise ValueError(f"{ca_file} holds no certificates in PEM form") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


async def _connect(address: Address, port: int, limit_s: float) -> socket.socket | None:
    family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
    connection: socket.socket | None = None
    try:
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        async with asyncio.timeout(limit_s):
            await asyncio.get_running_loop().sock_connect(connection, (str(address), port))
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, OSError):
            return None
        raise
    return connection
