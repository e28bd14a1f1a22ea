"""The profile of `seccomp.py` as a program for the kernel: what a process in a lane puts itself under.

Same source, same meaning as the engine's form of the profile: another architecture's entry kills, an allowed call
passes, a conditional one passes when one of its rules holds, everything else is refused. It decides nothing itself.

The form is classic BPF over struct seccomp_data (seccomp(2)). Call numbers are looked up by a binary search over
ranges: the kernel tries every number once when a filter is installed, which happens in every call, and a chain of
comparisons would be walked to its middle each time.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from callgate_server.backends.docker import seccomp
from callgate_server.backends.docker.seccomp import Argument, Conditional

# By the machine names of uname(2).
NUMBERS: Final[Mapping[str, Mapping[str, int]]] = json.loads((Path(__file__).parent / "syscalls.json").read_text())
_AUDIT_ARCH: Final = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
# Calls of the x32 entry have this bit, under the same architecture.
_X32_BIT: Final = 0x4000_0000
_NO_NUMBER: Final = 1 << 32

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_NUMBER_AT: Final = 0
_ARCHITECTURE_AT: Final = 4
_ARGUMENTS_AT: Final = 16
_KILL_PROCESS: Final = 0x8000_0000
_ERRNO: Final = 0x0005_0000
_ALLOW: Final = 0x7FFF_0000
_MOST_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS
_FARTHEST: Final = 255
_WORD: Final = 0xFFFF_FFFF
_INSTRUCTION: Final = struct.Struct("<HBBI")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One step: operation, how many to skip when its condition holds and when not, its constant."""

    code: int
    if_true: int
    if_false: int
    constant: int


_Code = list[Instruction]


@cache
def programs() -> Mapping[str, bytes]:
    """Return the program of each machine that a sandbox may run on, as the kernel takes it."""
    return {machine: assemble(compile_for(machine)) for machine in _AUDIT_ARCH}


def assemble(code: Iterable[Instruction]) -> bytes:
    return b"".join(_INSTRUCTION.pack(one.code, one.if_true, one.if_false, one.constant) for one in code)


def compile_for(machine: str) -> _Code:
    """Return the profile as instructions.

    Raises:
        ValueError: it would be larger than the kernel takes.
    """
    table = _table(NUMBERS[machine])
    code = [
        _step(_LOAD, _ARCHITECTURE_AT),
        Instruction(_IF_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        _step(_RETURN, _KILL_PROCESS),
        _step(_LOAD, _NUMBER_AT),
        *_search(_ranges(table, end=_X32_BIT if machine == "x86_64" else _NO_NUMBER)),
    ]
    if len(code) > _MOST_INSTRUCTIONS:
        raise ValueError("the filter is larger than the kernel takes")
    return code


def _table(numbers: Mapping[str, int]) -> dict[int, tuple[Instruction, ...]]:
    """What is done at each number that the profile names. Names that the machine does not have are skipped."""
    table: dict[int, tuple[Instruction, ...]] = {}
    for names in seccomp.ALLOWED.values():
        table |= {numbers[name]: (_step(_RETURN, _ALLOW),) for name in names if name in numbers}
    for name in {name for rule in seccomp.CONDITIONAL for name in rule.names}:
        if name in numbers:
            table[numbers[name]] = _alternatives([rule for rule in seccomp.CONDITIONAL if name in rule.names])
    for name in seccomp.ANSWERED_ENOSYS:
        table[numbers[name]] = (_step(_RETURN, _ERRNO | seccomp.ENOSYS),)
    return table


def _ranges(table: Mapping[int, tuple[Instruction, ...]], *, end: int) -> list[tuple[int, tuple[Instruction, ...]]]:
    """Return where each stretch of equal treatment begins, from 0 on. From `end` on, the process is killed."""
    refuse = (_step(_RETURN, _ERRNO | seccomp.EPERM),)
    ranges: list[tuple[int, tuple[Instruction, ...]]] = []
    for number in range(max(table) + 2):
        treatment = table.get(number, refuse)
        if not ranges or ranges[-1][1] != treatment:
            ranges.append((number, treatment))
    if end < _NO_NUMBER:
        ranges.append((end, (_step(_RETURN, _KILL_PROCESS),)))
    return ranges


def _search(ranges: list[tuple[int, tuple[Instruction, ...]]]) -> _Code:
    """Return a search tree over the ranges."""
    if len(ranges) == 1:
        return list(ranges[0][1])
    middle = len(ranges) // 2
    lower, upper = _search(ranges[:middle]), _search(ranges[middle:])
    if len(lower) <= _FARTHEST:
        return [Instruction(_IF_AT_LEAST, len(lower), 0, ranges[middle][0]), *lower, *upper]
    # A conditional jump reaches no farther than a byte counts.
    return [Instruction(_IF_AT_LEAST, 0, 1, ranges[middle][0]), _step(_JUMP, len(lower)), *lower, *upper]


def _alternatives(rules: Iterable[Conditional]) -> tuple[Instruction, ...]:
    code: _Code = []
    for rule in rules:
        code += _conjunction(rule.when)
    return (*code, _step(_RETURN, _ERRNO | seccomp.EPERM))


def _conjunction(conditions: tuple[Argument, ...]) -> _Code:
    """Allow when every condition holds, else go on behind this code."""
    code: _Code = [_step(_RETURN, _ALLOW)]
    for condition in reversed(conditions):
        for half in (1, 0):
            code = [*_half(condition, half, len(code)), *code]
    return code


def _half(condition: Argument, half: int, rest: int) -> _Code:
    """Compare 32 bits of an argument; when they differ, skip `rest` more instructions. Nothing where none count."""
    mask = _WORD if condition.mask is None else condition.mask >> (32 * half) & _WORD
    value = condition.value >> (32 * half) & _WORD
    if mask == 0 and value == 0:
        return []
    load = _step(_LOAD, _ARGUMENTS_AT + 8 * condition.index + 4 * half)
    masked = [] if mask == _WORD else [_step(_AND, mask)]
    return [load, *masked, Instruction(_IF_EQUAL, 0, rest, value)]


def _step(code: int, constant: int) -> Instruction:
    return Instruction(code, 0, 0, constant)
