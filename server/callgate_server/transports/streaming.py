"""Waiting for a call on behalf of a client that may go away, and sending it what happens meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from callgate_server.execution.running import Running
from callgate_server.model.call import OnDisconnect
from callgate_server.transports.wire import event_to_sse

_T = TypeVar("_T")


class ClientGoneError(Exception):
    """The client went away. Its call goes on."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """Return what `work` returns.

    Raises:
        ClientGoneError: the client went away first, and `work` was given up.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """The events of one call as server-sent events, with a comment line where nothing happens for too long."""

    media_type = "text/event-stream"

    def __init__(
        self,
        running: Running,
        on_disconnect: OnDisconnect,
        heartbeat_s: float,
        *,
        with_text: bool = False,
        after: int = -1,
    ) -> None:
        self.status_code = 200
        self.background = None
        # Proxies that buffer would hold the events back until the end.
        self.init_headers({"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._running = running
        self._on_disconnect = on_disconnect
        self._heartbeat_s = heartbeat_s
        self._with_text = with_text
        self._after = after

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send(send))
        except ClientGoneError:
            if self._on_disconnect is OnDisconnect.CANCEL:
                self._running.cancel()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in _chunks(self._running, self._heartbeat_s, self._after, with_text=self._with_text):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _chunks(running: Running, heartbeat_s: float, after: int, *, with_text: bool) -> AsyncIterator[bytes]:
    events = running.events(after)
    while True:
        try:
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with an event, and with it
            # a client that left.
            async with asyncio.timeout(heartbeat_s):
                event = await anext(events)
        except TimeoutError:
            # The wait was cancelled and its iterator with it; the next one continues after the last event seen.
            events = running.events(after)
            yield b": waiting\n\n"
        except StopAsyncIteration:
            return
        else:
            after = event.seq
            yield event_to_sse(event, with_text=with_text)
