import asyncio

import pytest

from callgate_server.ledger.turns import Turns


async def test_one_key_is_had_by_one_at_a_time_and_in_the_order_of_asking() -> None:
    turns, order = Turns(), []

    async def take(number: int) -> None:
        async with turns.of("k"):
            order.append(("in", number))
            await asyncio.sleep(0)
            order.append(("out", number))

    await asyncio.gather(*(take(number) for number in range(3)))
    assert order == [(way, number) for number in range(3) for way in ("in", "out")]


async def test_another_key_and_no_key_wait_for_nobody() -> None:
    turns = Turns()
    async with turns.of("k"), turns.of("other"), turns.of(None), turns.of(None):
        assert len(turns) == 2


async def test_a_key_that_nobody_wants_takes_no_room() -> None:
    turns = Turns()
    with pytest.raises(KeyError):
        async with turns.of("k"):
            raise KeyError
    async with turns.of("k"):
        waiting = asyncio.ensure_future(_take(turns))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert len(turns) == 1
    assert len(turns) == 0


async def _take(turns: Turns) -> None:
    async with turns.of("k"):
        raise AssertionError("it was not its turn")
