"""The async client. It encodes, waits and decodes; it retries nothing and decides nothing.

Example::

    async with AsyncCallgate("127.0.0.1:9090", token=token) as gateway:
        answer = await gateway.call("python.run", {"code": "print(6 * 7)"}, deadline_s=10)
        print(answer.raise_for_state().stdout.text)

        async for event in gateway.stream("python.run", {"code": "print('live')"}):
            if isinstance(event, OutputChunk):
                print(event.text, end="")
"""

import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc

from callgate import _wire
from callgate._async._channel import Channel
from callgate._dial import Dial, read_ca
from callgate._status import ended_early, from_rpc_error, reading, translating
from callgate._target import choose_tls, parse_target
from callgate.errors import CallRefused
from callgate.types import Accepted, Answer, Answered, CallSummary, Event, OnDisconnect, Tool
from callgate_proto.v1 import gateway_pb2 as pb

DEFAULT_TARGET: Final = "127.0.0.1:9090"
# The longest wall time that a tool can declare: nobody waits longer than a call can take.
_LONGEST_CALL_S: Final = 3600.0
# The gateway needs a moment after the deadline to collect what the tool left behind.
_GRACE_S: Final = 30.0
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,8192}")


class AsyncCallgate:
    """A client of one gateway, for one credential. One connection, opened at the first call and reused.

    Every method may raise `CallRefused` (the gateway said no; nothing ran) and `GatewayUnreachable` (no answer
    came; what became of the request is not known).
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        token: str | None = None,
        tls: bool | None = None,
        ca_file: str | Path | None = None,
        timeout_s: float = 30.0,
        max_answer_bytes: int = 192 * 1024 * 1024,
        send_token_in_clear: bool = False,
    ) -> None:
        """Connect lazily to `target`, `host:port` or `[ipv6]:port`.

        `tls` None means: plaintext on loopback, TLS everywhere else; `ca_file` names the roots to trust instead
        of the built-in ones. `timeout_s` is how long to wait for everything but a call, and `max_answer_bytes`
        how much to take in one answer.

        Raises:
            ValueError: a malformed target or token, or a token that would cross the network in clear.
        """
        where = parse_target(target)
        secure = choose_tls(where, tls=tls, token=token is not None, token_in_clear=send_token_in_clear)
        if token is not None and not _TOKEN.fullmatch(token):
            raise ValueError("the token must be printable ASCII without spaces")
        self._target = target
        self._timeout_s = timeout_s
        self._channel = Channel(Dial(where, secure, read_ca(ca_file) if secure else None, max_answer_bytes))
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)

    def __repr__(self) -> str:
        return f"AsyncCallgate({self._target!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Calls made with `on_disconnect="detach"` go on at the gateway."""
        await self._channel.close()

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        deadline_s: float | None = None,
        on_disconnect: OnDisconnect = "detach",
    ) -> Answer:
        """Run a tool and wait for its answer.

        An answer is returned for every call whose tool was started, whatever became of it: look at `ok`, or use
        `raise_for_state()`. `deadline_s` is when the tool is killed, if nothing smaller is declared for it; its
        partial output still arrives. The same `idempotency_key` with the same arguments does not run twice.

        Raises:
            ValueError: arguments that JSON cannot hold (NaN, circles), or a deadline that is not positive.
            TypeError: arguments that JSON has no type for.
            CallRefused: the tool was not started.
            GatewayUnreachable: no answer came. The exception says whether the call is known to run.
        """
        request = _wire.call_request(
            tool, arguments, idempotency_key=idempotency_key, deadline_s=deadline_s, on_disconnect=on_disconnect
        )
        with translating(self._target):
            response: pb.CallResponse = await self._channel.stub.Call(
                request, timeout=_wait_s(deadline_s), metadata=self._metadata
            )
        with reading(self._target, response.answer.call_id):
            return _wire.answer(response.answer)

    def stream(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        deadline_s: float | None = None,
        on_disconnect: OnDisconnect = "detach",
    ) -> AsyncIterator[Event]:
        """Run a tool and follow it: `Accepted`, any number of `OutputChunk`, and `Answered` as the last event.

        A stored answer has no `Accepted`; that of a repeated call in progress names the first. Leaving the iteration
        early is a disconnect, see `on_disconnect`. Takes and raises the same as `call()`; a refusal is raised at
        the first step of the iteration.
        """
        request = _wire.call_request(
            tool, arguments, idempotency_key=idempotency_key, deadline_s=deadline_s, on_disconnect=on_disconnect
        )
        return self._events(pb.StreamCallRequest(call=request), _wait_s(deadline_s))

    async def get(self, call_id: str) -> Answer | CallSummary:
        """Show one call of this caller: its answer, or how far it is."""
        with translating(self._target):
            response: pb.GetCallResponse = await self._channel.stub.GetCall(
                pb.GetCallRequest(call_id=call_id), timeout=self._timeout_s, metadata=self._metadata
            )
        with reading(self._target, call_id):
            return _wire.call_state(response)

    async def cancel(self, call_id: str) -> Answer | CallSummary:
        """Ask a running call to end, wait for that, and show it. A call that has ended stays as it is."""
        with translating(self._target):
            response: pb.CancelCallResponse = await self._channel.stub.CancelCall(
                pb.CancelCallRequest(call_id=call_id), timeout=self._timeout_s, metadata=self._metadata
            )
        with reading(self._target, call_id):
            return _wire.call_state(response)

    async def calls(self, limit: int = 50) -> list[CallSummary]:
        """List the newest calls of this caller, newest first; never more than 200."""
        with translating(self._target):
            response: pb.ListCallsResponse = await self._channel.stub.ListCalls(
                pb.ListCallsRequest(limit=limit), timeout=self._timeout_s, metadata=self._metadata
            )
        with reading(self._target):
            return [_wire.summary(message) for message in response.calls]

    async def tools(self) -> list[Tool]:
        """List the tools of which some call by this caller could be allowed, by name."""
        with translating(self._target):
            response: pb.ListToolsResponse = await self._channel.stub.ListTools(
                pb.ListToolsRequest(), timeout=self._timeout_s, metadata=self._metadata
            )
        with reading(self._target):
            return [_wire.tool(message) for message in response.tools]

    async def tool(self, name: str) -> Tool:
        """Show one tool with its schemas and limits."""
        with translating(self._target):
            response: pb.GetToolResponse = await self._channel.stub.GetTool(
                pb.GetToolRequest(tool=name), timeout=self._timeout_s, metadata=self._metadata
            )
        with reading(self._target):
            return _wire.tool(response.tool)

    async def _events(self, request: pb.StreamCallRequest, wait_s: float) -> AsyncIterator[Event]:
        call_id: str | None = None
        responses = self._channel.stub.StreamCall(request, timeout=wait_s, metadata=self._metadata)
        try:
            async for response in responses:
                with reading(self._target, call_id):
                    event = _wire.event(response)
                if isinstance(event, CallRefused):
                    raise event
                if isinstance(event, Accepted):
                    call_id = event.call_id
                if event is not None:
                    yield event
                if isinstance(event, Answered):
                    return
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._target, call_id) from error
        finally:
            responses.cancel()
        raise ended_early(self._target, call_id)


def _wait_s(deadline_s: float | None) -> float:
    """How long to listen: a little longer than the call can take, or partial output would be missed."""
    return (_LONGEST_CALL_S if deadline_s is None else deadline_s) + _GRACE_S
