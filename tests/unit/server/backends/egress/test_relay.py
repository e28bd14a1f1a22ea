import asyncio

import pytest

from callgate_server.backends.egress.relay import relay
from support.pipes import pair, read_all


def nothing():
    pass


async def test_bytes_go_both_ways_untouched_until_both_sides_end():
    tool, tool_gate = pair()
    upstream, upstream_gate = pair()
    carrying = asyncio.create_task(relay(tool_gate, upstream_gate, nothing))
    await tool.write(b"\x00\xffrequest")
    await tool.finish()
    assert await read_all(upstream) == b"\x00\xffrequest"
    # One side has ended; the other may go on.
    await upstream.write(b"answer")
    assert not carrying.done()
    await upstream.finish()
    assert await read_all(tool) == b"answer"
    await carrying


@pytest.mark.parametrize("who", ["tool", "upstream"])
async def test_what_breaks_on_one_side_ends_both_ways(who):
    ends = dict(zip(("tool", "upstream"), (pair(), pair()), strict=True))
    carrying = asyncio.create_task(relay(ends["tool"][1], ends["upstream"][1], nothing))
    await ends[who][0].abort()
    with pytest.raises(ConnectionError):
        await carrying


@pytest.mark.parametrize("first", ["tool", "upstream"])
async def test_a_break_after_the_end_of_one_side_ends_it_too(first):
    ends = dict(zip(("tool", "upstream"), (pair(), pair()), strict=True))
    carrying = asyncio.create_task(relay(ends["tool"][1], ends["upstream"][1], nothing))
    await ends.pop(first)[0].finish()
    await asyncio.sleep(0.01)
    for end, _ in ends.values():
        await end.abort()
    with pytest.raises(ConnectionError):
        await carrying


async def test_cancelling_it_ends_both_ways():
    carrying = asyncio.create_task(relay(pair()[1], pair()[1], nothing))
    await asyncio.sleep(0)
    carrying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await carrying


async def test_what_comes_from_the_upstream_is_told_and_what_the_tool_says_is_not():
    tool, tool_gate = pair()
    upstream, upstream_gate = pair()
    heard = []
    carrying = asyncio.create_task(relay(tool_gate, upstream_gate, lambda: heard.append(1)))
    await tool.write(b"question")
    await tool.finish()
    assert await read_all(upstream) == b"question"
    assert heard == []
    await upstream.write(b"answer")
    await upstream.finish()
    await carrying
    assert heard
