"""A call's attempts, one after the other, as its tool's manifest allows: each cleaned up before the next begins.

What may be tried again is `execution/retrying.py`. A failed attempt is in the record before the next one begins. A
client that follows the call sees the output of all attempts in one row; `answer.attempt` says whose the answer is.
"""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from callgate_server.attempt import Attempts
from callgate_server.execution.retrying import RetryBudgets, mends, pause_s
from callgate_server.execution.running import Running
from callgate_server.ledger.store import Ledger
from callgate_server.model.answer import Answer, Usage
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State
from callgate_server.observe.watch import Watch
from callgate_server.ticket import Admitted


@dataclass(frozen=True, slots=True)
class _Ended:
    """How one attempt ended: with an answer, or before its tool was started."""

    answer: Answer | None
    failure: CallError | None

    @property
    def reason(self) -> Reason | None:
        if self.failure is not None:
            return self.failure.reason
        return self.answer.error.reason if self.answer and self.answer.error else None

    @property
    def state(self) -> State:
        return self.answer.state if self.answer else State.FAILED

    def result(self, before: Usage | None) -> Answer:
        """The answer, with what the attempts before it used."""
        if self.answer is None:
            raise self.failure or RuntimeError("an attempt ends in one of two ways")
        return replace(self.answer, usage=self.used(before) or self.answer.usage)

    def used(self, before: Usage | None) -> Usage | None:
        """What this attempt and those before it used together; None where no tool ran in any of them."""
        if self.answer is None or before is None:
            return before if self.answer is None else self.answer.usage
        own = self.answer.usage
        return replace(
            own,
            cpu_ms=before.cpu_ms + own.cpu_ms,
            egress_bytes=before.egress_bytes + own.egress_bytes,
            max_rss_kb=max(before.max_rss_kb, own.max_rss_kb),
        )


@dataclass(frozen=True, slots=True)
class Endurance:
    """Makes as many attempts as are allowed and of use."""

    attempts: Attempts
    ledger: Ledger
    watch: Watch
    budgets: RetryBudgets = field(default_factory=RetryBudgets)
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random

    async def make(self, running: Running, call: Admitted, cleanup: AsyncExitStack) -> Answer:
        """Return the answer of the last attempt; what it leaves to be cleaned up is in `cleanup`.

        Its usage is of all attempts: `cpu_ms` and `egress_bytes` are sums, `max_rss_kb` is the highest. `wall_ms` is
        the last one's. An attempt whose end cannot be recorded is the last. What those before the last have used is in
        the call's ticket as well, for an end without an answer.

        Raises:
            CallError: as the last attempt, or `audit_unavailable`: one that started no tool could not be recorded.
        """
        self.budgets.called(call.ticket.caller.tenant, call.tool.name, self.clock())
        failures, ticket = 0, call.ticket
        while True:
            own = AsyncExitStack()
            # At once: whatever comes, the attempt is cleaned up. A second time it does nothing.
            cleanup.push_async_callback(own.aclose)
            ended = await self._attempt(running, call, own)
            failures += 1
            pause = self._pause_s(running, call, ended, failures)
            if pause is None:
                return ended.result(ticket.used)
            await own.aclose()
            try:
                await self._note(call, ended)
            except CallError:
                if ended.answer is None:
                    raise
                return ended.result(ticket.used)
            ticket.used = ended.used(ticket.used)
            if not await self._waited(running, pause):
                return self._cancelled(call, ended)
            call = replace(call, attempt=call.attempt + 1)

    async def _attempt(self, running: Running, call: Admitted, own: AsyncExitStack) -> _Ended:
        try:
            return _Ended(await self.attempts.make(running, call, own), None)
        except CallError as failure:
            return _Ended(None, failure)

    def _pause_s(self, running: Running, call: Admitted, ended: _Ended, failures: int) -> float | None:
        """Seconds to wait before the next attempt, or None where there is to be none."""
        manifest, reason = call.tool.manifest, ended.reason
        if reason is None or not mends(reason, manifest.effect, started=ended.answer is not None):
            return None
        if failures >= manifest.retry.attempts or running.cancelled.is_set():
            return None
        pause = pause_s(manifest.retry.backoff_s, failures, self.chance())
        now_s = self.clock()
        if pause >= call.deadline.remaining_s(now_s):
            return None
        return pause if self.budgets.take(call.ticket.caller.tenant, call.tool.name, now_s) else None

    async def _note(self, call: Admitted, ended: _Ended) -> None:
        reason = ended.reason
        if reason is None:
            raise RuntimeError("what has no reason has not failed")
        body = {"attempt": call.attempt, "state": ended.state.value, "reason": reason.value}
        await self.ledger.note(call.ticket.id, "attempt_failed", {**body, "sandbox": call.ticket.sandbox})
        call.ticket.sandbox = ""
        self.watch.retried(call.tool.name, reason)

    @staticmethod
    async def _waited(running: Running, pause: float) -> bool:
        """Wait; False when the call is cancelled meanwhile."""
        try:
            async with asyncio.timeout(pause):
                await running.cancelled.wait()
        except TimeoutError:
            return not running.cancelled.is_set()
        return False

    @staticmethod
    def _cancelled(call: Admitted, ended: _Ended) -> Answer:
        """The answer of a call that was cancelled between two attempts: with what the one before left."""
        used = call.ticket.used
        early = call.cancelled_early().timed(call.ticket.queue_ms, dict(call.ticket.phases.ms))
        if ended.answer is None:
            return early if used is None else replace(early, usage=used)
        return replace(ended.answer, state=early.state, error=early.error, usage=used or ended.answer.usage)
