"""Which isolation level serves a call: the one that its tool has, and no other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from callgate_server.execution.sandbox import Health, Sandbox, SandboxBackend, SandboxRequest


@dataclass(frozen=True, slots=True)
class Levels:
    """Implements `SandboxBackend` by choosing one. Both stand on the same engine, which `container` answers for."""

    container: SandboxBackend
    fork: SandboxBackend

    async def open(self, request: SandboxRequest) -> Sandbox:
        """Open a sandbox of the request's level.

        Raises:
            CallError: as the level's own.
        """
        match request.isolation:
            case "container":
                return await self.container.open(request)
            case "fork":
                return await self.fork.open(request)
            case _:
                assert_never(request.isolation)

    async def reap(self) -> int:
        return await self.container.reap()

    async def health(self) -> Mapping[str, Health]:
        return {**await self.fork.health(), **await self.container.health()}

    async def close(self) -> None:
        await self.container.close()
