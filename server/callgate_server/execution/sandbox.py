"""THE contract of a sandbox backend: start something isolated, give its one wire, tell how it ended.

A backend knows images, limits and bytes. It knows nothing of frames, tools, secrets or policy: `supervise.py`
speaks the protocol over the wire, so that every backend behaves the same. The contract suite in
`tests/contract` runs against every implementation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, Self

from callgate_server.model.answer import SandboxInfo
from callgate_server.model.call import Deadline
from callgate_server.model.manifest import Isolation, Limits, Run, SecretRef


@dataclass(frozen=True, slots=True)
class LaneTerms:
    """What the calls of a lane have in common, beside tenant, image, runtime and limits.

    `tool_digest` covers manifest and image; `secrets` are the tool's references, never values.
    """

    tool_digest: str
    run: Run
    secrets: tuple[SecretRef, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a sandbox is built from, and nothing else: every call of the same shape fits into it.

    The limits are those that are built in; what only the runner counts (output, result, time) comes with the call.
    """

    image_digest: str
    runtime: str | None
    cpu: float
    memory_mb: int
    pids: int
    open_files: int
    scratch_mb: int
    scratch_files: int
    artifacts: int
    artifacts_kb: int
    isolation: Isolation = "container"

    @classmethod
    def of(cls, image_digest: str, runtime: str | None, limits: Limits, isolation: Isolation = "container") -> Self:
        return cls(
            image_digest,
            runtime,
            cpu=limits.cpu,
            memory_mb=limits.memory_mb,
            pids=limits.pids,
            open_files=limits.open_files,
            scratch_mb=limits.scratch_mb,
            scratch_files=limits.scratch_files,
            artifacts=limits.artifacts,
            artifacts_kb=limits.artifacts_kb,
            isolation=isolation,
        )

    def __str__(self) -> str:
        """A name for operators, short enough for a label: two shapes may share it."""
        image = self.image_digest.removeprefix("sha256:")[:12]
        runtime = f"/{self.runtime}" if self.runtime else ""
        return f"{image}/{self.memory_mb}mb/{self.cpu:g}cpu{runtime}"


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """What to start. Everything comes from the catalog and the gateway, nothing from the caller's arguments.

    `image_digest` is `sha256:…`; `runtime` None means the configured default; `deadline` bounds the start,
    `deadline_at` is the same instant in wall time, for the label by which an orphan is recognised. `lane` is given
    for isolation `fork`, and only then.
    """

    call_id: str
    tenant: str
    tool: str
    image_digest: str
    runtime: str | None
    limits: Limits
    deadline: Deadline
    deadline_at: datetime
    lane: LaneTerms | None = None

    @property
    def isolation(self) -> Isolation:
        return "container" if self.lane is None else "fork"

    @property
    def shape(self) -> Shape:
        return Shape.of(self.image_digest, self.runtime, self.limits, self.isolation)


@dataclass(frozen=True, slots=True)
class ExitReport:
    """How the sandbox itself ended, as the backend saw it. None means that it could not be learnt.

    `oom_killed` is the backend's own evidence of an out-of-memory kill, `evidence` a short text for
    operators (never a tool's output).
    """

    exit_code: int | None
    oom_killed: bool
    evidence: str


@dataclass(frozen=True, slots=True)
class Health:
    """State of one component: `ok`, and what to do when it is not."""

    ok: bool
    detail: str


class Sandbox(Protocol):
    """One started sandbox. Not shared between calls.

    The wire is full duplex: one task may `send` while another waits in `receive`; `kill` may come from any.
    """

    @property
    def id(self) -> str:
        """The backend's own name for it."""

    @property
    def info(self) -> SandboxInfo: ...

    @property
    def alive(self) -> bool:
        """Whether nothing has shown that the wire is gone. Costs nothing; what it does not see, reading will."""

    async def send(self, data: bytes) -> None:
        """Write to the wire.

        Raises:
            ConnectionError: the wire is gone.
        """

    async def receive(self) -> bytes:
        """Return the next bytes of the wire, at most 256 KiB, or b"" at its end.

        One task at a time. Cancelling it loses no byte: the next one gets it.

        Raises:
            ConnectionError: the wire broke.
        """

    async def wait_exit(self, timeout_s: float) -> ExitReport:
        """Wait for the sandbox's own end, at most `timeout_s`, and report it. Never raises."""

    async def kill(self) -> None:
        """Stop everything in the sandbox now. Idempotent. Never raises."""

    async def destroy(self) -> None:
        """Remove every trace. Idempotent. Never raises: what could not be removed is left to `reap`."""


class SandboxBackend(Protocol):
    async def open(self, request: SandboxRequest) -> Sandbox:
        """Start a fresh sandbox with the runner as process 1 and its wire attached.

        When it raises, nothing is left behind, or `reap` will find it by label.

        Raises:
            CallError: `sandbox_unavailable` (engine down, slow or refusing), `image_missing` (the pinned
                digest is not here; nothing is ever pulled), `runtime_missing` (never downgraded),
                `deadline_exceeded`.
        """

    async def reap(self) -> int:
        """Remove sandboxes of this instance that no live call owns; return how many. Never another instance's.

        Raises:
            CallError: `sandbox_unavailable`.
        """

    async def health(self) -> Mapping[str, Health]:
        """State of what this backend depends on, by component. Never raises."""

    async def close(self) -> None:
        """Remove every sandbox of this instance that is left, and release connections and threads. Never raises."""


class AnonymousStarts(Protocol):
    """A backend that can start a sandbox before it is known for whom. What `WarmPool` stands on."""

    async def start(self, shape: Shape, deadline: Deadline) -> Sandbox:
        """Start a fresh sandbox that carries nothing of any call or tenant, with its wire attached.

        Everything else is as for `open`, which starts one for a known call.

        Raises:
            CallError: as `open`.
        """

    async def reap(self) -> int: ...

    async def health(self) -> Mapping[str, Health]: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class CellMount:
    """An empty file system in memory that every call of a lane gets for itself. `options` are those of tmpfs."""

    path: str
    options: str
    execute: bool
    writable: bool


@dataclass(frozen=True, slots=True)
class Confinement:
    """What a lane puts each call into: its file systems, and its system call filter for each machine's name."""

    mounts: tuple[CellMount, ...]
    filters: Mapping[str, bytes]


class LaneBackend(Protocol):
    """A backend whose sandboxes can be lanes: a request with isolation `fork` starts one. What `Lanes` stands on."""

    async def open(self, request: SandboxRequest) -> Sandbox:
        """As of `SandboxBackend`."""

    def confinement(self, shape: Shape) -> Confinement:
        """What each call of such a lane is put into."""

    async def reap(self) -> int: ...

    async def close(self) -> None: ...
