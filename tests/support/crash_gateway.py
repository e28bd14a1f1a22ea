"""A gateway that kills itself at a named point: `crash_gateway.py POINT CALLS serve --config FILE`.

The points exist only in this program, which puts itself between the stages of the product and then runs it: nothing in
the product knows of them, and no configuration, caller or environment can reach one. Most points hold each call that
comes to them until as many are there as were announced, and then the process gets SIGKILL: nothing is flushed, no
`finally` runs, no socket says goodbye. Points inside the record's transaction cannot hold the thread that writes; there
the calls are gathered before, and the first that comes to the point ends all.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from callgate_server.backends.docker.backend import DockerBackend
from callgate_server.backends.docker.failure import Step
from callgate_server.backends.docker.sandbox import DockerSandbox
from callgate_server.backends.openbao import OpenBao
from callgate_server.backends.sqlite import entries
from callgate_server.backends.sqlite.ledger import SqliteLedger
from callgate_server.cli.main import main
from callgate_server.endings import Endings
from callgate_server.execution import supervise
from callgate_server.secrets.broker import Broker

Async = Callable[..., Awaitable[Any]]


def die(*_: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


class Trap:
    """Where calls meet. The last one to come kills the process, or opens the way for all."""

    def __init__(self, calls: int) -> None:
        self._missing = calls
        self._open = asyncio.Event()

    async def die_together(self) -> None:
        self._missing -= 1
        if self._missing == 0:
            die()
        await asyncio.Event().wait()

    async def go_on_together(self) -> None:
        self._missing -= 1
        if self._missing == 0:
            self._open.set()
        await self._open.wait()


def before(owner: Any, name: str, meet: Async, applies: Callable[..., bool] = lambda *_: True) -> None:
    original: Async = getattr(owner, name)

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        if applies(*args):
            await meet()
        return await original(*args, **kwargs)

    setattr(owner, name, wrapped)


def after(owner: Any, name: str, meet: Async, applies: Callable[..., bool] = lambda *_: True) -> None:
    """`applies` is asked with the arguments and, at their end, the result."""
    original: Async = getattr(owner, name)

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = await original(*args, **kwargs)
        if applies(*args, result):
            await meet()
        return result

    setattr(owner, name, wrapped)


def in_transaction(meet: Async, gathered: str, entry: str, *, written: bool) -> None:
    """Gather calls before a write of the ledger, and die when the first of them is (or is about to be) in it."""
    before(SqliteLedger, gathered, meet)
    original: Callable[..., Any] = getattr(entries, entry)

    def wrapped(*args: Any) -> Any:
        if written:
            original(*args)
        die()

    setattr(entries, entry, wrapped)


def is_start(_backend: object, step: object, *_: object) -> bool:
    return step is Step.START


def tells_of_a_deed(_sandbox: object, data: bytes) -> bool:
    return b"did token-" in data


# In the order of a call.
POINTS: dict[str, Callable[[Trap], None]] = {
    "before claim": lambda trap: before(SqliteLedger, "claim", trap.die_together),
    "before intent": lambda trap: in_transaction(trap.go_on_together, "claim", "claim", written=False),
    "after intent, before its commit": lambda trap: in_transaction(trap.go_on_together, "claim", "claim", written=True),
    "after claim": lambda trap: after(SqliteLedger, "claim", trap.die_together),
    "before lease": lambda trap: before(Broker, "lease", trap.die_together),
    "after the lease was granted, before it is in the journal": lambda trap: after(OpenBao, "read", trap.die_together),
    "after lease": lambda trap: after(Broker, "lease", trap.die_together),
    "before acquire": lambda trap: before(DockerBackend, "open", trap.die_together),
    "before start": lambda trap: before(DockerBackend, "_step", trap.die_together, is_start),
    "after start": lambda trap: after(DockerBackend, "_step", trap.die_together, is_start),
    "after acquire": lambda trap: after(DockerBackend, "open", trap.die_together),
    "before effect": lambda trap: before(supervise._Run, "follow", trap.die_together),
    "after effect": lambda trap: after(DockerSandbox, "receive", trap.die_together, tells_of_a_deed),
    "before result": lambda trap: after(supervise._Run, "follow", trap.die_together),
    "after result": lambda trap: before(Endings, "answer", trap.die_together),
    "before outcome": lambda trap: before(SqliteLedger, "complete", trap.die_together),
    "after outcome, before its commit": lambda trap: in_transaction(
        trap.go_on_together, "complete", "complete", written=True
    ),
    "after outcome, before answer": lambda trap: after(SqliteLedger, "complete", trap.die_together),
    "after answer": lambda trap: after(Endings, "answer", trap.die_together),
}

# What comes between the claim and the rest of a call that the gateway carries on by itself.
KEPT_POINTS: dict[str, Callable[[Trap], None]] = {
    "before begin": lambda trap: before(SqliteLedger, "begin", trap.die_together),
    "after begin": lambda trap: after(SqliteLedger, "begin", trap.die_together),
}


if __name__ == "__main__":
    point, calls = sys.argv[1:3]
    (POINTS | KEPT_POINTS)[point](Trap(int(calls)))
    sys.argv[1:3] = []
    main()
