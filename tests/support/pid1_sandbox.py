"""A sandbox made of namespaces alone, with the real runner as its process 1 and pipes as its wire.

It has what the runner needs to be tested for real: a pid namespace, a root of its own with the fixed paths, a
uid without rights. It has no seccomp filter and no cgroup, and is no backend. Needs root.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Self

from callgate_server.execution.sandbox import ExitReport
from callgate_server.model.answer import SandboxInfo

REPOSITORY = Path(__file__).parents[2]
FRAMES = json.loads((REPOSITORY / "proto/callgate_proto/frames.json").read_text())
# Not the uid of real sandboxes, so that the two never count each other's processes.
UID = 61532

# What makes the namespaces, before the program that makes the root.
UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount", "--ipc", "--net", "--uts", "--")
SETUP = """
set -eu
root=$1 runner=$2 tools=$3 uid=$4
shift 4
mount -t tmpfs -o size=16m,mode=755 tmpfs "$root"
cd "$root"
mkdir -p usr dev proc tmp out run/secrets opt/callgate/runner opt/callgate/tools opt/callgate/packages
for name in bin lib lib64 sbin; do ln -s "usr/$name" "$name"; done
mount --rbind -o ro /usr usr
mount --rbind /dev dev
mount -t tmpfs -o size=1m,mode=1777 tmpfs dev/shm
mount -t proc proc proc
mount --bind -o ro "$runner" opt/callgate/runner
mount --bind -o ro "$tools" opt/callgate/tools
mount -t tmpfs -o size=64m,nr_inodes=20000,mode=1777 tmpfs tmp
mount -t tmpfs -o size=64m,nr_inodes=200000,mode=755,uid="$uid" tmpfs out
mount -t tmpfs -o size=1m,mode=700,uid="$uid" tmpfs run/secrets
mkdir old
pivot_root . old
cd /
umount -l old
rmdir old
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs -- "$@"
"""


class Pid1Sandbox:
    """One started runner. `tools` is the folder of Python tools that it sees."""

    def __init__(self, process: asyncio.subprocess.Process, diagnostics: Path) -> None:
        self._process = process
        self._diagnostics = diagnostics

    @classmethod
    async def start(cls, folder: Path, tools: Path) -> Self:
        """Start a runner; `folder` is an empty place for its root."""
        root = folder / "root"
        root.mkdir()
        diagnostics = folder / "stderr"
        setup = ["sh", "-c", SETUP, "setup", str(root), str(REPOSITORY / "sandbox_images/base"), str(tools), str(UID)]
        program = shutil.which(UNSHARE[0])
        assert program is not None, "these tests need util-linux"
        with diagnostics.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                program,
                *UNSHARE[1:],
                *setup,
                *FRAMES["entrypoint"],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env={"PATH": os.environ["PATH"]},
            )
        return cls(process, diagnostics)

    @property
    def id(self) -> str:
        return str(self._process.pid)

    @property
    def info(self) -> SandboxInfo:
        return SandboxInfo("pid1", "namespaces", "container")

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @property
    def diagnostics(self) -> str:
        return self._diagnostics.read_text()

    @property
    def runner_pid(self) -> int | None:
        """The runner's process id as the host sees it, None when it is gone."""
        try:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    async def send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    async def receive(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.read(262144)

    async def wait_exit(self, timeout_s: float) -> ExitReport:
        try:
            async with asyncio.timeout(timeout_s):
                status = await self._process.wait()
        except TimeoutError:
            return ExitReport(None, oom_killed=False, evidence="still running")
        code = status if status >= 0 else 128 - status
        return ExitReport(code, oom_killed=False, evidence=f"exit status {code}")

    async def kill(self) -> None:
        # The runner first: with another uid than its parent, it does not get the signal of --kill-child.
        for pid in (self.runner_pid, self._process.pid if self._process.returncode is None else None):
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def close_wire(self) -> None:
        """Play a gateway that goes away."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def destroy(self) -> None:
        await self.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        # What the runner had sent is read to its end, so that the transport closes.
        while await self.receive():
            pass
        await self._process.wait()
        # The loop tells the transport of its end in its next round.
        await asyncio.sleep(0)
