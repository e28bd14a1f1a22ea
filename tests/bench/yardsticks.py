"""What a call is compared with: the same program without any of us."""

import subprocess
import sys
from pathlib import Path

import docker

from support.images import ENGINE, images

PROGRAM = "print(1)"
_SYSTEM_PYTHON = Path("/usr/bin/python3")


def bare_python() -> None:
    """A Python process without any isolation: the system's, which is what images have too, and starts fastest."""
    python = str(_SYSTEM_PYTHON if _SYSTEM_PYTHON.exists() else sys.executable)
    subprocess.run([python, "-c", PROGRAM], check=True, capture_output=True)


def docker_run() -> None:
    command = ["docker", "run", "--rm", "--network=none", "--entrypoint", "/usr/bin/python3", images()["python"]]
    subprocess.run([*command, "-c", PROGRAM], check=True, capture_output=True)


class EngineCycle:
    """What the engine itself takes for a container that runs the program once: create, start, wait, remove."""

    def __init__(self) -> None:
        self._engine = docker.APIClient(base_url=ENGINE, version="auto")
        self._image = images()["python"]

    def __call__(self) -> None:
        host = self._engine.create_host_config(network_mode="none")
        made = self._engine.create_container(
            self._image, ["-c", PROGRAM], entrypoint="/usr/bin/python3", host_config=host, network_disabled=True
        )
        self._engine.start(made)
        if self._engine.wait(made)["StatusCode"] != 0:
            raise RuntimeError("the engine's own container failed")
        self._engine.remove_container(made)
