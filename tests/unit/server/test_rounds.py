import asyncio

import pytest

from callgate_server.rounds import Rounds


class PanicError(BaseException):
    """What compiled code throws when it panics."""


@pytest.mark.parametrize("fault", [RuntimeError("a fault"), PanicError()])
async def test_work_is_done_again_and_again_and_a_fault_does_not_end_it(fault: BaseException) -> None:
    reported: list[tuple[str, str]] = []
    done = 0
    enough = asyncio.Event()

    async def work() -> None:
        nonlocal done
        done += 1
        if done == 3:
            enough.set()
        # As `to_thread` hands it on.
        await asyncio.to_thread(fail)

    def fail() -> None:
        raise fault

    async with Rounds(lambda name, error: reported.append((name, type(error).__name__))) as rounds:
        rounds.carry("work", work, pause_s=0)
        async with asyncio.timeout(5):
            await enough.wait()
    assert reported[:2] == [("work", "RuntimeError")] * 2


async def test_at_the_end_nothing_of_it_goes_on() -> None:
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(5), Rounds(lambda *_: None) as rounds:
        rounds.carry("work", work, pause_s=0)
        await began.wait()
