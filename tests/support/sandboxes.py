"""The backends that behavioural suites run against: the machine's engine with runc, and gVisor where it is installed."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from callgate_server.backends.docker.backend import DockerBackend
from callgate_server.backends.docker.engine import connect
from callgate_server.backends.docker.options import DockerOptions
from callgate_server.execution.pool import WarmPool
from callgate_server.execution.pool_policy import Bounds
from callgate_server.execution.sandbox import Sandbox, SandboxBackend, SandboxRequest, Shape
from support.engine import RUNSC, RUNSC_RUNTIME, PrivateEngine
from support.probe_image import ENGINE_URL, probe_image

RUNTIMES = ["runc", "runsc"] if RUNSC else ["runc"]


@dataclass(frozen=True, slots=True)
class Rig:
    """A backend, an image that it can start, and its engine's socket for a second look at what it did."""

    backend: SandboxBackend
    options: DockerOptions
    image: str

    @property
    def runtime(self) -> str:
        return self.options.default_runtime

    def inspect(self, container_id: str) -> dict[str, object]:
        with connect(self.options.socket_url, 10) as client:
            found: dict[str, object] = client.inspect_container(container_id)
            return found

    def containers(self) -> list[str]:
        """Ids of what this backend has on the engine, running or not."""
        with connect(self.options.socket_url, 10) as client:
            label = f"callgate.instance={self.options.instance}"
            return [found["Id"] for found in client.containers(all=True, filters={"label": label})]


@dataclass(frozen=True, slots=True)
class PooledRig(Rig):
    """The same behind a pool; what waits in it for a call is not counted among its containers."""

    given: list[str]

    def containers(self) -> list[str]:
        # Not `super()`: a dataclass with slots is not the class that it was written as.
        return [found for found in Rig.containers(self) if found in self.given]


class _Recorded(WarmPool):
    """A pool that remembers what it gave away."""

    def __init__(self, *arguments: Any, given: list[str], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._given = given

    async def open(self, request: SandboxRequest) -> Sandbox:
        sandbox = await super().open(request)
        self._given.append(sandbox.id)
        return sandbox


@asynccontextmanager
async def pooled(rig: Rig, shape: Shape, *, ready: int) -> AsyncIterator[Rig]:
    """Put a pool before the rig's backend, with so many sandboxes of a shape ready. A probe greets nobody."""

    async def greet(_: Sandbox) -> bytes:
        return b""

    defects: list[BaseException] = []
    given: list[str] = []
    bounds = Bounds(
        sandboxes=8, waiting=8, starts=4, refills=2, per_shape=ready, spare=ready, memory_mb=65536, cpus=64, idle_s=60
    )
    assert isinstance(rig.backend, DockerBackend)
    async with _Recorded(
        rig.backend,
        bounds,
        [shape],
        lambda _, error: defects.append(error),
        lambda _, error: defects.append(error),
        greet=greet,
        given=given,
    ) as pool:
        async with asyncio.timeout(60):
            while sum(pool.figures().ready.values()) < ready:  # noqa: ASYNC110  # there is no event to wait for
                await asyncio.sleep(0.01)
        yield PooledRig(pool, rig.options, rig.image, given)
    assert defects == []


@contextmanager
def rig(runtime: str, image: str | None = None) -> Iterator[Rig]:
    """A backend with a default runtime, for the probe or the image given. gVisor gets an engine of its own, which
    knows it."""
    image = image or probe_image()
    if runtime == "runc":
        with _backend(ENGINE_URL, runtime, image) as made:
            yield made
        return
    with PrivateEngine({"runtimes": {"runsc": RUNSC_RUNTIME}}) as engine:
        engine.load_image(image)
        with _backend(engine.url, runtime, image) as made:
            yield made


@contextmanager
def _backend(url: str, runtime: str, image: str) -> Iterator[Rig]:
    name = f"test-{uuid.uuid4().hex[:12]}"
    options = DockerOptions(instance=name, boot_id="boot", socket_url=url, default_runtime=runtime, images=(image,))
    backend = DockerBackend(options)
    try:
        yield Rig(backend, options, image)
    finally:
        asyncio.run(_finish(backend))


async def _finish(backend: DockerBackend) -> None:
    await backend.reap()
    await backend.close()
