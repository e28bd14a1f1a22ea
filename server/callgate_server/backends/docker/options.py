"""What the operator decides about the engine: where it is, who we are on it, how long each step may take."""

import re
from dataclasses import dataclass
from typing import Final

_INSTANCE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class DockerOptions:
    """Settings of the Docker backend; seconds where the name ends in `_s`.

    `instance` names this gateway on the engine and must be unique there: whatever carries its label and is not
    owned by this process is removed. `boot_id` names this run of the process. `images` are the digests
    (`sha256:…`) that `health` looks for. `guest_kernels` are the runtimes that bring a kernel of their own.
    """

    instance: str
    boot_id: str
    socket_url: str = "unix:///var/run/docker.sock"
    default_runtime: str = "runc"
    guest_kernels: frozenset[str] = frozenset({"runsc"})
    images: tuple[str, ...] = ()
    opening_threads: int = 16
    ending_threads: int = 16
    look_s: float = 3.0
    create_s: float = 10.0
    attach_s: float = 5.0
    start_s: float = 15.0
    end_s: float = 10.0
    ping_s: float = 2.0

    def __post_init__(self) -> None:
        """Refuse an instance that would not name exactly our own containers.

        Raises:
            ValueError: the instance is empty or not a plain word.
        """
        if not _INSTANCE.fullmatch(self.instance):
            raise ValueError("an instance is named by at most 40 lower-case letters, digits and dashes")
