"""A container engine of the test's own, to be killed, stopped and configured without touching anybody else's.

It has its own data, state, socket and configuration, and its own network, mount and pid namespaces: an engine
without a bridge removes the one it finds in its network namespace, and one that dies leaves containers and
mounts behind. Whatever was done to it, `close` leaves no container, no process, no mount and no file.
"""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from docker import APIClient
from requests.exceptions import ConnectionError as RequestsConnectionError

from callgate_server.backends.docker.engine import connect
from callgate_server.backends.docker.sandbox import remove
from support.probe_image import ENGINE_URL

_START_S = 60
_STOP_S = 30
_LOAD_S = 120
RUNSC = shutil.which("runsc")
RUNSC_RUNTIME = {"path": RUNSC, "runtimeArgs": ["--network=none", "--platform=ptrace"]}


class PrivateEngine:
    """A `dockerd` of its own; `url` is its socket. Started on entry, removed on exit."""

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        # Short: containerd's socket below it must fit into 108 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="cg-"))
        self.url = f"unix://{self.folder}/docker.sock"
        self._config = {
            "data-root": str(self.folder / "data"),
            "exec-root": str(self.folder / "exec"),
            "pidfile": str(self.folder / "dockerd.pid"),
            "hosts": [self.url],
            "bridge": "none",
            "iptables": False,
            "ip-forward": False,
            "ip-masq": False,
            **(config or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        # The first process of the namespaces: it buries what the engine's death orphans, and takes all with it.
        hold = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._holder = subprocess.Popen((*hold, "sh", "-c", "while sleep 1; do :; done"))
        self._first = _only_child(self._holder.pid, "sh")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def client(self) -> APIClient:
        """A new client; the caller closes it."""
        return connect(self.url, _LOAD_S)

    def configure(self, config: Mapping[str, Any]) -> None:
        """Change the configuration; it counts from the next start."""
        self._config.update(config)

    def start(self) -> None:
        path = self.folder / "daemon.json"
        path.write_text(json.dumps(self._config))
        with (self.folder / "dockerd.log").open("ab") as log:
            enter = ("nsenter", "--target", str(self._first), "--net", "--mount", "--pid", "--")
            command = (*enter, "dockerd", "--config-file", str(path))
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self._pid = _only_child(self._process.pid, "dockerd")
        self._await_answer()

    def load_image(self, digest: str) -> None:
        """Copy an image from the machine's engine, under the same digest."""
        archive = self.folder / "image.tar"
        subprocess.run(("docker", "-H", ENGINE_URL, "save", "-o", str(archive), digest), check=True, timeout=_LOAD_S)
        load = ("docker", "-H", self.url, "load", "-q", "-i", str(archive))
        subprocess.run(load, check=True, timeout=_LOAD_S, stdout=subprocess.DEVNULL)
        archive.unlink()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """The engine dies without a word; its containers live on."""
        os.kill(self._pid, signal.SIGKILL)
        self._running().wait(_STOP_S)
        # Its containerd dies with it. Where nobody reaps that, the next engine takes the corpse for alive.
        (self.folder / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)

    def freeze(self) -> None:
        """The engine hangs: connections are accepted by the kernel and never answered."""
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        # The program that entered the namespaces stops with its child.
        for pid in (self._pid, self._running().pid):
            os.kill(pid, signal.SIGCONT)

    def containers(self) -> list[str]:
        """Names of all containers, running or not."""
        with self.client as client:
            return [name for found in client.containers(all=True) for name in found["Names"]]

    def close(self) -> None:
        try:
            if self.alive:
                self.thaw()
                self._remove_containers()
                os.kill(self._pid, signal.SIGTERM)
                self._running().wait(_STOP_S)
        finally:
            self._holder.kill()
            self._holder.wait(_STOP_S)
            if self._process is not None:
                self._process.wait(_STOP_S)
            shutil.rmtree(self.folder)

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise RuntimeError("the engine was not started")
        return self._process

    def _remove_containers(self) -> None:
        with self.client as client:
            for found in client.containers(all=True):
                remove(found["Id"], client)

    def _await_answer(self) -> None:
        give_up = time.monotonic() + _START_S
        while not self._listens():
            if time.monotonic() > give_up or self._running().poll() is not None:
                raise RuntimeError((self.folder / "dockerd.log").read_text()[-2000:])
            time.sleep(0.05)
        # It listens before it is ready, and answers when it is.
        while True:
            try:
                with self.client as client:
                    client.ping()
                    return
            except RequestsConnectionError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.05)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.url.removeprefix("unix://")) == 0


def _only_child(pid: int, name: str) -> int:
    """Wait until a process has a child of that name, and return its id."""
    give_up = time.monotonic() + _START_S
    while time.monotonic() < give_up:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == name:
                return int(child)
        time.sleep(0.01)
    raise RuntimeError(f"no {name} was started")


@contextmanager
def tolerating_unclosed_sockets() -> Iterator[None]:
    """The library forgets a socket whose connect failed; the collector closes it, and says so, here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()
