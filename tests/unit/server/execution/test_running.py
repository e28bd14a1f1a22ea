import asyncio
import math
from collections.abc import Callable
from typing import Literal

import pytest

from callgate_server.execution.running import (
    PIECE_CHARACTERS,
    PROMPT_EVENTS,
    Accepted,
    Answered,
    Failed,
    OutputChunk,
    Running,
    RunningCalls,
)
from callgate_server.model.errors import CallError, Reason

LOST = CallError(Reason.INTERNAL, "lost")


def no_defects(call_id: str, error: BaseException) -> None:
    raise AssertionError(f"unexpected error in {call_id}") from error


async def test_a_call_outlives_the_waiter_that_asked_for_it() -> None:
    go = asyncio.Event()

    async def carry(running: Running) -> None:
        running.accept()
        await go.wait()
        running.answer({"state": "succeeded"})

    async with RunningCalls(no_defects) as calls:
        running = calls.spawn("c1", carry)
        waiter = asyncio.ensure_future(running.wait())
        await running.started()
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        go.set()
        assert await running.wait() == {"state": "succeeded"}
        assert not running.cancelled.is_set()


async def test_every_follower_sees_all_events_in_order_however_late_it_comes() -> None:
    async def carry(running: Running) -> None:
        running.accept()
        running.output("stdout", "a")
        running.output("stderr", "b")
        running.answer({})

    async with RunningCalls(no_defects) as calls:
        running = calls.spawn("c1", carry)
        early = [event async for event in running.events()]
        late = [event async for event in running.events()]
    assert (
        early
        == late
        == [
            Accepted(0, "c1"),
            OutputChunk(1, "stdout", "a"),
            OutputChunk(2, "stderr", "b"),
            Answered(3, {}),
        ]
    )
    assert [event async for event in running.events(after=2)] == [Answered(3, {})]


@pytest.mark.parametrize("end", [lambda running: running.answer({}), lambda running: running.fail(LOST)])
async def test_output_in_single_bytes_becomes_few_events_and_loses_nothing(end: Callable[[Running], None]) -> None:
    running = Running("c1")
    running.accept()
    wrote = {"stdout": "", "stderr": ""}
    for number in range(20_000):
        stream: Literal["stdout", "stderr"] = "stderr" if number % 3 == 0 else "stdout"
        running.output(stream, str(number % 10))
        wrote[stream] += str(number % 10)
    end(running)
    events = [event async for event in running.events()]
    seen = {"stdout": "", "stderr": ""}
    for event in events[1:-1]:
        assert isinstance(event, OutputChunk)
        seen[event.stream] += event.text
    assert seen == wrote
    # Beside pieces of that size, those of a time that was long enough.
    assert len(events) < PROMPT_EVENTS + 2 * 20_000 / PIECE_CHARACTERS + 200
    assert [event.seq for event in events] == list(range(len(events)))


async def test_slow_output_is_prompt_however_much_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running("c1")
    for _ in range(PROMPT_EVENTS):
        running.output("stdout", ".")
    monkeypatch.setattr("callgate_server.execution.running.LONGEST_GATHERING_S", 0)
    running.output("stdout", "still there")
    events = running.events(after=PROMPT_EVENTS - 1)
    assert await anext(events) == OutputChunk(PROMPT_EVENTS, "stdout", "still there")
    await events.aclose()


async def test_text_that_is_gathered_is_published_before_the_call_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callgate_server.execution.running.LONGEST_GATHERING_S", math.inf)
    running = Running("c1")
    for _ in range(PROMPT_EVENTS):
        running.output("stdout", ".")
    running.output("stderr", "err")
    running.output("stdout", "o" * PIECE_CHARACTERS)
    running.answer({})
    events = [event async for event in running.events(after=PROMPT_EVENTS - 1)]
    assert events[:2] == [
        OutputChunk(PROMPT_EVENTS, "stderr", "err"),
        OutputChunk(PROMPT_EVENTS + 1, "stdout", "o" * PIECE_CHARACTERS),
    ]


async def test_a_refusal_before_acceptance_is_raised_by_started() -> None:
    async def carry(running: Running) -> None:
        running.fail(CallError(Reason.OVERLOADED, "full"))

    async with RunningCalls(no_defects) as calls:
        running = calls.spawn("c1", carry)
        with pytest.raises(CallError) as caught:
            await running.started()
    assert caught.value.reason is Reason.OVERLOADED


async def test_an_unexpected_error_is_reported_and_the_caller_learns_only_the_call_id() -> None:
    reported: list[str] = []

    async def carry(running: Running) -> None:
        raise RuntimeError("sk-test-canary")

    async with RunningCalls(lambda call_id, error: reported.append(call_id)) as calls:
        running = calls.spawn("c1", carry)
        with pytest.raises(CallError) as caught:
            await running.wait()
    assert reported == ["c1"]
    assert caught.value.reason is Reason.INTERNAL
    assert "canary" not in caught.value.message
    assert "c1" in caught.value.message


async def test_nothing_is_published_after_the_end() -> None:
    async def carry(running: Running) -> None:
        running.answer({"n": 1})
        running.output("stdout", "late")
        running.fail(CallError(Reason.INTERNAL, "late"))

    async with RunningCalls(no_defects) as calls:
        running = calls.spawn("c1", carry)
        await running.wait()
        await running.finished.wait()
    assert [event async for event in running.events()] == [Answered(0, {"n": 1})]


async def test_draining_refuses_new_calls_and_cancels_what_outlasts_the_grace() -> None:
    async def carry(running: Running) -> None:
        running.accept()
        await running.cancelled.wait()
        running.answer({"state": "cancelled"})

    async with RunningCalls(no_defects) as calls:
        running = calls.spawn("c1", carry)
        await running.started()
        assert await calls.drain(grace_s=0.01, settle_s=10) == 1
        assert (await running.wait())["state"] == "cancelled"
        with pytest.raises(CallError) as caught:
            calls.spawn("c2", carry)
    assert caught.value.reason is Reason.DRAINING


async def test_an_error_around_them_aborts_no_call() -> None:
    async def carry(running: Running) -> None:
        running.accept()
        await running.cancelled.wait()
        await asyncio.sleep(0.01)
        running.answer({"state": "cancelled"})

    calls = RunningCalls(no_defects)
    with pytest.raises(OSError, match="taken"):
        async with calls:
            running = calls.spawn("c1", carry)
            await running.started()
            running.interrupt()
            raise OSError("taken")
    assert (await running.wait())["state"] == "cancelled"


async def test_draining_waits_for_calls_that_finish_by_themselves() -> None:
    go = asyncio.Event()

    async def carry(running: Running) -> None:
        await go.wait()
        running.answer({})

    async with RunningCalls(no_defects) as calls:
        running = calls.spawn("c1", carry)
        drain = asyncio.ensure_future(calls.drain(grace_s=30, settle_s=1))
        await asyncio.sleep(0)
        go.set()
        assert await drain == 0
        assert not running.cancelled.is_set()
        assert len(calls) == 0


async def test_a_failed_event_carries_the_error() -> None:
    running = Running("c1")
    running.fail(CallError(Reason.AUDIT_UNAVAILABLE, "no"))
    events = [event async for event in running.events()]
    assert isinstance(events[0], Failed)
    assert running.ended


async def test_a_panic_of_a_native_library_ends_its_call_and_no_other() -> None:
    class PanicError(BaseException):
        """As PyO3 raises it: not an `Exception`."""

    reported: list[str] = []

    async def panics(running: Running) -> None:
        raise PanicError

    async def lives(running: Running) -> None:
        running.answer({"state": "succeeded"})

    async with RunningCalls(lambda call_id, error: reported.append(call_id)) as calls:
        with pytest.raises(CallError):
            await calls.spawn("c1", panics).wait()
        assert (await calls.spawn("c2", lives).wait())["state"] == "succeeded"
    assert reported == ["c1"]


@pytest.mark.parametrize("leaving_cancels", [True, False])
async def test_who_stops_waiting_for_the_claim_cancels_the_call_only_if_that_was_said(*, leaving_cancels: bool) -> None:
    running = Running("c1")
    waiting = asyncio.create_task(running.started(leaving_cancels=leaving_cancels))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert running.cancelled.is_set() is leaving_cancels
    assert not running.ended


# --- what is carried out for whoever asked -------------------------------------------------------------------------


async def test_who_asks_for_work_and_stays_gets_what_comes_of_it() -> None:
    async def work(error: Exception | None) -> str:
        if error is not None:
            raise error
        return "done"

    async with RunningCalls(no_defects) as calls:
        assert await calls.carried_out("c1", work(None)) == "done"
        for error in (CallError(Reason.NOT_POSSIBLE, "no"), RuntimeError("defect")):
            with pytest.raises(type(error)) as caught:
                await calls.carried_out("c1", work(error))
            assert caught.value is error


@pytest.mark.parametrize("error", [None, CallError(Reason.NOT_POSSIBLE, "no"), RuntimeError("defect")])
async def test_work_goes_on_where_whoever_asked_leaves_and_a_defect_of_it_is_reported(error: Exception | None) -> None:
    go, done, reported = asyncio.Event(), asyncio.Event(), []

    async def work() -> None:
        await go.wait()
        done.set()
        if error is not None:
            raise error

    async with RunningCalls(lambda call_id, error: reported.append((call_id, error))) as calls:
        asking = asyncio.create_task(calls.carried_out("c1", work()))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        go.set()
    assert done.is_set()
    assert reported == ([("c1", error)] if isinstance(error, RuntimeError) else [])
