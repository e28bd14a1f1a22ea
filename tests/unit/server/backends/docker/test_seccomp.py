"""The profile against a committed golden file, and what it must never come to allow."""

import json
from pathlib import Path

import pytest

from callgate_server.backends.docker import seccomp

GOLDEN = Path(__file__).parent / "golden_seccomp.json"


def unconditional() -> list[str]:
    return [name for names in seccomp.ALLOWED.values() for name in names]


def allows(name: str, *arguments: int) -> bool:
    """Whether the rules admit a call, as a filter would evaluate them: 64-bit arguments, default refuse."""
    if name in unconditional():
        return True
    values = [value & (2**64 - 1) for value in arguments] + [0] * 6
    return any(
        all(values[a.index] & (2**64 - 1 if a.mask is None else a.mask) == a.value for a in rule.when)
        for rule in seccomp.CONDITIONAL
        if name in rule.names
    )


def test_the_profile_is_the_committed_one() -> None:
    assert seccomp.profile() == json.loads(GOLDEN.read_text())


def test_what_is_not_named_is_refused() -> None:
    assert seccomp.profile()["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {rule["action"] for rule in seccomp.profile()["syscalls"]} == {"SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"}


def test_a_call_is_named_once() -> None:
    conditional = {name for rule in seccomp.CONDITIONAL for name in rule.names}
    names = [*unconditional(), *conditional, *seccomp.ANSWERED_ENOSYS]
    names += [name for group in seccomp.REFUSED_ON_PURPOSE.values() for name in group]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "name",
    [
        *("io_uring_setup", "io_uring_enter", "io_uring_register", "keyctl", "add_key", "request_key", "unshare"),
        *("setns", "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "bpf"),
        *("perf_event_open", "userfaultfd", "mount", "umount2", "pivot_root", "move_mount", "open_tree", "fsopen"),
        *("fsconfig", "fsmount", "fspick", "mount_setattr", "kexec_load", "init_module", "finit_module"),
        *("settimeofday", "clock_settime", "adjtimex", "reboot", "swapon", "quotactl", "acct"),
        *("open_by_handle_at", "name_to_handle_at", "syslog", "clone3", "chroot", "iopl", "ioperm", "sync"),
    ],
)
def test_refused_whatever_its_arguments(name: str) -> None:
    assert not allows(name)
    assert not any(name in rule.names for rule in seccomp.CONDITIONAL)


def test_clone_makes_processes_and_threads_but_no_namespace() -> None:
    assert allows("clone", 0x01200011)  # fork, as libc does it
    assert allows("clone", 0x003D0F00)  # a thread
    for bit in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert not allows("clone", 0x11 | bit)


def test_clone3_seems_not_to_exist_so_that_libc_falls_back() -> None:
    rule = seccomp.profile()["syscalls"][-1]
    assert rule == {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}


@pytest.mark.parametrize("family", [1, 2, 10])
@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("flags", [0, 0x800, 0x80000, 0x80800])
def test_plain_sockets_can_be_made(family: int, kind: int, flags: int) -> None:
    assert allows("socket", family, kind | flags, 0)


@pytest.mark.parametrize("family", [f for f in range(64) if f not in (1, 2, 10)])
def test_no_other_family(family: int) -> None:
    for kind in (1, 2, 3, 5):
        assert not allows("socket", family, kind, 0)


def test_a_high_bit_does_not_disguise_a_family() -> None:
    assert not allows("socket", 1 << 32 | 16, 3, 0)
    assert not allows("socket", 1 << 32 | 1, 1, 0)


@pytest.mark.parametrize("family", [1, 2, 10])
def test_no_raw_sockets(family: int) -> None:
    assert not allows("socket", family, 3, 0)
    assert not allows("socket", family, 3 | 0x80000, 255)


@pytest.mark.parametrize("protocol", [1, 33, 58, 132, 136, 255, 262])
def test_no_rare_protocols(protocol: int) -> None:
    for family in (2, 10):
        for kind in (1, 2, 5):
            assert not allows("socket", family, kind, protocol)


@pytest.mark.parametrize("command", [0x5412, 0x541C, 0x540E, 0x5431, 0x80045430])
@pytest.mark.parametrize("disguise", [0, 1 << 32, 0xFFFF_FFFF << 32])
def test_terminals_are_out_of_reach_also_with_high_bits_set(command: int, disguise: int) -> None:
    assert not allows("ioctl", 0, command | disguise, 0)


def test_isatty_can_say_no() -> None:
    assert allows("ioctl", 0, 0x5401, 0)


def test_named_pipes_but_no_devices() -> None:
    assert allows("mknodat", 0, 0, 0o010644)
    for kind in (0o020000, 0o060000):
        assert not allows("mknodat", 0, 0, kind | 0o666)
        assert not allows("mknod", 0, kind | 0o666)


def test_limits_of_another_process_are_not_touched() -> None:
    assert allows("prlimit64", 0)
    assert not allows("prlimit64", 1)


def test_personality_cannot_switch_off_protections() -> None:
    assert allows("personality", 0)
    assert allows("personality", 0xFFFF_FFFF)
    for flag in (0x0040000, 0x0400000, 0x0008):
        assert not allows("personality", flag)


def test_no_second_architecture_stands_beside_the_native_one() -> None:
    assert [entry["subArchitectures"] for entry in seccomp.profile()["archMap"]] == [[], []]


def test_the_engine_is_given_the_same_profile() -> None:
    assert json.loads(seccomp.profile_json()) == seccomp.profile()
