import time

import grpc
import pytest

from callgate._dial import Dial
from callgate._sync._channel import Channel, pause
from callgate._target import parse_target
from callgate_proto.v1 import gateway_pb2 as pb
from support.fake_gateway import TOKEN, FakeGateway

METADATA = (("authorization", f"Bearer {TOKEN}"),)


def dial(target: str, *, secure: bool = False) -> Dial:
    return Dial(parse_target(target), secure, None, 1 << 20)


def test_the_channel_is_reused(fake: FakeGateway) -> None:
    channel = Channel(dial(fake.target))
    assert channel.stub is channel.stub
    assert channel.stub.ListTools(pb.ListToolsRequest(), metadata=METADATA).tools
    channel.close()


def test_a_closed_channel_stays_closed() -> None:
    channel = Channel(dial("127.0.0.1:9"))
    channel.close()
    with pytest.raises(ValueError, match="closed"):
        _ = channel.stub


def test_a_secure_channel_does_not_fall_back_to_plaintext(fake: FakeGateway) -> None:
    channel = Channel(dial(fake.target, secure=True))
    with pytest.raises(grpc.RpcError) as caught:
        channel.stub.ListTools(pb.ListToolsRequest(), metadata=METADATA, timeout=10)
    channel.close()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert fake.metadata == []


def test_a_pause_lasts() -> None:
    began = time.monotonic()
    pause(0.02)
    assert time.monotonic() - began >= 0.015
