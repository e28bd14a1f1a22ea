"""Builds the sandbox images on this host, from folders, without a registry, and says their digests.

Decides how a folder becomes an image: its Dockerfile on our base, then its packages, the runner and its tools,
compiled, all of it passed through `seal.py` and checked as the engine gives it back. Does not decide which
folders there are, nor where digests are kept. What an image is made of is hashed, and the hash is its tag: what
did not change is not built again, and deployments with other images of the same name do not disturb each other.
No finished image is ever removed here, since a gateway may still run with it.

    Debian root ─ base/Dockerfile ─► callgate/base:open-HASH ─ NAME/Dockerfile ─► callgate/NAME:open-HASH
    callgate/NAME:open-HASH ─ packages, runner, tools ─► :unsealed-HASH ─ seal ─► callgate/NAME:HASH
"""

import fcntl
import hashlib
import json
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound
from requests.exceptions import ConnectionError as RequestsConnectionError
from requests.exceptions import RequestException

from callgate_server.backends.docker import context, rootfs, seal, wheels
from callgate_server.backends.docker.context import Files
from callgate_server.backends.docker.engine import connect, spoken

Progress = Callable[[str], None]

BASE: Final = "base"
DEBIAN: Final = "debian:bookworm-slim"
_SUITE: Final = "bookworm"
_ROOTFS: Final = "callgate/base:rootfs"
_LABEL: Final = "callgate.source"
_TIMEOUT_S: Final = 900
_MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
_LAST_LINES: Final = 12
_CHUNK: Final = 1 << 20
_TAG_LENGTH: Final = 16

# What is done to every image after its own Dockerfile, without a network. Compiled here because the root is
# read-only when a tool runs; unchecked because nothing can change a source then. Our code and the tools must compile;
# packages carry files for other Pythons. The runner comes late, so that no author's Dockerfile can change it.
_COMPILE: Final = "/usr/bin/python3 -I -m compileall -q -j 0 --invalidation-mode unchecked-hash"
_ENDING: Final = f"""
ARG BASE
FROM ${{BASE}}
USER 0:0
COPY packages/ /opt/callgate/packages/
RUN {_COMPILE} -q -x '/tests/' /opt/callgate/packages || true
COPY callgate_runner/ /opt/callgate/runner/callgate_runner/
COPY tools/ /opt/callgate/tools/
RUN {_COMPILE} /opt/callgate/runner /opt/callgate/tools
"""


class DockerImages:
    """The builder. Blocking; one build at a time for each state folder.

    `engine` is the engine's address, `state` a folder of ours for fetched packages. Images stand on Debian's own; where
    no registry answers, one made of Debian's packages takes its place.
    """

    def __init__(self, engine: str, state: Path) -> None:
        self._engine = engine
        self._state = state

    def build(self, folders: Mapping[str, Path], progress: Progress) -> dict[str, str]:
        """Build every image that changed and return the digest (`sha256:…`) of each by name.

        `folders` maps image names to folders with a Dockerfile; `base` must be among them.

        Raises:
            RuntimeError: the engine, a build or a check failed; the message says what to mend.
            ValueError: a folder is not one an image can be built from.
            OSError: a folder cannot be read or the state folder not be written.
        """
        if BASE not in folders:
            raise ValueError("every image stands on `base`, and no folder of that name is given")
        files = {name: context.files_of(folder) for name, folder in folders.items()}
        _refuse_conflicts(folders, files)
        with self._alone(), _engine_errors(self._engine):
            with connect(self._engine, _TIMEOUT_S) as engine:
                version = spoken(engine.version(api_version=False))
            with connect(self._engine, _TIMEOUT_S, version=version) as engine:
                return _Build(engine, self._state, progress).all(files)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._state.mkdir(parents=True, exist_ok=True)
        with Path(self._state, "images.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _installed(files: Files) -> dict[str, Path]:
    return {path: file for path, file in files.items() if context.is_installed(path)}


def _refuse_conflicts(folders: Mapping[str, Path], files: Mapping[str, Files]) -> None:
    common = _installed(files[BASE]).keys()
    if f"{context.RUNNER}/main.py" not in common:
        raise ValueError(f"{folders[BASE]} has no {context.RUNNER}/main.py")
    for name in files.keys() - {BASE}:
        if any(path.startswith(f"{context.RUNNER}/") for path in files[name]):
            raise ValueError(f"{folders[name]} has a {context.RUNNER}/, and the runner is the same in every image")
        if taken := files[name].keys() & common:
            raise ValueError(f"{folders[name]}: {min(taken)} is in every image already, from `base`")


class _Build:
    """One round over the folders, on one connection."""

    def __init__(self, engine: APIClient, state: Path, progress: Progress) -> None:
        self._engine = engine
        self._state = state
        self._progress = progress

    def all(self, files: Mapping[str, Files]) -> dict[str, str]:
        common = _installed(files[BASE])
        foundation = self._opened(BASE, files[BASE], self._rootfs())
        digests = {}
        for name in sorted(files):
            opened = foundation if name == BASE else self._opened(name, files[name], foundation)
            digests[name] = self._finished(name, {**common, **_installed(files[name])}, opened)
        return digests

    def _opened(self, name: str, files: Files, parent: str) -> str:
        """The image as its Dockerfile makes it; still with a package manager, still without tools."""
        own = {path: file for path, file in files.items() if not context.is_installed(path)}
        dockerfile = files[context.DOCKERFILE].read_text("utf-8")
        source = context.digest(own, dockerfile, parent)
        reference = f"callgate/{name}:open-{source[:_TAG_LENGTH]}"
        found = self._find(reference)
        if found and found[1] == source:
            return found[0]
        self._progress(f"image {name}: building")
        return self._built(reference, dockerfile, own, parent, source)

    def _finished(self, name: str, files: Files, opened: str) -> str:
        """The image with packages, tools and runner, sealed and checked."""
        source = context.digest(files, _ENDING, opened, seal.rules_digest())
        tag = source[:_TAG_LENGTH]
        found = self._find(f"callgate/{name}:{tag}")
        if found and found[1] == source:
            return found[0]
        self._progress(f"image {name}: installing packages and tools")
        if context.REQUIREMENTS in files:
            files = {**files, **self._packages(files[context.REQUIREMENTS], opened)}
        unsealed = self._built(f"callgate/{name}:unsealed-{tag}", _ENDING, files, opened, source, network="none")
        self._progress(f"image {name}: sealing and checking")
        with self._exported(unsealed) as archive:
            digest = self._imported(seal.sealed(archive), source)
        self._forget(f"callgate/{name}:unsealed-{tag}")
        self._refuse_faulty(name, digest)
        self._engine.tag(digest, f"callgate/{name}", tag, force=True)
        self._progress(f"image {name}: ready")
        return digest

    def _refuse_faulty(self, name: str, digest: str) -> None:
        with self._exported(digest) as archive:
            faults = seal.faults(archive)
        if faults:
            self._forget(digest)
            raise RuntimeError(f"image {name} is not fit for a sandbox: " + "; ".join(faults[:_LAST_LINES]))

    def _rootfs(self) -> str:
        source = hashlib.sha256(" ".join((DEBIAN, _SUITE, *rootfs.PACKAGES)).encode()).hexdigest()
        reference = f"{_ROOTFS}-{source[:_TAG_LENGTH]}"
        found = self._find(reference)
        if found and found[1] == source:
            return found[0]
        if self._find(DEBIAN) is None:
            self._progress(f"pulling {DEBIAN}")
            # Whether that worked is seen by looking: the engine reports some failures in mid-stream only.
            with suppress(APIError):
                self._engine.pull(DEBIAN)
        if self._find(DEBIAN) is not None:
            return self._built(reference, f"FROM {DEBIAN}\n", {}, "", source)
        return self._bootstrapped(reference, source)

    def _bootstrapped(self, reference: str, source: str) -> str:
        self._progress(f"no registry answers: making a root file system from the packages of {_SUITE}")
        with tempfile.TemporaryFile(dir=self._state) as tar:
            rootfs.bootstrap(_SUITE, tar)
            tar.seek(0)
            digest = self._imported(iter(lambda: tar.read(_CHUNK), b""), source)
        repository, _, tag = reference.partition(":")
        self._engine.tag(digest, repository, tag, force=True)
        return digest

    def _built(
        self, reference: str, dockerfile: str, files: Files, parent: str, source: str, *, network: str | None = None
    ) -> str:
        """Run a Dockerfile and return the id of what it made, tagged `reference`."""
        with tempfile.TemporaryFile(dir=self._state) as tar:
            context.write(files, dockerfile, tar)
            steps = self._engine.build(
                fileobj=tar,
                custom_context=True,
                tag=reference,
                buildargs={"BASE": parent},
                labels={_LABEL: source},
                network_mode=network,
                rm=True,
                forcerm=True,
                decode=True,
            )
            _finish(reference, steps)
        built = self._find(reference)
        if built is None:
            raise RuntimeError(f"the engine built {reference} and does not have it")
        return built[0]

    def _packages(self, lock: Path, parent: str) -> dict[str, Path]:
        machine = _MACHINES.get(str(self._engine.version()["Arch"]))
        if machine is None:
            raise RuntimeError("packages can be fetched for engines on amd64 and arm64 only")
        self._progress("fetching packages")
        folder = wheels.fetch(lock, self._state / "packages", python=self._python_of(parent), machine=machine)
        return {f"{context.PACKAGES}/{name}": path for name, path in context.walk(folder).items()}

    def _python_of(self, image: str) -> str:
        """Version of an image's Python, as its link `python3` says: nothing of it is run."""
        with self._container(image) as container:
            _, stat = self._engine.get_archive(container, "/usr/bin/python3")
        version = re.fullmatch(r"(?:.*/)?python(3\.\d+)", str(stat.get("linkTarget", "")))
        if version is None:
            raise RuntimeError("/usr/bin/python3 of the base image is not a link to a python3.N")
        return version[1]

    def _imported(self, tar: Iterable[bytes], source: str) -> str:
        """Make an image of one layer out of a root file system; it has no configuration but our label."""
        # The engine takes a stream of chunks; the stubs know only names and files.
        reply = self._engine.import_image(src=tar, changes=[f"LABEL {_LABEL}={source}"], stream_src=True)
        last = json.loads(str(reply).strip().splitlines()[-1])
        if not str(last.get("status", "")).startswith("sha256:"):
            raise RuntimeError(f"the engine did not take the image: {last.get('error', 'no reason given')}")
        return str(last["status"])

    @contextmanager
    def _exported(self, image: str) -> Iterator[IO[bytes]]:
        with self._container(image) as container:
            yield seal.readable(self._engine.export(container, _CHUNK))

    @contextmanager
    def _container(self, image: str) -> Iterator[str]:
        """A container that is never started."""
        container = self._engine.create_container(image, command=["/never"], network_disabled=True)["Id"]
        try:
            yield container
        finally:
            self._engine.remove_container(container, v=True, force=True)

    def _find(self, reference: str) -> tuple[str, str] | None:
        """Id and source label of a local image."""
        try:
            image: dict[str, Any] = self._engine.inspect_image(reference)  # type: ignore[no-untyped-call]  # not in its stubs
        except ImageNotFound:
            return None
        return image["Id"], ((image["Config"] or {}).get("Labels") or {}).get(_LABEL, "")

    def _forget(self, image: str) -> None:
        """Remove an image unless something still uses it."""
        with suppress(APIError):
            self._engine.remove_image(image)


def _finish(reference: str, steps: Iterable[dict[str, Any]]) -> None:
    lines: list[str] = []
    for step in steps:
        lines += str(step.get("stream", "")).splitlines()
        if "error" in step:
            shown = "\n".join(line for line in lines if line.strip()).splitlines()[-_LAST_LINES:]
            raise RuntimeError(f"{reference} cannot be built: {step['error']}\n" + "\n".join(shown))


@contextmanager
def _engine_errors(socket_url: str) -> Iterator[None]:
    try:
        yield
    except RequestsConnectionError as error:
        raise RuntimeError(
            f"the container engine cannot be reached at {socket_url}: check that it runs and that this user may open "
            "its socket; `callgated doctor` says what it needs"
        ) from error
    except (DockerException, RequestException) as error:
        raise RuntimeError(f"the container engine failed: {error}; `callgated doctor` says what it needs") from error
    except tarfile.TarError as error:
        raise RuntimeError("the container engine exported a broken archive") from error
