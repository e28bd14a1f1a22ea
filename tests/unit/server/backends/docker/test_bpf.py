"""The compiled filter against its source: run by a small machine, it must say what the rules say."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.backends.docker import bpf, seccomp

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x50000 | 1, 0x50000 | 38
ARGUMENTS = st.one_of(
    st.integers(0, 0x20), st.integers(0, 2**64 - 1), st.sampled_from([*seccomp.IOCTLS.values(), 0x10000000, 2**32 + 1])
)


def verdict(
    machine: str, number: int, arguments: tuple[int, ...] = (0,) * 6, *, architecture: int | None = None
) -> int:
    """Run the program as the kernel would, over struct seccomp_data."""
    code = bpf.compile_for(machine)
    arch = ARCHITECTURES[machine] if architecture is None else architecture
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments)
    accumulator = at = 0
    while True:
        step = code[at]
        at += 1
        match step.code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, step.constant)
            case 0x54:
                accumulator &= step.constant
            case 0x05:
                at += step.constant
            case 0x15:
                at += step.if_true if accumulator == step.constant else step.if_false
            case 0x35:
                at += step.if_true if accumulator >= step.constant else step.if_false
            case 0x06:
                return step.constant
            case _:
                raise AssertionError(f"an instruction that is not known: {step}")


def expected(name: str, arguments: tuple[int, ...]) -> int:
    if any(name in names for names in seccomp.ALLOWED.values()):
        return ALLOW
    if name in seccomp.ANSWERED_ENOSYS:
        return ENOSYS
    holds = any(
        all(arguments[a.index] & (2**64 - 1 if a.mask is None else a.mask) == a.value for a in rule.when)
        for rule in seccomp.CONDITIONAL
        if name in rule.names
    )
    return ALLOW if holds else EPERM


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_every_call_is_treated_as_its_source_says(machine: str) -> None:
    names = {number: name for name, number in bpf.NUMBERS[machine].items()}
    for number in range(600):
        for arguments in ((0,) * 6, (2**64 - 1,) * 6, (1, 1, 0, 0, 0, 0)):
            wanted = expected(names[number], arguments) if number in names else EPERM
            assert verdict(machine, number, arguments) == wanted, (names.get(number, number), arguments)


@given(
    machine=st.sampled_from(sorted(ARCHITECTURES)), arguments=st.tuples(*[ARGUMENTS] * 6), pick=st.integers(0, 10**6)
)
def test_conditions_hold_for_any_arguments(machine: str, arguments: tuple[int, ...], pick: int) -> None:
    conditional = sorted({name for rule in seccomp.CONDITIONAL for name in rule.names} & set(bpf.NUMBERS[machine]))
    name = conditional[pick % len(conditional)]
    assert verdict(machine, bpf.NUMBERS[machine][name], arguments) == expected(name, arguments)


@given(
    machine=st.sampled_from(sorted(ARCHITECTURES)),
    rule=st.sampled_from(seccomp.CONDITIONAL),
    noise=st.integers(0, 2**64 - 1),
)
def test_what_a_rule_admits_passes_and_one_bit_more_does_not(
    machine: str, rule: seccomp.Conditional, noise: int
) -> None:
    fitting = [0] * 6
    for condition in rule.when:
        free = 0 if condition.mask is None else ~condition.mask & noise & (2**64 - 1)
        fitting[condition.index] = condition.value | free
    for name in rule.names:
        if name in bpf.NUMBERS[machine]:
            assert verdict(machine, bpf.NUMBERS[machine][name], tuple(fitting)) == ALLOW


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_another_architecture_is_killed(machine: str) -> None:
    assert verdict(machine, 0, architecture=0x40000003) == KILL
    assert verdict(machine, bpf.NUMBERS[machine]["read"], architecture=0) == KILL


def test_the_x32_entry_is_killed() -> None:
    assert verdict("x86_64", 0x40000000 | bpf.NUMBERS["x86_64"]["getpid"]) == KILL
    assert verdict("x86_64", 0xFFFFFFFF) == KILL


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_way_to_a_verdict_is_short(machine: str) -> None:
    """The kernel walks it once for every number each time a filter is installed."""
    code = bpf.compile_for(machine)
    assert len(code) < 600
    assert bpf.programs()[machine] == bpf.assemble(code)
    assert len(bpf.programs()[machine]) == 8 * len(code)


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_every_name_of_the_profile_is_a_call_of_some_machine(machine: str) -> None:
    named = {name for names in seccomp.ALLOWED.values() for name in names}
    named |= {name for rule in seccomp.CONDITIONAL for name in rule.names}
    known = set(bpf.NUMBERS["x86_64"]) | set(bpf.NUMBERS["aarch64"])
    assert named <= known
    numbers = list(bpf.NUMBERS[machine].values())
    assert len(numbers) == len(set(numbers))
