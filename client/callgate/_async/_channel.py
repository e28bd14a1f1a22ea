"""The async channel: one of the two pieces that are written twice, because gRPC's async and sync halves differ."""

import asyncio

import grpc

from callgate._dial import Dial
from callgate_proto.v1.gateway_pb2_grpc import GatewayStub


class Channel:
    """A channel that opens at its first use: an asyncio channel belongs to the loop that it is opened in."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._channel: grpc.aio.Channel | None = None
        self._stub: GatewayStub | None = None
        self._closed = False

    @property
    def stub(self) -> GatewayStub:
        """What calls the gateway.

        Raises:
            ValueError: the channel is closed.
        """
        if self._closed:
            raise ValueError("the client is closed")
        if self._stub is None:
            self._channel = self._open()
            self._stub = GatewayStub(self._channel)  # type: ignore[no-untyped-call]  # generated code
        return self._stub

    async def close(self) -> None:
        """Close the connection; calls that still wait are given up."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close(grace=None)

    def _open(self) -> grpc.aio.Channel:
        address, options = self._dial.target.address, self._dial.options()
        if self._dial.secure:
            return grpc.aio.secure_channel(address, self._dial.credentials(), options)
        return grpc.aio.insecure_channel(address, options)


async def pause(seconds: float) -> None:
    """Wait, without holding up whatever else goes on."""
    await asyncio.sleep(seconds)
