"""Bytes both ways, untouched: tunnels and `tcp` destinations. What they mean is between the two ends."""

import asyncio
from collections.abc import Callable

from callgate_server.backends.egress.pipes import Pipe


async def relay(tool: Pipe, upstream: Pipe, answered: Callable[[], None]) -> None:
    """Carry until both sides have ended theirs. `answered` is called when something comes from the upstream.

    Raises:
        ConnectionError: the tool's connection broke.
        FailedError: the upstream's did, or a budget is spent.
    """
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_carry(tool, upstream, _unheard))
            group.create_task(_carry(upstream, tool, answered))
    except BaseExceptionGroup as both:
        raise both.exceptions[0] from None


async def _carry(source: Pipe, sink: Pipe, heard: Callable[[], None]) -> None:
    while data := await source.read():
        heard()
        await sink.write(data)
    await sink.finish()


def _unheard() -> None:
    return
