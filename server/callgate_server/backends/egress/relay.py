"""Bytes both ways, untouched: tunnels and `tcp` destinations. What they mean is between the two ends."""

import asyncio

from callgate_server.backends.egress.pipes import Pipe


async def relay(tool: Pipe, upstream: Pipe) -> None:
    """Carry until both sides have ended theirs.

    Raises:
        ConnectionError: the tool's connection broke.
        FailedError: the upstream's did, or a budget is spent.
    """
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_carry(tool, upstream))
            group.create_task(_carry(upstream, tool))
    except BaseExceptionGroup as both:
        raise both.exceptions[0] from None


async def _carry(source: Pipe, sink: Pipe) -> None:
    while data := await source.read():
        await sink.write(data)
    await sink.finish()
