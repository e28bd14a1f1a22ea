"""The first thing that is said in a sandbox: the runner's greeting, alone and whole."""

from typing import Protocol

from callgate_server.execution.framing import HEADER, FrameDecoder, FrameType, decode_hello


class Wire(Protocol):
    async def receive(self) -> bytes: ...


async def greeting(sandbox: Wire) -> bytes:
    """Wait for the runner's greeting and return its bytes. The runner can do nothing else until it is spoken to.

    Raises:
        ConnectionError: the wire ended or broke.
        ValueError: this is no greeting, or there is more than the greeting.
    """
    decoder, received = FrameDecoder(), b""
    while True:
        data = await sandbox.receive()
        if not data:
            raise ConnectionError("the wire ended before the greeting")
        received += data
        for frame in decoder.feed(data):
            if frame.type is not FrameType.HELLO or len(received) != HEADER.size + len(frame.payload):
                raise ValueError("the runner did not open with hello")
            decode_hello(frame.payload)
            return received
