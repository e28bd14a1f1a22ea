import asyncio

import pytest

from callgate_server.execution.cancellation import Cancellation, unless_cancelled
from callgate_server.model.errors import CallError, Reason


async def test_who_asked_to_be_told_is_told_once() -> None:
    told: list[str] = []
    cancelled = Cancellation()
    with cancelled.calling(lambda: told.append("first")), cancelled.calling(lambda: told.append("second")):
        assert told == []
        cancelled.set()
        cancelled.set()
    assert told == ["first", "second"]
    await asyncio.wait_for(cancelled.wait(), 10)


async def test_who_comes_later_is_told_at_once_and_who_has_left_is_not() -> None:
    told: list[str] = []
    cancelled = Cancellation()
    with cancelled.calling(lambda: told.append("left")):
        pass
    cancelled.set()
    assert told == []
    with cancelled.calling(lambda: told.append("late")):
        assert told == ["late"]


async def test_one_that_leaves_as_it_is_told_does_not_keep_it_from_the_next() -> None:
    told: list[str] = []
    cancelled = Cancellation()
    leaving = cancelled.calling(lambda: (told.append("leaving"), leaving.__exit__(None, None, None))[0])
    leaving.__enter__()
    with cancelled.calling(lambda: told.append("staying")):
        cancelled.set()
    assert told == ["leaving", "staying"]


async def test_work_is_done_unless_the_call_is_cancelled() -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    assert await unless_cancelled(work(), Cancellation()) == "done"


async def test_work_is_given_up_when_the_call_is_cancelled() -> None:
    cancelled, begun, given_up = Cancellation(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    waiting = asyncio.ensure_future(unless_cancelled(work(), cancelled))
    await begun.wait()
    cancelled.set()
    async with asyncio.timeout(10):
        assert await waiting is None
    assert given_up.is_set()


async def test_what_was_done_in_the_moment_of_the_cancelling_is_not_lost() -> None:
    cancelled, begun = Cancellation(), asyncio.Event()
    done = asyncio.get_running_loop().create_future()

    async def work() -> str:
        begun.set()
        result: str = await done
        return result

    waiting = asyncio.ensure_future(unless_cancelled(work(), cancelled))
    await begun.wait()
    cancelled.set()
    done.set_result("a sandbox")
    async with asyncio.timeout(10):
        assert await waiting == "a sandbox"


@pytest.mark.parametrize("error", [CallError(Reason.OVERLOADED, "full"), TimeoutError("of its own")])
async def test_a_failure_of_the_work_comes_out_as_it_is(error: Exception) -> None:
    async def work() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        await unless_cancelled(work(), Cancellation())
    assert raised.value is error


async def test_the_end_of_the_waiter_is_the_end_of_the_work() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    waiting = asyncio.ensure_future(unless_cancelled(work(), Cancellation()))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
