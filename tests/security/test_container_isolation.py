"""What hostile code inside a sandbox can and cannot do, tried from inside; and what the engine says of it.

Under gVisor a system call goes to gVisor's own kernel, where our filter is not loaded: what that kernel answers
differently, but only about itself, is named here as such.
"""

import asyncio
import errno
import json
import os
import platform
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from callgate_server.backends.docker import seccomp
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.manifest import Limits
from support.lane_rig import LaneRig, lane_rig
from support.probe import Probe, probe, request_for
from support.probe_image import loaded_image, volume_image
from support.sandboxes import RUNTIMES, Rig, rig

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="system call numbers below are x86_64's")

# Not those that the server's filter is made of: with a wrong one of them, filter and test would agree. These are as
# `asm/unistd_64.h` of the kernel's headers has them.
NUMBERS: dict[str, int] = json.loads((Path(__file__).parent / "syscalls_x86_64.json").read_text())
REFUSED = {"EPERM", "ENOSYS"}
LIMITS = Limits(scratch_mb=32, scratch_files=500, open_files=128, artifacts=4, artifacts_kb=64, pids=32)

PRELUDE = """
import ctypes, errno, os, socket, subprocess
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in arguments])
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "OK"
def attempt(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "OK"
"""


class Lane:
    """Stands for a rig where the test is about a cell: runc's container, and what a lane puts around the call in it."""

    runtime = "runc"


class InLane:
    """Runs programs in a lane, each as a call of its own."""

    def __init__(self, lanes: LaneRig) -> None:
        self._lanes = lanes

    async def run(self, program: str, *, timeout_s: float = 60) -> Any:
        code = f"answers = []\nanswer = answers.append\n{program}\nresult = answers[0]"
        request = self._lanes.request(limits=LIMITS, deadline_s=timeout_s)
        return await self._lanes.result(code, request=request)


@pytest.fixture(scope="module", params=[*RUNTIMES, "lane"])
def box(request: pytest.FixtureRequest) -> Iterator[Rig | Lane]:
    if request.param == "lane":
        yield Lane()
        return
    with rig(request.param) as made:
        yield made


@pytest.fixture
async def inside(box: Rig | Lane) -> AsyncIterator[Probe | InLane]:
    if isinstance(box, Lane):
        async with lane_rig() as lanes:
            yield InLane(lanes)
        return
    async with probe(box.backend, request_for(box.image, limits=LIMITS)) as one:
        yield one
    assert box.containers() == []


@pytest.fixture
def container(box: Rig | Lane) -> Rig:
    """For what is about the container itself; a lane's own is in `test_lane_isolation.py`."""
    if isinstance(box, Lane):
        pytest.skip("about a container for one call")
    return box


def kernel_status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def descriptors() -> set[str]:
    """This process's own, but for the one that looks."""
    return {path.name for path in list(Path("/proc/self/fd").iterdir()) if os.path.lexists(path)}


def only(box: Rig, runtime: str, why: str) -> None:
    if box.runtime != runtime:
        pytest.skip(why)


async def run(inside: Probe, program: str) -> Any:
    return await inside.run(PRELUDE + program, timeout_s=100)


# --- what the engine says ------------------------------------------------------------------------------------


async def test_inspection_shows_no_way_out_and_no_secret(container: Rig, inside: Probe) -> None:
    found: dict[str, Any] = container.inspect(inside.sandbox.id)
    config, host = found["Config"], found["HostConfig"]
    assert found["Mounts"] == []
    assert host["Binds"] is None
    assert host["NetworkMode"] == "none"
    assert set(found["NetworkSettings"]["Networks"]) <= {"none"}
    assert host["CapAdd"] is None
    assert host["CapDrop"] == ["ALL"]
    assert host["Devices"] in (None, [])
    assert not host["Privileged"]
    assert host["ReadonlyRootfs"]
    assert host["SecurityOpt"] == ["no-new-privileges", f"seccomp={seccomp.profile_json()}"]
    assert (host["PidMode"], host["UTSMode"], host["UsernsMode"]) == ("", "", "")
    assert (host["IpcMode"], host["LogConfig"]["Type"]) == ("private", "none")
    assert host["Memory"] == host["MemorySwap"] == LIMITS.memory_mb << 20
    assert host["CpuQuota"] == 100_000
    assert host["PidsLimit"] > 0
    assert {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]}.items() >= {"nofile": 128, "core": 0}.items()
    assert config["User"] == "65532:65532"
    assert not config["Tty"]
    assert {word.partition("=")[0] for word in config["Env"]} <= {
        *("PATH", "HOME", "TMPDIR", "LANG", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "GLIBC_TUNABLES"),
        *("MALLOC_TRACE", "GCONV_PATH", "LOCPATH", "OPENSSL_CONF"),
    }
    assert {"callgate.instance", "callgate.call", "callgate.tenant", "callgate.deadline"} <= config["Labels"].keys()


async def test_the_kernel_agrees(container: Rig, inside: Probe) -> None:
    only(container, "runc", "the process that the host sees is gVisor's own")
    pid = container.inspect(inside.sandbox.id)["State"]["Pid"]  # type: ignore[index]
    status = kernel_status(pid)
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert set(status["Uid"].split()) == {"65532"}


async def test_the_environment_is_ours_alone(container: Rig, inside: Probe) -> None:
    environment = await run(inside, "answer(dict(os.environ))")
    environment.pop("HOSTNAME")
    assert environment == {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}


async def test_what_an_image_declares_is_not_heeded(container: Rig) -> None:
    """Entrypoint, command, user, environment, health check, working directory, labels."""
    only(container, "runc", "the image is on the machine's engine")
    async with probe(container.backend, request_for(loaded_image())) as one:
        program = "answer([os.getpid(), os.getuid(), os.getcwd(), dict(os.environ)])"
        pid, uid, folder, environment = await run(one, program)
        assert (pid, uid, folder) == (1, 65532, "/tmp")
        assert "LD_PRELOAD" not in environment
        assert environment["HOME"] == "/tmp"
        config: Any = container.inspect(one.sandbox.id)["Config"]
        assert config["Healthcheck"]["Test"] == ["NONE"]
        assert config["Labels"]["callgate.instance"] == container.options.instance


async def test_an_image_that_would_bring_a_volume_is_refused(container: Rig) -> None:
    only(container, "runc", "the image is on the machine's engine")
    with pytest.raises(CallError) as refused:
        await container.backend.open(request_for(volume_image()))
    assert refused.value.reason is Reason.IMAGE_MISSING
    assert container.containers() == []


# --- system calls --------------------------------------------------------------------------------------------

TABLE = """
import signal
results = {}
for number in range(480):
    child = os.fork()
    if child == 0:
        signal.alarm(3)
        os.dup2(os.open("/dev/null", os.O_RDWR), 1)
        outcome = call(number, -1, -1, -1, -1, -1, -1)
        os._exit(0 if outcome == "OK" else getattr(errno, outcome))
    status = os.waitpid(child, 0)[1]
    results[number] = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
answer(results)
"""
# Allowed by the filter, and refused by the kernel itself when every argument is -1.
REFUSED_BY_THE_KERNEL = {"setgroups", "futex"}
# Newer kernels let these past every filter; but for the trampoline that the kernel itself writes, they do nothing.
PAST_EVERY_FILTER = {"uretprobe", "uprobe"}
# The engine's own library learnt these names later than the oldest one that we run with; ENOSYS until then.
NEWEST_THAT_EVERY_ENGINE_KNOWS = 450


async def test_the_whole_table_of_system_calls_is_as_the_profile_says(box: Rig, inside: Probe) -> None:
    only(box, "runc", "gVisor answers from its own kernel")
    outcome = {int(number): value for number, value in (await run(inside, TABLE)).items()}
    names = {number: name for name, number in NUMBERS.items()}
    allowed = {name for group in seccomp.ALLOWED.values() for name in group}
    refused = {number for number, value in outcome.items() if value in (1, 38)}
    assert len(outcome) == 480
    let_through = {names.get(number, str(number)) for number in set(outcome) - refused} - allowed
    assert let_through <= PAST_EVERY_FILTER
    assert {outcome[NUMBERS[name]] for name in let_through} <= {-signal.SIGILL, errno.ENXIO, errno.EPROTO}
    withheld = {names[number] for number in refused if number <= NEWEST_THAT_EVERY_ENGINE_KNOWS and number in names}
    assert withheld & allowed == REFUSED_BY_THE_KERNEL


@pytest.mark.parametrize("name", sorted(n for group in seccomp.REFUSED_ON_PURPOSE.values() for n in group))
async def test_what_is_refused_on_purpose_exists_under_that_name(name: str) -> None:
    assert name in NUMBERS or name in {"create_module", "query_module", "get_kernel_syms", "nfsservctl"}


# Calls that reach for the machine, for other processes or for the kernel's inside.
REACHING_OUT = {
    **dict.fromkeys(["ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd"], (1, 1, 0, 0, 0, 0)),
    **dict.fromkeys(["mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen"], (0,) * 5),
    **dict.fromkeys(["fsconfig", "fsmount", "fspick", "mount_setattr", "setns"], (0,) * 5),
    **dict.fromkeys(["keyctl", "add_key", "request_key"], (0,) * 5),
    **dict.fromkeys(["io_uring_setup", "io_uring_enter", "io_uring_register"], (1, 0, 0, 0, 0, 0)),
    **dict.fromkeys(["bpf", "perf_event_open", "userfaultfd", "kexec_load", "kexec_file_load"], (0,) * 5),
    **dict.fromkeys(["init_module", "finit_module", "delete_module", "settimeofday", "reboot", "syslog"], (0,) * 4),
    **dict.fromkeys(["swapon", "swapoff", "quotactl", "acct", "sethostname", "iopl", "ioperm"], (1, 1, 1, 1)),
    **dict.fromkeys(["open_by_handle_at", "name_to_handle_at", "clock_settime", "adjtimex"], (0,) * 5),
}


async def test_nothing_reaches_out(box: Rig, inside: Probe) -> None:
    calls = [(name, NUMBERS[name], arguments) for name, arguments in REACHING_OUT.items()]
    outcome = await run(inside, f"answer({{name: call(number, *a) for name, number, a in {calls!r}}})")
    if box.runtime == "runc":
        assert {name for name, result in outcome.items() if result not in REFUSED} == set()
    else:
        # Its own kernel may know the call and refuse it for another reason; it must not grant it.
        assert {name for name, result in outcome.items() if result == "OK"} == set()


async def test_no_new_namespace_by_any_call(box: Rig, inside: Probe) -> None:
    only(box, "runc", "namespaces of gVisor's own kernel are its own affair")
    namespaces = [0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000]
    program = f"""
unshared = [call({NUMBERS["unshare"]}, flag) for flag in {namespaces}]
cloned = [call({NUMBERS["clone"]}, flag | 17, 0, 0, 0, 0) for flag in {namespaces}]
answer([unshared, cloned, call({NUMBERS["clone3"]}, 0, 0)])
"""
    unshared, cloned, clone3 = await run(inside, program)
    assert set(unshared) == {"EPERM"}
    assert set(cloned) == {"EPERM"}
    assert clone3 == "ENOSYS"


async def test_threads_and_processes_still_work(inside: Probe) -> None:
    program = """
import threading
seen = []
threads = [threading.Thread(target=seen.append, args=(n,)) for n in range(5)]
for thread in threads: thread.start()
for thread in threads: thread.join()
answer([sorted(seen), subprocess.run(["/bin/sh", "-c", "echo $((6*7)) | cat"], capture_output=True).stdout.decode()])
"""
    assert await run(inside, program) == [[0, 1, 2, 3, 4], "42\n"]


async def test_only_plain_sockets_can_be_made(box: Rig, inside: Probe) -> None:
    program = """
kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET)
def make(family, kind):
    socket.socket(family, kind).close()
answer([[f, k] for f in range(64) for k in kinds if attempt(make, f, k) == "OK"])
"""
    made = {(family, kind) for family, kind in await run(inside, program)}
    plain = {(1, 1), (1, 2), (1, 5), (2, 1), (2, 2), (10, 1), (10, 2)}
    if box.runtime == "runsc":
        # gVisor's own netlink, which speaks of gVisor's own interfaces.
        plain |= {(16, 2), (16, 3)}
        # A raw local socket is a datagram socket by another name.
        plain |= {(1, 3)}
    assert made <= plain
    assert (socket.AF_VSOCK, socket.SOCK_STREAM) not in made
    assert {(1, 1), (2, 1)} <= made


async def test_there_is_no_network_to_speak_of(inside: Probe) -> None:
    program = """
def connect(host, port):
    with socket.socket() as s:
        s.settimeout(2)
        s.connect((host, port))
targets = [("172.17.0.1", 2375), ("172.17.0.1", 2376), ("169.254.169.254", 80), ("8.8.8.8", 53)]
answer([attempt(connect, *target) for target in targets])
"""
    assert set(await run(inside, program)) <= {"ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED"}


async def test_a_second_architecture_is_no_way_round(box: Rig, inside: Probe) -> None:
    """The 32-bit and x32 entries of the kernel have other numbers: a filter that looks at one table only is void."""
    only(box, "runc", "gVisor has no second entry")
    program = """
import mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
enter = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
def child(function):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if function() >= 0 else 1)
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)
answer([child(enter), child(lambda: libc.syscall(ctypes.c_long(0x40000000 | 39)))])
"""
    killed_by = await run(inside, program)
    assert killed_by[0] in (11, 31)  # SIGSYS, or SIGSEGV where the kernel has no such entry at all
    assert killed_by[1] in (31, -1)


# --- devices, files, terminals -------------------------------------------------------------------------------


async def test_no_devices(box: Rig, inside: Probe) -> None:
    program = """
import stat
kinds = (stat.S_IFCHR, stat.S_IFBLK)
made = [attempt(os.mknod, f"/tmp/device{kind}", kind | 0o666, os.makedev(1, 1)) for kind in kinds]
usable = [attempt(os.open, f"/tmp/device{kind}", os.O_RDONLY) for kind in kinds]
names = ("kvm", "mem", "kmem", "port", "fuse", "vda", "sda", "loop0", "net/tun", "vhost-net", "nvidia0")
opened = {name: attempt(os.open, "/dev/" + name, os.O_RDONLY) for name in names}
blocks = [n for n in os.listdir("/dev") if stat.S_ISBLK(os.lstat("/dev/" + n).st_mode)]
answer([made, usable, opened, blocks])
"""
    made, usable, opened, blocks = await run(inside, program)
    assert "OK" not in usable
    if box.runtime == "runc":
        # This gVisor makes such a node, and has nothing behind it.
        assert set(made) == {"EPERM"}
    if box.runtime == "runsc":
        # gVisor's own: a tunnel on its own network, which leads nowhere, and file systems in its own kernel.
        assert {opened.pop("net/tun"), opened.pop("fuse")} == {"OK"}
    assert set(opened.values()) <= {"ENOENT", "EACCES", "EPERM"}
    assert blocks == []


async def test_named_pipes_can_be_made(inside: Probe) -> None:
    assert await run(inside, "answer(attempt(os.mkfifo, '/tmp/pipe'))") == "OK"


async def test_a_setuid_program_changes_nothing(inside: Probe) -> None:
    output = await run(inside, "answer(subprocess.run(['/usr/bin/setuid-id'], capture_output=True).stdout.decode())")
    assert "uid=65532" in output
    assert "euid" not in output


async def test_there_is_no_terminal_and_none_can_be_pushed_into(box: Rig, inside: Probe) -> None:
    program = """
import fcntl, termios
def push(descriptor):
    fcntl.ioctl(descriptor, termios.TIOCSTI, b"x")
disguised = [call(16, 0, termios.TIOCSTI | 1 << 32, 0), call(16, 0, 0x541C | 1 << 32, 0)]
answer([[os.isatty(fd) for fd in (0, 1, 2)], attempt(os.open, "/dev/tty", os.O_RDWR), [attempt(push, fd) for fd in (0, 1)],
        disguised, attempt(os.openpty), os.path.exists("/dev/console")])
"""
    terminals, controlling, pushed, disguised, own, console = await run(inside, program)
    assert terminals == [False, False, False]
    assert controlling in ("ENXIO", "ENOENT", "EIO")
    assert not console
    if box.runtime == "runc":
        assert set(pushed + disguised + [own]) == {"EPERM"}
    else:
        assert "OK" not in pushed + disguised


async def test_no_engine_within_reach(inside: Probe) -> None:
    name = f"callgate-test-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as listener:
        # In the host's network namespace, as an engine's abstract socket would be.
        listener.bind("\0" + name)
        listener.listen()
        program = f"""
def connect(address):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(address)
names = ["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock"]
answer([[n for n in names if os.path.exists(n)], attempt(connect, "\\0{name}")])
"""
        present, outcome = await run(inside, program)
    assert present == []
    assert outcome == "ECONNREFUSED"


async def test_the_kernels_inside_cannot_be_read(box: Rig, inside: Probe) -> None:
    program = """
def size(path):
    try:
        with open(path, "rb") as f: return len(f.read(64))
    except OSError: return 0
paths = ("kcore", "keys", "key-users", "kallsyms", "modules", "timer_list", "sched_debug", "config.gz", "interrupts")
answer([sum(size("/proc/" + p) for p in paths), [os.listdir(p) if os.path.isdir(p) else [] for p in
       ("/sys/firmware", "/sys/kernel", "/sys/fs/bpf", "/proc/acpi")],
       attempt(os.open, "/proc/sys/kernel/core_pattern", os.O_WRONLY), attempt(os.open, "/proc/sysrq-trigger", os.O_WRONLY)])
"""
    read, listed, pattern, sysrq = await run(inside, program)
    assert read == 0
    assert listed == [[], [], [], []]
    assert "OK" not in (pattern, sysrq)


# --- exhaustion ----------------------------------------------------------------------------------------------

FILL = """
def fill(path, block=bytes(65536)):
    written = 0
    try:
        with open(path, "wb", buffering=0) as f:
            while written < 1 << 28:
                written += f.write(block)
    except OSError as error:
        return [written, errno.errorcode[error.errno]]
    return [written, "OK"]
"""


@pytest.mark.parametrize(("folder", "size"), [("/tmp", 32 << 20), ("/dev/shm", 16 << 20), ("/out", 80 << 10)])
async def test_memory_file_systems_are_full_at_their_size(inside: Probe, folder: str, size: int) -> None:
    written, error = await run(inside, FILL + f"answer(fill('{folder}/file'))")
    assert error == "ENOSPC"
    assert size // 2 <= written <= size


async def test_what_is_written_is_charged_to_the_sandbox(container: Rig, inside: Probe) -> None:
    only(container, "runc", "gVisor's cgroup is read on the host")
    program = """
def charged():
    for path in ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes"):
        if os.path.exists(path):
            return int(open(path).read())
before = charged()
fill("/tmp/file")
answer(charged() - before)
"""
    assert await run(inside, FILL + program) > 24 << 20


async def test_there_is_no_disk_to_fill(box: Rig, inside: Probe) -> None:
    program = (
        FILL + "answer([fill(d + '/file') for d in ('', '/var/tmp', '/usr', '/etc', '/opt/callgate', '/run', '/home')])"
    )
    outcomes = await run(inside, program)
    assert {written for written, _ in outcomes} == {0}
    assert {error for _, error in outcomes} <= {"EROFS", "EACCES", "ENOENT"}


TOUCH = """
made = 0
try:
    while made < 20000:
        open(f"{folder}/{made}", "w").close()
        made += 1
except OSError as error:
    answer([made, errno.errorcode[error.errno]])
else:
    answer([made, "OK"])
"""


@pytest.mark.parametrize(("folder", "limit"), [("/tmp", 500), ("/dev/shm", 256), ("/out", 9)])
async def test_files_are_counted(box: Rig, inside: Probe, folder: str, limit: int) -> None:
    only(box, "runc", "this gVisor ignores nr_inodes; its memory limit bounds what files cost")
    made, error = await run(inside, f"folder = '{folder}'\n" + TOUCH)
    assert error == "ENOSPC"
    assert 0 < made < limit


async def test_without_artifacts_the_output_folder_takes_no_file(container: Rig) -> None:
    only(container, "runc", "this gVisor ignores nr_inodes; what is in the folder is not collected either")
    async with probe(container.backend, request_for(container.image)) as one:
        assert await run(one, "folder = '/out'\n" + TOUCH) == [0, "ENOSPC"]


async def test_file_descriptors_run_out_inside_and_only_there(inside: Probe) -> None:
    await run(inside, "answer('the wire is open')")
    before = descriptors()
    program = """
import select
def exhaust(make):
    held = []
    try:
        while len(held) < 5000:
            held.append(make())
    except OSError as error:
        return [len(held), errno.errorcode[error.errno]]
    finally:
        for one in held:
            [os.close(fd) for fd in one] if isinstance(one, tuple) else one.close() if hasattr(one, "close") else os.close(one)
answer([exhaust(lambda: os.open("/dev/null", 0)), exhaust(os.pipe), exhaust(select.epoll)])
"""
    outcomes = await run(inside, program)
    assert {error for _, error in outcomes} == {"EMFILE"}
    assert all(count < LIMITS.open_files for count, _ in outcomes)
    # Those of other tests may still go.
    async with asyncio.timeout(5):
        while descriptors() - before:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.05)


async def test_processes_run_out_inside(inside: Probe) -> None:
    program = """
import signal, time
children = []
try:
    while len(children) < 500:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        children.append(child)
except OSError as error:
    outcome = errno.errorcode[error.errno]
else:
    outcome = "OK"
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
answer([len(children), outcome])
"""
    count, outcome = await run(inside, program)
    assert outcome == "EAGAIN"
    assert count < LIMITS.pids


async def test_no_core_is_dumped(inside: Probe) -> None:
    program = """
import resource
child = os.fork()
if child == 0:
    os.chdir("/tmp")
    os.abort()
status = os.waitpid(child, 0)[1]
answer([os.WTERMSIG(status), os.WCOREDUMP(status), os.listdir("/tmp"), resource.getrlimit(resource.RLIMIT_CORE)])
"""
    assert await run(inside, program) == [6, False, [], [0, 0]]
