import asyncio

import pytest

from callgate_server.backends.egress.meter import Metered, Trip
from callgate_server.backends.egress.pipes import FailedError
from callgate_server.execution.egress import EgressBudget
from callgate_server.execution.egress_budget import Spending
from callgate_server.execution.egress_rules import Why
from callgate_server.model.egress import EgressAsk
from support.pipes import pair


def metered(limit_bytes=10):
    spending = Spending(EgressBudget(limit_bytes, 1, 1, 1))
    link, upstream = pair()
    touched = []
    ask = EgressAsk("https", "api.example.com", 443)
    return Metered(link, ask, spending, lambda: touched.append(1)), upstream, spending, touched


async def test_bytes_of_both_directions_are_counted_and_noticed():
    link, upstream, spending, touched = metered()
    await link.write(b"1234")
    await upstream.write(b"56")
    assert await link.read() == b"56"
    assert (link.sent_bytes, link.received_bytes) == (4, 2)
    assert (spending.usage.sent_bytes, spending.usage.received_bytes) == (4, 2)
    assert len(touched) == 2


async def test_bytes_beyond_the_budget_do_not_leave():
    link, upstream, *_ = metered()
    with pytest.raises(FailedError, match="bytes_spent"):
        await link.write(b"12345678901")
    await link.finish()
    assert await upstream.read() == b""
    assert link.sent_bytes == 0


async def test_bytes_beyond_the_budget_do_not_go_on_to_the_tool():
    link, upstream, *_ = metered()
    await upstream.write(b"12345678901")
    with pytest.raises(FailedError, match="bytes_spent"):
        await link.read()
    assert link.received_bytes == 11


@pytest.mark.parametrize("act", [lambda link: link.read(), lambda link: link.write(b"x")])
async def test_an_upstream_that_breaks_off_is_not_taken_for_the_tool(act):
    link, upstream, *_ = metered()
    await upstream.abort()
    with pytest.raises(FailedError) as failed:
        await act(link)
    assert failed.value.why is Why.BROKEN_OFF


async def test_silence_is_bounded():
    with pytest.raises(TimeoutError):
        async with Trip(0.01).silence():
            await asyncio.Event().wait()


async def test_what_moves_is_not_silent():
    trip = Trip(3)
    async with trip.silence(), trip.silence(0.1):
        for _ in range(5):
            await asyncio.sleep(0.7)
            trip.touch()


async def test_the_shorter_silence_ends_first_and_alone():
    trip = Trip(0.01)
    async with trip.silence(10):
        with pytest.raises(TimeoutError):
            async with trip.silence():
                await asyncio.Event().wait()
        trip.touch()
    trip.touch()
