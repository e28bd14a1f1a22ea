"""Images for tests of the backend: a probe in place of the runner, and variants that a sandbox must withstand.

Built from the distribution's packages, once: a tag that hashes what goes in finds them again.
"""

import fcntl
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import docker
from docker.errors import ImageNotFound

from callgate_server.backends.docker.engine import API_VERSION

ENGINE_URL = "unix://" + os.environ.get("CALLGATE_ENGINE_SOCKET", "/var/run/docker.sock")
_REPOSITORY = "callgate-test/probe"
_BUILD_S = 300
_ROOT_OF_PACKAGES = ("mmdebstrap", "--quiet", "--variant=minbase", "--include=python3", "bookworm", "-")
_RUNNER = Path(__file__).parent / "probe_runner"
_PROBE = """\
FROM {base}
COPY callgate_runner /opt/callgate/runner/callgate_runner
RUN cp /usr/bin/id /usr/bin/setuid-id && chmod 4755 /usr/bin/setuid-id && chmod -R a+rX /opt/callgate
"""
# What an image may declare and a sandbox must not heed.
_LOADED = """\
FROM {base}
ENV LD_PRELOAD=/nonexistent.so PYTHONPATH=/opt/evil HOME=/root EVIL=1
ENTRYPOINT ["/bin/false"]
CMD ["evil"]
HEALTHCHECK --interval=1s CMD touch /tmp/health
USER root
WORKDIR /proc
STOPSIGNAL SIGUSR1
LABEL callgate.instance=somebody-else
"""
# The real runner and a tool that runs a test's code, on what a probe stands on.
_WITH_RUNNER = """\
FROM {base}
COPY callgate_runner /opt/callgate/runner/callgate_runner
COPY probe.py own.py /opt/callgate/tools/
RUN chmod -R a+rX /opt/callgate
"""
_WITH_VOLUME = 'FROM {base}\nVOLUME ["/data"]\n'
_WITHOUT_INTERPRETER = "FROM {base}\nRUN rm /usr/bin/python3\n"


def probe_image() -> str:
    """Return the image's digest, as do the others."""
    return _variant(_PROBE, _imported_base())


def runner_image(own: str = "") -> str:
    """With the real runner, and with `probe:run` and the tools of the module `own` that is given as source."""
    base = Path(__file__).parents[2] / "sandbox_images" / "base"
    probe = Path(__file__).parent / "images" / "probe" / "tools" / "probe.py"
    sources = _sources(base, base / "callgate_runner")
    return _variant(_WITH_RUNNER, probe_image(), {**sources, "probe.py": probe.read_bytes(), "own.py": own.encode()})


def loaded_image() -> str:
    return _variant(_LOADED, probe_image())


def volume_image() -> str:
    return _variant(_WITH_VOLUME, probe_image())


def image_without_interpreter() -> str:
    return _variant(_WITHOUT_INTERPRETER, probe_image())


def _imported_base() -> str:
    tag = _tag(" ".join(_ROOT_OF_PACKAGES).encode())
    with _alone(), docker.APIClient(ENGINE_URL, version=API_VERSION, timeout=_BUILD_S) as engine:
        if (digest := _digest(engine, tag)) is not None:
            return digest
        with tempfile.TemporaryFile() as root:
            subprocess.run(_ROOT_OF_PACKAGES, stdout=root, check=True, timeout=_BUILD_S)
            root.seek(0)
            subprocess.run(("docker", "-H", ENGINE_URL, "import", "-", tag), stdin=root, check=True, timeout=_BUILD_S)
        return _existing(engine, tag)


def _sources(root: Path, folder: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.py"))}


def _variant(dockerfile: str, base: str, sources: Mapping[str, bytes] | None = None) -> str:
    text = dockerfile.format(base=base)
    if sources is None:
        sources = _sources(_RUNNER, _RUNNER)
    tag = _tag(text.encode(), *(name.encode() + content for name, content in sources.items()))
    with _alone(), docker.APIClient(ENGINE_URL, version=API_VERSION, timeout=_BUILD_S) as engine:
        if (digest := _digest(engine, tag)) is None:
            for event in engine.build(
                fileobj=_context(text, sources), custom_context=True, network_mode="none", tag=tag, rm=True, decode=True
            ):
                if "error" in event:
                    raise RuntimeError(event["error"])
            digest = _existing(engine, tag)
        return digest


def _context(dockerfile: str, sources: Mapping[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in {"Dockerfile": dockerfile.encode(), **sources}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    buffer.seek(0)
    return buffer


def _tag(*content: bytes) -> str:
    return f"{_REPOSITORY}:{hashlib.sha256(b'|'.join(content)).hexdigest()[:16]}"


def _digest(engine: docker.APIClient, tag: str) -> str | None:
    try:
        return engine.inspect_image(tag)["Id"]
    except ImageNotFound:
        return None


def _existing(engine: docker.APIClient, tag: str) -> str:
    digest = _digest(engine, tag)
    if digest is None:
        raise RuntimeError("the image was built and is not there")
    return digest


class _alone:  # noqa: N801  # used as a word
    """Several test processes may start at once; one builds, the others find what it built."""

    def __enter__(self) -> None:
        self._lock = (Path(tempfile.gettempdir()) / "callgate-test-images.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._lock.close()
