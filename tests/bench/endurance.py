"""Thousands of calls on one gateway, some of which end badly: what has grown, and what is left of them."""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from callgate import Accepted, Callgate, CallRefused
from figures import Figure, sizes
from host import Holdings, holdings
from support.gateway import RunningGateway
from yardsticks import PROGRAM

CALLERS = 4
# Before the count begins: what a gateway builds up once. Its connections to the engine are as many as were ever
# needed at a time, which takes a while to come about.
WARM_UP_CALLS = 1000
# How long until all lanes have ended, and nothing is under way any more.
_IDLE_S = 2
_SETTLE_S = 60.0
SETTINGS = {"tools": {"python.run": {"isolation": "fork"}}, "execution": {"lanes": {"idle_s": _IDLE_S}}}

_KILLED = "import os; os.kill(os.getpid(), 9)"
_ENDLESS = "while True: pass"
_DEADLINE_S = 0.5


def endure(gateway: RunningGateway, calls: int) -> list[Figure]:
    """Figures after that many calls; `gateway` is alone on the engine, and has `SETTINGS`."""
    _make_calls(gateway, WARM_UP_CALLS)
    before = _at_rest(gateway)
    _make_calls(gateway, calls)
    after = _at_rest(gateway, before)
    growth = 100 * (after.memory_kb - before.memory_kb) / before.memory_kb
    left = [sizes(name, "", [count]) for name, count in after.more_than(before).items()]
    return [sizes("gateway memory, growth", "%", [growth]), *left]


def _make_calls(gateway: RunningGateway, calls: int) -> None:
    numbers = iter(range(1, calls + 1))
    with gateway.sdk() as client, ThreadPoolExecutor(CALLERS) as callers:
        for done in [callers.submit(_caller, client, numbers) for _ in range(CALLERS)]:
            done.result()


def _caller(client: Callgate, numbers: Iterator[int]) -> None:
    for number in numbers:
        _call(client, number)


def _call(client: Callgate, number: int) -> None:
    """Of two hundred one each is killed by a signal, at its deadline, by its caller, or has a container of its own."""
    match number % 200:
        case 0:
            # Its time may be over before it had a lane: then it is refused.
            with contextlib.suppress(CallRefused):
                client.call("python.run", {"code": _ENDLESS}, deadline_s=_DEADLINE_S)
        case 50:
            client.call("python.run", {"code": _KILLED})
        case 100:
            client.call("text.diff", {"before": "a", "after": "b"}).raise_for_state()
        case 150:
            for event in client.stream("python.run", {"code": _ENDLESS}):
                if isinstance(event, Accepted):
                    client.cancel(event.call_id)
        case _:
            client.call("python.run", {"code": PROGRAM}).raise_for_state()


def _at_rest(gateway: RunningGateway, before: Holdings | None = None) -> Holdings:
    """What it holds when all lanes have ended; given `before`, as soon as no more is left than there was."""
    until = time.monotonic() + _SETTLE_S
    time.sleep(2 * _IDLE_S)
    while True:
        now = holdings(gateway)
        settled = not now.containers if before is None else not any(now.more_than(before).values())
        if settled or time.monotonic() > until:
            return now
        time.sleep(0.5)
