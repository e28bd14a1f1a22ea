"""Whether isolation `fork` works on this host, found out before a call needs it: with a real lane, opened for nobody.

A host can refuse lanes in many ways, and some of them show only when one is made. Nothing is decided here: what came
of it is what `Lanes` says of its health, and calls are tried, whatever was found.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Final

from callgate_server.execution.sandbox import LaneTerms, SandboxBackend, SandboxRequest
from callgate_server.model.call import Deadline
from callgate_server.model.catalog import Tool
from callgate_server.model.errors import CallError
from callgate_server.model.identifiers import new_call_id

_WITHIN_S: Final = 30.0
# No caller's tenant is called so: no call is given this lane.
_NOBODY: Final = ""


class ForkTrial:
    """Opens a lane once, and again for as long as none could be opened or the host refuses them."""

    def __init__(self, lanes: SandboxBackend, tool: Tool) -> None:
        self._lanes = lanes
        self._tool = tool
        self._worked = False

    async def look(self) -> None:
        """Open a lane as a call of the tool would, unless it is known that one can be.

        It is given back unused, and goes as idle lanes do: when its room is needed, or after a while.
        """
        if self._worked and all(health.ok for health in (await self._lanes.health()).values()):
            return
        try:
            lane = await self._lanes.open(self._request())
        except CallError:
            # What a host refuses, the health of lanes says; what else is missing, that of what is missing.
            self._worked = False
            return
        self._worked = True
        await lane.destroy()

    def _request(self) -> SandboxRequest:
        manifest = self._tool.manifest
        return SandboxRequest(
            call_id=new_call_id(),
            tenant=_NOBODY,
            tool=self._tool.name,
            image_digest=self._tool.image_digest,
            runtime=manifest.runtime,
            limits=manifest.limits,
            deadline=Deadline(time.monotonic() + _WITHIN_S),
            deadline_at=datetime.now(UTC) + timedelta(seconds=_WITHIN_S),
            lane=LaneTerms(self._tool.digest, manifest.run, manifest.secrets),
        )
