import json
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest

from callgate_runner.order import Order
from callgate_server.execution.framing import HEADER, encode_lane
from callgate_server.execution.sandbox import CellMount, Confinement
from callgate_server.model.manifest import Limits, Run

MACHINE = os.uname().machine
OURS, OTHERS = b"A" * 16, b"B" * 24
LIMITS = Limits(memory_mb=64, pids=9, open_files=33, artifacts=3)
MOUNTS = (
    CellMount("/tmp", "size=1,mode=1777", execute=True, writable=True),
    CellMount("/proc", "size=4096", execute=False, writable=False),
)


def order(run: Run, filters: dict[str, bytes] | None = None) -> Order:
    filters = {"another": OTHERS, MACHINE: OURS} if filters is None else filters
    return Order(encode_lane(run, LIMITS, Confinement(MOUNTS, filters), 77)[HEADER.size :])


def test_what_the_gateway_orders_is_what_the_runner_reads() -> None:
    made = order(Run(python="own:run"))
    assert (made.function, made.command, made.result_from_stdout) == ("own:run", None, False)
    assert (made.artifacts, made.pids, made.open_files, made.idle_s) == (3, 9, 33, 77)
    assert made.memory_bytes == 64 << 20
    assert [(mount.path, mount.options, mount.execute, mount.writable) for mount in made.mounts] == [
        (b"/tmp", b"size=1,mode=1777", True, True),
        (b"/proc", b"size=4096", False, False),
    ]


def test_a_command_keeps_its_words() -> None:
    made = order(Run(command=("/bin/echo", "a b", ""), result="stdout"))
    assert (made.function, made.command, made.result_from_stdout) == (None, ["/bin/echo", "a b", ""], True)


@pytest.mark.parametrize("filters", [{MACHINE: OURS, "another": OTHERS}, {"another": OTHERS, MACHINE: OURS}])
def test_the_filter_is_this_machines_wherever_it_stands(filters: dict[str, bytes]) -> None:
    assert order(Run(python="own:run"), filters).filter._instructions.raw == OURS


def test_without_a_filter_for_this_machine_nothing_runs() -> None:
    with pytest.raises(ValueError, match="no filter for this machine"):
        order(Run(python="own:run"), {"another": OTHERS})


def damaged(change: Callable[[dict[str, Any]], object], body: bytes = OURS) -> bytes:
    """An order that is right but for one thing."""
    head: dict[str, Any] = {
        "python": "own:run", "command": None, "result": "descriptor", "artifacts": 0, "memory_bytes": 1, "pids": 1,
        "open_files": 1, "idle_s": 1, "mounts": [{"path": "/t", "options": "", "execute": True, "writable": True}],
        "filters": [{"machine": MACHINE, "bytes": len(OURS)}],
    }  # fmt: skip
    change(head)
    encoded = json.dumps(head).encode()
    return struct.pack(">I", len(encoded)) + encoded + body


def test_the_order_that_is_damaged_below_is_one() -> None:
    assert Order(damaged(lambda _: None)).filter._instructions.raw == OURS


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head.pop("pids"),
        lambda head: head.update(python=None),
        lambda head: head.update(command=["/bin/true"]),
        lambda head: head.update(python=7),
        lambda head: head.update(python=None, command=[]),
        lambda head: head.update(python=None, command=["/bin/true", 7]),
        lambda head: head.update(python=None, command="/bin/true"),
        lambda head: head.update(pids=-1),
        lambda head: head.update(pids=True),
        lambda head: head.update(open_files="64"),
        lambda head: head.update(memory_bytes=1.5),
        lambda head: head.update(idle_s=None),
        lambda head: head.update(mounts={}),
        lambda head: head["mounts"][0].pop("writable"),
        lambda head: head["mounts"][0].update(writable="false"),
        lambda head: head["mounts"][0].update(execute=1),
        lambda head: head["mounts"][0].update(path=None),
        lambda head: head["filters"][0].update(bytes=-8),
        lambda head: head["filters"][0].update(bytes=len(OURS) + 8),
        lambda head: head["filters"][0].update(bytes=len(OURS) - 1),
        lambda head: head["filters"][0].update(bytes=0),
        lambda head: head.update(filters="x"),
    ],
)
def test_a_malformed_order_is_refused_whole(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Order(damaged(change))


@pytest.mark.parametrize("payload", [b"", b"\0\0\0\xff{}", b"\0\0\0\x02[]", b"\0\0\0\x02{x"])
def test_what_has_no_head_is_refused(payload: bytes) -> None:
    with pytest.raises((ValueError, struct.error)):
        Order(payload)


def test_a_filter_that_arrived_short_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Order(damaged(lambda _: None, OURS[:8]))
