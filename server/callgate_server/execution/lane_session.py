"""One lane and the sessions on its wire: where each begins and ends, and whether it ended as it should.

A session looks like a sandbox for one call, so that supervision and pipeline know no difference. It reads along on
the wire, by its headers, to learn where the call's last byte is: what follows belongs to the next session. Whether
the lane may serve again is decided here from what came over the wire and what was asked of the sandbox, and by the
lane's own next hello; either can end it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from callgate_server.execution.framing import HEADER, RECEIVED, FrameType, decode_exit, decode_hello
from callgate_server.execution.greeting import greeting
from callgate_server.execution.lane_board import Slot
from callgate_server.execution.sandbox import ExitReport, Sandbox
from callgate_server.model.answer import SandboxInfo


@dataclass(slots=True, eq=False)
class Lane:
    """A started sandbox that serves one call after another. `pending` came after the end of the last session."""

    sandbox: Sandbox
    slot: Slot
    pending: bytes = b""

    async def ready(self) -> None:
        """Wait for the lane's hello. It stays, for the session that comes.

        Raises:
            ConnectionError: the lane ended instead.
            ValueError: it said something else.
        """
        self.pending = await greeting(self)

    @property
    def cold(self) -> str | None:
        """Of a lane that is ready: why its calls import their tool anew, None where the imports are warm."""
        return decode_hello(self.pending[HEADER.size :])

    async def receive(self) -> bytes:
        """Return the next bytes of the wire.

        Raises:
            ConnectionError: the wire broke.
        """
        if self.pending:
            data, self.pending = self.pending, b""
            return data
        return await self.sandbox.receive()


class SessionEnd:
    """Reads along until the call's last byte. Pure."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._left = 0
        self._kind: int = 0
        self._exit = bytearray()
        self._ended_by_itself = False
        self.over = False

    @property
    def regular(self) -> bool:
        """Whether everything was sent, and the tool ended by itself: by no signal, and nobody ran out of memory."""
        return self.over and self._ended_by_itself

    def feed(self, data: bytes) -> int:
        """Take the next bytes; return how many of them belong to this session."""
        at = 0
        while at < len(data) and not self.over:
            at = self._payload(data, at) if self._left else self._head(data, at)
            if self._kind == FrameType.BYE and not self._left and not self._header:
                self.over = True
        return at

    def _head(self, data: bytes, at: int) -> int:
        portion = data[at : at + HEADER.size - len(self._header)]
        self._header += portion
        if len(self._header) == HEADER.size:
            self._kind, self._left = HEADER.unpack(self._header)
            self._header.clear()
        else:
            self._kind = 0
        return at + len(portion)

    def _payload(self, data: bytes, at: int) -> int:
        size = min(self._left, len(data) - at)
        if self._kind == FrameType.EXIT and len(self._exit) <= RECEIVED[FrameType.EXIT][1]:
            self._exit += data[at : at + size]
            if size == self._left:
                self._judge()
        self._left -= size
        return at + size

    def _judge(self) -> None:
        try:
            ended = decode_exit(bytes(self._exit))
        except ValueError:
            return
        self._ended_by_itself = ended.cause == "ended" and ended.signal is None and not ended.oom_kills


class LaneSession:
    """One call's turn on a lane. Implements `Sandbox`; destroying it gives the lane back, or ends it."""

    def __init__(self, lane: Lane, give_back: Callable[["LaneSession"], Awaitable[None]]) -> None:
        self._lane = lane
        self._give_back = give_back
        self._end = SessionEnd()
        self._touched = False
        self._killed = False
        self._cancelled = False
        self._destroyed = False

    @property
    def id(self) -> str:
        return self._lane.sandbox.id

    @property
    def info(self) -> SandboxInfo:
        return self._lane.sandbox.info

    @property
    def lane(self) -> Lane:
        return self._lane

    @property
    def unused(self) -> bool:
        """Whether nothing of a call came near the lane."""
        return not self._touched and not self._killed

    @property
    def regular(self) -> bool:
        """Whether the lane may serve another call, as far as can be seen from here.

        Not after a cancellation, even if the call had just ended by itself: the runner may hear it only afterwards,
        and then takes it for a fault of the next session.
        """
        return self._end.regular and not self._killed and not self._cancelled

    @property
    def alive(self) -> bool:
        return not self._destroyed and self._lane.sandbox.alive

    async def send(self, data: bytes) -> None:
        """Write to the wire: one frame, or several that begin with another than `cancel`.

        Raises:
            ConnectionError: the wire is gone, or this call's turn is over.
        """
        if self._destroyed or self._end.over:
            raise ConnectionError("the session is over")
        self._touched = True
        self._cancelled = self._cancelled or data[0] == FrameType.CANCEL
        await self._lane.sandbox.send(data)

    async def receive(self) -> bytes:
        """Return the next bytes of this session, b"" at its end.

        Raises:
            ConnectionError: the wire broke.
        """
        if self._destroyed or self._end.over:
            return b""
        self._touched = True
        data = await self._lane.receive()
        ours = self._end.feed(data)
        self._lane.pending = data[ours:]
        return data[:ours]

    async def wait_exit(self, timeout_s: float) -> ExitReport:
        """Report how the lane ended, after at most `timeout_s`; at once where it goes on. Never raises."""
        if self.regular:
            return ExitReport(None, oom_killed=False, evidence="the lane goes on")
        self._killed = self._killed or not self._end.over
        return await self._lane.sandbox.wait_exit(timeout_s)

    async def kill(self) -> None:
        """Kill everything in the lane. Never raises."""
        self._killed = True
        await self._lane.sandbox.kill()

    async def destroy(self) -> None:
        """End this call's turn. Never raises."""
        if self._destroyed:
            return
        self._destroyed = True
        await self._give_back(self)
