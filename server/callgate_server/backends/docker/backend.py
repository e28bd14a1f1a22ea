"""Single-use containers of a Docker engine, as the sandbox contract wants them.

Order of a start: look (runtime and image, remembered), create, attach, start. Attaching comes before starting,
so that no byte of the wire can be missed. Each step has its own time limit inside the call's deadline. What
this process owns is known by name before it is created, so that `reap` can tell a container that came to life
after its call had given up from one that is in use.
"""

import asyncio
import json
import logging
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import quote

from docker.errors import DockerException, ImageNotFound

from callgate_server.backends.docker.engine import Engine, EngineClient
from callgate_server.backends.docker.failure import Step, refusal
from callgate_server.backends.docker.options import DockerOptions
from callgate_server.backends.docker.sandbox import RECEIVE_LIMIT, DockerSandbox, remove
from callgate_server.backends.docker.spec import (
    INSTANCE_LABEL,
    anonymous_name,
    call_labels,
    confinement,
    container_name,
    create_arguments,
    lane_labels,
    pool_labels,
)
from callgate_server.execution.sandbox import Confinement, Health, Sandbox, SandboxRequest, Shape
from callgate_server.model.answer import SandboxInfo
from callgate_server.model.call import Deadline
from callgate_server.model.errors import CallError, Reason

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_WIRE: Final = "stdin=1&stdout=1&stderr=1&stream=1"


class DockerBackend:
    """Implements `SandboxBackend` and `AnonymousStarts`.

    Starting and ending have their own threads: a flood of starts delays no kill.
    """

    def __init__(self, options: DockerOptions) -> None:
        self._options = options
        slowest_s = max(options.look_s, options.create_s, options.attach_s, options.start_s)
        self._opening = Engine(
            options.socket_url, threads=options.opening_threads, timeout_s=slowest_s, name="docker-opening"
        )
        self._ending = Engine(
            options.socket_url, threads=options.ending_threads, timeout_s=options.end_s, name="docker-ending"
        )
        self._owned: set[str] = set()
        self._runtimes: frozenset[str] = frozenset()
        self._images: set[str] = set()

    async def open(self, request: SandboxRequest) -> DockerSandbox:
        """Start a fresh container for one call, or for a lane, with the runner as process 1.

        Raises:
            CallError: `sandbox_unavailable`, `image_missing`, `runtime_missing`, `deadline_exceeded`.
        """
        name = container_name(self._options.instance, request.call_id)
        if name in self._owned:
            raise CallError(Reason.SANDBOX_UNAVAILABLE, "A sandbox of this call exists already.")
        labels = call_labels if request.lane is None else lane_labels
        return await self._start(name, request.shape, labels(request, self._options), request.deadline)

    async def start(self, shape: Shape, deadline: Deadline) -> Sandbox:
        """Start a fresh container for no call in particular, with the runner as process 1.

        Raises:
            CallError: `sandbox_unavailable`, `image_missing`, `runtime_missing`, `deadline_exceeded`.
        """
        name = anonymous_name(self._options.instance, secrets.token_hex(8))
        return await self._start(name, shape, pool_labels(shape, self._options), deadline)

    def confinement(self, shape: Shape) -> Confinement:
        return confinement(shape)

    async def reap(self) -> int:
        """Remove this instance's containers that no live sandbox owns: of dead runs, and such as came late.

        Raises:
            CallError: `sandbox_unavailable`.
        """
        try:
            found = await self._ending.run(partial(_of_instance, self._options.instance), self._options.end_s)
        except (DockerException, OSError) as error:
            raise refusal(error, Step.LIST) from error
        names = {each["Id"]: {name.removeprefix("/") for name in each.get("Names") or ()} for each in found}
        unowned = [container_id for container_id, called in names.items() if not called & self._owned]
        return sum(await asyncio.gather(*map(self._removed, unowned)))

    async def health(self) -> Mapping[str, Health]:
        """State of engine, default runtime and images. Never raises."""
        try:
            runtimes = await self._ending.run(_runtimes, self._options.ping_s)
            missing = await self._ending.run(partial(_missing_images, self._options.images), self._options.ping_s)
        except (DockerException, OSError) as error:
            return {"engine": Health(ok=False, detail=refusal(error, Step.LOOK).message)}
        runtime = self._options.default_runtime
        return {
            "engine": Health(ok=True, detail=f"{self._options.socket_url} answers"),
            "runtime": Health(
                ok=runtime in runtimes,
                detail=f"{runtime} is registered" if runtime in runtimes else f"{runtime} is not registered",
            ),
            "images": Health(
                ok=not missing,
                detail="all pinned images are here" if not missing else "missing, build them: " + ", ".join(missing),
            ),
        }

    def reconnect(self) -> None:
        """Use no connection any more that is open to the engine now, and look at runtimes and images again."""
        self._opening.reconnect()
        self._ending.reconnect()
        self._runtimes = frozenset()
        self._images.clear()

    async def close(self) -> None:
        """Remove what is left, release connections and threads; waits for requests under way.

        A start that was given up may have got its container only now, and a removal that nobody waits for is dropped
        with its queue: nobody would look again before the next start of this instance.
        """
        await asyncio.to_thread(self._opening.close)
        self._owned.clear()
        try:
            async with asyncio.timeout(self._options.end_s):
                await self.reap()
        except (CallError, TimeoutError) as error:
            _log.warning("containers may be left behind, which the next start removes: %s", type(error).__name__)
        finally:
            await asyncio.to_thread(self._ending.close)

    async def _removed(self, container_id: str) -> bool:
        try:
            return await self._ending.run(partial(remove, container_id), self._options.end_s)
        except (DockerException, OSError) as error:  # the next round tries again
            _log.warning("a container is not removed yet: %s", refusal(error, Step.REMOVE).message)
            return False

    async def _start(self, name: str, shape: Shape, labels: dict[str, str], deadline: Deadline) -> DockerSandbox:
        self._owned.add(name)
        try:
            return await self._start_owned(name, shape, labels, deadline)
        except BaseException:
            self._owned.discard(name)
            raise

    async def _start_owned(self, name: str, shape: Shape, labels: dict[str, str], deadline: Deadline) -> DockerSandbox:
        runtime = shape.runtime or self._options.default_runtime
        await self._require_runtime(runtime, deadline)
        await self._require_image(shape.image_digest, deadline)
        container_id = await self._create(name, shape, labels, deadline)
        try:
            wire = await self._attach(container_id, deadline)
            try:
                await self._step(Step.START, partial(_start, container_id), deadline)
            except BaseException:
                wire[1].transport.abort()
                raise
        except BaseException:
            self._ending.start(partial(remove, container_id))
            raise
        return DockerSandbox(
            container_id,
            SandboxInfo(backend="docker", runtime=runtime, isolation=shape.isolation),
            wire,
            self._ending,
            end_s=self._options.end_s,
            forget=partial(self._owned.discard, name),
        )

    async def _require_runtime(self, runtime: str, deadline: Deadline) -> None:
        if runtime not in self._runtimes:
            self._runtimes = await self._step(Step.LOOK, _runtimes, deadline)
        if runtime not in self._runtimes:
            raise CallError(
                Reason.RUNTIME_MISSING,
                f"The isolation runtime {runtime} is not registered with the container engine. Register it there.",
            )

    async def _require_image(self, digest: str, deadline: Deadline) -> None:
        """Refuse an image that would bring a volume: it would be writable disk of the host, without a quota."""
        if digest in self._images:
            return
        image = await self._step(Step.LOOK, partial(_inspect_image, digest), deadline)
        if (image.get("Config") or {}).get("Volumes"):
            raise CallError(
                Reason.IMAGE_MISSING,
                "The tool's pinned image declares a volume; a sandbox has none. Rebuild it without.",
            )
        self._images.add(digest)

    async def _create(self, name: str, shape: Shape, labels: dict[str, str], deadline: Deadline) -> str:
        arguments = create_arguments(shape, labels, self._options)
        try:
            return await self._step(Step.CREATE, partial(_create, name, arguments), deadline, late=_remove_late)
        except CallError as error:
            if error.reason is Reason.IMAGE_MISSING:
                self._images.discard(shape.image_digest)
            raise

    async def _attach(self, container_id: str, deadline: Deadline) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raw = await self._step(Step.ATTACH, partial(_attach, container_id), deadline, late=_close_late)
        try:
            return await asyncio.open_unix_connection(sock=raw, limit=RECEIVE_LIMIT)
        except BaseException:
            raw.close()
            raise

    async def _step(
        self,
        step: Step,
        job: Callable[[EngineClient], _T],
        deadline: Deadline,
        *,
        late: Callable[[EngineClient, _T], object] | None = None,
    ) -> _T:
        rest_s = deadline.remaining_s(time.monotonic())
        own_s = self._own_s(step)
        if rest_s == 0:
            raise CallError(Reason.DEADLINE_EXCEEDED, f"The deadline passed while {step}.")
        try:
            return await self._opening.run(job, min(own_s, rest_s), late=late)
        except (DockerException, OSError) as error:
            if isinstance(error, TimeoutError) and rest_s < own_s:
                raise CallError(Reason.DEADLINE_EXCEEDED, f"The deadline passed while {step}.") from error
            raise refusal(error, step) from error

    def _own_s(self, step: Step) -> float:
        limits = {
            Step.CREATE: self._options.create_s,
            Step.ATTACH: self._options.attach_s,
            Step.START: self._options.start_s,
        }
        return limits.get(step, self._options.look_s)


def _runtimes(client: EngineClient) -> frozenset[str]:
    return frozenset(json.loads(client.direct.ask("GET", "/info")).get("Runtimes") or ())


def _inspect_image(digest: str, client: EngineClient) -> dict[str, Any]:
    image: dict[str, Any] = json.loads(client.direct.ask("GET", f"/images/{digest}/json"))
    return image


def _missing_images(digests: tuple[str, ...], client: EngineClient) -> list[str]:
    missing = []
    for digest in digests:
        try:
            _inspect_image(digest, client)
        except ImageNotFound:
            missing.append(digest)
    return missing


def _create(name: str, arguments: dict[str, Any], client: EngineClient) -> str:
    return str(json.loads(client.direct.ask("POST", f"/containers/create?name={name}", arguments))["Id"])


def _attach(container_id: str, client: EngineClient) -> socket.socket:
    """Return the container's stream. Nothing can have been read ahead: it has not been started."""
    raw = client.direct.upgrade(f"/containers/{container_id}/attach?{_WIRE}")
    raw.setblocking(False)
    return raw


def _start(container_id: str, client: EngineClient) -> None:
    client.direct.ask("POST", f"/containers/{container_id}/start")


def _of_instance(instance: str, client: EngineClient) -> list[dict[str, Any]]:
    wanted = quote(json.dumps({"label": [f"{INSTANCE_LABEL}={instance}"]}))
    found: list[dict[str, Any]] = json.loads(client.direct.ask("GET", f"/containers/json?all=1&filters={wanted}"))
    return found


def _remove_late(client: EngineClient, container_id: str) -> None:
    remove(container_id, client)


def _close_late(_client: EngineClient, raw: socket.socket) -> None:
    raw.close()
