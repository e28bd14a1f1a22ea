import asyncio
import inspect
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from callgate_server.execution.cancellation import Cancellation, unless_cancelled
from callgate_server.model.errors import CallError, Reason

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on either loop: the gateway is on uvloop, whose clock stands still for the length of a turn."""

    def run(*, loop: str, **given: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(test(**given))

    own = inspect.signature(test)
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), loop])  # type: ignore[attr-defined]
    run.__name__ = test.__name__
    return pytest.mark.parametrize("loop", LOOPS)(run)


async def cut_off(cancelled: Cancellation, grace_s: float, limit_s: float | None = None) -> float:
    """Wait under a limit that is shortened; return how long that took."""
    began_s = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(limit_s) as limit:
            with cancelled.shortening(limit, grace_s):
                await asyncio.Event().wait()
    return time.monotonic() - began_s


@on_both_loops
async def test_a_limit_ends_when_the_grace_after_the_cancelling_is_over() -> None:
    cancelled = Cancellation()
    asyncio.get_running_loop().call_later(0.05, cancelled.set)
    assert 0.14 < await cut_off(cancelled, 0.1) < 10


@on_both_loops
async def test_who_begins_to_wait_after_the_cancelling_has_the_grace_and_no_more() -> None:
    cancelled = Cancellation()
    cancelled.set()
    cancelled.set()
    assert 0.09 < await cut_off(cancelled, 0.1) < 10
    assert await cut_off(cancelled, 0) < 10
    await asyncio.wait_for(cancelled.wait(), 10)


@on_both_loops
async def test_a_limit_that_is_sooner_stays() -> None:
    cancelled = Cancellation()
    cancelled.set()
    assert await cut_off(cancelled, 60, 0.05) < 10


@on_both_loops
async def test_who_has_left_is_not_cut_off() -> None:
    cancelled = Cancellation()
    async with asyncio.timeout(10) as limit:
        with cancelled.shortening(limit, 0):
            cancelled.set()
        await asyncio.sleep(0.05)
    assert not limit.expired()


@on_both_loops
async def test_all_who_wait_are_cut_off() -> None:
    cancelled = Cancellation()
    waiting = asyncio.gather(cut_off(cancelled, 0), cut_off(cancelled, 0.05), cut_off(cancelled, 0, 5))
    await asyncio.sleep(0)
    cancelled.set()
    assert max(await waiting) < 10


@on_both_loops
async def test_work_is_done_unless_the_call_is_cancelled() -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    assert await unless_cancelled(work(), Cancellation()) == "done"


@on_both_loops
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


@pytest.mark.parametrize("busy_s", [0, 0.003])
@pytest.mark.parametrize("done_first", [True, False])
@on_both_loops
async def test_what_was_done_in_the_moment_of_the_cancelling_is_not_lost(busy_s: float, *, done_first: bool) -> None:
    for _ in range(20):
        cancelled, begun = Cancellation(), asyncio.Event()
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def work(begun: asyncio.Event = begun, done: "asyncio.Future[str]" = done) -> str:
            begun.set()
            return await done

        waiting = asyncio.ensure_future(unless_cancelled(work(), cancelled))
        await begun.wait()
        if done_first:
            done.set_result("a sandbox")
        cancelled.set()
        if not done_first:
            done.set_result("a sandbox")
        time.sleep(busy_s)  # noqa: ASYNC251  # the turn is a long one
        async with asyncio.timeout(10):
            assert await waiting == "a sandbox"


@pytest.mark.parametrize("error", [CallError(Reason.OVERLOADED, "full"), TimeoutError("of its own")])
@on_both_loops
async def test_a_failure_of_the_work_comes_out_as_it_is(error: Exception) -> None:
    async def work() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        await unless_cancelled(work(), Cancellation())
    assert raised.value is error


@on_both_loops
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
