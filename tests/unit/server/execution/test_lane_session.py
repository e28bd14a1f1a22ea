from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_runner import wire
from callgate_server.execution.framing import encode_cancel
from callgate_server.execution.lane_board import LaneKey, Slot
from callgate_server.execution.lane_session import Lane, LaneSession, SessionEnd
from callgate_server.execution.sandbox import ExitReport, LaneTerms
from callgate_server.model.answer import SandboxInfo
from callgate_server.model.manifest import Limits, Run
from support.stages import exit_frame

HELLO = wire.encode_document(wire.HELLO, {"wire": 1})
SEAL = wire.encode(wire.SEAL, bytes(32))
BYE = wire.encode(wire.BYE, b"")
REGULAR = SEAL + wire.encode(wire.STDOUT, b"x" * 1000) + exit_frame() + wire.encode(wire.RESULT, b"1") + BYE
IRREGULAR = {
    "a kill at the deadline": exit_frame(cause="timed_out", code=None, signal=9),
    "cancelled": exit_frame(cause="cancelled", code=None, signal=9),
    "a flood": exit_frame(cause="output_flood", code=None, signal=9),
    "a signal": exit_frame(code=None, signal=11),
    "somebody was killed for memory": exit_frame(oom_kills=1),
    "an exit that is none": wire.encode(wire.EXIT, b"[]"),
    "no exit at all": b"",
}
KEY = LaneKey("acme", "sha256:2", None, Limits(), LaneTerms("sha256:1", Run(command=("/bin/true",)), ()))


class Speaking:
    """A sandbox that says the given pieces, and ends."""

    id = "fake"
    info = SandboxInfo("fake", "fake", "fork")
    alive = True

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)
        self.sent = b""
        self.kills = 0

    async def receive(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    async def send(self, data: bytes) -> None:
        self.sent += data

    async def wait_exit(self, timeout_s: float) -> ExitReport:
        return ExitReport(137, oom_killed=True, evidence="")

    async def kill(self) -> None:
        self.kills += 1

    async def destroy(self) -> None:
        raise AssertionError("a session does not remove its lane")


def session_on(*pieces: bytes) -> tuple[LaneSession, Lane, list[LaneSession]]:
    lane = Lane(Speaking(*pieces), Slot(KEY, 100))
    returned: list[LaneSession] = []

    async def take_back(session: LaneSession) -> None:
        returned.append(session)

    return LaneSession(lane, take_back), lane, returned


async def pieces_of(session: LaneSession) -> AsyncIterator[bytes]:
    while data := await session.receive():
        yield data


async def everything(session: LaneSession) -> bytes:
    return b"".join([data async for data in pieces_of(session)])


@given(cuts=st.lists(st.integers(1, 200), max_size=40))
def test_a_session_ends_at_its_last_byte_however_it_is_cut(cuts: list[int]) -> None:
    stream, end, taken = REGULAR + HELLO, SessionEnd(), 0
    for size in [*cuts, len(stream)]:
        portion = stream[taken : taken + size]
        ours = end.feed(portion)
        taken += ours
        if ours < len(portion) or end.over:
            break
    assert (taken, end.over, end.regular) == (len(REGULAR), True, True)


@pytest.mark.parametrize("what", IRREGULAR)
def test_only_a_tool_that_ended_by_itself_is_regular(what: str) -> None:
    end = SessionEnd()
    stream = SEAL + IRREGULAR[what] + BYE
    assert end.feed(stream) == len(stream)
    assert end.over
    assert not end.regular


def test_a_failure_that_the_tool_reports_itself_is_regular() -> None:
    end = SessionEnd()
    end.feed(SEAL + exit_frame(code=3) + BYE)
    assert end.regular


def test_without_a_farewell_nothing_is_regular() -> None:
    end = SessionEnd()
    end.feed(SEAL + exit_frame())
    assert not end.over
    assert not end.regular


@given(data=st.binary(max_size=300))
def test_garbage_is_passed_on_and_not_judged(data: bytes) -> None:
    end = SessionEnd()
    assert 0 <= end.feed(data) <= len(data)
    assert not end.regular


async def test_what_follows_the_end_is_kept_for_the_next_session() -> None:
    session, lane, _ = session_on(HELLO + REGULAR[:50], REGULAR[50:] + HELLO)
    assert await everything(session) == HELLO + REGULAR
    assert session.regular
    await lane.ready()
    assert lane.pending == HELLO
    following = LaneSession(lane, session._give_back)
    assert await following.receive() == HELLO


async def test_ready_is_one_whole_hello_and_nothing_else() -> None:
    for pieces in ((HELLO + SEAL,), (SEAL,)):
        _, lane, _ = session_on(*pieces)
        with pytest.raises(ValueError, match="hello"):
            await lane.ready()
    _, lane, _ = session_on(HELLO[:-1])
    with pytest.raises(ConnectionError):
        await lane.ready()


async def test_after_its_end_a_session_reaches_the_lane_no_more() -> None:
    session, lane, _ = session_on(REGULAR + HELLO)
    await everything(session)
    with pytest.raises(ConnectionError):
        await session.send(b"late")
    assert await session.receive() == b""
    assert lane.pending == HELLO
    await session.destroy()
    assert lane.sandbox.sent == b""  # type: ignore[attr-defined]


async def test_a_killed_session_is_not_regular_whatever_was_said() -> None:
    session, lane, _ = session_on(REGULAR)
    await session.kill()
    await everything(session)
    assert not session.regular
    assert lane.sandbox.kills == 1  # type: ignore[attr-defined]


async def test_asking_how_it_ended_before_the_end_makes_it_irregular() -> None:
    session, _, _ = session_on(REGULAR)
    await session.wait_exit(1)
    await everything(session)
    assert not session.regular


async def test_a_lane_that_goes_on_is_not_waited_for() -> None:
    """A tool's own status of 137 looks like a kill, of which the sandbox may know more: but only one that ends."""
    session, _, _ = session_on(SEAL + exit_frame(code=137) + BYE)
    await everything(session)
    assert (await session.wait_exit(1)).exit_code is None
    assert session.regular
    ending, _, _ = session_on(SEAL + exit_frame(code=None, signal=9) + BYE)
    await everything(ending)
    assert (await ending.wait_exit(1)).oom_killed


async def test_it_is_given_back_once() -> None:
    session, _, returned = session_on(REGULAR)
    assert session.unused
    await session.destroy()
    await session.destroy()
    assert returned == [session]


async def test_a_session_that_heard_or_said_anything_was_used() -> None:
    heard, _, _ = session_on(HELLO)
    await heard.receive()
    said, lane, _ = session_on()
    await said.send(b"secret")
    assert not heard.unused
    assert not said.unused
    assert lane.sandbox.sent == b"secret"  # type: ignore[attr-defined]


async def test_after_a_cancellation_a_lane_serves_nobody_even_if_the_call_ended_by_itself() -> None:
    """The runner may hear of it only when the next session has begun."""
    session, lane, _ = session_on(HELLO, REGULAR + HELLO)
    await session.send(b"the call")
    await session.receive()
    await session.send(encode_cancel())
    await everything(session)
    assert lane.pending == HELLO
    assert not session.regular


async def test_a_session_lives_as_long_as_its_lane_and_its_turn() -> None:
    session, lane, _ = session_on(HELLO)
    assert session.alive
    lane.sandbox.alive = False
    assert not session.alive
    lane.sandbox.alive = True
    await session.destroy()
    assert not session.alive
