"""What the host's own books say: memory of a lane's processes, and what is there before and after many calls."""

import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from descriptors import descriptors_of
from support.gateway import RunningGateway

_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
_MIB_KB = 1024


@dataclass(frozen=True)
class LaneMemory:
    """Resident memory of an idle lane in MB: `pss` counts pages that processes share once, `rss` in each of them.

    `pss` is exact for a lane that is alone on its image: with others, the pages of files would be shared out to all.
    `shim` is the engine's own process beside it (resident set), which is not the lane's.
    """

    pss: float
    rss: float
    shim: float


def lane_memory(container_id: str) -> LaneMemory:
    rollups = [_fields(path.parent / "smaps_rollup") for path in _processes_of(container_id)]
    if not rollups:
        raise RuntimeError("the lane has ended")
    shims = [_fields(path.parent / "smaps_rollup") for path in _commands_with(container_id)]
    return LaneMemory(
        pss=sum(rollup["Pss"] for rollup in rollups) / _MIB_KB,
        rss=sum(rollup["Rss"] for rollup in rollups) / _MIB_KB,
        shim=sum(rollup["Rss"] for rollup in shims) / _MIB_KB,
    )


@dataclass(frozen=True)
class Holdings:
    """What a gateway and its sandboxes hold. Mounts are the host's: where nobody else makes any, they are ours."""

    containers: frozenset[str]
    tasks: frozenset[str]
    descriptors: Counter[str]
    threads: int
    mounts: frozenset[str]
    memory_kb: int

    def more_than(self, before: "Holdings") -> dict[str, int]:
        """How much of each there is that was not there before."""
        return {
            "containers left": len(self.containers - before.containers),
            "tasks left": len(self.tasks - before.tasks),
            "descriptors left": self.descriptors_beyond(before).total(),
            "threads left": max(0, self.threads - before.threads),
            "mounts left": len(self.mounts - before.mounts),
        }

    def descriptors_beyond(self, before: "Holdings") -> Counter[str]:
        """What there are more descriptors of. One of something else that was closed does not make up for it."""
        return self.descriptors - before.descriptors


def processes_in(container_id: str) -> list[int]:
    """The host's ids of the processes of a container."""
    return [int(path.parent.name) for path in _processes_of(container_id)]


def holdings(gateway: RunningGateway, seen: Collection[str]) -> Holdings:
    """What there is now. `seen` are the ids of containers that it had, whose tasks are looked for."""
    return Holdings(
        containers=frozenset(gateway.deployment.found()),
        tasks=frozenset(_tasks_of(seen)),
        descriptors=descriptors_of(gateway.process.pid),
        threads=sum(1 for _ in Path(f"/proc/{gateway.process.pid}/task").iterdir()),
        mounts=frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
        memory_kb=gateway.rss_kb(),
    )


def machine() -> dict[str, str]:
    """What it was measured on."""
    command = ("docker", "version", "--format", "{{.Server.Version}}")
    engine = subprocess.run(command, capture_output=True, text=True, check=True)
    memory_kb = _fields(Path("/proc/meminfo"))["MemTotal"]
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory_kb / _MIB_KB / _MIB_KB:.0f} GiB",
        "kernel": f"Linux {platform.release()}, {platform.machine()}",
        "engine": f"Docker {engine.stdout.strip()}",
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _fields(path: Path) -> dict[str, int]:
    """Lines like `Pss:  1234 kB`."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].removesuffix(":"): int(words[1]) for words in lines if words[1:2] and words[1].isdecimal()}


def _tasks_of(containers: Collection[str]) -> Iterator[str]:
    """Tasks in a cgroup of one of these containers, and of the programs that the engine runs for it."""
    for process in Path("/proc").glob("[0-9]*"):
        named = _CONTAINER_ID.findall(_read(process / "cgroup") + _read(process / "cmdline"))
        if any(found in containers for found in named):
            yield from (path.name for path in process.glob("task/[0-9]*"))


def _processes_of(container_id: str) -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/cgroup") if container_id in _read(path)]


def _commands_with(container_id: str) -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if container_id in _read(path)]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
