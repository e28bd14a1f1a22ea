"""What a tool says on one connection to the proxy: CONNECT, plain requests, or requests inside TLS that ends here.

Decides the order of things: a request is understood whole before it is judged, judged before anything is dialled,
and answered by the gate itself where nothing is. Each request is a decision of its own, on whatever connection it
comes; a redirect is an answer like any other, and following it another request.
"""

import asyncio
from typing import Final

import h11

from callgate_server.backends.egress.authority import Authority
from callgate_server.backends.egress.checkpoint import Admission, Checkpoint
from callgate_server.backends.egress.credentials import Stripper
from callgate_server.backends.egress.hello import HelloReader
from callgate_server.backends.egress.messages import (
    connect_ask,
    has_body,
    is_readable,
    plain_answer,
    request_ask,
    request_headers,
    response_for_tool,
)
from callgate_server.backends.egress.meter import Metered, Trip
from callgate_server.backends.egress.pipes import FailedError, Pipe, RefusedError
from callgate_server.backends.egress.relay import relay
from callgate_server.backends.egress.tls import EndedTls
from callgate_server.backends.egress.wire import HttpWire
from callgate_server.execution.egress_rules import Why
from callgate_server.model.egress import EgressAsk

# What a tool may still send after the last answer, so that it can read that answer in peace.
_LINGER_BYTES: Final = 1024 * 1024


class Conversation:
    """The requests of one connection, one after the other."""

    def __init__(
        self,
        pipe: Pipe,
        checkpoint: Checkpoint,
        authority: Authority,
        stripper: Stripper | None,
        trip: Trip,
        mark: str,
        *,
        inside: tuple[str, int] | None = None,
    ) -> None:
        """`mark` is the call's. `inside` is the host and port whose TLS `pipe` is; None for the proxy's own port."""
        self._pipe = pipe
        self._checkpoint = checkpoint
        self._authority = authority
        self._stripper = stripper
        self._trip = trip
        self._mark = mark
        self._inside = inside
        self._tool = HttpWire(h11.SERVER, pipe, Why.BAD_REQUEST)
        self._upstream: HttpWire | None = None
        self._head = False

    async def run(self) -> None:
        """Answer until the tool has no more requests, or one leaves the connection unfit for another.

        Raises:
            ConnectionError: the tool's connection broke.
            FailedError: an answer that had begun cannot be ended.
        """
        more = True
        while more:
            more = await self._next() and self._tool.next_cycle()
        await self._checkpoint.close(self._trip)
        await self._pipe.finish()
        if self._inside is None:
            await self._linger()

    async def _next(self) -> bool:
        """Handle one request; False when there is none."""
        self._head = False
        try:
            event = await self._tool.next()
            if not isinstance(event, h11.Request):
                return False
            # Its answer has no body, the gate's own neither.
            self._head = event.method == b"HEAD"
            await self._handle(event)
        except RefusedError as refused:
            await self._checkpoint.refuse(refused)
            await self._say("egress_refused", refused.why, refused.retry_after_s)
        except FailedError as failed:
            await self._checkpoint.close(self._trip, failed.why)
            if not self._tool.may_answer:
                raise
            if failed.why is Why.BAD_REQUEST:
                await self._checkpoint.refuse(RefusedError(failed.why, self._nowhere()))
                await self._say("egress_refused", failed.why)
            else:
                await self._say("egress_failed", failed.why)
        return True

    async def _handle(self, request: h11.Request) -> None:
        if spent := self._checkpoint.spending.request():
            raise RefusedError(spent, self._nowhere())
        if not has_body(request):
            await self._tool.next()
        if request.method == b"CONNECT" and self._inside is None:
            await self._connect(connect_ask(request))
        else:
            await self._exchange(request)

    def _nowhere(self) -> EgressAsk:
        return EgressAsk("http", "", 0) if self._inside is None else EgressAsk("https", *self._inside)

    async def _connect(self, ask: EgressAsk) -> None:
        if self._checkpoint.must_see(ask):
            await self._tool.send(_established())
            await self._inner(ask)
            return
        admission = await self._checkpoint.admit(ask)
        with admission.passing():
            upstream = await self._checkpoint.dial(admission, self._trip, tls=False)
            await self._tool.send(_established())
            await upstream.write(await self._hello(ask.host))
            await relay(self._pipe, upstream, admission.answered)

    async def _hello(self, host: str) -> bytes:
        """Return the beginning of a tunnel, once it is known to be TLS for its host."""
        reader, hello = HelloReader(host), self._tool.trailing
        try:
            complete = bool(hello) and reader.feed(hello)
            while not complete:
                data = await self._pipe.read()
                complete = reader.feed(data)
                hello += data
        except ValueError as error:
            raise FailedError(Why.OTHER_NAME) from error
        return hello

    async def _inner(self, ask: EgressAsk) -> None:
        tls = EndedTls(self._pipe, self._authority.context(ask.host), self._tool.trailing)
        try:
            await tls.handshake()
        except ConnectionError:
            await self._checkpoint.refuse(RefusedError(Why.TLS_FAILED, ask))
            raise
        inner = Conversation(
            tls, self._checkpoint, self._authority, self._stripper, self._trip, self._mark, inside=(ask.host, ask.port)
        )
        await inner.run()

    async def _exchange(self, request: h11.Request) -> None:
        ask, target = request_ask(request, self._inside)
        held = self._held(ask)
        admission = await self._checkpoint.admit(ask, held.address if held else None)
        with admission.passing():
            await self._forward(request, target, admission, held)

    async def _forward(self, request: h11.Request, target: bytes, admission: Admission, held: Metered | None) -> None:
        """Send what was admitted, and bring the answer, on the connection that is `held` or on a new one."""
        ask, upstream = admission.ask, self._upstream
        if held is None or upstream is None:
            await self._checkpoint.close(self._trip)
            link = await self._checkpoint.dial(admission, self._trip, tls=ask.scheme == "https")
            self._upstream = upstream = HttpWire(h11.CLIENT, link, Why.BAD_ANSWER)
        headers = request_headers(request, ask, admission.header)
        await upstream.send(h11.Request(method=request.method, target=target, headers=headers))
        if self._tool.awaits_continue:
            await self._tool.send(h11.InformationalResponse(status_code=100, headers=[]))
        await self._both_ways(upstream, admission, body=has_body(request))
        if upstream.trailing or not upstream.next_cycle():
            await self._checkpoint.close(self._trip)

    def _held(self, ask: EgressAsk) -> Metered | None:
        """The open connection to the same place, if the upstream has left it open."""
        for link in self._trip.links:
            if (link.ask.scheme, link.ask.host, link.ask.port) == (ask.scheme, ask.host, ask.port) and link.usable:
                return link
        return None

    async def _both_ways(self, upstream: HttpWire, admission: Admission, *, body: bool) -> None:
        """Send the body while the answer may already come. The end of the answer ends both."""
        try:
            async with asyncio.TaskGroup() as group:
                upload = group.create_task(self._upload(upstream, body=body))
                await self._download(upstream, admission)
                upload.cancel()
        except BaseExceptionGroup as both:
            raise both.exceptions[0] from None

    async def _upload(self, upstream: HttpWire, *, body: bool) -> None:
        try:
            if body:
                async for data in self._tool.body():
                    await upstream.send(h11.Data(data=data))
            await upstream.send(h11.EndOfMessage())
        except FailedError as failed:
            # Who has answered need not listen to the rest; without an answer, the other direction will say so.
            if failed.why is not Why.BROKEN_OFF:
                raise

    async def _download(self, upstream: HttpWire, admission: Admission) -> None:
        event = await self._response(upstream, admission)
        admission.answered(event.status_code)
        head = admission.ask.method == "HEAD"
        if admission.header is not None and not is_readable(event, head=head):
            raise FailedError(Why.ENCODED_ANSWER)
        stripper = self._stripper
        strip = None if stripper is None else stripper.data
        await self._tool.send(response_for_tool(event, head=head, strip=strip))
        stream = None if stripper is None else stripper.stream()
        async for data in upstream.body():
            if shown := data if stream is None else stream.feed(data):
                await self._tool.send(h11.Data(data=shown))
        rest = b"" if stream is None else stream.finish()
        await self._tool.send(*([h11.Data(data=rest)] if rest else []), h11.EndOfMessage())

    async def _response(self, upstream: HttpWire, admission: Admission) -> h11.Response:
        """Wait for an answer. What an upstream says before it is of this connection, or only a hint."""
        try:
            async with self._trip.silence():
                event = await upstream.next()
                while isinstance(event, h11.InformationalResponse):
                    event = await upstream.next()
        except TimeoutError as error:
            if not self._tool.heard_all:
                admission.unasked()
            raise FailedError(Why.IDLE) from error
        if not isinstance(event, h11.Response):
            raise FailedError(Why.BAD_ANSWER)
        return event

    async def _say(self, error: str, why: Why, retry_after_s: float | None = None) -> None:
        response, body = plain_answer(
            error, why, self._mark, last=not self._tool.heard_all, retry_after_s=retry_after_s
        )
        await self._tool.send(response, *([] if self._head else [h11.Data(data=body)]), h11.EndOfMessage())

    async def _linger(self) -> None:
        """Wait for the tool to be through with what it was sent: with the connection it would lose the rest."""
        read = 0
        while data := await self._pipe.read():
            read += len(data)
            if read > _LINGER_BYTES:
                raise ConnectionAbortedError("the tool goes on after the end")


def _established() -> h11.Response:
    return h11.Response(status_code=200, headers=[], reason=b"Connection established")
