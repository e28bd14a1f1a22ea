"""From a request to the arguments of the engine's container create: pure, and all of the hardening in one place.

Nothing here comes from a call's arguments; the manifest chooses limits and an image that the catalog pins.
What the engine adds by itself is met explicitly: the image's entrypoint, command, user, working directory,
health check and stop signal are overridden, its environment is overridden where it could change how the
runner starts, and images that declare volumes are refused by the backend (a volume would be host disk).
"""

import math
import re
from dataclasses import replace
from datetime import UTC
from typing import Any, Final

from callgate_server.backends.docker.bpf import programs
from callgate_server.backends.docker.options import DockerOptions
from callgate_server.backends.docker.seccomp import profile_json
from callgate_server.execution.sandbox import CellMount, Confinement, SandboxRequest, Shape

INSTANCE_LABEL: Final = "callgate.instance"
BOOT_LABEL: Final = "callgate.boot"
CALL_LABEL: Final = "callgate.call"
POOL_LABEL: Final = "callgate.pool"
LANE_LABEL: Final = "callgate.lane"

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_SANDBOX_ID: Final = 65532
_MIB: Final = 1 << 20
_KIB: Final = 1 << 10
_PAGE: Final = 4 * _KIB
_CPU_PERIOD_US: Final = 100_000
_SMALLEST_CPU_QUOTA_US: Final = 1_000
_SHM_MIB: Final = 16
_SHM_FILES: Final = 256
# The certificates of a tool with egress lie there, too.
_SECRETS_MIB: Final = 2
_SECRETS_FILES: Final = 128
# What the runner needs for itself (`runner_open_files` of the wire's description); it holds the tool to its own limit.
_RUNNER_OPEN_FILES: Final = 128
# Of a lane, beside the runner: the zygote, and process 1 of the call's own namespace. The tool has as many processes
# left as in a container of its own.
_LANE_PROCESSES: Final = 2
# Of a lane, whose processes send each other some: the kernel counts what is on its way over sockets for all sandboxes
# together, and refuses a sender when that is more than it may have open itself. Far above what tools with usual limits
# can bring that number to, and not above what an engine without CAP_SYS_RESOURCE can set. A cell takes the tool's own.
_LANE_OPEN_FILES: Final = 1 << 14
# A guest kernel keeps several threads on the host for each process inside, and some for itself.
_GUEST_KERNEL_THREADS_EACH: Final = 8
_GUEST_KERNEL_THREADS: Final = 64


# The runner is started by its own path with an isolated interpreter: nothing of the image's site, nothing of
# the environment or the working directory can put itself before it.
ENTRYPOINT: Final = (
    "/usr/bin/python3",
    "-I",
    "-S",
    "-c",
    "import sys; sys.path.insert(0, '/opt/callgate/runner'); from callgate_runner.main import main; main()",
)

# A name without "=" removes what the image sets: each of these changes what the loader or libc does in process 1.
_ENVIRONMENT: Final = (
    "PATH=/usr/local/bin:/usr/bin:/bin",
    "HOME=/tmp",
    "TMPDIR=/tmp",
    "LANG=C.UTF-8",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "LD_AUDIT",
    "GLIBC_TUNABLES",
    "MALLOC_TRACE",
    "GCONV_PATH",
    "LOCPATH",
    "OPENSSL_CONF",
)

# The engine's own list, and what it misses: interfaces of the host's kernel that no tool needs to read.
_MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/config.gz",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/slabinfo",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/bpf",
    "/sys/kernel",
)
_READONLY_PATHS: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def container_name(instance: str, call_id: str) -> str:
    """Name of the one container of a call: creating it twice conflicts instead of running twice."""
    return f"callgate-{instance}-{call_id}"


def anonymous_name(instance: str, number: str) -> str:
    """Name of a container that is started for no call in particular; `number` is random."""
    return f"callgate-{instance}-pool-{number}"


def create_arguments(shape: Shape, labels: dict[str, str], options: DockerOptions) -> dict[str, Any]:
    """Return the body of the engine's `POST /containers/create`.

    Raises:
        ValueError: the image is not named by its digest.
    """
    if not _DIGEST.fullmatch(shape.image_digest):
        raise ValueError("an image is named by its digest and by nothing else")
    return {
        "Image": shape.image_digest,
        "Entrypoint": list(ENTRYPOINT),
        "Cmd": [],
        "Env": list(_ENVIRONMENT),
        "User": f"{_SANDBOX_ID}:{_SANDBOX_ID}",
        "WorkingDir": "/tmp",  # noqa: S108  # a mount of the sandbox's own
        "Hostname": "sandbox",
        "Domainname": "",
        # The one wire. A terminal would merge the streams and is where several escapes began.
        "Tty": False,
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGKILL",
        "Labels": labels,
        "HostConfig": _host_config(shape, options),
    }


def confinement(shape: Shape) -> Confinement:
    """Return what a lane puts each call into: the same file systems that a container gets, and the same filter.

    Where the container of a lane would show one call what another did, there is nothing: /proc (a fresh one cannot
    be mounted inside where the engine masks parts of it) and the figures of the cgroup, which both calls share.
    """
    mounts = [_cell_mount(path, options) for path, options in _tmpfs(shape).items()]
    nothing = "size=4096,nr_inodes=1,mode=0555"
    mounts += [CellMount(path, nothing, execute=False, writable=False) for path in ("/proc", "/sys/fs/cgroup")]
    return Confinement(tuple(mounts), programs())


def _without_room(shape: Shape) -> Shape:
    """A lane's own file systems are only the places on which each call's are mounted."""
    return replace(shape, scratch_mb=1, scratch_files=16, artifacts=0)


def _cell_mount(path: str, options: str) -> CellMount:
    """Split the engine's words for a mount into flags and what tmpfs itself understands."""
    words = options.split(",")
    return CellMount(path, ",".join(word for word in words if "=" in word), execute="exec" in words, writable=True)


def call_labels(request: SandboxRequest, options: DockerOptions) -> dict[str, str]:
    """Return the labels of a container that was started for one call."""
    return {
        INSTANCE_LABEL: options.instance,
        BOOT_LABEL: options.boot_id,
        CALL_LABEL: request.call_id,
        "callgate.tenant": request.tenant,
        "callgate.tool": request.tool,
        "callgate.deadline": request.deadline_at.astimezone(UTC).isoformat(timespec="milliseconds"),
    }


def lane_labels(request: SandboxRequest, options: DockerOptions) -> dict[str, str]:
    """Return the labels of a lane: whose it is, for as long as it lives. Which calls it served is in the record."""
    return {
        INSTANCE_LABEL: options.instance,
        BOOT_LABEL: options.boot_id,
        LANE_LABEL: request.call_id,
        "callgate.tenant": request.tenant,
        "callgate.tool": request.tool,
    }


def pool_labels(shape: Shape, options: DockerOptions) -> dict[str, str]:
    """Return the labels of a container that was started for no call in particular: nobody's name is on it.

    A container's labels are fixed when it is made. Which call got it is in the record.
    """
    return {INSTANCE_LABEL: options.instance, BOOT_LABEL: options.boot_id, POOL_LABEL: str(shape)}


def _host_config(shape: Shape, options: DockerOptions) -> dict[str, Any]:
    lane = shape.isolation == "fork"
    memory_bytes = shape.memory_mb * _MIB
    runtime = shape.runtime or options.default_runtime
    return {
        "Runtime": runtime,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", f"seccomp={profile_json(lane=lane)}"],
        "Privileged": False,
        "ReadonlyRootfs": True,
        "Tmpfs": {path: f"rw,{options}" for path, options in _tmpfs(_without_room(shape) if lane else shape).items()},
        "NetworkMode": "none",
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "Memory": memory_bytes,
        "MemorySwap": memory_bytes,
        # The quota, not NanoCpus: the engine refuses more NanoCpus than it has, where a quota simply never binds.
        "CpuPeriod": _CPU_PERIOD_US,
        "CpuQuota": max(_SMALLEST_CPU_QUOTA_US, math.floor(shape.cpu * _CPU_PERIOD_US)),
        **_process_limits(shape, guest_kernel=runtime in options.guest_kernels),
        # When the host itself runs out of memory, sandboxes go before anything else does.
        "OomScoreAdj": 500,
        "LogConfig": {"Type": "none", "Config": {}},
        # The runner is process 1 and reaps; removal is ours, so that the exit state can still be read.
        "Init": False,
        "AutoRemove": False,
        "RestartPolicy": {"Name": "no"},
        "MaskedPaths": list(_MASKED_PATHS),
        "ReadonlyPaths": list(_READONLY_PATHS),
    }


def _process_limits(shape: Shape, *, guest_kernel: bool) -> dict[str, Any]:
    """Processes and open files.

    The host counts processes per container, where one kernel is shared: a limit per user would count all
    sandboxes together. A guest kernel has its users for itself and counts with a limit per user; what the
    host sees of it are its own threads.
    """
    lane = shape.isolation == "fork"
    ulimits = {"nofile": max(shape.open_files, _LANE_OPEN_FILES if lane else _RUNNER_OPEN_FILES), "core": 0}
    host_pids = shape.pids + (_LANE_PROCESSES if lane else 0)
    if guest_kernel:
        ulimits["nproc"] = shape.pids
        host_pids = _GUEST_KERNEL_THREADS_EACH * shape.pids + _GUEST_KERNEL_THREADS
    return {
        "PidsLimit": host_pids,
        "Ulimits": [{"Name": name, "Soft": value, "Hard": value} for name, value in ulimits.items()],
    }


def _tmpfs(shape: Shape) -> dict[str, str]:
    """All that can be written to. The pages are charged to the sandbox's memory.

    /tmp may execute: noexec would break compiled helpers and `./script`, and is no boundary beside an
    interpreter. Where nothing needs to be executed, nothing can be.
    """
    artifact_bytes = shape.artifacts_kb * _KIB + shape.artifacts * _PAGE
    # One inode is the folder itself: without artifacts, no file can be made.
    out = (artifact_bytes, 2 * shape.artifacts + 1) if shape.artifacts else (_PAGE, 1)
    return {
        "/tmp": _mount(shape.scratch_mb * _MIB, shape.scratch_files, mode="1777", execute=True),  # noqa: S108
        "/out": _mount(*out, mode="0700", execute=False),
        "/run/secrets": _mount(_SECRETS_MIB * _MIB, _SECRETS_FILES, mode="0700", execute=False),
        # In place of the engine's own, which has a size but no limit of inodes.
        "/dev/shm": _mount(_SHM_MIB * _MIB, _SHM_FILES, mode="1777", execute=False),  # noqa: S108
    }


def _mount(size_bytes: int, inodes: int, *, mode: str, execute: bool) -> str:
    words = ["nosuid", "nodev", "exec" if execute else "noexec"]
    words += [f"size={size_bytes}", f"nr_inodes={inodes}", f"mode={mode}"]
    words += [f"uid={_SANDBOX_ID}", f"gid={_SANDBOX_ID}"]
    return ",".join(words)
