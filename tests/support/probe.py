"""A sandbox of the real backend with a probe in place of the runner: code runs where a tool would run."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any

from callgate_server.execution.sandbox import Sandbox, SandboxBackend, SandboxRequest
from callgate_server.model.call import Deadline
from callgate_server.model.identifiers import new_call_id
from callgate_server.model.manifest import Limits


def request_for(image: str, *, deadline_s: float = 60, **fields: Any) -> SandboxRequest:
    values: dict[str, Any] = {
        "call_id": new_call_id(),
        "tenant": "acme",
        "tool": "probe.run",
        "image_digest": image,
        "runtime": None,
        "limits": Limits(),
        "deadline": Deadline(monotonic() + deadline_s),
        "deadline_at": datetime.now(UTC) + timedelta(seconds=deadline_s),
    }
    return SandboxRequest(**{**values, **fields})


class Probe:
    """Runs programs in one sandbox, one after the other, in process 1."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._rest = b""

    async def run(self, program: str, *, timeout_s: float = 60) -> Any:
        """Return what the program hands to `answer`."""
        await self.sandbox.send(json.dumps(program).encode() + b"\n")
        async with asyncio.timeout(timeout_s):
            return json.loads(await self._line())

    async def _line(self) -> bytes:
        while b"\n" not in self._rest:
            data = await self.sandbox.receive()
            if not data:
                report = await self.sandbox.wait_exit(5)
                raise AssertionError(f"the probe ended before it answered: {report}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line


@asynccontextmanager
async def probe(backend: SandboxBackend, request: SandboxRequest) -> AsyncIterator[Probe]:
    sandbox = await backend.open(request)
    try:
        yield Probe(sandbox)
    finally:
        await sandbox.destroy()
