"""One container with its wire: bytes in and out, its end, its removal."""

import asyncio
import contextlib
import json
import select
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from docker.errors import APIError, DockerException

from callgate_server.backends.docker.engine import Engine, EngineClient
from callgate_server.backends.docker.failure import exit_report, unknown_exit
from callgate_server.backends.docker.stream import AttachStream
from callgate_server.execution.sandbox import ExitReport
from callgate_server.model.answer import SandboxInfo

RECEIVE_LIMIT: Final = 256 * 1024
# An answer waits for a kill: with an engine that hangs, it must still come within seconds of the deadline.
KILL_S: Final = 3.0
# How long a container may take to end by itself before it is removed with whatever runs in it.
ENDING_S: Final = 1.0
# Already gone, or somebody is removing it this moment.
_GONE: Final = (404, 409)
_KILLED: Final = 137
_NOTICE_S: Final = 0.3


class DockerSandbox:
    """A started container. `forget` is called once, when nothing more is owed to it."""

    def __init__(
        self,
        container_id: str,
        info: SandboxInfo,
        wire: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        engine: Engine,
        *,
        end_s: float,
        forget: Callable[[], None],
    ) -> None:
        self._id = container_id
        self._info = info
        self._reader, self._writer = wire
        self._engine = engine
        self._end_s = end_s
        self._forget = forget
        self._stream = AttachStream()
        self._destroyed = False

    @property
    def id(self) -> str:
        return self._id

    @property
    def info(self) -> SandboxInfo:
        return self._info

    @property
    def alive(self) -> bool:
        """Whether the engine still holds its end of the wire. Asked of the kernel: unread last words hide an end."""
        if self._destroyed or self._writer.is_closing():
            return False
        poll = select.poll()
        poll.register(self._writer.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return not poll.poll(0)

    async def send(self, data: bytes) -> None:
        """Write to the wire; waits while the sandbox does not read.

        Raises:
            ConnectionError: the wire is gone.
        """
        if not self._writer.is_closing():
            self._writer.write(data)
            await self._writer.drain()
        # Asked afterwards too: a drain that was waiting when the wire was cut returns as if all were written.
        if self._writer.is_closing():
            raise ConnectionError("the sandbox's wire is closed")

    async def receive(self) -> bytes:
        """Return the next bytes of the wire, or b"" at its end.

        Raises:
            ConnectionError: the wire broke.
        """
        while True:
            data = await self._reader.read(RECEIVE_LIMIT)
            if not data:
                # The engine shuts its side only: what is still written would wait for a reader for ever.
                self._cut()
                if not self._stream.at_border:
                    raise ConnectionError("the engine's stream was cut")
                return b""
            if wire := self._stream.feed(data):
                return wire

    async def wait_exit(self, timeout_s: float) -> ExitReport:
        """Report how the container ended, after at most `timeout_s`. Never raises."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._engine.run(partial(_wait, self._id, timeout_s), timeout_s)
                state = await self._engine.run(partial(_state, self._id), timeout_s)
        except (DockerException, OSError) as error:
            return unknown_exit(error, self._stream.diagnostics)
        return exit_report(state, self._stream.diagnostics)

    async def kill(self) -> None:
        """Kill everything in the container. Never raises."""
        try:
            await self._engine.run(partial(_kill, self._id), min(KILL_S, self._end_s))
        except (DockerException, OSError):
            # The other way to end it: the runner ends when its input does.
            self._cut()

    async def destroy(self) -> None:
        """Remove the container. Never raises; what the engine does not remove now, `reap` will."""
        if self._destroyed:
            return
        self._destroyed = True
        await self._let_end()
        self._cut()
        try:
            await self._engine.run(partial(remove, self._id), self._end_s)
        except (DockerException, OSError):
            return
        finally:
            self._forget()

    async def _let_end(self) -> None:
        """Close its input and give it a moment to end by itself, which the runner does at once.

        Removing what still runs has the engine start a program to kill it: as much work as a small call. That the
        engine ends the stream is its word that the container has ended.
        """
        with contextlib.suppress(OSError, RuntimeError):
            async with asyncio.timeout(ENDING_S):
                if not self._writer.is_closing():
                    self._writer.write_eof()
                    while await self._reader.read(RECEIVE_LIMIT):
                        pass

    def _cut(self) -> None:
        # Not `close`, which first waits until everything is written.
        self._writer.transport.abort()


def remove(container_id: str, client: EngineClient) -> bool:
    """Remove a container with whatever runs in it; return whether it was this call that did."""
    try:
        client.direct.ask("DELETE", f"/containers/{container_id}?v=1&force=1")
    except APIError as error:
        if error.status_code in _GONE:
            return False
        raise
    return True


def _wait(container_id: str, timeout_s: float, client: EngineClient) -> None:
    client.direct.ask("POST", f"/containers/{container_id}/wait", timeout_s=timeout_s)


def _state(container_id: str, client: EngineClient) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(client.direct.ask("GET", f"/containers/{container_id}/json"))["State"]
    if state.get("ExitCode") == _KILLED and not state.get("OOMKilled"):
        state["OOMKilled"] = _noted_for_memory(container_id, client)
    return state


def _noted_for_memory(container_id: str, client: EngineClient) -> bool:
    """Whether the engine has noted an out-of-memory kill, or does within a moment.

    It hears of the kill and of the end on different ways. Where the end came first, `OOMKilled` stays false for
    ever, but the event is there (moby, daemon/monitor.go).
    """
    wanted = quote(json.dumps({"container": [container_id], "event": ["oom"]}))
    # From its beginning, which is as far as the engine remembers: some hundreds of events.
    until = f"{time.time() + _NOTICE_S:.6f}"
    return client.direct.ask("GET", f"/events?since=1&until={until}&filters={wanted}").strip() != b""


def _kill(container_id: str, client: EngineClient) -> None:
    try:
        client.direct.ask("POST", f"/containers/{container_id}/kill?signal=SIGKILL")
    except APIError as error:
        if error.status_code not in _GONE:
            raise
