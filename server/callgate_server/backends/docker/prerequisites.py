"""What this host and its engine lack for running sandboxes, each with its remedy.

Looking (`look`) is apart from judging (`assess`), which is pure. A `fail` means that sandboxes will not start
or a promise will not hold; a `warn` is a layer less, or something known to be weak that our spec steps round;
`off` is a capability that only some tools ask for, and those that do are refused. Nothing is mended here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from docker.errors import DockerException

from callgate_server.backends.docker.engine import API_VERSION, connect, spoken
from callgate_server.backends.docker.failure import Step, refusal
from callgate_server.backends.docker.options import DockerOptions

# How many there may be of each kind that a lane makes, and the switches that two distributions added.
_NAMESPACES: Final = tuple(
    Path(f"/proc/sys/user/max_{kind}_namespaces") for kind in ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")
)
_USER_NAMESPACES_SWITCH: Final = Path("/proc/sys/kernel/unprivileged_userns_clone")
# `mount_setattr` came with it.
_LANE_KERNEL: Final = (5, 12)
_KEEP_TO_CONTAINER: Final = "or keep isolation `container` for the tools of this host"
_SWAPS: Final = Path("/proc/swaps")
# First versions of each line with the fixes of CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881.
_RUNC_FIXED: Final = ((1, 2, 8), (1, 3, 3), (1, 4, 0))


class Level(StrEnum):
    OK = "ok"
    OFF = "off"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: what was found, and what to do where it is not `ok`."""

    name: str
    level: Level
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read. `trouble` says why the engine told nothing; then `info` and `versions` are empty.

    `user_namespaces`: whether the host lets unprivileged users have all the namespaces that a lane makes.
    """

    info: Mapping[str, Any]
    versions: Mapping[str, Any]
    trouble: str | None
    user_namespaces: bool
    swap: bool


def check(options: DockerOptions) -> tuple[Finding, ...]:
    """Look and judge. Blocks for seconds at most; never raises for what it finds."""
    return assess(look(options), options)


def look(options: DockerOptions) -> Facts:
    """Ask the engine and read what the kernel says of itself."""
    info: Mapping[str, Any] = {}
    versions: Mapping[str, Any] = {}
    trouble = None
    try:
        with connect(options.socket_url, options.look_s) as client:
            versions = client.version(api_version=False)
        with connect(options.socket_url, options.look_s, version=spoken(versions)) as client:
            info = client.info()
    except (DockerException, OSError) as error:
        trouble = refusal(error, Step.LOOK).message
    return Facts(info, versions, trouble, user_namespaces=_user_namespaces(), swap=len(_lines(_SWAPS)) > 1)


def assess(facts: Facts, options: DockerOptions) -> tuple[Finding, ...]:
    """Judge what was read."""
    if facts.trouble is not None:
        return (Finding("engine", Level.FAIL, facts.trouble, f"Start the Docker engine behind {options.socket_url}."),)
    return (
        _engine(facts),
        _default_runtime(facts, options),
        _runc(facts),
        _gvisor(facts),
        _seccomp(facts),
        *_controllers(facts),
        _access_control(facts),
        *_lanes(facts, options),
    )


def _engine(facts: Facts) -> Finding:
    version, api = facts.versions.get("Version", "unknown"), facts.versions.get("ApiVersion", "unknown")
    return Finding("engine", Level.OK, f"version {version}, API {api} ({API_VERSION} is needed)")


def _default_runtime(facts: Facts, options: DockerOptions) -> Finding:
    name = options.default_runtime
    if name in _runtimes(facts):
        return Finding("runtime", Level.OK, f"{name} is registered")
    return Finding("runtime", Level.FAIL, f"{name} is not registered", f"Add {name} to the engine's `runtimes`.")


def _runc(facts: Facts) -> Finding:
    components = facts.versions.get("Components") or ()
    text = next((str(part.get("Version")) for part in components if part.get("Name") == "runc"), "")
    version = parse_version(text)
    if version is None:
        return Finding("runc", Level.WARN, "its version is unknown", "Make sure that it is 1.2.8, 1.3.3 or newer.")
    if is_fixed(version, _RUNC_FIXED):
        return Finding("runc", Level.OK, f"version {text}")
    return Finding(
        "runc",
        Level.WARN,
        f"version {text} has no fix for CVE-2025-31133, -52565 and -52881, unless the distribution added it. They need "
        "a terminal, or an image, working directory or mount that the attacker chose; a sandbox has none of these.",
        "Update runc to 1.2.8, 1.3.3 or newer.",
    )


def _gvisor(facts: Facts) -> Finding:
    runtime = _runtimes(facts).get("runsc")
    if runtime is None:
        return Finding(
            "runsc",
            Level.OFF,
            "not registered; a tool that asks for it is refused",
            "Install gVisor and add runsc to the engine's `runtimes`, if a tool shall have it.",
        )
    words = [str(word) for word in runtime.get("runtimeArgs") or ()]
    if "--ignore-cgroups" in words:
        return Finding(
            "runsc",
            Level.WARN,
            "registered with --ignore-cgroups: memory and processor limits of a tool do not hold under it",
            "Take --ignore-cgroups out of its runtimeArgs, if sandboxes start without it on this host.",
        )
    if "--network=none" not in words:
        return Finding(
            "runsc",
            Level.WARN,
            "registered without --network=none: gVisor sets up a network stack that no sandbox uses",
            'Add "--network=none" to its runtimeArgs.',
        )
    return Finding("runsc", Level.OK, "registered")


def _seccomp(facts: Facts) -> Finding:
    if _has_security_option(facts, "seccomp"):
        return Finding("seccomp", Level.OK, "supported; every sandbox gets our own profile")
    return Finding(
        "seccomp", Level.FAIL, "not supported by engine or kernel", "Use a kernel with CONFIG_SECCOMP_FILTER."
    )


def _controllers(facts: Facts) -> Iterable[Finding]:
    version = facts.info.get("CgroupVersion", "unknown")
    for name, key in (("memory", "MemoryLimit"), ("pids", "PidsLimit"), ("cpu", "CpuCfsQuota")):
        if facts.info.get(key):
            yield Finding(f"cgroup {name}", Level.OK, f"limits hold (cgroup v{version})")
        else:
            yield Finding(
                f"cgroup {name}",
                Level.FAIL,
                "the engine cannot set this limit",
                f"Enable the {name} cgroup controller.",
            )
    if version == "1":
        yield Finding(
            "cgroup sockets",
            Level.WARN,
            "cgroup v1 does not charge what lies in sockets: a sandbox can hold more there than its limit",
            "Boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1).",
        )
    if facts.swap and not facts.info.get("SwapLimit"):
        yield Finding(
            "cgroup swap",
            Level.WARN,
            "swap is not accounted: a sandbox may use swap beyond its memory limit",
            "Boot with swapaccount=1, or turn swap off.",
        )


def _access_control(facts: Facts) -> Finding:
    for name in ("apparmor", "selinux"):
        if _has_security_option(facts, name):
            return Finding("mandatory access control", Level.OK, f"{name} is active")
    return Finding(
        "mandatory access control",
        Level.WARN,
        "neither AppArmor nor SELinux is active: one layer less around a sandbox; no promise of ours rests on it",
        "Boot a kernel with AppArmor or SELinux enabled.",
    )


def _lanes(facts: Facts, options: DockerOptions) -> Iterable[Finding]:
    """What is in the way of isolation `fork`. A gateway with such a tool tries it when it starts; this says why."""
    obstacles = [*_kernel_obstacles(facts), *_access_control_obstacles(facts)]
    if options.default_runtime in options.guest_kernels:
        obstacles.append((f"in the kernel of {options.default_runtime} no lane can be made", "Use runc as the runtime"))
    for detail, fix in obstacles:
        yield Finding("isolation fork", Level.OFF, f"not available: {detail}", f"{fix}, {_KEEP_TO_CONTAINER}.")
    if not obstacles:
        yield Finding("isolation fork", Level.OK, "nothing seems to be in the way of lanes")


def _kernel_obstacles(facts: Facts) -> Iterable[tuple[str, str]]:
    text = str(facts.info.get("KernelVersion", "unknown"))
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None or (int(match[1]), int(match[2])) < _LANE_KERNEL:
        yield f"lanes need Linux 5.12, and this is {text}", "Boot a newer kernel"
    if not facts.user_namespaces:
        switches = "user.max_user_namespaces and the like, kernel.unprivileged_userns_clone"
        yield "user namespaces are refused to unprivileged users", f"Allow them by sysctl ({switches})"


def _access_control_obstacles(facts: Facts) -> Iterable[tuple[str, str]]:
    if _has_security_option(facts, "apparmor"):
        yield (
            "AppArmor's profile docker-default denies the mounts that a lane makes",
            "Use a host whose engine runs without AppArmor",
        )
    if _has_security_option(facts, "selinux"):
        yield "lanes have not been tried under SELinux", "Use a host whose engine runs without SELinux"


def parse_version(text: str) -> tuple[int, int, int] | None:
    """Read the first three numbers of a version like `1.1.5+ds1`, or None. `-rc` counts as the release before it."""
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)(-rc)?", text)
    if match is None:
        return None
    major, minor, patch = (int(match[number]) for number in (1, 2, 3))
    return (major, minor, patch - 1) if match[4] else (major, minor, patch)


def is_fixed(version: tuple[int, int, int], fixed: Iterable[tuple[int, int, int]]) -> bool:
    """Whether `version` is at least the fixed one of its own line, or of a line after the last."""
    ordered = sorted(fixed)
    own = [first for first in ordered if first[:2] == version[:2]]
    return version >= (own[0] if own else ordered[-1])


def _runtimes(facts: Facts) -> Mapping[str, Any]:
    return facts.info.get("Runtimes") or {}


def _has_security_option(facts: Facts, name: str) -> bool:
    return any(option.startswith(f"name={name}") for option in facts.info.get("SecurityOptions") or [])


def _user_namespaces() -> bool:
    allowed = [_lines(path) for path in _NAMESPACES]
    return all(lines and lines[0] != "0" for lines in allowed) and _lines(_USER_NAMESPACES_SWITCH) != ["0"]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
