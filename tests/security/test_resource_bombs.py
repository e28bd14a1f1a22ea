"""Tools that try to exhaust the machine, each through the gateway.

That a harmless call is served afterwards and that nothing of the bomb is left is part of every one of them, by
the arena; where it matters that one is served meanwhile, the test makes it.
"""

import time

import pytest

from support.arena import TIMED_OUT, Arena, verdict
from support.gateway import RunningGateway
from support.sandboxes import RUNTIMES

# Of the probe's manifest.
PIDS, OPEN_FILES, MEMORY = 64, 256, 256 << 20
SCRATCH, SCRATCH_FILES, SHARED = 16 << 20, 512, 16 << 20
OUT = (2 << 20) + 16 * 4096
OUT_OF_MEMORY = ("failed", "out_of_memory")
MIB = 1 << 20

FORK_BOMB = """
import errno, os
first = os.getpid()
while True:
    try:
        os.fork()
    except OSError as error:
        if os.getpid() == first:
            print(errno.errorcode[error.errno])
            print('ready', flush=True)
            break
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
THREAD_BOMB = """
import os, threading, time
made = 0
try:
    for _ in range(10_000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        made += 1
except RuntimeError:
    pass
os.write(3, b'%d' % made)
os._exit(0)
"""
HOG = "held = bytearray()\\nwhile True: held += bytearray(1 << 20)"
MEMORY_BOMBS = {
    "one process": HOG.replace("\\n", "\n"),
    "a child": f"import subprocess\nsubprocess.run(['/usr/bin/python3', '-c', '{HOG}'], check=True)",
    "many processes": """
import os
children = []
for _ in range(16):
    if (child := os.fork()) == 0:
        held = b'x' * (32 << 20)
        os.kill(os.getpid(), 19)
    children.append(child)
killed = [child for child in children if os.waitpid(child, os.WUNTRACED)[1] == 9]
raise SystemExit(7 if killed else 0)
""",
    "files, then memory": """
for path, mib in (('/tmp/a', 15), ('/dev/shm/a', 15), ('/out/a', 2)):
    with open(path, 'wb') as file:
        file.write(bytes(mib << 20))
held = b'x' * (226 << 20)
""",
    # Memory of no process at all, and everybody as good a victim as the runner.
    "nobody's memory": """
import os
try:
    open('/proc/self/oom_score_adj', 'w').write('500')
except FileNotFoundError:
    pass  # a lane has no /proc
held = os.memfd_create('held', 0)
os.dup2(held, 1)
for _ in range(20):
    if os.fork() == 0:
        os.execv('/bin/sleep', ['sleep', '60'])
os.execv('/bin/dd', ['dd', 'if=/dev/zero', 'bs=64k'])
""",
}
# `fill` and `touch` return how far they came, and what stopped them.
FILLERS = """
import errno, os

def fill(path):
    written = 0
    try:
        with open(path, 'wb', buffering=0) as file:
            while written < 1 << 30:
                written += file.write(bytes(1 << 16))
    except OSError as error:
        return [written, errno.errorcode[error.errno]]
    return [written, 'OK']

def touch(folder):
    made = 0
    try:
        while made < 20_000:
            open(f'{folder}/{made}', 'w').close()
            made += 1
    except OSError as error:
        return [made, errno.errorcode[error.errno]]
    return [made, 'OK']
"""
EXHAUST_DESCRIPTORS = """
import errno, os, select

def exhaust(make):
    held = []
    try:
        while len(held) < 5000:
            held.append(make())
    except OSError as error:
        return [len(held), errno.errorcode[error.errno]]
    finally:
        for one in held:
            for fd in one if isinstance(one, tuple) else (one,):
                fd.close() if hasattr(fd, 'close') else os.close(fd)

result = [exhaust(lambda: os.open('/dev/null', 0)), exhaust(os.pipe), exhaust(select.epoll)]
"""
# As many as one socket takes at a time, until the kernel has counted more than the sender may have open.
DESCRIPTORS_IN_FLIGHT = """
import socket
a, b = socket.socketpair()
sent = 0
try:
    while True:
        socket.send_fds(a, [b'x'], [0] * 253)
        sent += 253
except OSError:
    pass
print(sent)
"""
BURN = """
import time
while time.process_time() < 1:
    pass
"""
UNCOLLECTED = f"""
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if os.fork() == 0:
    {BURN.strip().replace(chr(10), chr(10) + "    ")}
    os._exit(0)
try:
    os.wait()
except ChildProcessError:
    pass
"""
HOLD = "\nprint('ready', flush=True)\nimport time\ntime.sleep(60)"


def test_a_fork_bomb_stays_within_its_limit_until_the_deadline(arena: Arena) -> None:
    with arena.holding(FORK_BOMB, deadline_s=12) as bomb:
        assert 1 < bomb.tasks() <= PIDS
        arena.harmless()
        assert bomb.tasks() <= PIDS
        answer = bomb.end()
    assert verdict(answer) == TIMED_OUT
    assert answer["stdout"]["text"] == "EAGAIN\nready\n"
    assert answer["exit"] == {"code": None, "signal": 9}


@pytest.mark.parametrize("any_arena", RUNTIMES[1:], indirect=True)
def test_a_fork_bomb_under_a_guest_kernel_is_ended(any_arena: Arena) -> None:
    answer = any_arena.run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", deadline_s=6)
    # It pays for its processes with its own memory, which may run out first.
    assert verdict(answer) in (TIMED_OUT, OUT_OF_MEMORY)


def test_threads_count_as_processes(any_arena: Arena) -> None:
    answer = any_arena.run(THREAD_BOMB)
    assert answer["state"] == "succeeded"
    assert 8 < answer["result"] < PIDS


@pytest.mark.parametrize("bomb", MEMORY_BOMBS)
def test_memory_runs_out_inside_and_is_named(bomb: str, any_arena: Arena) -> None:
    answer = any_arena.run(MEMORY_BOMBS[bomb])
    assert verdict(answer) == OUT_OF_MEMORY
    assert "memory" in answer["error"]["message"]
    assert answer["error"]["code"] == "RESOURCE_EXHAUSTED"
    assert answer["result"] is None


def test_a_bomb_beside_harmless_calls_takes_no_memory_of_theirs_or_the_gateways(arena: Arena) -> None:
    code = "held = b'x' * (200 << 20)\nprint('ready', flush=True)\nwhile True: held += bytes(1 << 20)"

    def act() -> None:
        with arena.holding(code) as bomb:
            arena.harmless()
            assert verdict(bomb.end()) == OUT_OF_MEMORY

    assert arena.peak_kb(act) < 32 * 1024


def test_a_tool_that_copes_with_the_death_of_a_child_succeeds(arena: Arena) -> None:
    """Success is the tool's own exit status; what the tool made of it is the tool's affair."""
    code = f"import subprocess\nresult = subprocess.run(['/usr/bin/python3', '-c', '{HOG}']).returncode"
    answer = arena.run(code)
    assert (verdict(answer), answer["result"]) == (("succeeded", None), -9)


def test_file_systems_in_memory_end_at_their_size(any_arena: Arena) -> None:
    answer = any_arena.run(FILLERS + "result = [fill(f'{folder}/x') for folder in ('/tmp', '/dev/shm', '/out')]")
    assert answer["result"] == [[SCRATCH, "ENOSPC"], [SHARED, "ENOSPC"], [OUT, "ENOSPC"]]
    assert [one["rejected"] for one in answer["artifacts"]] == ["too_large"]


def test_they_are_charged_to_the_sandbox(arena: Arena) -> None:
    with arena.holding(FILLERS + "fill('/tmp/x'); fill('/dev/shm/x'); fill('/out/x')" + HOLD) as filled:
        charged = filled.memory_bytes()
        assert SCRATCH + SHARED + OUT <= charged <= MEMORY
        filled.cancel()


def test_there_is_no_disk_to_fill(any_arena: Arena) -> None:
    folders = ("", "/var/tmp", "/usr", "/etc", "/opt/callgate", "/run", "/home", "/root", "/sys", "/dev", "/proc")
    code = FILLERS + f"print([fill(folder + '/x') for folder in {folders}])" + HOLD
    with any_arena.holding(code) as filled:
        any_arena.harmless()
        assert filled.disk_bytes() < MIB
        answer = filled.cancel()
    outcomes = eval(answer["stdout"]["text"].splitlines()[0])  # noqa: S307  # the line above
    assert {written for written, _ in outcomes} == {0}
    assert {error for _, error in outcomes} <= {"EROFS", "EACCES", "ENOENT", "EPERM"}


def test_files_are_counted_as_well_as_bytes(arena: Arena) -> None:
    """Not under gVisor, which ignores the number of inodes; the memory they cost is bounded there."""
    folders = ("/tmp", "/dev/shm", "/out")
    with arena.holding(FILLERS + f"print([touch(folder) for folder in {folders}])" + HOLD) as filled:
        assert filled.disk_bytes() < MIB
        answer = filled.cancel()
    assert answer["stdout"]["text"].splitlines()[0] == str([[511, "ENOSPC"], [255, "ENOSPC"], [32, "ENOSPC"]])


def test_descriptors_run_out_inside_and_only_there(any_arena: Arena) -> None:
    answer = any_arena.run(EXHAUST_DESCRIPTORS)
    assert {error for _, error in answer["result"]} == {"EMFILE"}
    assert all(0 < count < OPEN_FILES for count, _ in answer["result"])


def test_descriptors_in_flight_stop_no_lane_of_anybody(arena: Arena, lane_gateway: RunningGateway) -> None:
    """The kernel counts them for all sandboxes together, and lanes send some."""
    with arena.holding(DESCRIPTORS_IN_FLIGHT + HOLD) as flight:
        for _ in range(3):
            response = lane_gateway.post("probe.run", {"code": "result = 42"}, tenant="rival")
            assert response.json().get("result") == 42, response.text
        answer = flight.cancel()
    assert int(answer["stdout"]["text"].split()[0]) > OPEN_FILES


def test_processor_time_is_counted_whoever_collects_the_process(any_arena: Arena) -> None:
    used = any_arena.run(UNCOLLECTED)["usage"]
    assert used["cpu_ms"] > 900


@pytest.mark.parametrize("any_arena", RUNTIMES[1:], indirect=True)  # where a tool can kill its process 1
def test_processor_time_is_counted_without_an_account(any_arena: Arena) -> None:
    answer = any_arena.run(BURN + "import os\nos.kill(1, 9)")
    assert (verdict(answer), answer["usage"]["cpu_ms"] > 900) == (("lost", "sandbox_lost"), True)


def test_the_processor_quota_holds_and_the_kill_is_on_time(any_arena: Arena) -> None:
    code = "import os\nprint('ready', flush=True)\nfor _ in range(3): os.fork()\nwhile True: pass"
    with any_arena.holding(code, deadline_s=15) as spin:
        began, used_s = time.monotonic(), spin.cpu_s()
        any_arena.harmless()
        time.sleep(1)
        used_s = spin.cpu_s() - used_s
        took_s = time.monotonic() - began
        assert verdict(spin.end()) == TIMED_OUT
    assert 0 < used_s < 1.3 * took_s
