"""What the tests of the client share: a gateway that behaves."""

from collections.abc import Iterator

import pytest

from support.fake_gateway import FakeGateway


@pytest.fixture
def fake() -> Iterator[FakeGateway]:
    with FakeGateway() as gateway:
        yield gateway
