"""What calls of one lane can learn of each other: nothing. And what becomes of a lane that did not end a call in order.

What a cell refuses its tool is tried in `test_container_isolation.py` and with hostile tools through the gateway, for
lanes as for containers. Here is what only lanes have: one kernel, one container, one warm interpreter for many calls.
"""

import asyncio
import os
import secrets as random
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from callgate_server.backends.docker import seccomp, spec
from callgate_server.backends.docker.engine import connect
from callgate_server.execution.cancellation import Cancellation
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.manifest import Limits, Run, SecretRef
from callgate_server.model.run import Cause, DeliveredSecret
from callgate_server.model.sealed import Sealed
from support.arena import IDLE_LANE_PROCESSES
from support.lane_rig import LaneRig, lane_rig
from support.names import NAMES
from support.secrecy import memory_of

NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")
WRITABLE = ["/dev/shm", "/out", "/run/secrets", "/tmp"]


@pytest.fixture
async def lane() -> AsyncIterator[LaneRig]:
    async with lane_rig(per_key=1) as made:
        yield made


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def uid_map_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/uid_map").read_text().split()


def namespaces_of(pid: int) -> dict[str, str]:
    return {name: str(Path(f"/proc/{pid}/ns/{name}").readlink()) for name in NAMESPACES}


# --- what a lane is ------------------------------------------------------------------------------------------


async def test_a_lanes_container_is_as_any_but_for_its_filter(lane: LaneRig) -> None:
    assert await lane.result("result = 1") == 1
    with connect(lane.options.socket_url, 10) as client:
        found = client.inspect_container(lane.last)
    host, labels = found["HostConfig"], found["Config"]["Labels"]
    assert host["SecurityOpt"] == ["no-new-privileges", f"seccomp={seccomp.profile_json(lane=True)}"]
    assert (host["CapDrop"], host["CapAdd"], host["Privileged"]) == (["ALL"], None, False)
    assert (host["ReadonlyRootfs"], host["NetworkMode"], host["IpcMode"]) == (True, "none", "private")
    assert (found["Mounts"], host["Binds"]) == ([], None)
    assert found["Config"]["User"] == "65532:65532"
    assert labels.keys() >= {"callgate.instance", "callgate.lane", "callgate.tenant", "callgate.tool"}
    assert "callgate.call" not in labels


async def test_everything_in_a_cell_has_no_rights_and_namespaces_of_its_own(lane: LaneRig) -> None:
    await lane.result("result = 1")
    runner, zygote, *cell = lane.processes()
    assert len(cell) == IDLE_LANE_PROCESSES - 2
    assert namespaces_of(runner) == namespaces_of(zygote)
    for pid in cell:
        status = status_of(pid)
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert int(status["Seccomp_filters"]) == int(status_of(runner)["Seccomp_filters"]) + 1
        assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65532"}
        assert uid_map_of(pid) == ["65532", "65532", "1"]
        own = namespaces_of(pid)
        assert not set(own.values()) & set(namespaces_of(runner).values())
    assert namespaces_of(cell[0]) == namespaces_of(cell[1])


async def test_each_call_has_other_namespaces_than_the_one_before(lane: LaneRig) -> None:
    seen: set[str] = set()
    # Held open, a namespace keeps its number: otherwise the kernel gives it to the next one.
    with ExitStack() as held:
        for _ in range(4):
            await lane.result("result = 1")
            pid = lane.processes()[-1]
            for name in NAMESPACES:
                held.callback(os.close, os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY))
            fresh = set(namespaces_of(pid).values())
            assert not fresh & seen
            seen |= fresh


async def test_the_environment_is_as_in_a_container(lane: LaneRig) -> None:
    program = "import os, sys; result = [dict(os.environ), os.getcwd(), os.getpid(), os.getppid(), os.uname()[1]]"
    environment, folder, pid, parent, host = await lane.result(program)
    assert environment == {
        "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8",
        "CALLGATE_RESULT_FD": "3", "CALLGATE_CALL_ID": NAMES.call_id, "CALLGATE_IDEMPOTENCY_KEY": NAMES.idempotency_key,
        "CALLGATE_ATTEMPT": str(NAMES.attempt),
    }  # fmt: skip
    assert (folder, pid, parent, host) == ("/tmp", 2, 1, "sandbox")


async def test_only_the_calls_own_file_systems_can_be_written_to(lane: LaneRig) -> None:
    """Every folder there is gets tried: what the lane's own container can write to must not be writable here."""
    program = """
import os
found = []
for place, folders, _ in os.walk("/"):
    if place.startswith("/usr/share/"):
        folders.clear()
        continue
    try:
        os.close(os.open(place + "/trace", os.O_CREAT | os.O_WRONLY))
        found.append(place)
    except OSError:
        pass
result = [sorted(found), os.listdir("/proc"), os.listdir("/sys/fs/cgroup")]
"""
    assert await lane.result(program) == [WRITABLE, [], []]


async def test_no_descriptor_of_the_lane_is_open_in_a_cell(lane: LaneRig) -> None:
    program = """
import os
def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
result = [fd for fd in range(4096) if is_open(fd)]
"""
    assert await lane.result(program) == [0, 1, 2, 3]


async def test_a_network_of_its_own_with_nothing_but_itself(lane: LaneRig) -> None:
    program = """
import socket
with socket.create_server(("127.0.0.1", 4711)) as server, socket.create_connection(("127.0.0.1", 4711)) as client:
    client.sendall(b"x")
    result = [server.accept()[0].recv(1).decode(), [name for _, name in socket.if_nameindex()]]
"""
    # The second time finds no trace of the first, not even a connection that lingers.
    for _ in range(2):
        echoed, interfaces = await lane.result(program.replace(", [name for _, name in socket.if_nameindex()]", ", []"))
        assert (echoed, interfaces) == ("x", [])


async def test_chance_is_not_shared(lane: LaneRig) -> None:
    program = """
import os, random, ssl, uuid
result = [random.random(), os.urandom(8).hex(), uuid.uuid4().hex, ssl.RAND_bytes(8).hex()]
"""
    drawn = [await lane.result(program) for _ in range(5)]
    for kind in zip(*drawn, strict=True):
        assert len(set(kind)) == 5


async def test_a_host_that_refuses_namespaces_gets_a_refusal_and_no_weaker_lane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container filter as for single calls stands for such a host: it refuses the same requests."""
    strict = seccomp.profile_json()
    monkeypatch.setattr(spec, "profile_json", lambda *, lane: strict)
    async with lane_rig() as lane:
        with pytest.raises(CallError) as refused:
            await lane.run("result = 1")
        assert refused.value.reason is Reason.RUNTIME_MISSING
        assert not (await lane.lanes.health())["lanes"].ok


# --- what a call leaves --------------------------------------------------------------------------------------

# Everything at once that could outlive a process, and some that could not.
HOSTILE = """
import atexit, builtins, ctypes, fcntl, gc, json, os, random, resource, signal, socket, sys, threading, time, types
MARK = {mark!r}
libc = ctypes.CDLL(None)
for folder in ("/tmp", "/dev/shm", "/out", "/run/secrets", "/tmp/work"):
    os.makedirs(folder, exist_ok=True)
    open(f"{{folder}}/{{MARK}}", "w").write(MARK)
os.symlink("/tmp", "/tmp/link")
os.mkfifo("/tmp/pipe")
for place in ("/dev/mqueue", "/var/tmp", "/run", "/opt/callgate/tools", "/", "/dev", "/dev/pts"):
    try:
        open(f"{{place}}/{{MARK}}", "w").write(MARK)
    except OSError:
        pass
os.environ[MARK] = os.environ["TZ"] = MARK
time.tzset()
held = [libc.shmget(4711, 4096, 0o1666), libc.semget(4711, 1, 0o1666), libc.msgget(4711, 0o1666)]
name = libc.mq_open(b"/trace", os.O_CREAT | os.O_RDWR, 0o666, None)
sockets = [socket.socket(socket.AF_UNIX), socket.create_server(("127.0.0.1", 4711))]
sockets[0].bind("\\0trace")
sockets[0].listen()
sys.modules[MARK] = sys.modules["json"] = types.ModuleType(MARK)
builtins.open = builtins.print = builtins.len = lambda *_, **__: MARK
builtins.trace = MARK
json.loads = json.dumps = lambda *_, **__: MARK
sys.path.insert(0, MARK)
sys.argv.append(MARK)
sys.excepthook = sys.displayhook = lambda *_: None
sys.setswitchinterval(1)
sys.setrecursionlimit(555)
for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 3600)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
threading.settrace(lambda *_: None)
gc.freeze()
random.seed(0)
os.chdir("/usr")
os.umask(0)
os.nice(5)
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))
libc.prctl(15, MARK.encode())
library = os.open("/usr/bin/python3", os.O_RDONLY)
fcntl.flock(library, fcntl.LOCK_EX)
atexit.register(lambda: os.write(1, b""))
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP):
    os.kill(1, number)
try:
    socket.sethostname(MARK)
except OSError:
    pass
"""
LEAVES_A_DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.pause()
    os._exit(0)
"""
ENDS = """
os.write(3, b"1")
os._exit(0)
"""
HONEST = """
import atexit, builtins, ctypes, errno, fcntl, gc, json, os, resource, signal, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def why(made):
    return errno.errorcode.get(ctypes.get_errno()) if made == -1 else made
def names(place):
    try:
        return sorted(os.listdir(place))
    except OSError as error:
        return errno.errorcode[error.errno]
def reach(address):
    with socket.socket(socket.AF_UNIX) as one:
        return errno.errorcode.get(one.connect_ex(address))
def bind(address):
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as one:
        one.bind(address)
        return True
def alive(pid):
    try:
        os.kill(pid, 0)
        return True
    except OSError:
        return False
places = ("/tmp", "/dev/shm", "/out", "/run/secrets", "/proc", "/sys/fs/cgroup", "/dev/mqueue", "/dev/pts", "/dev", "/")
mask = os.umask(0)
os.umask(mask)
library = os.open("/usr/bin/python3", os.O_RDONLY)
result = {
    "files": {place: names(place) for place in places},
    "environment": dict(os.environ),
    "shared": [why(libc.shmget(4711, 0, 0)), why(libc.semget(4711, 0, 0)), why(libc.msgget(4711, 0))],
    "queue": why(libc.mq_open(b"/trace", os.O_RDONLY)),
    "sockets": [reach("\\0trace"), bind("\\0trace"), bind(("127.0.0.1", 4711))],
    "modules": sorted(sys.modules),
    "builtins": {name: str(type(value)) for name, value in vars(builtins).items()},
    "functions": [open.__name__, print.__name__, len.__name__, json.loads.__module__, json.dumps.__module__],
    "python": [sys.path, sys.argv, str(sys.excepthook), str(sys.displayhook), sys.getswitchinterval(),
               sys.getrecursionlimit(), gc.isenabled(), atexit._ncallbacks(), str(threading.gettrace())],
    "signals": [str(signal.getsignal(n)) for n in (1, 2, 10, 13, 14, 15, 17)],
    "blocked": [str(signal.pthread_sigmask(signal.SIG_BLOCK, [])), str(signal.sigpending())],
    "timer": signal.getitimer(signal.ITIMER_REAL)[0],
    "place": [os.getcwd(), oct(mask), os.getpriority(os.PRIO_PROCESS, 0), sorted(os.sched_getaffinity(0))],
    "limits": [resource.getrlimit(n) for n in range(16)],
    "ids": [os.getpid(), os.getppid(), os.getsid(0), os.getpgrp(), os.getresuid(), os.getresgid(), os.getgroups()],
    "others": [pid for pid in range(3, 200) if alive(pid)],
    "host": [os.uname()[1], time.tzname],
    "threads": threading.active_count(),
    "lock": fcntl.flock(library, fcntl.LOCK_EX | fcntl.LOCK_NB),
}
"""


@pytest.mark.timeout(900)
async def test_a_thousand_calls_after_hostile_ones_find_no_trace(lane: LaneRig) -> None:
    untouched = await lane.result(HONEST)
    begun_in, lanes = lane.last, {lane.last}
    for number in range(1000):
        mark = f"trace{random.token_hex(6)}"
        # One in fifty leaves a process behind, after which the lane is another.
        leaves_somebody = number % 50 == 49
        outcome = await lane.run(HOSTILE.format(mark=mark) + (LEAVES_A_DAEMON if leaves_somebody else "") + ENDS)
        assert outcome.exit.code == 0, outcome.stderr.head.decode()
        hostile_in = lane.last
        found = await lane.result(HONEST)
        assert found == untouched, number
        assert (lane.last != hostile_in) == leaves_somebody
        lanes.add(lane.last)
    assert begun_in != lane.last
    assert len(lanes) == 21


async def test_the_honest_call_would_see_it(lane: LaneRig) -> None:
    """The same look, from inside the hostile call: the test above can fail."""
    untouched = await lane.result(HONEST)
    differs = HOSTILE.format(mark="tracemark") + (
        "result = [os.listdir('/tmp') != [], 'tracemark' in os.environ, libc.shmget(4711, 0, 0) >= 0,\n"
        "          'tracemark' in sys.modules, signal.getitimer(0)[0] > 0, os.getcwd() == '/usr',\n"
        "          os.getpriority(0, 0) == 5, resource.getrlimit(7) == (99, 99)]\n"
        "os.write(3, repr(result).replace('True', 'true').replace('False', 'false').encode())\nos._exit(0)"
    )
    assert await lane.result(differs) == [True] * 8
    assert await lane.result(HONEST) == untouched


# --- secrets -------------------------------------------------------------------------------------------------


async def test_no_memory_that_a_later_call_starts_from_holds_an_earlier_calls_secrets() -> None:
    """Every page of the zygote and of the cell that waits for the next call, and of that call itself."""
    refs = tuple(
        SecretRef.model_validate({"name": name, "from": "kv/data/{tenant}/a#b", "deliver": deliver})
        for name, deliver in (("by_file", "file"), ("by_stdin", "stdin"))
    )
    by_file, by_stdin, argument = (f"canary-{random.token_hex(20)}" for _ in range(3))
    delivered = (
        DeliveredSecret("by_file", "file", Sealed(by_file.encode())),
        DeliveredSecret("by_stdin", "stdin", Sealed(by_stdin.encode())),
    )
    hold = "\nprint('ready', flush=True)\nimport time\ntime.sleep(60)"
    uses = "kept = [open('/run/secrets/by_file').read(), secrets, '" + argument + "']"
    canaries = [text.encode() for text in (by_file, by_stdin, argument)]
    # Wherever the text of the test itself stands, it must not be found by its own search.
    async with lane_rig(per_key=1) as lane:
        async with holding(lane, uses + hold, secrets=refs, delivered=delivered) as pids:
            # The search works: the call that has them has them.
            during = memory_of(pids[-1])
            assert all(canary in during for canary in canaries)
        # A call that ended in order, so that the lane goes on.
        for _ in range(3):
            request = lane.request(secrets=refs)
            outcome = await lane.call({"code": uses}, request=request, secrets=delivered)
            assert outcome.exit.code == 0
        served_in = lane.last
        runner, *later = lane.processes()
        assert len(later) == IDLE_LANE_PROCESSES - 1
        assert not any(canary in memory_of(pid) for pid in later for canary in canaries)
        async with holding(lane, "kept = 1" + hold, secrets=refs, delivered=()) as pids:
            assert lane.last == served_in
            assert runner in pids
            others = [pid for pid in pids if pid != runner]
            assert not any(canary in memory_of(pid) for pid in others for canary in canaries)


class holding:  # noqa: N801  # used as a word
    """A call in progress whose tool has printed; gives all processes of its lane. It is cancelled at the end."""

    def __init__(
        self,
        lane: LaneRig,
        code: str,
        *,
        secrets: tuple[SecretRef, ...] = (),
        delivered: tuple[DeliveredSecret, ...] = (),
    ) -> None:
        self._lane = lane
        self._cancelled = Cancellation()
        request = lane.request(secrets=secrets)
        self._call = asyncio.ensure_future(
            lane.call({"code": code}, request=request, secrets=delivered, cancelled=self._cancelled)
        )

    async def __aenter__(self) -> list[int]:
        until = asyncio.get_running_loop().time() + 30
        while True:
            assert not self._call.done(), self._call.result()
            pids = self._lane.processes() if self._lane.last else []
            if len(pids) == IDLE_LANE_PROCESSES and _sleeps(pids[-1]):
                return pids
            assert asyncio.get_running_loop().time() < until
            await asyncio.sleep(0.05)

    async def __aexit__(self, *_: object) -> None:
        self._cancelled.set()
        assert (await self._call).cause is Cause.CANCELLED


def _sleeps(pid: int) -> bool:
    """Whether a process is in `clock_nanosleep`, as a tool that sleeps is, and not in `read`, as one that waits."""
    call = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    return call in ("230", "35", "115", "101")


# --- what becomes of a lane ----------------------------------------------------------------------------------

ENDINGS: dict[str, tuple[str, Cause]] = {
    "memory": ("held = b'x' * (1 << 30)", Cause.OUT_OF_MEMORY),
    "deadline": ("while True: pass", Cause.TIMED_OUT),
    "processes": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", Cause.TIMED_OUT),
    "output": ("while True: print('x' * 65536)", Cause.OUTPUT_FLOOD),
    "a signal": ("import os; os.kill(os.getpid(), 9)", Cause.SIGNALLED),
    "a crash": ("import ctypes; ctypes.string_at(0)", Cause.SIGNALLED),
    "a process left behind": ("import os\nif os.fork() == 0:\n    import time; time.sleep(60)", Cause.EXITED),
    "a child killed for memory": (
        "import subprocess; subprocess.run(['/usr/bin/python3', '-c', 'x = bytearray(1 << 30)'])",
        Cause.EXITED,
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_a_lane_is_replaced_after_an_end_that_was_none(ending: str, lane: LaneRig) -> None:
    code, cause = ENDINGS[ending]
    limits = Limits(memory_mb=128, pids=32, scratch_mb=16)
    await lane.result("result = 1", request=lane.request(limits=limits))
    first = lane.last
    deadline_s = 3 if cause is Cause.TIMED_OUT else 30
    outcome = await lane.run(code, request=lane.request(limits=limits, deadline_s=deadline_s))
    assert (outcome.cause, lane.last) == (cause, first)
    assert first not in lane.containers()
    assert await lane.result("result = 2", request=lane.request(limits=limits)) == 2
    assert lane.last != first


async def test_a_lane_is_replaced_after_a_cancellation(lane: LaneRig) -> None:
    await lane.result("result = 1")
    first = lane.last
    async with holding(lane, "import time\ntime.sleep(60)"):
        assert lane.last == first
    assert await lane.result("result = 2") == 2
    assert lane.last != first


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "1 / 0", "result = 1", "import os; os._exit(7)"])
async def test_a_lane_stays_after_a_tool_that_ended_by_itself(code: str, lane: LaneRig) -> None:
    await lane.run(code)
    first = lane.last
    assert await lane.result("result = 2") == 2
    assert lane.last == first


async def test_what_dies_in_an_idle_lane_ends_it_before_a_call_meets_it(lane: LaneRig) -> None:
    for victim in (1, 2, 3):
        await lane.result("result = 1")
        first, pid = lane.last, lane.processes()[victim]
        os.kill(pid, 9)
        until = asyncio.get_running_loop().time() + 20
        while len(lane.lanes):
            assert asyncio.get_running_loop().time() < until
            await asyncio.sleep(0.05)
            await lane.lanes.tend()
        assert lane.processes() == []
        assert await lane.result("result = 2") == 2
        assert lane.last != first


async def test_a_lane_ends_itself_when_its_gateway_says_no_more() -> None:
    """The wire's end is the end, as in every sandbox."""
    async with lane_rig(per_key=1) as lane:
        await lane.result("result = 1")
        assert len(lane.processes()) == IDLE_LANE_PROCESSES
    assert lane.processes() == []


async def test_others_never_meet_in_a_lane(lane: LaneRig) -> None:
    ref = SecretRef.model_validate({"name": "a", "from": "kv/data/{tenant}/a#b", "deliver": "stdin"})
    kinds: dict[str, Callable[[], Any]] = {
        "one": lane.request,
        "another tenant": lambda: lane.request(tenant="rival"),
        "another tool or version": lambda: lane.request(tool_digest="sha256:9"),
        "another set of secrets": lambda: lane.request(secrets=(ref,)),
        "other limits": lambda: lane.request(limits=Limits(memory_mb=64, scratch_mb=16)),
    }
    lanes = {}
    for name in [*kinds, *reversed(kinds)]:
        await lane.result("result = 1", request=kinds[name]())
        assert lanes.setdefault(name, lane.last) == lane.last
    assert len(set(lanes.values())) == len(kinds)


# --- imports -------------------------------------------------------------------------------------------------

IMPORTS = {
    "threads": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
    "a descriptor": "import os\nos.open('/dev/null', os.O_RDONLY)",
    "shared memory": "import mmap\nheld = mmap.mmap(-1, 4096)",
    "a process": "import os, time\nif warm and os.fork() == 0:\n    time.sleep(60)",
    "a file": "if warm: open('/tmp/cache', 'w').close()",
    "output": "if warm: print('hello')",
    "nothing": "",
    "a failure": "raise RuntimeError('not today')",
}


OWN = Run(python="own:run")


@pytest.mark.parametrize("imports", IMPORTS)
async def test_imports_are_kept_warm_only_when_calls_would_share_nothing_of_them(imports: str) -> None:
    # Where it was imported shows in what was there: a cell has no /proc.
    own = f"import os\nwarm = os.path.exists('/proc/self')\n{IMPORTS[imports]}\ndef run(code): return warm"
    async with lane_rig(own=own) as lane:
        outcome = await lane.run("", request=lane.request(run=OWN))
        if imports == "a failure":
            assert b"RuntimeError: not today" in outcome.stderr.head
            assert outcome.exit.code == 1
        else:
            assert outcome.result_json == (b"true" if imports == "nothing" else b"false")


async def test_generators_that_the_imports_have_used_differ_from_call_to_call() -> None:
    own = (
        "import random, ssl\nssl.RAND_bytes(8), random.random()\n"
        "def run(code): return [ssl.RAND_bytes(8).hex(), random.random()]"
    )
    async with lane_rig(own=own, per_key=1) as lane:
        drawn = [(await lane.run("", request=lane.request(run=OWN))).result_json for _ in range(5)]
    assert None not in drawn
    assert len(set(drawn)) == 5
