import pytest

from callgate_runner import wire
from callgate_server.execution.greeting import greeting
from callgate_server.execution.sandbox import ExitReport
from callgate_server.model.answer import SandboxInfo

HELLO = wire.encode_document(wire.HELLO, {"wire": 1})


class Speaking:
    """A sandbox that says the given pieces, and ends."""

    id = "fake"
    info = SandboxInfo("fake", "fake", "container")
    alive = True

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    async def receive(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    async def send(self, data: bytes) -> None:
        raise AssertionError("who is greeted says nothing")

    async def wait_exit(self, timeout_s: float) -> ExitReport:
        raise AssertionError

    async def kill(self) -> None:
        raise AssertionError

    async def destroy(self) -> None:
        raise AssertionError


@pytest.mark.parametrize("cut", range(len(HELLO)))
async def test_a_greeting_is_heard_in_whatever_pieces_it_comes(cut: int) -> None:
    pieces = [piece for piece in (HELLO[:cut], HELLO[cut:]) if piece]
    assert await greeting(Speaking(*pieces)) == HELLO


@pytest.mark.parametrize(
    "said",
    [
        HELLO + b"\x05",
        HELLO + wire.encode(wire.STDOUT, b"x"),
        wire.encode(wire.STDOUT, b"x"),
        wire.encode_document(wire.HELLO, {"wire": 2}),
        b"\xff\xff\xff\xff\xff",
    ],
)
async def test_anything_but_the_greeting_alone_is_refused(said: bytes) -> None:
    with pytest.raises(ValueError, match=r"hello|wire|frame"):
        await greeting(Speaking(said))


@pytest.mark.parametrize("pieces", [(), (HELLO[:4],)])
async def test_a_wire_that_ends_first_is_a_broken_connection(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(ConnectionError):
        await greeting(Speaking(*pieces))
