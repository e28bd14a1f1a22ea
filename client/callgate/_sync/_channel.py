"""The sync channel: one of the two pieces that are written twice, because gRPC's async and sync halves differ."""

import time

import grpc

from callgate._dial import Dial
from callgate_proto.v1.gateway_pb2_grpc import GatewayStub


class Channel:
    """A channel that opens at once: it connects in the background, and threads may share it."""

    def __init__(self, dial: Dial) -> None:
        address, options = dial.target.address, dial.options()
        if dial.secure:
            self._channel = grpc.secure_channel(address, dial.credentials(), options)
        else:
            self._channel = grpc.insecure_channel(address, options)
        self._stub = GatewayStub(self._channel)  # type: ignore[no-untyped-call]  # generated code
        self._closed = False

    @property
    def stub(self) -> GatewayStub:
        """What calls the gateway.

        Raises:
            ValueError: the channel is closed.
        """
        if self._closed:
            raise ValueError("the client is closed")
        return self._stub

    def close(self) -> None:
        """Close the connection; calls that still wait are given up."""
        self._closed = True
        self._channel.close()


def pause(seconds: float) -> None:
    """Wait, in this thread."""
    time.sleep(seconds)
