"""What is asked of the kernel, asked by a process without rights, in namespaces of its own: the tests' own stay as they are."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from callgate_runner import namespaces
from callgate_server.backends.docker import bpf
from callgate_server.backends.docker.bpf import Instruction
from support.lane_world import in_world
from support.pid1_sandbox import UID

# Runs `inner` in a child in new namespaces, and prints what it leaves in `found`, or what it raised.
FORKS = """
import errno, socket, traceback
KINDS = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")
def own():
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS}
def status(*names):
    lines = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines())
    return [lines[name].strip() for name in names]
def why(act, *arguments, **named):
    try:
        act(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno]
def mapped():
    namespaces.map_own_ids(*ids)
outside, ids = own(), (os.getuid(), os.getgid())
reading, writing = os.pipe()
started, starts = os.pipe()
forker = os.fork()
if forker == 0:
    pid = namespaces.fork_into_new_namespaces()
    if pid == 0:
        try:
            found = None
            exec(inner)
        except BaseException:
            found = traceback.format_exc()
        os.write(writing, json.dumps(found).encode())
        os._exit(7)
    os.write(starts, b"%d" % pid)
    os._exit(0)
os.waitpid(forker, 0)
os.close(writing)
pid, said = int(os.read(started, 99)), open(reading).read()
"""
TELLS = "print(said)\n"


def inside(folder: Path, inner: str, **given: Any) -> Any:
    return in_world(folder, FORKS + TELLS, inner="\n".join(line.strip(" ") for line in inner.splitlines()), **given)


# --- forking ---------------------------------------------------------------------------------------------------


def test_the_child_is_the_first_process_of_namespaces_that_are_all_new(tmp_path: Path) -> None:
    pid, children, same = inside(
        tmp_path,
        """children = set(os.listdir("/proc")) - {"1"}
        found = [os.getpid(), os.getppid(), [kind for kind in KINDS if outside[kind] == own()[kind]]]""",
    )
    assert (pid, children, same) == (1, 0, [])


def test_the_child_is_its_parents_sibling_to_be_collected_by_who_started_that(tmp_path: Path) -> None:
    collects = "status = os.waitpid(pid, 0)[1]\nprint(json.dumps([os.waitstatus_to_exitcode(status), said]))\n"
    assert in_world(tmp_path, FORKS + collects, inner="found = 3") == [7, "3"]


def test_the_interpreter_of_the_child_knows_that_it_was_forked(tmp_path: Path) -> None:
    before = "import random, threading\nrandom.seed(1)\nlock = threading.Lock()\n"
    body = before + FORKS + "print(json.dumps([json.loads(said), random.random()]))\n"
    # A fork that the interpreter does not know of would draw what its parent draws.
    inner = "found = [random.random(), threading.active_count()]"
    (drawn, threads), parents = in_world(tmp_path, body, inner=inner)
    assert drawn != parents
    assert threads == 1


def test_a_kernel_that_refuses_is_heard_and_nothing_is_started(tmp_path: Path) -> None:
    # A filter of one call: clone is not permitted.
    refusing = bpf.assemble(
        [
            Instruction(0x20, 0, 0, 0),
            Instruction(0x15, 0, 1, bpf.NUMBERS[os.uname().machine]["clone"]),
            Instruction(0x06, 0, 0, 0x0005_0000 | errno.EPERM),
            Instruction(0x06, 0, 0, 0x7FFF_0000),
        ]
    )
    body = (
        "kernel.set_no_new_privs()\nnamespaces.Filter(program).install()\n"
        "try:\n    namespaces.fork_into_new_namespaces()\nexcept OSError as error:\n"
        "    print(json.dumps([error.errno, error.strerror, others()]))\n"
    )
    assert in_world(tmp_path, body, program=refusing) == [errno.EPERM, "clone", []]


def test_a_machine_of_another_make_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="vax"))
    with pytest.raises(OSError, match="not known") as refused:
        namespaces.fork_into_new_namespaces()
    assert refused.value.errno == errno.ENOSYS


# --- ids and rights --------------------------------------------------------------------------------------------


def test_one_user_and_one_group_are_all_that_there_is(tmp_path: Path) -> None:
    unmapped, maps, setgroups, ids, root, other = inside(
        tmp_path,
        """unmapped = os.getuid()
        mapped()
        maps = [open(f"/proc/self/{name}_map").read().split() for name in ("uid", "gid")]
        setgroups = open("/proc/self/setgroups").read().strip()
        found = [unmapped, maps, setgroups, [os.getuid(), os.getgid()], why(os.setuid, 0), why(os.setgroups, [ids[1]])]
        """,
    )
    assert unmapped == 65534
    assert maps == [[str(UID), str(UID), "1"]] * 2
    assert setgroups == "deny"
    assert ids == [UID, UID]
    assert (root, other) == ("EINVAL", "EPERM")


def test_ids_cannot_be_mapped_twice(tmp_path: Path) -> None:
    assert inside(tmp_path, "mapped()\nfound = why(mapped)") == "EPERM"


def test_no_right_is_left_and_none_comes_back(tmp_path: Path) -> None:
    names = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
    before, after, mount, again = inside(
        tmp_path,
        """mapped()
        before = status(*names)
        namespaces.drop_every_capability()
        mount = why(namespaces.mount_empty, b"/tmp", b"size=4096", execute=False, writable=False)
        found = [before, status(*names), mount, why(namespaces.drop_every_capability)]""",
        names=names,
    )
    # In its own namespace it had all of them, which shows that the call takes something.
    assert int(before[1], 16) == int(before[2], 16) > 0
    assert [int(one, 16) for one in after] == [0] * 5
    assert (mount, again) == ("EPERM", "EPERM")


# --- mounts ----------------------------------------------------------------------------------------------------


def test_what_was_writable_is_not_any_more_and_stays_so_outside(tmp_path: Path) -> None:
    body = (
        FORKS.replace("os.waitpid(forker, 0)\n", "os.waitpid(forker, 0)\nopen('/tmp/outside', 'w').close()\n")
        + "print(json.dumps([json.loads(said), sorted(os.listdir('/tmp'))]))\n"
    )
    inner = (
        "mapped()\nopen('/tmp/before', 'w').close()\nnamespaces.make_everything_read_only()\n"
        "places = ('/tmp', '/out', '/run/secrets', '/dev/shm')\n"
        "found = [[why(open, place + '/after', 'w') for place in places],\n"
        "         [line.split()[5] for line in open('/proc/self/mountinfo') if 'ro' not in line.split()[5].split(',')]]"
    )
    (refused, writable), seen = in_world(tmp_path, body, inner=inner)
    assert refused[:3] == ["EROFS"] * 3
    assert refused[3] in ("EROFS", "EACCES")
    assert writable == []
    assert seen == ["before", "outside"]


def test_nothing_that_was_mounted_before_can_give_rights_by_a_files_mode(tmp_path: Path) -> None:
    inner = (
        "mapped()\nnamespaces.make_everything_read_only()\n"
        "found = [line for line in open('/proc/self/mountinfo') if 'nosuid' not in line.split()[5].split(',')]"
    )
    assert inside(tmp_path, inner) == []


@pytest.mark.parametrize("execute", [False, True])
@pytest.mark.parametrize("writable", [False, True])
def test_a_folder_is_emptied_and_its_flags_are_as_asked(tmp_path: Path, execute: bool, writable: bool) -> None:
    inner = """mapped()
        open("/tmp/before", "w").close()
        namespaces.mount_empty(b"/tmp", b"size=8192,nr_inodes=2,mode=0700", execute=execute, writable=writable)
        flags = [line.split()[5].split(",") for line in open("/proc/self/mountinfo") if line.split()[4] == "/tmp"][-1]
        found = [os.listdir("/tmp"), flags, oct(os.stat("/tmp").st_mode)[-4:],
                 why(open, "/tmp/one", "w"), why(open, "/tmp/two", "w")]"""
    names, flags, mode, first, second = inside(tmp_path, inner, execute=execute, writable=writable)
    assert names == []
    assert {"nosuid", "nodev"} <= set(flags)
    assert ("noexec" in flags) == (not execute)
    assert mode == "0700"
    # One inode is the folder, so that the second file is one too many.
    assert (first, second) == ((None, "ENOSPC") if writable else ("EROFS", "EROFS"))


def test_a_mount_that_fails_says_which_step_it_was(tmp_path: Path) -> None:
    inner = (
        "mapped()\ntry:\n    namespaces.mount_empty(b'/nowhere', b'', execute=False, writable=False)\n"
        "except OSError as error:\n    found = [error.errno, error.strerror]"
    )
    assert in_world(tmp_path, FORKS + TELLS, inner=inner) == [errno.ENOENT, "mount"]


# --- network ---------------------------------------------------------------------------------------------------


def test_the_loopback_is_there_when_it_was_switched_on_and_leads_nowhere(tmp_path: Path) -> None:
    inner = """mapped()
        def reach():
            with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
                client.settimeout(5)
                return why(client.connect, server.getsockname())
        before = reach()
        with socket.socket() as one:
            namespaces.raise_loopback(one.fileno())
            found = [before, why(one.connect, ("192.0.2.1", 80))]
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
            client.connect(server.getsockname())
            found.append([name for _, name in socket.if_nameindex()])"""
    body = "\n".join(line.removeprefix("        ") for line in inner.splitlines())
    before, away, names = in_world(tmp_path, FORKS + TELLS, inner=body)
    assert (before, away) == ("ENETUNREACH", "ENETUNREACH")
    assert "lo" in names


# --- filters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [b"", b"1234567", b"123456789"])
def test_a_filter_is_whole_instructions(program: bytes) -> None:
    with pytest.raises(ValueError, match="whole instructions"):
        namespaces.Filter(program)


def test_a_filter_holds_what_installs_it_and_what_that_starts(tmp_path: Path) -> None:
    number = bpf.NUMBERS[os.uname().machine]["getppid"]
    program = bpf.assemble(
        [
            Instruction(0x20, 0, 0, 0),
            Instruction(0x15, 0, 1, number),
            Instruction(0x06, 0, 0, 0x0005_0000 | errno.EUSERS),
            Instruction(0x06, 0, 0, 0x7FFF_0000),
        ]
    )
    body = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "def asked():\n    return ctypes.get_errno() if libc.syscall(number) == -1 else 0\n"
        "kernel.set_no_new_privs()\nbefore = asked()\nnamespaces.Filter(program).install()\n"
        "child_said = os.waitstatus_to_exitcode(os.waitpid(os.fork() or os._exit(asked()), 0)[1])\n"
        "print(json.dumps([before, asked(), child_said]))\n"
    )
    assert in_world(tmp_path, body, program=program, number=number) == [0, errno.EUSERS, errno.EUSERS]


@pytest.mark.parametrize("program", [bytes(8), b"\x06\0\xff\xff" + bytes(4) + bytes(8)])
def test_a_filter_that_the_kernel_does_not_take_is_an_error(tmp_path: Path, program: bytes) -> None:
    body = (
        "kernel.set_no_new_privs()\n"
        "try:\n    namespaces.Filter(program).install()\nexcept OSError as error:\n"
        "    print(json.dumps([error.errno, error.strerror]))\n"
    )
    assert in_world(tmp_path, body, program=program) == [errno.EINVAL, "seccomp"]
