"""One run in a started sandbox, from the runner's greeting to an outcome that can be believed.

It decides when the tool may start, when it has had its time, and what a run was that ended without saying so.
The runner keeps the same deadline inside; this side acts a moment later, and only if the runner did not.
It does not start or remove the sandbox, and judges nothing that the tool wrote.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from enum import Enum
from typing import Any, Final, TypeVar, assert_never

from callgate_server.execution.cancellation import Cancellation
from callgate_server.execution.collect import Collector, classify, killed_for_unknown_reason, refuse_egress
from callgate_server.execution.egress import EgressSession, Outlet
from callgate_server.execution.framing import Frame, FrameDecoder, encode_call, encode_cancel, encode_secret
from callgate_server.execution.greeting import greeting
from callgate_server.execution.sandbox import Sandbox
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.run import Cause, DeliveredSecret, Job, OutputListener, RunOutcome

# How much later than the runner this side enforces the deadline: time to bring home what a killed tool wrote.
DEADLINE_GRACE_S: Final = 1.0
# How long a cancelled run may take to end in order before it is killed from outside.
CANCEL_GRACE_S: Final = 1.0
# How long to wait for the sandbox's own account of its end.
EXIT_WAIT_S: Final = 2.0

_T = TypeVar("_T")


class _Ending(Enum):
    """How the wire ended: said farewell, went away, or spoke nonsense."""

    BYE = "bye"
    GONE = "gone"
    VIOLATION = "violation"


async def supervise(
    sandbox: Sandbox,
    job: Job,
    *,
    clock: Callable[[], float] = time.monotonic,
    on_output: OutputListener,
    cancelled: Cancellation,
    egress: Callable[[Outlet], EgressSession] | None = None,
) -> RunOutcome:
    """Run the tool once and return how it ended, with all that was kept of its output.

    `clock` is monotonic, in the seconds of `job.deadline`. `egress` opens the session that carries the tool's
    connections, and is given if and only if the job has a way out; the session is closed here, however this ends.
    The caller destroys the sandbox, however this ends.

    Raises:
        CallError: nothing ran. `deadline_exceeded`: the deadline passed before the tool could be started;
            `sandbox_unavailable`: the sandbox did not become ready; `request_too_large`, `secret_refused`: the
            arguments or a secret do not fit the wire.
    """
    if (egress is None) != (job.egress is None):
        raise ValueError("a way out needs both ends: the sandbox's and the gate's")
    run = _Run(sandbox, job, clock, on_output, cancelled)
    try:
        await run.prepare()
        frame = run.call_frame()
        run.require_wire()
    except _CancelledEarlyError:
        await sandbox.kill()
        return RunOutcome(Cause.CANCELLED, "The call was cancelled before the tool was started.")
    return await run.follow(frame) if egress is None else await run.follow_with_egress(frame, egress)


class _CancelledEarlyError(Exception):
    """The call was cancelled before the runner was told to start anything."""


class _Connections:
    """Where frames of the tool's connections go.

    It knows nothing of the run that has it: what a run holds, output and secrets, goes when that ends, and does not
    wait for a collector of circles.
    """

    session: EgressSession | None = None

    def feed(self, frame: Frame) -> None:
        if self.session is None:
            refuse_egress(frame)
        else:
            self.session.feed(frame)


class _Run:
    """One supervision: the wire's decoder, and what came over it so far."""

    def __init__(
        self,
        sandbox: Sandbox,
        job: Job,
        clock: Callable[[], float],
        on_output: OutputListener,
        cancelled: Cancellation,
    ) -> None:
        self._sandbox = sandbox
        self._job = job
        self._clock = clock
        self._cancelled = cancelled
        self._decoder = FrameDecoder()
        self._connections = _Connections()
        self._collector = Collector(job.limits, on_output, self._connections.feed)
        self._sending = asyncio.Lock()
        self._over = False
        self._violation = ""

    async def prepare(self) -> None:
        """Await the runner's greeting and hand over the secrets."""
        try:
            await self._watched(self._greet_and_hand_over(), self._remaining_s(), cancel_grace_s=0)
        except TimeoutError:
            if self._cancelled.is_set():
                raise _CancelledEarlyError from None
            raise self._too_late() from None
        except (ConnectionError, ValueError) as error:
            raise _not_ready() from error
        if self._cancelled.is_set():
            raise _CancelledEarlyError

    def call_frame(self) -> bytes:
        """Return the frame that starts the tool, with the time that is left for it."""
        deadline_ms = int(self._remaining_s() * 1000)
        if deadline_ms == 0:
            raise self._too_late()
        try:
            job = self._job
            return encode_call(job.run, job.arguments_json, job.limits, deadline_ms, job.names, job.egress)
        except ValueError as error:
            raise CallError(
                Reason.REQUEST_TOO_LARGE, "The arguments are larger than a sandbox takes; send less."
            ) from error

    async def follow_with_egress(self, call_frame: bytes, egress: Callable[[Outlet], EgressSession]) -> RunOutcome:
        """`follow`, with the tool's connections carried by a session."""
        self._connections.session = session = egress(self._send_in_turn)
        try:
            outcome = await self.follow(call_frame)
        finally:
            # From here on nobody reads what the session may still have to say to the tool.
            self._over = True
            usage = await session.close()
            self._connections.session = None
        return replace(outcome, egress=usage)

    def require_wire(self) -> None:
        """Refuse a sandbox that is known to be gone. The last moment: nothing is awaited from here to the call frame.

        Later it could only be said that the call is lost. Here it is certain that nothing ran.
        """
        if not self._sandbox.alive:
            raise _not_ready()

    async def follow(self, call_frame: bytes) -> RunOutcome:
        """Start the tool and bring everything home. From here on the tool counts as started."""
        begun = self._clock()
        try:
            # Two steps, so that a cancel frame can never land inside the call frame.
            await self._watched(self._send_call(call_frame), self._outer_limit_s(), cancel_grace_s=CANCEL_GRACE_S)
            ending = await self._watched(
                self._receive_and_announce(), self._outer_limit_s(), cancel_grace_s=CANCEL_GRACE_S
            )
        except TimeoutError:
            await self._sandbox.kill()
            self._collector.ran_ms = (self._clock() - begun) * 1000
            return self._stopped_from_outside()
        self._collector.ran_ms = (self._clock() - begun) * 1000
        match ending:
            case _Ending.BYE:
                return await self._ended_in_order()
            case _Ending.GONE:
                return await self._wire_lost()
            case _Ending.VIOLATION:
                await self._sandbox.kill()
                return self._collector.outcome(
                    Cause.LOST, f"The sandbox was killed because its runner broke the protocol: {self._violation}."
                )
            case _:
                assert_never(ending)

    async def _greet_and_hand_over(self) -> None:
        await greeting(self._sandbox)
        for secret in self._job.secrets:
            await self._sandbox.send(_secret_frame(secret))

    async def _send_in_turn(self, frame: bytes) -> None:
        """Send one frame: the tasks of the session and this one share the wire."""
        async with self._sending:
            if self._over:
                raise ConnectionResetError("the tool has ended")
            await self._sandbox.send(frame)

    async def _send_call(self, frame: bytes) -> None:
        # A wire that breaks here may have carried the whole frame before: the end of the wire will tell.
        with contextlib.suppress(ConnectionError):
            await self._sandbox.send(frame)

    async def _receive_all(self) -> _Ending:
        try:
            while data := await self._sandbox.receive():
                for frame in self._decoder.feed(data):
                    self._collector.add(frame)
                    if self._collector.complete:
                        return _Ending.BYE
        except ConnectionError:
            return _Ending.GONE
        except ValueError as error:
            self._violation = str(error)
            return _Ending.VIOLATION
        return _Ending.GONE

    async def _receive_and_announce(self) -> _Ending:
        """Receive all, and tell the runner should the call be cancelled meanwhile."""
        try:
            async with asyncio.TaskGroup() as group:
                announcing = group.create_task(self._announce_cancelling())
                ending = await self._receive_all()
                announcing.cancel()
                return ending
        except BaseExceptionGroup as group_error:
            raise group_error.exceptions[0] from None

    async def _announce_cancelling(self) -> None:
        await self._cancelled.wait()
        with contextlib.suppress(ConnectionError):
            await self._send_in_turn(encode_cancel())

    async def _watched(self, work: Coroutine[Any, Any, _T], limit_s: float, *, cancel_grace_s: float) -> _T:
        """Await `work`, at most `limit_s`, or `cancel_grace_s` from the moment the call is cancelled.

        Raises:
            TimeoutError: the time is over; `cancelled` says which of the two it was.
        """
        async with asyncio.timeout(limit_s) as limit:
            with self._cancelled.shortening(limit, cancel_grace_s):
                return await work

    def _stopped_from_outside(self) -> RunOutcome:
        ended = self._collector.ended
        if ended is not None and ended.cause != "ended":
            return self._collector.outcome(*classify(ended, sandbox_oom_killed=False))
        if self._cancelled.is_set():
            return self._collector.outcome(Cause.CANCELLED, "The call was cancelled, and its sandbox killed.")
        return self._collector.outcome(Cause.TIMED_OUT, "The sandbox was killed at the deadline of the call.")

    async def _ended_in_order(self) -> RunOutcome:
        ended = self._collector.ended
        if ended is None:
            raise RuntimeError("a complete run has an exit frame")
        oom_killed = False
        if killed_for_unknown_reason(ended) and not ended.oom_kills:
            oom_killed = (await self._sandbox.wait_exit(EXIT_WAIT_S)).oom_killed
        return self._collector.outcome(*classify(ended, sandbox_oom_killed=oom_killed))

    async def _wire_lost(self) -> RunOutcome:
        report = await self._sandbox.wait_exit(EXIT_WAIT_S)
        if self._cancelled.is_set():
            return self._collector.outcome(Cause.CANCELLED, "The call was cancelled, and its sandbox ended.")
        if report.oom_killed:
            return self._collector.outcome(
                Cause.OUT_OF_MEMORY, "The sandbox was killed because it used more memory than it may."
            )
        return self._collector.outcome(
            Cause.LOST, f"The sandbox ended without an account of the tool: {report.evidence}."
        )

    def _remaining_s(self) -> float:
        return self._job.deadline.remaining_s(self._clock())

    def _outer_limit_s(self) -> float:
        # Negative once the grace is over as well, which `asyncio.timeout` takes for "at once".
        return self._job.deadline.monotonic_s - self._clock() + DEADLINE_GRACE_S

    def _too_late(self) -> CallError:
        return CallError(
            Reason.DEADLINE_EXCEEDED, "The deadline passed before the tool could be started; allow more time."
        )


def _not_ready() -> CallError:
    return CallError(Reason.SANDBOX_UNAVAILABLE, "The sandbox did not become ready, and nothing ran; try again.")


def _secret_frame(secret: DeliveredSecret) -> bytes:
    try:
        return encode_secret(secret.name, secret.deliver, secret.value)
    except ValueError as error:
        raise CallError(
            Reason.SECRET_REFUSED, f"The secret {secret.name} does not fit the wire: {error}; store another value."
        ) from error
