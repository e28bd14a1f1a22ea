"""What the runner asks of the kernel: to be left alone by its children, and to end all of them.

`kill_everything` signals every process that the caller may signal. It is only ever right in process 1 of a pid
namespace, and checks that itself.
"""

import _ctypes
import _signal  # type: ignore[import-not-found]  # the stubs know `signal` alone
import os
import resource
import time

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
# How long killed processes may take to be gone. One that the kernel holds longer dies with process 1.
_DEATH_WAIT_S = 2.0
# Dead children are collected in portions, so that a tool that breeds them cannot keep the runner from its clock.
_REAP_AT_ONCE = 1000

# The modules below `signal` and `ctypes` do what is needed here, and are there at once: the enumerations of the one
# and the many types of the other take longer than a call.
_CATCHABLE = tuple(sorted(_signal.valid_signals() - {_signal.SIGKILL, _signal.SIGSTOP}))


# The base of every C type, which has no other name, and takes no type at run time.
class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


# None is this program itself, of which the stubs do not know.
_libc_prctl = _Function(_ctypes.dlsym(_ctypes.dlopen(None, os.RTLD_NOW), "prctl"))  # type: ignore[arg-type]


def _prctl(option: int, value: int) -> None:
    if _libc_prctl(option, value, 0, 0, 0) != 0:
        raise OSError(_ctypes.get_errno(), f"prctl({option}) failed")


def set_dumpable(*, dumpable: bool) -> None:
    """Say whether processes of the same uid may trace this one and open its /proc/<pid>/{mem,fd,environ}.

    Not dumpable, those files belong to root and ptrace is refused (prctl(2), ptrace(2)). The tool has the
    runner's uid: this is what stands between it and the wire.
    """
    _prctl(_PR_SET_DUMPABLE, int(dumpable))


def set_no_new_privs() -> None:
    """Make set-user-ID bits and file capabilities powerless for this process and its descendants."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _do_nothing(_number: int, _frame: object) -> None:
    """Stand for a handler: its signal only wakes the loop up."""


def ignore_signals() -> int:
    """Ignore every signal but SIGCHLD; return a descriptor that becomes readable when a child has died.

    The kernel already drops what processes of the namespace send to its process 1 without a handler; a kernel
    of another make may not. SIGCHLD has a handler that does nothing: forged, it causes one idle round.
    """
    for number in _CATCHABLE:
        if number != _signal.SIGCHLD:
            _signal.signal(number, _signal.SIG_IGN)
    waking, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    _signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    _signal.signal(_signal.SIGCHLD, _do_nothing)
    return waking


def default_signals() -> None:
    """Undo `ignore_signals` in a child, and unblock everything."""
    _signal.set_wakeup_fd(-1)
    for number in _CATCHABLE:
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def reap(watched: int) -> tuple[int | None, bool]:
    """Collect dead children without waiting.

    Returns the wait status of process `watched` if it was among them, and whether any process is left.
    """
    status = None
    for _ in range(_REAP_AT_ONCE):
        try:
            pid, pid_status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status, False
        if pid == 0:
            break
        if pid == watched:
            status = pid_status
    return status, True


def kill_everything(watched: int) -> tuple[int | None, bool]:
    """Kill and collect every other process of the namespace.

    Returns the wait status of process `watched` if it was collected here, and whether all are gone: orphans
    become children of process 1, so that no child means nobody.
    """
    status = None
    give_up = time.monotonic() + _DEATH_WAIT_S
    pause = 0.0005
    while True:
        _kill_all_once()
        collected, left = reap(watched)
        status = collected if collected is not None else status
        if not left or time.monotonic() > give_up:
            return status, not left
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def _kill_all_once() -> None:
    # Anywhere else this would kill every process of the user, or of the machine.
    if os.getpid() != 1:
        raise RuntimeError("only process 1 of a pid namespace may kill everything")
    try:
        os.kill(-1, _signal.SIGKILL)
    except ProcessLookupError:
        return


def children_usage() -> tuple[float, int]:
    """Return processor time (ms) and the largest resident set (KiB) of all collected processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (usage.ru_utime + usage.ru_stime) * 1000, usage.ru_maxrss
