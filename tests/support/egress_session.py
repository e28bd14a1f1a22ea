"""The gate's end of a tool's connections, played by a test: what is reached is a function, and nothing is dialled."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from callgate_server.execution.egress import Outlet
from callgate_server.execution.egress_streams import Stream, Streams
from callgate_server.execution.framing import Frame
from callgate_server.model.egress import EgressUsage

# Serves one connection; it ends when this returns.
Answer = Callable[[Stream], Awaitable[None]]


class PlayedSession:
    """A session that hands each connection to the answer of its port. `broken` are ports of those that were cut."""

    def __init__(self, outlet: Outlet, answers: dict[int, Answer]) -> None:
        self._answers = answers
        self._streams = Streams(outlet, self._accept)
        self._tasks: set[asyncio.Task[None]] = set()
        self.accepted: list[Stream] = []
        self.broken: list[int] = []
        self.most_open = 0
        self.closed = False

    def feed(self, frame: Frame) -> None:
        self._streams.feed(frame)
        self.most_open = max(self.most_open, len(self._tasks))

    async def close(self) -> EgressUsage:
        self.closed = True
        for stream in self.accepted:
            await stream.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return EgressUsage(
            connections=len(self.accepted),
            sent_bytes=sum(stream.sent_bytes for stream in self.accepted),
            received_bytes=sum(stream.received_bytes for stream in self.accepted),
        )

    def _accept(self, stream: Stream) -> None:
        self.accepted.append(stream)
        task = asyncio.get_running_loop().create_task(self._serve(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: Stream) -> None:
        try:
            await self._answers[stream.port](stream)
            await stream.finish()
        except ConnectionError:
            self.broken.append(stream.port)


async def echo(stream: Stream) -> None:
    """Send back what comes."""
    while data := await stream.read():
        await stream.write(data)


async def swallow(stream: Stream) -> None:
    """Read to the end, then say how much it was."""
    total = 0
    while data := await stream.read():
        total += len(data)
    await stream.write(str(total).encode())


async def ignore(stream: Stream) -> None:
    """Never read, never write."""
    await asyncio.Event().wait()


async def flood(stream: Stream) -> None:
    """Write as much as is taken, for ever."""
    while True:
        await stream.write(b"x" * 65536)


async def cut(stream: Stream) -> None:
    """Break the connection after its first bytes."""
    await stream.read()
    await stream.abort()


def http(heads: list[bytes], status: str = "200 OK") -> Answer:
    """Answer every request with its own head; `heads` are those that came."""

    async def answer(stream: Stream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = await stream.read()
            if not data:
                return
            head += data
        heads.append(head)
        reply = f"HTTP/1.1 {status}\r\nContent-Length: {len(head)}\r\nConnection: close\r\n\r\n"
        await stream.write(reply.encode() + head)
        with contextlib.suppress(ConnectionError):
            await stream.finish()

    return answer
