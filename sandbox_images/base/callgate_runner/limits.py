"""Who holds the ceilings on memory and processes: the cgroup, or, where none does, the runner itself.

And what the cgroup has counted.

A runtime may start a container without cgroups (gVisor can be told to). The runner looks for itself and trusts
no word on it: whatever limit it cannot see in force, it watches.
"""

import os

_MEMORY_LIMITS = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max")
_PIDS_LIMITS = ("/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/pids.max")
_OOM_COUNTERS = ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events")
_CPU_ACCOUNTS = ("/sys/fs/cgroup/cpuacct/cpuacct.usage", "/sys/fs/cgroup/cpu.stat")
# File systems that live in memory, and are not in any process's resident set.
_MEMORY_FILE_SYSTEMS = ("/tmp", "/out", "/dev/shm")  # noqa: S108  # the sandbox's own
_PAGE = os.sysconf("SC_PAGE_SIZE")
WATCH_INTERVAL_S = 0.1


def oom_kills() -> int | None:
    """Return how many out-of-memory kills the cgroup has counted, or None where nothing counts them."""
    for path in _OOM_COUNTERS:
        for line in _read(path).splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.isdecimal():
                return int(value)
    return None


def cpu_ms() -> float | None:
    """Return the processor time that the cgroup has used so far, or None where nothing counts it.

    What a process has used is known to its parent, unless that does not care to collect it: only the cgroup knows all.
    """
    nanoseconds, statistics = (_read(path) for path in _CPU_ACCOUNTS)
    if nanoseconds.strip().isdecimal():
        return int(nanoseconds) / 1e6
    for line in statistics.splitlines():
        name, _, value = line.partition(" ")
        if name == "usage_usec" and value.isdecimal():
            return int(value) / 1e3
    return None


def _held_by_cgroup(paths: tuple[str, ...], limit: int) -> bool:
    """Whether a cgroup file shows a ceiling of that order: a backend may add something for the runner."""
    for path in paths:
        value = _read(path).strip()
        if value.isdecimal() and int(value) <= 2 * limit:
            return True
    return False


class Watch:
    """The runner's own watch over the ceilings that no cgroup holds.

    It looks ten times a second and kills: coarser than a cgroup, and a tool can overshoot between two looks.
    RLIMIT_NPROC would be no substitute: it counts the processes of a uid in all sandboxes of one kernel, and
    gVisor does not enforce it.
    """

    __slots__ = ("_files_before", "_memory_bytes", "_tasks")

    def __init__(self, memory_bytes: int, tasks: int) -> None:
        self._memory_bytes = None if _held_by_cgroup(_MEMORY_LIMITS, memory_bytes) else memory_bytes
        self._tasks = None if _held_by_cgroup(_PIDS_LIMITS, tasks) else tasks
        self._files_before = _file_systems() if self._memory_bytes is not None else 0

    @property
    def needed(self) -> bool:
        return self._memory_bytes is not None or self._tasks is not None

    def broken(self) -> str | None:
        """Return the cause for which the tool must be killed now, or None."""
        processes = [name for name in os.listdir("/proc") if name.isdecimal() and name != "1"]
        # Threads count as processes, as the cgroup counts them; a crowd is not looked at one by one.
        if self._tasks is not None and (len(processes) > self._tasks or _tasks(processes) > self._tasks):
            return "too_many_processes"
        if self._memory_bytes is not None and self._memory_in_use(processes) > self._memory_bytes:
            return "out_of_memory"
        return None

    def _memory_in_use(self, processes: list[str]) -> int:
        """Return the smaller of two figures that are never too small.

        Resident sets count pages that forks share once for each, where a kernel does not tell them apart. The
        kernel's own figure counts everybody: with a guest kernel, that is the sandbox.
        """
        return min(_memory(processes) + _file_systems() - self._files_before, _used_in_kernel())


def _tasks(processes: list[str]) -> int:
    count = 0
    for name in processes:
        try:
            count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:
            continue
    return count


def _memory(processes: list[str]) -> int:
    """Return the private memory of processes, in bytes."""
    total = 0
    for name in processes:
        fields = _read(f"/proc/{name}/statm").split()
        if len(fields) >= 3:
            total += (int(fields[1]) - int(fields[2])) * _PAGE
    return total


def _used_in_kernel() -> int:
    """Return the memory in use under this kernel, in bytes."""
    fields = _read("/proc/meminfo").split()
    if fields[0:1] != ["MemTotal:"] or fields[3:4] != ["MemFree:"]:
        raise ValueError("/proc/meminfo is not as expected")
    return (int(fields[1]) - int(fields[4])) * 1024


def _file_systems() -> int:
    """Return what lies in file systems in memory, in bytes."""
    total = 0
    for path in _MEMORY_FILE_SYSTEMS:
        try:
            status = os.statvfs(path)
        except OSError:
            continue
        total += (status.f_blocks - status.f_bfree) * status.f_frsize
    return total


def _read(path: str) -> str:
    # As bytes: a codec for text would be imported for it, in every sandbox.
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall().decode()
    except (OSError, ValueError):
        return ""
