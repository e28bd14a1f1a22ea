"""What the kernel is asked for to make a sandbox inside a sandbox: namespaces, mounts, no rights, a filter.

Only requests, in no order; the order is `cell.py`. Each either holds or raises OSError: there is nothing here that
tries something weaker instead. Structures and numbers are those of the kernel's own interface.
"""

import ctypes
import errno
import fcntl
import os
import struct

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, in one go: the user namespace is made first, and
# owns the others.
_NEW_NAMESPACES = 0x7E02_0000
# The new process is a child of the caller's parent.
_CLONE_PARENT = 0x8000
_SIGCHLD = 17
_CLONE = {"x86_64": 56, "aarch64": 220}
_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY_NOSUID = 0x1 | 0x2
_MS_NOSUID_NODEV = 0x2 | 0x4
_MS_NOEXEC = 0x8
_MS_RDONLY = 0x1
_PR_CAPBSET_DROP = 24
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x2008_0522
# Above any that a kernel has had; the first that it does not know ends the loop.
_MOST_CAPABILITIES = 64
_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x1 | 0x40
_FILTER_INSTRUCTION_BYTES = 8

_libc = ctypes.CDLL(None, use_errno=True)
# The interpreter's lock is held on the way into the child, as `os.fork` holds it.
_libc_locked = ctypes.PyDLL(None, use_errno=True)


class Filter:
    """A compiled seccomp program, laid out in memory once so that each process only has to ask for it."""

    __slots__ = ("_instructions", "_program")

    def __init__(self, program: bytes) -> None:
        if not program or len(program) % _FILTER_INSTRUCTION_BYTES:
            raise ValueError("a filter is a sequence of whole instructions")
        self._instructions = ctypes.create_string_buffer(program, len(program))
        # struct sock_fprog: an unsigned short, padding, a pointer.
        layout = struct.pack(
            "@HxxxxxxQ", len(program) // _FILTER_INSTRUCTION_BYTES, ctypes.addressof(self._instructions)
        )
        self._program = ctypes.create_string_buffer(layout, len(layout))

    def install(self) -> None:
        """Put this process and all that it starts under the filter, for good."""
        if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self._program, 0, 0) != 0:
            raise _error("seccomp")


def fork_into_new_namespaces() -> int:
    """Fork into new user, pid, mount, network, ipc, uts and cgroup namespaces; return as `os.fork` does.

    The child is process 1 of its pid namespace, and a sibling: it is for the caller's parent to collect. It still
    has the caller's memory and descriptors, and every right inside its own namespaces.

    Raises:
        OSError: the kernel refuses; nothing was started.
    """
    number = _CLONE.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, "clone: this machine is not known")
    # What `os.fork` does around the same system call, which it cannot give flags to.
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = _libc_locked.syscall(number, _NEW_NAMESPACES | _CLONE_PARENT | _SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    reason = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(reason, "clone")
    return pid


def map_own_ids(uid: int, gid: int) -> None:
    """Make `uid` and `gid` the only ids of this user namespace: any other, root's among them, cannot be taken.

    For a process without rights outside, the kernel demands that it gives up changing groups first
    (user_namespaces(7)).
    """
    _write("/proc/self/setgroups", b"deny")
    _write("/proc/self/uid_map", b"%d %d 1" % (uid, uid))
    _write("/proc/self/gid_map", b"%d %d 1" % (gid, gid))


def make_everything_read_only() -> None:
    """Make every mount read-only, and none of them able to give rights by a file's mode. Since Linux 5.12."""
    # struct mount_attr: what to set, what to clear, propagation, user namespace.
    attributes = ctypes.create_string_buffer(struct.pack("@QQQQ", _MOUNT_ATTR_RDONLY_NOSUID, 0, 0, 0), 32)
    if _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, 32) != 0:
        raise _error("mount_setattr")


def mount_empty(path: bytes, options: bytes, *, execute: bool, writable: bool) -> None:
    """Lay an empty file system in memory over a folder."""
    flags = _MS_NOSUID_NODEV | (0 if execute else _MS_NOEXEC) | (0 if writable else _MS_RDONLY)
    if _libc.mount(b"tmpfs", path, b"tmpfs", flags, options) != 0:
        raise _error("mount")


def raise_loopback(descriptor: int) -> None:
    """Switch on the new network namespace's own loopback; `descriptor` is any socket in it. It leads nowhere else."""
    fcntl.ioctl(descriptor, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP_RUNNING))


def drop_every_capability() -> None:
    """Give up all rights, and the possibility of ever having one again."""
    for number in range(_MOST_CAPABILITIES):
        if _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            if ctypes.get_errno() != errno.EINVAL:
                raise _error("capabilities")
            break
    # Effective, permitted and inheritable, each in two words of 32 bits, all empty; ambient ones go with them.
    header = ctypes.create_string_buffer(struct.pack("@Ii", _CAPABILITY_VERSION_3, 0), 8)
    if _libc.capset(header, ctypes.create_string_buffer(24)) != 0:
        raise _error("capset")


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _error(step: str) -> OSError:
    return OSError(ctypes.get_errno(), step)
