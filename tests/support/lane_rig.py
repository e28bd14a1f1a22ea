"""Lanes on the machine's engine, with the real runner and a tool that runs a test's code: no gateway around them."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from callgate_server.backends.docker.backend import DockerBackend
from callgate_server.backends.docker.engine import connect
from callgate_server.backends.docker.options import DockerOptions
from callgate_server.execution.cancellation import Cancellation
from callgate_server.execution.lane_board import LaneRules
from callgate_server.execution.lanes import Lanes
from callgate_server.execution.sandbox import LaneTerms, Sandbox, SandboxRequest
from callgate_server.execution.supervise import supervise
from callgate_server.model.manifest import Limits, Run, SecretRef
from callgate_server.model.run import DeliveredSecret, Job, RunOutcome
from support.names import NAMES
from support.probe import request_for
from support.probe_image import ENGINE_URL, runner_image

PROBE = Run(python="probe:run")
LIMITS = Limits(scratch_mb=16, artifacts=4, artifacts_kb=64)
# Several times what a start and a removal take.
_GONE_S = 30


@dataclass
class LaneRig:
    """Lanes and the backend that they stand on. `defects` is what they reported, and should stay empty."""

    lanes: Lanes
    backend: DockerBackend
    options: DockerOptions
    image: str
    defects: list[BaseException] = field(default_factory=list)
    last: str = ""

    def request(self, *, limits: Limits = LIMITS, run: Run = PROBE, **fields: Any) -> SandboxRequest:
        secrets: tuple[SecretRef, ...] = fields.pop("secrets", ())
        terms = LaneTerms(fields.pop("tool_digest", "sha256:1"), run, secrets)
        return request_for(self.image, limits=limits, lane=terms, **fields)

    async def call(
        self,
        arguments: dict[str, Any],
        *,
        request: SandboxRequest | None = None,
        secrets: tuple[DeliveredSecret, ...] = (),
        cancelled: Cancellation | None = None,
    ) -> RunOutcome:
        """Make one call. `last` is then the container that served it."""
        request = request or self.request()
        assert request.lane is not None
        sandbox: Sandbox = await self.lanes.open(request)
        self.last = sandbox.id
        try:
            job = Job(
                request.lane.run, json.dumps(arguments).encode(), secrets, request.limits, request.deadline, NAMES
            )
            return await supervise(
                sandbox, job, on_output=lambda _name, _data: None, cancelled=cancelled or Cancellation()
            )
        finally:
            await sandbox.destroy()

    async def run(self, code: str, **named: Any) -> RunOutcome:
        """Run code in the next cell."""
        return await self.call({"code": code}, **named)

    async def result(self, code: str, **named: Any) -> Any:
        """Run code that must succeed; return what it left in `result`."""
        outcome = await self.run(code, **named)
        assert outcome.exit.code == 0, (outcome.detail, outcome.stderr.head.decode())
        assert outcome.result_json is not None
        return json.loads(outcome.result_json)

    def processes(self) -> list[int]:
        """Host's ids of all processes of the lane that served last: runner, zygote, cell, in this order."""
        marked = [path for path in Path("/proc").glob("[0-9]*/cgroup") if self.last in _read(path)]
        # By age and not by number alone: numbers start again when they have run out.
        return sorted((int(path.parent.name) for path in marked), key=lambda pid: (_started(pid), pid))

    def containers(self) -> list[str]:
        with connect(self.options.socket_url, 10) as client:
            label = f"callgate.instance={self.options.instance}"
            return [found["Id"] for found in client.containers(all=True, filters={"label": label})]


@asynccontextmanager
async def lane_rig(*, own: str = "", **rules: Any) -> AsyncIterator[LaneRig]:
    """Lanes by the given rules. `own` is the source of a module of tools, for `run` of a request."""
    options = DockerOptions(instance=f"lanes-{uuid.uuid4().hex[:12]}", boot_id="boot", socket_url=ENGINE_URL)
    backend = DockerBackend(options)
    defects: list[BaseException] = []
    image = await asyncio.to_thread(runner_image, own)
    try:
        async with Lanes(backend, LaneRules(**rules), lambda _where, error: defects.append(error)) as lanes:
            made = LaneRig(lanes, backend, options, image, defects)
            yield made
        # One whose start was given up goes by itself, as soon as the engine has made it.
        give_up = time.monotonic() + _GONE_S
        while made.containers() and time.monotonic() < give_up:  # noqa: ASYNC110  # the engine tells nobody
            await asyncio.sleep(0.05)
        assert made.containers() == []
        assert defects == []
    finally:
        await backend.reap()
        await backend.close()


def _started(pid: int) -> int:
    """When a process began, in ticks since the host's start: proc_pid_stat(5)."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 else 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
