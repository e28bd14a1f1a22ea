"""What `/readyz` shows: which parts work, looked up in the background so that asking costs nothing."""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from callgate_server.backends.sqlite.ledger import SqliteLedger
from callgate_server.backends.telemetry import Reading, Telemetry
from callgate_server.execution.running import RunningCalls
from callgate_server.execution.sandbox import Health, SandboxBackend
from callgate_server.model.errors import CallError
from callgate_server.observe.lag import LoopLag
from callgate_server.transports.gate import Readiness

# Without these the gateway cannot serve any call; others fail only the calls that need them.
ESSENTIAL: Final = ("engine", "runtime", "ledger")
_WOKEN_EVERY_S: Final = 0.1


class Reporting(Protocol):
    """A part that can say how it is."""

    async def health(self) -> Mapping[str, Health]:
        """The state of each of its components. Never raises."""
        ...


class HealthBoard:
    """Anybody may read that, so that it is names only; why something fails and what to do is in the log."""

    def __init__(
        self,
        ledger: SqliteLedger,
        parts: Sequence[Reporting],
        sandboxes: SandboxBackend,
        running: RunningCalls,
        telemetry: Telemetry,
        *,
        only_keys: bool,
    ) -> None:
        """`only_keys`: nobody calls without an API key, so that their file is essential too."""
        self._ledger = ledger
        self._parts = parts
        self._sandboxes = sandboxes
        self._essential = (*ESSENTIAL, "api_keys") if only_keys else ESSENTIAL
        self._running = running
        self._telemetry = telemetry
        self._components: dict[str, Health] = {}
        self._census: Mapping[str, int] = {}
        self._lag = LoopLag()
        telemetry.readings(self._readings)
        telemetry.gauge("loop_stall_seconds", "Worst stall of the event loop lately", self._worst_stall_s)
        telemetry.gauge("loop_stalls", "Stalls of the event loop since the start", lambda: self._lag.stalls)

    async def look(self) -> None:
        components = dict(await self._sandboxes.health())
        for part in self._parts:
            components |= await part.health()
        components["ledger"] = await self._ledger_health()
        for name, health in components.items():
            known = self._components.get(name)
            if not health.ok and (known is None or known.ok):
                self._telemetry.warning("a component does not work", component=name, detail=health.detail)
        self._components = components
        with contextlib.suppress(CallError):  # the record's own state says it
            self._census = await self._ledger.census()

    async def keep_time(self) -> None:
        """Notice when the loop is held by something. Returns after each look."""
        due_s = time.monotonic() + _WOKEN_EVERY_S
        await asyncio.sleep(_WOKEN_EVERY_S)
        before = self._lag.stalls
        self._lag.woken(due_s, time.monotonic())
        if self._lag.stalls > before:
            self._telemetry.warning("the event loop was held", seconds=round(self._worst_stall_s(), 3))

    async def readiness(self) -> Readiness:
        draining = self._running.draining
        components = {name: health.ok for name, health in self._components.items()} | {
            "accepting": not draining,
            "loop": not self._worst_stall_s(),
        }
        essential = all(components.get(name, False) for name in self._essential)
        return Readiness(essential and not draining, components)

    def _readings(self) -> Iterable[Reading]:
        text = "Calls that wait for their turn or for an approval, and dead letters"
        yield Reading("gauge", "kept_calls", text, dict(self._census), "state")

    def _worst_stall_s(self) -> float:
        return self._lag.worst_s(time.monotonic())

    async def _ledger_health(self) -> Health:
        try:
            await self._ledger.probe()
        except CallError as error:
            return Health(ok=False, detail=error.message)
        return Health(ok=True, detail="writes work")
