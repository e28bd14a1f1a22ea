"""What a lane that is killed again and again costs a neighbour: its p99 alone and beside it, in turns."""

import asyncio
import time
from collections.abc import Callable

from callgate_server.model.manifest import Limits
from callgate_server.model.run import Cause
from figures import Figure, percentile, times
from support.lane_rig import LaneRig, lane_rig

KILLED = {
    "memory": ("held = b'x' * (1 << 28)", Cause.OUT_OF_MEMORY),
    "processes": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", Cause.TIMED_OUT),
    "deadline": ("while True: pass", Cause.TIMED_OUT),
}
_SMALL = Limits(memory_mb=64, pids=16, scratch_mb=4, cpu=0.2)
_CALLS, _ROUNDS = 100, 5


async def killed_again_and_again(lane: LaneRig, causes: list[Cause]) -> None:
    """Let a rival's lanes die, in each way in its turn, until somebody cancels it; `causes` grows by what of."""
    while True:
        for code, _ in KILLED.values():
            await lane.result("result = 1", request=lane.request(limits=_SMALL, tenant="rival"))
            outcome = await lane.run(code, request=lane.request(limits=_SMALL, tenant="rival", deadline_s=2))
            causes.append(outcome.cause)


def rows() -> list[Figure]:
    """Measure, and return a row for each figure: a sample is the p99 of a hundred calls or more, one after another."""
    alone_ms, beside_ms = asyncio.run(_compared())
    alone = times("a neighbour's p99, alone", alone_ms)
    return [alone, times("a neighbour's p99, beside a lane that is killed again and again", beside_ms, alone)]


async def _compared() -> tuple[list[float], list[float]]:
    alone, beside = [], []
    async with lane_rig(per_key=1, calls=100_000) as lane:
        await _p99_ms(lane, enough=lambda: True)
        for _ in range(_ROUNDS):
            alone.append(await _p99_ms(lane, enough=lambda: True))
            beside.append(await _beside(lane))
    return alone, beside


async def _beside(lane: LaneRig) -> float:
    causes: list[Cause] = []
    killed = asyncio.ensure_future(killed_again_and_again(lane, causes))
    try:
        return await _p99_ms(lane, enough=lambda: killed.done() or len(causes) >= len(KILLED))
    finally:
        killed.cancel()
        await asyncio.wait({killed})


async def _p99_ms(lane: LaneRig, *, enough: Callable[[], bool]) -> float:
    took: list[float] = []
    while len(took) < _CALLS or not enough():
        begun = time.perf_counter()
        await lane.result("result = 1")
        took.append((time.perf_counter() - begun) * 1000)
    return percentile(sorted(took), 99)
