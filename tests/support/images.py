"""The repository's real sandbox images, built once and found again quickly when nothing changed."""

import os
import sys
from functools import cache
from pathlib import Path

from callgate_server.backends.docker.images import DockerImages

ROOT = Path(__file__).resolve().parents[2]
SANDBOX_IMAGES = ROOT / "sandbox_images"
ENGINE = "unix://" + os.environ.get("CALLGATE_ENGINE_SOCKET", "/var/run/docker.sock")


def folders() -> dict[str, Path]:
    return {path.parent.name: path.parent for path in sorted(SANDBOX_IMAGES.glob("*/Dockerfile"))}


@cache
def images() -> dict[str, str]:
    """Digest (`sha256:…`) of each image by name: base, python, shell."""
    return DockerImages(ENGINE, ROOT / ".callgate").build(folders(), lambda line: print(line, file=sys.stderr))
