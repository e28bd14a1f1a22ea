"""Streams, by example, against any frames, and against a model of an honest runner on a wire with any delays."""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callgate_runner import egress as runner
from callgate_runner import wire
from callgate_server.execution import egress_streams as module
from callgate_server.execution.egress_streams import MOST_CONNECTIONS, MOST_OPEN, WINDOW_BYTES, Stream, Streams
from callgate_server.execution.framing import Frame, FrameDecoder, FrameType

FRAMES = json.loads((Path(__file__).parents[4] / "proto/callgate_proto/frames.json").read_text())
CHUNK = wire.CHUNK


def opened(number: int, port: int = 3128) -> bytes:
    return wire.encode(wire.EGRESS_OPEN, runner._OPEN.pack(number, port))


def data(number: int, content: bytes) -> bytes:
    return wire.encode(wire.EGRESS_DATA, wire.EGRESS_HEAD.pack(number) + content)


def credit(number: int, count: int) -> bytes:
    return wire.encode(wire.EGRESS_CREDIT, runner._CREDIT.pack(number, count))


def no_more(number: int) -> bytes:
    return runner._close_frame(number, runner.NO_MORE)


def over(number: int) -> bytes:
    return runner._close_frame(number, runner.OVER)


class Gate:
    """Streams whose outlet keeps what it is given."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, bytes]] = []
        self.accepted: list[Stream] = []
        self.gone = False
        self.streams = Streams(self._outlet, self.accepted.append)

    async def _outlet(self, frame: bytes) -> None:
        if self.gone:
            raise ConnectionResetError
        self.sent += wire.Decoder().feed(frame)

    def feed(self, *frames: bytes) -> None:
        for frame in FrameDecoder().feed(b"".join(frames)):
            self.streams.feed(frame)

    def opened(self) -> Stream:
        self.feed(opened(len(self.accepted) + 1))
        return self.accepted[-1]

    def fill(self) -> Stream:
        """Return a stream whose window is full of the tool's bytes."""
        stream = self.opened()
        self.feed(*[data(stream.id, b"x" * CHUNK)] * (WINDOW_BYTES // CHUNK))
        return stream


async def soon(work: Coroutine[Any, Any, Any]) -> Any:
    async with asyncio.timeout(5):
        return await work


async def blocked(work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    """Start something that has to wait, and return it waiting."""
    task = asyncio.get_running_loop().create_task(work)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


def test_the_limits_are_those_of_the_description() -> None:
    limits = FRAMES["limits"]
    assert (
        limits["egress_window_bytes"],
        limits["egress_open"],
        limits["egress_connections"],
    ) == (WINDOW_BYTES, MOST_OPEN, MOST_CONNECTIONS)


async def test_a_connection_is_accepted_with_its_port_and_bytes_pass_both_ways() -> None:
    gate = Gate()
    gate.feed(opened(1, 5432), data(1, b"a"), data(1, b"b"))
    (stream,) = gate.accepted
    assert (stream.id, stream.port) == (1, 5432)
    assert await soon(stream.read()) == b"ab"
    await stream.write(b"answer")
    assert gate.sent == [(wire.EGRESS_DATA, b"\0\0\0\1answer")]
    assert (stream.sent_bytes, stream.received_bytes) == (2, 6)


async def test_a_reader_waits_for_bytes_and_hears_of_the_end() -> None:
    gate = Gate()
    stream = gate.opened()
    reading = await blocked(stream.read())
    gate.feed(data(1, b"x"))
    assert await soon(reading) == b"x"
    reading = await blocked(stream.read())
    gate.feed(no_more(1))
    assert await soon(reading) == b""
    assert await soon(stream.read()) == b""


async def test_half_an_end_leaves_the_other_direction() -> None:
    gate = Gate()
    stream = gate.opened()
    gate.feed(no_more(1))
    await stream.write(b"still")
    await stream.finish()
    await stream.finish()
    assert gate.sent[1:] == [(wire.EGRESS_CLOSE, b"\0\0\0\1\0")]
    other = gate.opened()
    await other.finish()
    gate.feed(data(2, b"more"))
    assert await soon(other.read()) == b"more"
    with pytest.raises(RuntimeError):
        await other.write(b"x")


async def test_a_tool_that_closed_in_order_is_read_to_its_end_and_not_written_to() -> None:
    gate = Gate()
    stream = gate.opened()
    gate.feed(data(1, b"last words"), no_more(1), over(1))
    with pytest.raises(ConnectionError):
        await stream.write(b"x")
    assert await soon(stream.read()) == b"last words"
    assert await soon(stream.read()) == b""
    assert gate.sent == []


async def test_a_connection_that_the_tool_broke_is_not_read_as_if_complete() -> None:
    gate = Gate()
    stream = gate.opened()
    gate.feed(data(1, b"half of it"), over(1))
    with pytest.raises(ConnectionError):
        await soon(stream.read())


async def test_the_end_wakes_who_waits() -> None:
    gate = Gate()
    stream = gate.opened()
    await stream.write(b"x" * WINDOW_BYTES)
    reading, writing = await blocked(stream.read()), await blocked(stream.write(b"y"))
    gate.feed(over(1))
    for task in (reading, writing):
        with pytest.raises(ConnectionError):
            await soon(task)


async def test_an_abort_is_said_once_and_what_crosses_it_is_dropped() -> None:
    gate = Gate()
    stream = gate.opened()
    reading = await blocked(stream.read())
    await stream.abort()
    await stream.abort()
    await stream.finish()
    assert gate.sent == [(wire.EGRESS_CLOSE, b"\0\0\0\1\1")]
    with pytest.raises(ConnectionError):
        await soon(reading)
    gate.feed(data(1, b"crossed"), no_more(1), over(1))
    assert stream.sent_bytes == 0
    with pytest.raises(ConnectionError):
        await soon(stream.read())
    with pytest.raises(ValueError, match="not open"):
        gate.feed(data(1, b"x"))


async def test_all_are_aborted_even_when_the_wire_is_gone() -> None:
    gate = Gate()
    streams = [gate.opened(), gate.opened()]
    gate.gone = True
    for stream in streams:
        await stream.abort()
    for stream in streams:
        with pytest.raises(ConnectionError):
            await stream.write(b"x")


async def test_a_lost_wire_is_an_error_of_the_connection() -> None:
    gate = Gate()
    stream = gate.fill()
    gate.gone = True
    for work in (stream.write(b"x"), stream.finish()):
        with pytest.raises(ConnectionError):
            await work
    with pytest.raises(ConnectionError):
        for _ in range(4):
            await soon(stream.read())


async def test_the_tool_may_send_more_only_as_it_is_read() -> None:
    gate = Gate()
    stream = gate.fill()
    with pytest.raises(ValueError, match="beyond its window"):
        gate.feed(data(1, b"x"))
    assert len(await soon(stream.read())) == CHUNK
    assert gate.sent == []
    await soon(stream.read())
    assert gate.sent == [(wire.EGRESS_CREDIT, runner._CREDIT.pack(1, CHUNK))]
    gate.feed(data(1, b"x" * CHUNK))
    with pytest.raises(ValueError, match="beyond its window"):
        gate.feed(data(1, b"x"))


async def test_a_writer_waits_for_the_tool_to_take_what_it_got() -> None:
    gate = Gate()
    stream = gate.opened()
    writing = await blocked(stream.write(b"x" * (WINDOW_BYTES + 10)))
    assert sum(len(payload) - 4 for _, payload in gate.sent) == WINDOW_BYTES
    gate.feed(credit(1, 3))
    await asyncio.sleep(0)
    gate.feed(credit(1, CHUNK))
    await soon(writing)
    assert [len(payload) - 4 for _, payload in gate.sent[-2:]] == [3, 7]
    assert max(len(payload) for _, payload in gate.sent) == CHUNK + 4


async def test_a_reader_that_was_cancelled_loses_neither_bytes_nor_credit() -> None:
    stuck = asyncio.Event()
    sent: list[bytes] = []

    async def outlet(frame: bytes) -> None:
        await stuck.wait()
        sent.append(frame)

    accepted: list[Stream] = []
    streams = Streams(outlet, accepted.append)
    for frame in FrameDecoder().feed(opened(1) + data(1, b"x" * CHUNK) + data(1, b"y")):
        streams.feed(frame)
    assert len(await soon(accepted[0].read())) == CHUNK
    reading = await blocked(accepted[0].read())
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reading
    stuck.set()
    assert await soon(accepted[0].read()) == b"y"
    assert len(sent) == 1


@pytest.mark.parametrize(
    "frames",
    [
        [opened(0)],
        [opened(2)],
        [opened(1), opened(1)],
        [opened(1), opened(3)],
        [opened(1), over(1), opened(1)],
        [data(1, b"x")],
        [data(0, b"x")],
        [opened(1), data(2, b"x")],
        [opened(1), no_more(1), data(1, b"x")],
        [opened(1), no_more(1), no_more(1)],
        [opened(1), over(1), over(1)],
        [opened(1), over(1), no_more(1)],
        [opened(1), over(1), credit(1, 1)],
        [opened(1), credit(1, 1)],
        [opened(1), credit(1, 0)],
        [opened(1), credit(1, 2**32 - 1)],
        [opened(number) for number in range(1, MOST_OPEN + 2)],
    ],
)
def test_what_breaks_the_protocol_is_refused(frames: list[bytes]) -> None:
    gate = Gate()
    gate.feed(*frames[:-1])
    with pytest.raises(ValueError, match="connection"):
        gate.feed(frames[-1])


async def test_an_abort_does_not_lift_the_window() -> None:
    gate = Gate()
    stream = gate.fill()
    await stream.abort()
    with pytest.raises(ValueError, match="beyond its window"):
        gate.feed(data(1, b"x"))


async def test_aborted_connections_count_until_the_runner_has_ended_them() -> None:
    gate = Gate()
    for _ in range(MOST_OPEN):
        await gate.opened().abort()
    with pytest.raises(ValueError, match="one too many"):
        gate.opened()


def test_the_number_of_connections_of_one_call_is_bounded() -> None:
    gate = Gate()
    for number in range(1, MOST_CONNECTIONS + 1):
        gate.feed(opened(number), over(number))
    with pytest.raises(ValueError, match="one too many"):
        gate.opened()


SMALL = st.integers(0, 4)
ANY = st.one_of(
    st.builds(opened, SMALL, st.integers(0, 65535)),
    st.builds(data, SMALL, st.sampled_from([b"x", b"x" * CHUNK])),
    st.builds(credit, SMALL, st.integers(0, 2**32 - 1)),
    st.builds(no_more, SMALL),
    st.builds(over, SMALL),
    st.builds(lambda number: wire.encode(wire.EGRESS_CLOSE, runner._CLOSE.pack(number, 7)), SMALL),
)


@given(frames=st.lists(ANY, max_size=60))
def test_whatever_comes_is_refused_or_stays_within_the_windows(frames: list[bytes]) -> None:
    gate = Gate()
    for frame in frames:
        with contextlib.suppress(ValueError):
            gate.feed(frame)
        assert len(gate.streams._open) <= MOST_OPEN
        assert all(len(stream._buffer) <= WINDOW_BYTES for stream in gate.accepted)
        assert all(0 <= stream._window <= WINDOW_BYTES for stream in gate.accepted)


@pytest.mark.parametrize("kind", [FrameType.STDOUT, FrameType.BYE])
def test_frames_of_other_kinds_are_not_for_it(kind: FrameType) -> None:
    with pytest.raises(ValueError, match="not of egress"):
        Gate().streams.feed(Frame(kind, b"x"))


# --- an honest runner ------------------------------------------------------------------------------------------

# What either side says, by position, so that a lost or repeated byte shows.
PATTERN = bytes(range(251)) * 8000


class Peer:
    """One connection as the runner sees it: `sent` to the gate, `got` from it, `taken` by the tool."""

    def __init__(self) -> None:
        self.window = WINDOW_BYTES
        self.sent = 0
        self.got = 0
        self.taken = 0
        self.granted = 0
        self.ended = False
        self.gate_ended = False
        self.over = False


class World:
    """The real streams, a model of the runner, and between them a wire that delivers when it is told to."""

    def __init__(self) -> None:
        self.to_gate: deque[bytes] = deque()
        self.to_runner: deque[tuple[int, bytes]] = deque()
        self.peers: dict[int, Peer] = {}
        self.accepted: dict[int, Stream] = {}
        self.streams = Streams(self._outlet, lambda stream: self.accepted.update({stream.id: stream}))
        self.read: dict[int, int] = {}
        self.written: dict[int, int] = {}
        self.tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self.aborted: set[int] = set()

    async def _outlet(self, frame: bytes) -> None:
        self.to_runner.extend(wire.Decoder().feed(frame))

    # The runner's side.

    def open(self, _: int, __: int) -> None:
        if sum(not peer.over for peer in self.peers.values()) < MOST_OPEN:
            number = len(self.peers) + 1
            self.peers[number] = Peer()
            self.to_gate.append(opened(number))

    def send(self, number: int, size: int) -> None:
        peer = self.peers[number]
        size = min(size, peer.window)
        if size and not (peer.ended or peer.over):
            self.to_gate.append(data(number, PATTERN[peer.sent : peer.sent + size]))
            peer.sent += size
            peer.window -= size

    def end(self, number: int, _: int) -> None:
        peer = self.peers[number]
        if not (peer.ended or peer.over):
            peer.ended = True
            self.to_gate.append(no_more(number))
            self._over_if_done(number)

    def take(self, number: int, size: int) -> None:
        peer = self.peers[number]
        peer.taken = min(peer.got, peer.taken + size)
        if peer.taken - peer.granted and not peer.over:
            self.to_gate.append(credit(number, peer.taken - peer.granted))
            peer.granted = peer.taken
            self._over_if_done(number)

    def reset(self, number: int, _: int) -> None:
        self._over(number)

    def hear(self, _: int, __: int) -> None:
        """Let the runner take the next frame of the gate."""
        if not self.to_runner:
            return
        kind, payload = self.to_runner.popleft()
        number = wire.EGRESS_HEAD.unpack_from(payload)[0]
        peer = self.peers[number]
        if peer.over:
            return
        if kind == wire.EGRESS_DATA:
            content = payload[wire.EGRESS_HEAD.size :]
            assert not peer.gate_ended
            assert content == PATTERN[peer.got : peer.got + len(content)]
            peer.got += len(content)
            assert peer.got - peer.granted <= WINDOW_BYTES
        elif kind == wire.EGRESS_CREDIT:
            peer.window += runner._CREDIT.unpack(payload)[1]
            assert peer.window <= WINDOW_BYTES
        elif runner._CLOSE.unpack(payload)[1] == runner.NO_MORE:
            peer.gate_ended = True
            self._over_if_done(number)
        else:
            self._over(number)

    def _over_if_done(self, number: int) -> None:
        peer = self.peers[number]
        if peer.ended and peer.gate_ended and peer.taken == peer.got:
            self._over(number)

    def _over(self, number: int) -> None:
        if not self.peers[number].over:
            self.peers[number].over = True
            self.to_gate.append(over(number))

    # The gate's side.

    def deliver(self, _: int, __: int) -> None:
        """Let the gate take the next frame of the runner: it never has anything to object to."""
        if self.to_gate:
            for frame in FrameDecoder().feed(self.to_gate.popleft()):
                self.streams.feed(frame)
        assert len(self.streams._open) <= MOST_OPEN
        assert all(len(stream._buffer) <= WINDOW_BYTES for stream in self.accepted.values())

    def read_some(self, number: int, _: int) -> None:
        self._start("read", number, self._read(number))

    def write_some(self, number: int, size: int) -> None:
        self._start("write", number, self._write(number, size))

    def finish(self, number: int, _: int) -> None:
        self._start("write", number, self._finish(number))

    def abort(self, number: int, _: int) -> None:
        self.aborted.add(number)
        self._start("abort", number, self._abort(number))

    async def _read(self, number: int) -> None:
        with contextlib.suppress(ConnectionError):
            content = await self.accepted[number].read()
            start = self.read.get(number, 0)
            assert content == PATTERN[start : start + len(content)]
            self.read[number] = start + len(content)

    async def _write(self, number: int, size: int) -> None:
        start = self.written.get(number, 0)
        with contextlib.suppress(ConnectionError, RuntimeError):
            await self.accepted[number].write(PATTERN[start : start + size])
            self.written[number] = start + size

    async def _finish(self, number: int) -> None:
        await self.accepted[number].finish()

    async def _abort(self, number: int) -> None:
        await self.accepted[number].abort()

    def _start(self, what: str, number: int, work: Coroutine[Any, Any, None]) -> None:
        """One reader and one writer at a time, as the streams ask for."""
        running = self.tasks.get((what, number))
        if number not in self.accepted or (running is not None and not running.done()):
            work.close()
            return
        if running is not None:
            running.result()
        self.tasks[what, number] = asyncio.get_running_loop().create_task(work)

    def progress(self) -> object:
        accepted = [(number, stream.sent_bytes) for number, stream in self.accepted.items()]
        return [vars(peer).copy() for peer in self.peers.values()], accepted, dict(self.read)

    async def settle(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)


RUNNER_STEPS = [World.open, World.send, World.end, World.take, World.reset, World.hear]
GATE_STEPS = [World.deliver, World.read_some, World.write_some, World.finish, World.abort]
# Ends are rarer than the rest, or nothing would ever be under way.
STEPS = st.sampled_from(
    [
        *[World.send, World.take, World.hear, World.hear, World.deliver, World.deliver] * 3,
        *[World.read_some, World.write_some] * 3,
        *(RUNNER_STEPS + GATE_STEPS),
    ]
)
SIZES = st.sampled_from([1, 1000, CHUNK - 1, CHUNK])


async def play(steps: list[tuple[Any, int, int]]) -> World:
    world = World()
    world.open(0, 0)
    for step, pick, size in steps:
        step(world, 1 + pick % len(world.peers), size)
        await world.settle()
    return world


async def bring_home(world: World) -> None:
    """Let both sides do all that they still can."""
    before: object = None
    while before != (now := world.progress()) or world.to_gate or world.to_runner:
        before = now
        for number in list(world.peers):
            world.take(number, WINDOW_BYTES)
            world.read_some(number, 0)
        await world.settle()
        for _ in range(20):
            world.hear(0, 0)
            world.deliver(0, 0)
        await world.settle()


@settings(max_examples=100)
@given(steps=st.lists(st.tuples(STEPS, st.integers(0, 3), SIZES), min_size=20, max_size=120))
def test_an_honest_runner_is_never_refused_and_no_byte_is_lost(steps: list[tuple[Any, int, int]]) -> None:
    async def whole() -> None:
        world = await play(steps)
        unbroken = [number for number, peer in world.peers.items() if not peer.over and number not in world.aborted]
        await bring_home(world)
        for number in unbroken:
            stream, peer = world.accepted[number], world.peers[number]
            assert stream.sent_bytes == world.read.get(number, 0) == peer.sent
            assert stream.received_bytes == peer.got == peer.taken == world.written.get(number, 0)
            world.reset(number, 0)
        for number in world.peers:
            world.abort(number, 0)
        await bring_home(world)
        assert world.streams._open == {}
        for task in world.tasks.values():
            assert task.done()
            task.result()

    asyncio.run(whole())


def test_credit_comes_before_the_window_is_used_up() -> None:
    assert module._CREDIT_STEP <= WINDOW_BYTES // 2
    assert runner._CREDIT_STEP <= WINDOW_BYTES // 2
