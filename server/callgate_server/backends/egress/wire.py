"""HTTP/1.1 on a pipe, either side of it. h11 decides what is a message; this reads and writes it."""

from collections.abc import AsyncIterator
from typing import Final

import h11

from callgate_server.backends.egress.pipes import FailedError, Pipe
from callgate_server.execution.egress_rules import Why

# Of a request or an answer before its body.
_HEAD_BYTES: Final = 65536


class HttpWire:
    """One side of a connection.

    What the other side gets wrong is `FailedError` with `blame`; a broken pipe is whatever the pipe raises.
    """

    def __init__(self, role: type[h11.CLIENT] | type[h11.SERVER], pipe: Pipe, blame: Why) -> None:
        self._machine = h11.Connection(role, _HEAD_BYTES)
        self._pipe = pipe
        self._blame = blame

    @property
    def may_answer(self) -> bool:
        """Whether this side, a server, has said nothing yet to the request it has."""
        return self._machine.our_state in (h11.IDLE, h11.SEND_RESPONSE)

    @property
    def heard_all(self) -> bool:
        """Whether the other side's message has ended, so that another may follow."""
        return self._machine.their_state not in (h11.SEND_BODY, h11.ERROR)

    @property
    def awaits_continue(self) -> bool:
        """Whether the client waits for a word before it sends the body."""
        return self._machine.they_are_waiting_for_100_continue and self.may_answer

    @property
    def trailing(self) -> bytes:
        """What came after the last message."""
        return self._machine.trailing_data[0]

    async def next(self) -> h11.Event:
        """Return the next event of the other side.

        Raises:
            FailedError: it is none.
        """
        while True:
            try:
                event = self._machine.next_event()
            except h11.RemoteProtocolError as error:
                raise FailedError(self._blame) from error
            if event is h11.NEED_DATA:
                self._machine.receive_data(await self._pipe.read())
            elif isinstance(event, h11.Event):
                return event
            else:
                raise FailedError(self._blame)

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body that follows a head. Trailers are dropped.

        Raises:
            FailedError: it is cut short, or malformed.
        """
        while isinstance(event := await self.next(), h11.Data):
            yield bytes(event.data)
        if not isinstance(event, h11.EndOfMessage):
            raise FailedError(self._blame)

    async def send(self, *events: h11.Event) -> None:
        """Send events, in one piece.

        Raises:
            FailedError: they cannot be sent as things stand.
        """
        try:
            data = b"".join(self._machine.send(event) or b"" for event in events)
        except h11.LocalProtocolError:
            # The library quotes headers, and one of them may be a secret.
            raise FailedError(Why.BAD_ANSWER) from None
        if data:
            await self._pipe.write(data)

    def next_cycle(self) -> bool:
        """Make ready for another request, if both sides are through with this one and the connection may stay."""
        if self._machine.our_state is not h11.DONE or self._machine.their_state is not h11.DONE:
            return False
        self._machine.start_next_cycle()
        return True
