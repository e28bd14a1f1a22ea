"""The engine behind its circuit breaker: while that is open, nothing is started on it, for calls or ahead of them.

It stands between the backend and those who start sandboxes on it, the pool and the lanes: so it counts the engine's
own work and not what became of a tool in it, and those who start in the background meet the breaker like everybody.
A sandbox that is ready is still given to a call while the breaker is open. It has been started, its runner has
greeted, the kernel is asked whether its wire is whole at the moment it is given away, and there are few of them: where
the engine only fails to start new ones, they work; where it hangs, they fare no worse than what runs already. A
breaker that an operator opened lets no call through, to whatever sandbox.

Removing what is left over, and asking how the engine is, go on: they are how one learns that it is back.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from callgate_server.execution import faults
from callgate_server.execution.breakers import ENGINE, Breakers
from callgate_server.execution.sandbox import (
    Confinement,
    ExitReport,
    Health,
    Sandbox,
    SandboxBackend,
    SandboxRequest,
    Shape,
)
from callgate_server.model.answer import SandboxInfo
from callgate_server.model.call import Deadline


class EngineBackend(Protocol):
    """A backend of one engine: what pool, lanes and calls stand on."""

    async def open(self, request: SandboxRequest) -> Sandbox: ...

    async def start(self, shape: Shape, deadline: Deadline) -> Sandbox: ...

    def confinement(self, shape: Shape) -> Confinement: ...

    async def reap(self) -> int: ...

    async def health(self) -> Mapping[str, Health]: ...

    async def close(self) -> None: ...

    def reconnect(self) -> None:
        """Use no connection any more that is open to the engine now, and believe nothing that it said before."""


class GuardedStarts:
    """Implements `SandboxBackend`, `AnonymousStarts` and `LaneBackend` on another one."""

    def __init__(self, backend: EngineBackend, breakers: Breakers) -> None:
        self._backend = backend
        self._breakers = breakers

    async def open(self, request: SandboxRequest) -> Sandbox:
        """Start a sandbox for one call, or a lane.

        Raises:
            CallError: `circuit_open`, and as the backend's own.
        """
        return await self._guarded(lambda: self._backend.open(request))

    async def start(self, shape: Shape, deadline: Deadline) -> Sandbox:
        """Start a sandbox for nobody in particular.

        Raises:
            CallError: `circuit_open`, and as the backend's own.
        """
        return await self._guarded(lambda: self._backend.start(shape, deadline))

    def confinement(self, shape: Shape) -> Confinement:
        return self._backend.confinement(shape)

    async def reap(self) -> int:
        return await self._backend.reap()

    async def health(self) -> Mapping[str, Health]:
        return await self._backend.health()

    async def close(self) -> None:
        await self._backend.close()

    async def _guarded(self, start: Callable[[], Awaitable[Sandbox]]) -> Sandbox:
        async with self._breakers.guard(ENGINE, faults.ENGINE) as passage:
            if passage.probe:
                self._backend.reconnect()
            sandbox = await start()
        return _Observed(sandbox, lambda: self._breakers.failed(ENGINE))


class _Observed:
    """A sandbox whose loss counts where it is the engine's: the wire ended by itself, and nobody can say how it did.

    No tool can bring that about: of what ended in a sandbox, an engine that works knows the exit status.
    """

    def __init__(self, sandbox: Sandbox, lost: Callable[[], None]) -> None:
        self._sandbox = sandbox
        self._lost = lost
        self._wire_ended = self._killed = False

    @property
    def id(self) -> str:
        return self._sandbox.id

    @property
    def info(self) -> SandboxInfo:
        return self._sandbox.info

    @property
    def alive(self) -> bool:
        return self._sandbox.alive

    async def send(self, data: bytes) -> None:
        await self._sandbox.send(data)

    async def receive(self) -> bytes:
        try:
            data = await self._sandbox.receive()
        except ConnectionError:
            self._wire_ended = True
            raise
        self._wire_ended = not data
        return data

    async def wait_exit(self, timeout_s: float) -> ExitReport:
        by_itself = self._wire_ended and not self._killed
        report = await self._sandbox.wait_exit(timeout_s)
        if by_itself and report.exit_code is None:
            # Once: whoever asks again learns no more.
            self._wire_ended = False
            self._lost()
        return report

    async def kill(self) -> None:
        # What ends from here on was ended by us.
        self._killed = True
        await self._sandbox.kill()

    async def destroy(self) -> None:
        await self._sandbox.destroy()


@dataclass(frozen=True, slots=True)
class StoppedByHand:
    """Implements `SandboxBackend`: while an operator keeps the engine's breaker open, no call gets any sandbox."""

    backend: SandboxBackend
    breakers: Breakers

    async def open(self, request: SandboxRequest) -> Sandbox:
        """Open a sandbox.

        Raises:
            CallError: `circuit_open`, and as the backend's own.
        """
        self.breakers.refuse_if_stopped(ENGINE)
        return await self.backend.open(request)

    async def reap(self) -> int:
        return await self.backend.reap()

    async def health(self) -> Mapping[str, Health]:
        return await self.backend.health()

    async def close(self) -> None:
        await self.backend.close()
