"""The connections of one call: each is a task, with its share of the budgets, and an end that is recorded.

Decides when a connection is one too many, has been silent for too long or has outlived its call, and what is written
about how it ended. What is said on it is the conversation's, and what may be reached the checkpoint's.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import cached_property, partial
from typing import Final

from callgate_server.backends.egress.authority import Authority
from callgate_server.backends.egress.checkpoint import Checkpoint, Report
from callgate_server.backends.egress.conversation import Conversation
from callgate_server.backends.egress.credentials import MakeStripper, Stripper, values_of
from callgate_server.backends.egress.dialler import Dialler
from callgate_server.backends.egress.meter import Trip
from callgate_server.backends.egress.pipes import FailedError, RefusedError
from callgate_server.backends.egress.relay import relay
from callgate_server.execution.breakers import Breakers
from callgate_server.execution.egress import EgressTerms, Outlet
from callgate_server.execution.egress_rules import Why, listening_rule
from callgate_server.execution.egress_streams import Stream, Streams
from callgate_server.execution.framing import Frame
from callgate_server.execution.running import contained
from callgate_server.model.egress import PROXY_PORT, EgressAsk, EgressUsage, Scheme

# How much longer a connection may be silent than an upstream, so that the tool can be told of that.
_ANSWER_S: Final = 1.0
# The runner ends the tool at the deadline. Its connections last a moment longer, or it would take their end for a
# failure of its upstream, and the call for one that failed by itself.
_GRACE_S: Final = 1.0

_CANCEL_AGAIN_S: Final = 5.0

# Begins a task of the gate's group.
Spawn = Callable[[Coroutine[None, None, None]], "asyncio.Task[None]"]


class Session:
    """Implements `EgressSession`."""

    def __init__(
        self,
        terms: EgressTerms,
        outlet: Outlet,
        *,
        dialler: Dialler,
        breakers: Breakers,
        authority: Authority,
        make_stripper: MakeStripper,
        idle_s: float,
        spawn: Spawn,
        report: Report,
    ) -> None:
        self._terms = terms
        self._authority = authority
        self._make_stripper = make_stripper
        self._idle_s = idle_s
        self._spawn = spawn
        self._report = report
        self._checkpoint = Checkpoint(terms, dialler, breakers, report)
        self._streams = Streams(outlet, self._accept)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    def feed(self, frame: Frame) -> None:
        """See `EgressSession`."""
        self._streams.feed(frame)

    async def close(self) -> EgressUsage:
        """See `EgressSession`."""
        self._closing = True
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            # A task that failed at this very moment may have taken the one for the other.
            await asyncio.wait(self._tasks, timeout=_CANCEL_AGAIN_S)
        return self._checkpoint.spending.usage

    def _accept(self, stream: Stream) -> None:
        if self._closing:
            return
        spent = self._checkpoint.spending.connect()
        work = partial(self._serve, stream) if spent is None else partial(self._turn_away, stream, spent)
        task = self._spawn(self._contained(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _contained(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work`. The group's other tasks, and the gateway with them, end with one that fails: none may."""
        try:
            await contained(work())
        except Exception as error:
            self._report("egress", error)

    async def _turn_away(self, stream: Stream, why: Why) -> None:
        await stream.abort()
        await self._checkpoint.refuse(RefusedError(why, EgressAsk(_scheme(stream), "", 0)))

    async def _serve(self, stream: Stream) -> None:
        """Carry one connection to its end. Whatever happens, it is only this one's."""
        trip = Trip(self._idle_s)
        why: Why | None = Why.INTERNAL
        try:
            why = await self._timed(stream, trip)
        except asyncio.CancelledError:
            why = Why.CALL_ENDED
            raise
        finally:
            self._checkpoint.spending.disconnect()
            await self._checkpoint.close(trip, why)
            await self._part(stream, why)

    async def _part(self, stream: Stream, why: Why | None) -> None:
        """Leave the tool's connection. In order, what is on its way still reaches the tool; else it sees a reset."""
        if why is None:
            # The wire may be gone, and with it everything that could be told.
            with contextlib.suppress(ConnectionError):
                await stream.finish()
        elif why is not Why.CALL_ENDED:
            await stream.abort()

    async def _timed(self, stream: Stream, trip: Trip) -> Why | None:
        """Return why it ended early, or None."""
        left_s = self._terms.deadline.remaining_s(time.monotonic()) + _GRACE_S
        try:
            async with asyncio.timeout(left_s) as deadline, trip.silence(_ANSWER_S):
                return await self._carried(stream, trip)
        except TimeoutError:
            return Why.DEADLINE if deadline.expired() else Why.IDLE

    async def _carried(self, stream: Stream, trip: Trip) -> Why | None:
        try:
            if stream.port == PROXY_PORT:
                await Conversation(
                    stream, self._checkpoint, self._authority, self._stripper, trip, self._terms.mark
                ).run()
            else:
                await self._straight(stream, trip)
        except RefusedError as refused:
            await self._checkpoint.refuse(refused)
            return refused.why
        except FailedError as failed:
            return failed.why
        except ConnectionError:
            return Why.TOOL_GONE
        return None

    async def _straight(self, stream: Stream, trip: Trip) -> None:
        """A `tcp` destination: the port says which."""
        rule = listening_rule(self._terms.rules, stream.port)
        if rule is None:
            raise RefusedError(Why.NO_RULE, EgressAsk("tcp", "", stream.port))
        admission = await self._checkpoint.admit(EgressAsk("tcp", rule.host, rule.port))
        with admission.passing():
            upstream = await self._checkpoint.dial(admission, trip, tls=False)
            await relay(stream, upstream, admission.answered)

    @cached_property
    def _stripper(self) -> Stripper | None:
        """Looks for every secret of the call, since what one answer hid another may show."""
        values = values_of(self._terms.credentials.values())
        return self._make_stripper(values) if values else None


def _scheme(stream: Stream) -> Scheme:
    return "http" if stream.port == PROXY_PORT else "tcp"
