"""Which system calls a sandbox may make: an allow-list, everything else is refused with EPERM.

This file is the source; it is plain data, grouped by purpose, so that a reviewer reads it and another
compiler (a BPF filter inside a sandbox) can start from it. It decides nothing about capabilities, of which
a sandbox has none: calls that only root may make are left out because the kernel code behind them is
attack surface, not because they would succeed.

Tried and rejected: a copy of an engine's default profile (old ones admit io_uring and AF_VSOCK, and all of
them widen with capabilities we never give); a deny-list (a new kernel adds calls that it does not know).
What is missing here on purpose is named in `REFUSED_ON_PURPOSE`, and a test holds the two apart.
"""

import json
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

EPERM: Final = 1
ENOSYS: Final = 38


@dataclass(frozen=True, slots=True)
class Argument:
    """One condition: argument number `index`, after `& mask` where there is a mask, equals `value`.

    The filter compares 64 bits; where the kernel truncates an argument to 32, a mask makes the filter do so
    too, or a caller could set a high bit to look like something else.
    """

    index: int
    value: int
    mask: int | None = None


@dataclass(frozen=True, slots=True)
class Conditional:
    """Calls that are allowed when every condition holds. Several rules for a call are alternatives."""

    names: tuple[str, ...]
    when: tuple[Argument, ...]


# Names that an architecture or kernel does not have are skipped by the engine.
# fmt: off
ALLOWED: Final[dict[str, tuple[str, ...]]] = {
    "reading and writing": (
        "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2",
        "lseek", "sendfile", "copy_file_range", "splice", "tee", "readahead", "fadvise64",
    ),
    "files by path": (
        "open", "openat", "openat2", "creat", "access", "faccessat", "faccessat2", "stat", "lstat", "newfstatat",
        "statx", "readlink", "readlinkat", "mkdir", "mkdirat", "rmdir", "link", "linkat", "symlink", "symlinkat",
        "unlink", "unlinkat", "rename", "renameat", "renameat2", "chmod", "fchmodat", "fchmodat2", "chown", "lchown",
        "fchownat", "truncate", "utime", "utimes", "futimesat", "utimensat", "statfs", "chdir", "getcwd", "umask",
    ),
    "open files": (
        "close", "close_range", "dup", "dup2", "dup3", "fcntl", "flock", "fstat", "fstatfs", "fchmod", "fchown",
        "fchdir", "ftruncate", "fallocate", "fsync", "fdatasync", "sync_file_range", "getdents", "getdents64",
    ),
    "extended attributes": (
        "getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr", "setxattr", "lsetxattr",
        "fsetxattr", "removexattr", "lremovexattr", "fremovexattr",
    ),
    "pipes, events, waiting": (
        "pipe", "pipe2", "poll", "ppoll", "select", "pselect6", "epoll_create", "epoll_create1", "epoll_ctl",
        "epoll_wait", "epoll_pwait", "epoll_pwait2", "eventfd", "eventfd2", "signalfd", "signalfd4", "inotify_init",
        "inotify_init1", "inotify_add_watch", "inotify_rm_watch",
    ),
    "memory": (
        "brk", "mmap", "munmap", "mprotect", "mremap", "madvise", "mincore", "msync", "mlock", "mlock2", "munlock",
        "mlockall", "munlockall", "memfd_create", "pkey_alloc", "pkey_free", "pkey_mprotect", "mseal",
        "map_shadow_stack", "membarrier", "cachestat",
    ),
    "processes": (
        "fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid", "set_tid_address", "getpid",
        "getppid", "gettid", "getpgid", "getpgrp", "getsid", "setpgid", "setsid", "prctl", "arch_prctl", "pidfd_open",
        "pidfd_send_signal", "restart_syscall", "rseq",
    ),
    "threads and locks": ("futex", "futex_waitv", "futex_wake", "futex_wait", "futex_requeue", "set_robust_list"),
    "signals": (
        "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "rt_sigsuspend", "rt_sigtimedwait",
        "rt_sigqueueinfo", "rt_tgsigqueueinfo", "sigaltstack", "kill", "tkill", "tgkill", "pause", "alarm",
    ),
    # Ids can only be set to what they are: there are no capabilities and no setuid programs take effect.
    "identity": (
        "getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups", "setuid", "setgid",
        "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups", "capget", "capset",
    ),
    "time": (
        "time", "gettimeofday", "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "getitimer",
        "setitimer", "timer_create", "timer_settime", "timer_gettime", "timer_getoverrun", "timer_delete",
        "timerfd_create", "timerfd_settime", "timerfd_gettime",
    ),
    "scheduling": (
        "sched_yield", "sched_getaffinity", "sched_setaffinity", "sched_getparam", "sched_setparam",
        "sched_getscheduler", "sched_setscheduler", "sched_getattr", "sched_setattr", "sched_get_priority_max",
        "sched_get_priority_min", "sched_rr_get_interval", "getpriority", "setpriority", "ioprio_get", "ioprio_set",
        "getcpu",
    ),
    "limits and figures": ("getrlimit", "setrlimit", "getrusage", "times", "sysinfo", "uname", "getrandom"),
    # `socket` itself is conditional, below: what cannot be created cannot be used.
    "sockets": (
        "bind", "listen", "accept", "accept4", "connect", "shutdown", "getsockname", "getpeername", "getsockopt",
        "setsockopt", "sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg",
    ),
    # numpy and multiprocessing share memory this way; the pages are charged to the sandbox.
    "shared memory": ("shmget", "shmat", "shmdt", "shmctl", "semget", "semop", "semtimedop", "semctl"),
    # Programs may sandbox themselves further.
    "self-restriction": ("seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),
}
# fmt: on

_INT: Final = 0xFFFF_FFFF
_AF_UNIX: Final = 1
_AF_INET: Final = 2
_AF_INET6: Final = 10
_SOCK_STREAM: Final = 1
_SOCK_DGRAM: Final = 2
_SOCK_SEQPACKET: Final = 5
_SOCK_TYPE_MASK: Final = 0xF  # the rest are SOCK_NONBLOCK and SOCK_CLOEXEC; the kernel refuses other bits
_IPPROTO_DEFAULT: Final = 0
_IPPROTO_TCP: Final = 6
_IPPROTO_UDP: Final = 17
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. NEWTIME exists only for clone3 and unshare.
_CLONE_NEW: Final = 0x7E02_0000
_S_IFMT: Final = 0o170000
_S_IFIFO: Final = 0o010000
_PERSONALITY_LINUX: Final = 0
_PERSONALITY_QUERY: Final = 0xFFFF_FFFF

# Terminals are absent from this list altogether: no TIOCSTI, no TIOCLINUX, no pseudo-terminals of one's own.
IOCTLS: Final[dict[str, int]] = {
    "TCGETS": 0x5401,  # isatty(), which must be able to say no
    "TCGETS2": 0x802C_542A,
    "TIOCGPGRP": 0x540F,
    "TIOCGWINSZ": 0x5413,
    "TIOCOUTQ": 0x5411,
    "FIONREAD": 0x541B,
    "FIONBIO": 0x5421,
    "FIONCLEX": 0x5450,
    "FIOCLEX": 0x5451,
    "FIOASYNC": 0x5452,
    "FIOQSIZE": 0x5460,
    "SIOCGIFNAME": 0x8910,
    "SIOCGIFCONF": 0x8912,
    "SIOCGIFFLAGS": 0x8913,
    "SIOCGIFADDR": 0x8915,
    "SIOCGIFINDEX": 0x8933,
    "FICLONE": 0x4004_9409,  # cp asks for it first
    "FS_IOC_FIEMAP": 0xC020_660B,
    "FS_IOC_GETFLAGS": 0x8008_6601,
}


def _internet_sockets() -> tuple[Conditional, ...]:
    """Plain TCP and UDP: no raw sockets, and no SCTP, DCCP, MPTCP, UDP-Lite or ICMP by protocol number."""
    rules = []
    for family in (_AF_INET, _AF_INET6):
        for kind, own in ((_SOCK_STREAM, _IPPROTO_TCP), (_SOCK_DGRAM, _IPPROTO_UDP)):
            for protocol in (_IPPROTO_DEFAULT, own):
                when = (Argument(0, family), Argument(1, kind, _SOCK_TYPE_MASK), Argument(2, protocol))
                rules.append(Conditional(("socket",), when))
    return tuple(rules)


CONDITIONAL: Final[tuple[Conditional, ...]] = (
    # Threads and processes, but no new namespace.
    Conditional(("clone",), (Argument(0, 0, _CLONE_NEW),)),
    *(
        Conditional(("socket",), (Argument(0, _AF_UNIX), Argument(1, kind, _SOCK_TYPE_MASK)))
        for kind in (_SOCK_STREAM, _SOCK_DGRAM, _SOCK_SEQPACKET)
    ),
    *_internet_sockets(),
    Conditional(("socketpair",), (Argument(0, _AF_UNIX),)),
    # The kernel takes the command as 32 bits (CVE-2019-10063 was a filter that compared 64).
    *(Conditional(("ioctl",), (Argument(1, command, _INT),)) for command in IOCTLS.values()),
    # Named pipes, no devices.
    Conditional(("mknod",), (Argument(1, _S_IFIFO, _S_IFMT),)),
    Conditional(("mknodat",), (Argument(2, _S_IFIFO, _S_IFMT),)),
    # No READ_IMPLIES_EXEC and no switching off of address randomisation.
    *(Conditional(("personality",), (Argument(0, value),)) for value in (_PERSONALITY_LINUX, _PERSONALITY_QUERY)),
    # Its own limits, not those of another process of the same user: the runner is one.
    Conditional(("prlimit64",), (Argument(0, 0),)),
)

# What the trusted part of a lane may do beside that, inside user namespaces that it makes: it has no capability
# outside of them. `clone` is allowed with any flags.
LANE_ALLOWED: Final = ("clone", "mount", "mount_setattr")
_SIOCSIFFLAGS: Final = 0x8914

# Its flags lie in memory, where no filter can see them. Told that the kernel lacks it, libc falls back to clone.
ANSWERED_ENOSYS: Final = ("clone3",)

# fmt: off
REFUSED_ON_PURPOSE: Final[dict[str, tuple[str, ...]]] = {
    "kernel attack surface with its own history": (
        "io_uring_setup", "io_uring_enter", "io_uring_register", "io_setup", "io_submit", "io_cancel", "io_destroy",
        "io_getevents", "io_pgetevents", "bpf", "perf_event_open", "userfaultfd", "vmsplice", "modify_ldt",
        "remap_file_pages", "memfd_secret", "fanotify_init", "fanotify_mark",
    ),
    "kernel objects that are good for shaping its heap": (
        "msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive",
        "mq_notify", "mq_getsetattr", "add_key", "request_key", "keyctl",
    ),
    "namespaces and mounts": (
        "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "open_tree_attr",
        "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "statmount", "listmount",
    ),
    "other processes": (
        "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp",
        "pidfd_getfd", "get_robust_list", "move_pages", "migrate_pages",
    ),
    "placement of memory": ("mbind", "set_mempolicy", "get_mempolicy", "set_mempolicy_home_node"),
    "the machine": (
        "reboot", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "create_module",
        "query_module", "get_kernel_syms", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "syslog",
        "sethostname", "setdomainname", "vhangup", "iopl", "ioperm", "nfsservctl", "lookup_dcookie", "sysfs",
        "_sysctl", "ustat", "uselib",
    ),
    "the clock": ("settimeofday", "clock_settime", "clock_adjtime", "adjtimex"),
    "files by handle": ("open_by_handle_at", "name_to_handle_at"),
    # They flush every file system of the host, not only the sandbox's.
    "other tenants' disk": ("sync", "syncfs"),
}
# fmt: on

# One architecture each and no second one beside it: 32-bit and x32 entry points are killed.
_ARCHITECTURES: Final = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")


def profile() -> dict[str, Any]:
    """Return the profile in the engine's JSON form."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [{"architecture": name, "subArchitectures": []} for name in _ARCHITECTURES],
        "syscalls": [
            {"names": list(names), "action": "SCMP_ACT_ALLOW", "comment": purpose} for purpose, names in ALLOWED.items()
        ]
        + [
            {"names": list(rule.names), "action": "SCMP_ACT_ALLOW", "args": [_condition(a) for a in rule.when]}
            for rule in CONDITIONAL
        ]
        + [{"names": list(ANSWERED_ENOSYS), "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}],
    }


def lane_profile() -> dict[str, Any]:
    """Return the profile of a lane: its runner makes namespaces and mounts. What runs in them is under `bpf.py`."""
    document = profile()
    own = [entry for entry in document["syscalls"] if entry["names"] != ["clone"]]
    loopback_up = [_condition(Argument(1, _SIOCSIFFLAGS, _INT))]
    document["syscalls"] = [
        *own,
        {"names": list(LANE_ALLOWED), "action": "SCMP_ACT_ALLOW", "comment": "making a sandbox inside"},
        {"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": loopback_up},
    ]
    return document


@cache
def profile_json(*, lane: bool = False) -> str:
    """Return a profile as the engine takes it in a security option."""
    return json.dumps(lane_profile() if lane else profile(), separators=(",", ":"), sort_keys=True)


def _condition(argument: Argument) -> dict[str, Any]:
    if argument.mask is None:
        return {"index": argument.index, "op": "SCMP_CMP_EQ", "value": argument.value}
    return {
        "index": argument.index,
        "op": "SCMP_CMP_MASKED_EQ",
        "value": argument.mask,
        "valueTwo": argument.value,
    }
