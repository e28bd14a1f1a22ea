"""From the runner to the tool: the child process, step by step.

A Python tool is called in a fork of the runner, which saves the start of an interpreter; a command is executed.
What the fork still has in its memory is this call's own input, which the tool gets anyway.
"""

import os
import resource
import sys

from callgate_runner import artifacts, kernel, python_tool
from callgate_runner.call import Call

_RESULT_FD = 3
# Above any descriptor that the runner ever has: it opens about twenty, and 64 more for egress, from the lowest number
# free.
HIGHEST_FD = 1024
CANNOT_START = 126
SCRATCH = "/tmp"  # noqa: S108  # the sandbox's own
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": SCRATCH,
    "TMPDIR": SCRATCH,
    "LANG": "C.UTF-8",
}


class Pipes:
    """The four pipes to the tool: the runner's ends (non-blocking), and the child's."""

    __slots__ = ("result", "stderr", "stdin", "stdout", "theirs")

    def __init__(self, *, with_result: bool) -> None:
        their_stdin, self.stdin = os.pipe2(os.O_CLOEXEC)
        self.stdout, their_stdout = os.pipe2(os.O_CLOEXEC)
        self.stderr, their_stderr = os.pipe2(os.O_CLOEXEC)
        self.theirs = [their_stdin, their_stdout, their_stderr]
        self.result: int | None = None
        if with_result:
            self.result, their_result = os.pipe2(os.O_CLOEXEC)
            self.theirs.append(their_result)

    @classmethod
    def of(cls, ours: list[int]) -> "Pipes":
        """Return pipes of which only our ends are here, in the order of `ours`."""
        self = cls.__new__(cls)
        self.stdin, self.stdout, self.stderr = ours[:3]
        self.result = ours[3] if len(ours) > 3 else None
        self.theirs = []
        self._stop_blocking()
        return self

    def ours(self) -> list[int]:
        ours = [self.stdin, self.stdout, self.stderr]
        return ours if self.result is None else [*ours, self.result]

    def keep_ours(self) -> None:
        for fd in self.theirs:
            os.close(fd)
        self._stop_blocking()

    def _stop_blocking(self) -> None:
        for fd in self.ours():
            os.set_blocking(fd, False)


class Child:
    """The tool in a fork of process 1. Every other process of the namespace is the tool's, so that all are ended."""

    __slots__ = ("_gate", "_pid", "pipes")
    # Its end shows as a dead child, and nowhere else.
    news: int | None = None

    def __init__(self, call: Call) -> None:
        self._pid, self.pipes, self._gate = start(call)

    def release(self) -> None:
        """Let the process become the tool."""
        os.close(self._gate)

    def ended(self) -> int | None:
        """Return the wait status of the tool's first process, None while it lives."""
        return kernel.reap(self._pid)[0]

    def end(self) -> tuple[int | None, bool]:
        """Kill what lives; return the wait status, if it came only now, and whether everything is gone."""
        return kernel.kill_everything(self._pid)

    def usage(self) -> tuple[float, int]:
        """Return processor time (ms) and the largest resident set (KiB)."""
        return kernel.children_usage()

    def output_folder(self) -> int | None:
        """Open the folder of its artifacts."""
        return artifacts.open_folder()


def start(call: Call) -> tuple[int, Pipes, int]:
    """Start the tool's process; return its id, the pipes to it, and the gate: it waits until that is closed."""
    pipes = Pipes(with_result=not call.result_from_stdout)
    waiting, gate = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _become_the_tool(call, pipes, waiting, gate)
    os.close(waiting)
    pipes.keep_ours()
    return pid, pipes, gate


def _become_the_tool(call: Call, pipes: Pipes, waiting: int, gate: int) -> None:
    """Does not return."""
    status = CANNOT_START
    try:
        # Ours would hold the gate shut for ever.
        os.close(gate)
        os.read(waiting, 1)
        _leave_the_runner(call, pipes)
        if call.function is not None:
            status = python_tool.run(call.function, with_result=not call.result_from_stdout)
        elif call.command is not None:
            os.execve(call.command[0], call.command, os.environ)
    except BaseException:
        # Standard error is the tool's by now, or the runner's own, which nobody but the operator reads.
        sys.excepthook(*sys.exc_info())
    finally:
        # Nothing of the runner may run in this process after the tool.
        os._exit(status)


def _leave_the_runner(call: Call, pipes: Pipes) -> None:
    """Turn this fork into the tool's process. The order is part of the design."""
    # 1. The wire goes first: whatever fails or follows, this process can no longer write a frame. Duplicating
    #    replaces 0 to 3; everything above, the wire among it, is closed.
    for number, fd in enumerate(pipes.theirs):
        os.dup2(fd, number)
    os.closerange(len(pipes.theirs), HIGHEST_FD)
    # 2. A session of its own: a signal to its process group, or to a terminal's, stays with the tool.
    os.setsid()
    # 3. The runner's deafness to signals is not for the tool.
    kernel.default_signals()
    # 4. Before the process may be dumped (5): a core file would hold the call's secrets.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit(resource.RLIMIT_NOFILE, call.open_files)
    # 5. Inherited "not dumpable" would keep the tool from its own /proc/self. Only now, without the wire: from
    #    here on its siblings may look into this process.
    kernel.set_dumpable(dumpable=True)
    # 6. Needs 5, as /proc/self was root's until then. When memory runs out, the tool dies before the runner.
    volunteer_for_oom()
    # 7. The container has it already where the backend keeps its word; here no word is needed.
    kernel.set_no_new_privs()
    # 8. What a program sees of its surroundings: fixed, and without anything of the runner's.
    set_surroundings(with_result=pipes.result is not None)
    os.environ.update(call.names)
    if call.egress is not None:
        # Imported already: the runner itself uses it.
        from callgate_runner import egress

        os.environ.update(egress.environment(call.egress))


def set_surroundings(*, with_result: bool) -> None:
    """Give this process the file mode mask, working folder and environment that every tool finds."""
    os.umask(0o077)
    os.chdir(SCRATCH)
    os.environ.clear()
    os.environ.update(_ENVIRONMENT)
    if with_result:
        os.environ["CALLGATE_RESULT_FD"] = str(_RESULT_FD)


def volunteer_for_oom() -> None:
    """When memory runs out, let this process and what it starts die first."""
    try:
        # Not as text: a codec that is not there yet would be imported, in every call.
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"1000")
        finally:
            os.close(fd)
    except OSError:
        # A kernel without it may kill the runner first; the gateway still learns of it from the sandbox.
        return


def limit(kind: int, value: int) -> None:
    """Set a resource limit, hard and soft; one that is lower already stays."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
