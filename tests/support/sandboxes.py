"""The backends that behavioural suites run against: the machine's engine with runc, and gVisor where it is installed."""

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from callgate_server.backends.docker.backend import DockerBackend
from callgate_server.backends.docker.engine import connect
from callgate_server.backends.docker.options import DockerOptions
from support.engine import RUNSC, RUNSC_RUNTIME, PrivateEngine
from support.probe_image import ENGINE_URL, probe_image

RUNTIMES = ["runc", "runsc"] if RUNSC else ["runc"]


@dataclass(frozen=True, slots=True)
class Rig:
    """A backend, an image that it can start, and its engine's socket for a second look at what it did."""

    backend: DockerBackend
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


@contextmanager
def rig(runtime: str) -> Iterator[Rig]:
    """A backend with a default runtime. gVisor gets an engine of its own, which knows it."""
    image = probe_image()
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
