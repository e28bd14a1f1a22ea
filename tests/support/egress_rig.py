"""The egress gate with a call's terms, and real local ports in place of a sandbox's runner.

The rig listens where the runner would, and turns connections into frames as the runner does, so that ordinary clients
can be pointed at the gate. Decisions, records and reports are kept.
"""

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from callgate_server.backends.egress.gate import Gate, GateOptions
from callgate_server.execution.breakers import Breakers
from callgate_server.execution.egress import EgressBudget, EgressSession, EgressTerms, Outlet
from callgate_server.execution.egress_streams import WINDOW_BYTES
from callgate_server.execution.framing import HEADER, Frame, FrameType
from callgate_server.model.call import Deadline
from callgate_server.model.egress import PROXY_PORT, Credential, EgressAsk, EgressRule, InternalService
from callgate_server.model.sealed import Sealed
from callgate_server.model.verdict import Ruling, Verdict
from callgate_server.result.redact import Redactor

BUDGET = EgressBudget(bytes=16 * 1024 * 1024, connections=64, requests=256, concurrent=16)
# Drawn for the call; its tool knows it.
MARK = "mark-of-the-call"
ALLOWED = Verdict(Ruling.ALLOW, ("permit-all",), "v1")


def rule(host: str, port: int, **fields: Any) -> EgressRule:
    return EgressRule.model_validate({"host": host, "port": port, **fields})


def internal(host: str, *networks: str) -> InternalService:
    return InternalService(host, None, tuple(map(ip_network, networks or ("127.0.0.0/8",))))


def credential(name: str, value: bytes, header: str = "Authorization", prefix: str = "Bearer ") -> Credential:
    return Credential(name, header, prefix, Sealed(value))


async def until(condition: Callable[[], object], limit_s: float = 10) -> None:
    """Wait for what no event tells."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.005)


@dataclass
class Rig:
    """One call. `ports` are where its local ports really listen; `events` what was recorded."""

    session: EgressSession
    authority: bytes
    events: list[tuple[str, Mapping[str, Any]]]
    asked: list[EgressAsk]
    reports: list[BaseException]
    ports: dict[int, int] = field(default_factory=dict)

    @property
    def proxy(self) -> str:
        return f"http://127.0.0.1:{self.ports[PROXY_PORT]}"

    def recorded(self, event: str) -> list[Mapping[str, Any]]:
        return [fields for name, fields in self.events if name == event]

    @property
    def refusals(self) -> list[str]:
        return [fields["why"] for fields in self.recorded("egress_refused")]


@asynccontextmanager
async def rig(
    folder: Path,
    rules: Sequence[EgressRule],
    *,
    credentials: Sequence[Credential] = (),
    consent: Callable[[EgressAsk], Verdict] = lambda _: ALLOWED,
    record: Callable[[str, Mapping[str, Any]], None] = lambda *_: None,
    budget: EgressBudget = BUDGET,
    deadline_s: float = 60,
    outlet: Outlet | None = None,
    tenant: str = "acme",
    breakers: Breakers | None = None,
    **options: Any,
) -> AsyncIterator[Rig]:
    """Open a gate and one call's session, and listen for its tool. What is left open at the end is closed."""
    events: list[tuple[str, Mapping[str, Any]]] = []
    asked: list[EgressAsk] = []
    reports: list[BaseException] = []

    async def keep(event: str, fields: Mapping[str, Any]) -> None:
        record(event, fields)
        events.append((event, fields))

    def ask(what: EgressAsk) -> Verdict:
        asked.append(what)
        return consent(what)

    gate_options = GateOptions(authority_dir=folder / "authority", **options)
    terms = EgressTerms(
        tenant=tenant,
        rules=tuple(rules),
        credentials={one.name: one for one in credentials},
        consent=ask,
        budget=budget,
        deadline=Deadline(time.monotonic() + deadline_s),
        record=keep,
        mark=MARK,
    )
    async with Gate(
        gate_options, Redactor, breakers or Breakers({}, lambda _: None), lambda _, error: reports.append(error)
    ) as gate:
        runner = _Runner()
        session = gate.open(terms, outlet or runner.outlet)
        runner.session = session
        made = Rig(session, gate.authority_pem, events, asked, reports)
        try:
            for port in (PROXY_PORT, *(one.local_port for one in rules if one.local_port)):
                made.ports[port] = await runner.listen(port)
            yield made
        finally:
            await session.close()
            await runner.close()


class _Runner:
    """The sandbox's end of the frames, on sockets of this machine."""

    def __init__(self) -> None:
        self.session: EgressSession | None = None
        self._servers: list[asyncio.Server] = []
        self._last = 0
        self._open: dict[int, _Connection] = {}

    async def listen(self, port: int) -> int:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._last += 1
            connection = _Connection(self._last, reader, writer, self._feed)
            self._open[self._last] = connection
            await connection.run(port)
            self._open.pop(connection.number)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def outlet(self, data: bytes) -> None:
        kind, _ = HEADER.unpack_from(data)
        payload = data[HEADER.size :]
        connection = self._open.get(struct.unpack_from(">I", payload)[0])
        if connection is not None:
            await connection.take(FrameType(kind), payload[4:])

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for connection in list(self._open.values()):
            connection.end()
        for server in self._servers:
            await server.wait_closed()

    def _feed(self, kind: FrameType, payload: bytes) -> None:
        assert self.session is not None
        self.session.feed(Frame(kind, payload))


class _Connection:
    def __init__(
        self,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        feed: Callable[[FrameType, bytes], None],
    ) -> None:
        self.number = number
        self._reader = reader
        self._writer = writer
        self._feed = feed
        self._window = WINDOW_BYTES
        self._wider = asyncio.Event()
        self._theirs_ended = asyncio.Event()
        self._over = False

    async def run(self, port: int) -> None:
        self._say(FrameType.EGRESS_OPEN, struct.pack(">H", port))
        try:
            await self._upwards()
            self._say(FrameType.EGRESS_CLOSE, b"\0")
            await self._theirs_ended.wait()
        except OSError:
            pass
        finally:
            self.end()
            self._say(FrameType.EGRESS_CLOSE, b"\1")

    async def _upwards(self) -> None:
        while not self._over and (data := await self._reader.read(65536)):
            at = 0
            while at < len(data) and not self._over:
                while not self._window and not self._over:
                    self._wider.clear()
                    await self._wider.wait()
                piece = data[at : at + self._window]
                at += len(piece)
                self._window -= len(piece)
                if piece and not self._over:
                    self._say(FrameType.EGRESS_DATA, piece)
        if self._over:
            raise ConnectionResetError

    async def take(self, kind: FrameType, payload: bytes) -> None:
        if self._over:
            return
        if kind is FrameType.EGRESS_DATA:
            with contextlib.suppress(OSError):
                self._writer.write(payload)
                await self._writer.drain()
                self._say(FrameType.EGRESS_CREDIT, struct.pack(">I", len(payload)))
        elif kind is FrameType.EGRESS_CREDIT:
            self._window += struct.unpack(">I", payload)[0]
            self._wider.set()
        elif payload == b"\0":
            self._theirs_ended.set()
            with contextlib.suppress(OSError):
                self._writer.write_eof()
        else:
            self.end()

    def end(self) -> None:
        if not self._over:
            self._over = True
            self._wider.set()
            self._theirs_ended.set()
            self._reader.feed_eof()
            if self._writer.transport.get_write_buffer_size():
                self._writer.transport.abort()
            else:
                self._writer.close()

    def _say(self, kind: FrameType, payload: bytes) -> None:
        self._feed(kind, struct.pack(">I", self.number) + payload)
