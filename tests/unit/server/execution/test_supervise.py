import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from callgate_runner import wire
from callgate_server.execution import supervise as module
from callgate_server.execution.cancellation import Cancellation
from callgate_server.execution.egress import EgressSession, Outlet
from callgate_server.execution.egress_frames import decode_egress, encode_over
from callgate_server.execution.framing import Frame
from callgate_server.execution.sandbox import ExitReport
from callgate_server.execution.supervise import supervise
from callgate_server.model.answer import Exit, SandboxInfo
from callgate_server.model.call import Deadline
from callgate_server.model.egress import EgressUsage
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.manifest import Limits, Run
from callgate_server.model.run import Cause, DeliveredSecret, EgressWire, Job, RunOutcome
from callgate_server.model.sealed import Sealed
from support.names import NAMES

HELLO = wire.encode_document(wire.HELLO, {"wire": 1})
BYE = wire.encode(wire.BYE, b"")
SEAL = bytes(range(32))


def ended(**change: object) -> bytes:
    document: dict[str, object] = {
        "seal": SEAL.hex(), "cause": "ended", "code": 0, "signal": None, "oom_kills": None, "stdout_bytes": 0, "stderr_bytes": 0,
        "result_truncated": False, "cpu_ms": 0, "wall_ms": 0, "max_rss_kb": 0,
    }  # fmt: skip
    return wire.encode_document(wire.EXIT, document | change)


class FakeRunner:
    """A sandbox whose runner says what the test tells it to, when it has received what the test says.

    `script` maps the kind of a received frame (0: the start) to what is sent then; None ends the wire. A call is
    answered with the seal first.
    """

    def __init__(self, script: dict[int, list[bytes | None]], report: ExitReport | None = None) -> None:
        self._script = script
        self._report = report or ExitReport(None, oom_killed=False, evidence="no evidence")
        self._decoder = wire.Decoder()
        self._to_gateway: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.received: list[tuple[int, bytes]] = []
        self.addressed = asyncio.Event()
        self.killed = False
        self.waited = False
        self.broken_for_writing = False
        self._play(0)

    id = "fake"
    info = SandboxInfo("fake", "fake", "container")
    alive = True

    def _play(self, kind: int) -> None:
        if kind == wire.CALL:
            self._to_gateway.put_nowait(wire.encode(wire.SEAL, SEAL))
        for item in self._script.get(kind, []):
            self._to_gateway.put_nowait(item)

    async def send(self, data: bytes) -> None:
        if self.broken_for_writing:
            raise ConnectionResetError
        for kind, payload in self._decoder.feed(data):
            self.received.append((kind, payload))
            self.addressed.set()
            self._play(kind)

    async def receive(self) -> bytes:
        return await self._to_gateway.get() or b""

    async def wait_exit(self, timeout_s: float) -> ExitReport:
        self.waited = True
        return self._report

    async def kill(self) -> None:
        self.killed = True
        self._to_gateway.put_nowait(None)

    async def destroy(self) -> None:
        raise AssertionError("removing the sandbox is the caller's")


async def run(
    sandbox: FakeRunner,
    *,
    seconds: float = 60.0,
    secrets: tuple[DeliveredSecret, ...] = (),
    arguments: bytes = b'{"a":1}',
    cancelled: Cancellation | None = None,
    on_output: Callable[[str, bytes], None] = lambda _name, _data: None,
    egress: Callable[[Outlet], EgressSession] | None = None,
) -> RunOutcome:
    way_out = None if egress is None else EgressWire(proxy=True, ports=(), authority_pem=None)
    deadline = Deadline(time.monotonic() + seconds)
    job = Job(Run(python="a:b"), arguments, secrets, Limits(), deadline, NAMES, way_out)
    return await supervise(
        sandbox,
        job,
        clock=time.monotonic,
        on_output=on_output,
        cancelled=cancelled or Cancellation(),
        egress=egress,
    )


async def test_a_run_from_greeting_to_farewell() -> None:
    heard: list[tuple[str, bytes]] = []
    stream = wire.encode(wire.STDOUT, b"hi") + ended(stdout_bytes=2) + wire.encode(wire.RESULT, b"[]") + BYE
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [stream[:9], stream[9:]]})
    secrets = (DeliveredSecret("key", "file", Sealed(b"k")), DeliveredSecret("pin", "stdin", Sealed(b"p")))
    outcome = await run(sandbox, secrets=secrets, on_output=lambda name, data: heard.append((name, data)))
    assert (outcome.cause, outcome.exit, outcome.result_json) == (Cause.EXITED, Exit(code=0), b"[]")
    assert heard == [("stdout", b"hi")]
    assert [kind for kind, _ in sandbox.received] == [wire.SECRET, wire.SECRET, wire.CALL]
    head, arguments = wire.split_head(sandbox.received[2][1])
    assert (head["python"], arguments) == ("a:b", b'{"a":1}')
    assert isinstance(head["deadline_ms"], int)
    assert 0 < head["deadline_ms"] <= 60_000
    assert not sandbox.killed
    assert not sandbox.waited


async def test_what_follows_the_farewell_is_not_heard() -> None:
    outcome = await run(FakeRunner({0: [HELLO], wire.CALL: [ended() + BYE + b"\xff\xff\xff\xff\xff"]}))
    assert outcome.cause is Cause.EXITED


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        ([], Reason.DEADLINE_EXCEEDED),
        ([HELLO[:4]], Reason.DEADLINE_EXCEEDED),
        ([None], Reason.SANDBOX_UNAVAILABLE),
        ([HELLO[:4], None], Reason.SANDBOX_UNAVAILABLE),
        ([b"\xff\xff\xff\xff\xff"], Reason.SANDBOX_UNAVAILABLE),
        ([ended()], Reason.SANDBOX_UNAVAILABLE),
        ([HELLO + ended()], Reason.SANDBOX_UNAVAILABLE),
        ([wire.encode_document(wire.HELLO, {"wire": 2})], Reason.SANDBOX_UNAVAILABLE),
    ],
)
async def test_without_a_greeting_nothing_is_sent_and_nothing_ran(greeting: list[bytes | None], reason: Reason) -> None:
    sandbox = FakeRunner({0: greeting})
    with pytest.raises(CallError) as refusal:
        await run(sandbox, seconds=0.1 if reason is Reason.DEADLINE_EXCEEDED else 60)
    assert refusal.value.reason is reason
    assert sandbox.received == []


async def test_a_deadline_that_passed_before_starts_nothing() -> None:
    sandbox = FakeRunner({0: [HELLO]})
    with pytest.raises(CallError) as refusal:
        await run(sandbox, seconds=-1)
    assert refusal.value.reason is Reason.DEADLINE_EXCEEDED
    assert sandbox.received == []


async def test_a_wire_that_breaks_before_the_call_means_nothing_ran() -> None:
    sandbox = FakeRunner({0: [HELLO]})
    sandbox.broken_for_writing = True
    with pytest.raises(CallError) as refusal:
        await run(sandbox, secrets=(DeliveredSecret("key", "file", Sealed(b"k")),))
    assert refusal.value.reason is Reason.SANDBOX_UNAVAILABLE


async def test_a_wire_that_breaks_in_the_call_is_a_loss() -> None:
    sandbox = FakeRunner({0: [HELLO, None]})
    sandbox.broken_for_writing = True
    assert (await run(sandbox)).cause is Cause.LOST


async def test_what_does_not_fit_the_wire_is_refused() -> None:
    with pytest.raises(CallError) as refusal:
        await run(FakeRunner({0: [HELLO]}), arguments=b"x" * 9_000_000)
    assert refusal.value.reason is Reason.REQUEST_TOO_LARGE
    with pytest.raises(CallError) as refusal:
        await run(FakeRunner({0: [HELLO]}), secrets=(DeliveredSecret("key", "stdin", Sealed(b"hunter2\xff")),))
    assert refusal.value.reason is Reason.SECRET_REFUSED
    assert "hunter2" not in refusal.value.message


@pytest.mark.parametrize("oom_killed", [True, False])
async def test_a_lost_wire_is_judged_by_the_end_of_the_sandbox(oom_killed: bool) -> None:
    report = ExitReport(137, oom_killed=oom_killed, evidence="exit status 137")
    outcome = await run(FakeRunner({0: [HELLO], wire.CALL: [wire.encode(wire.STDOUT, b"part"), None]}, report))
    assert outcome.cause is (Cause.OUT_OF_MEMORY if oom_killed else Cause.LOST)
    assert outcome.stdout.head == b"part"
    # Nobody counted it.
    assert outcome.cpu_ms > 0
    assert oom_killed or "exit status 137" in outcome.detail


async def test_an_exit_without_farewell_is_a_loss_however_good_it_looked() -> None:
    outcome = await run(FakeRunner({0: [HELLO], wire.CALL: [ended(code=0), None]}))
    assert (outcome.cause, outcome.exit) == (Cause.LOST, Exit(code=0))


async def test_a_broken_protocol_kills_and_is_a_loss_with_what_came_before() -> None:
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [wire.encode(wire.STDOUT, b"part") + b"\xff" * 9]})
    outcome = await run(sandbox)
    assert (outcome.cause, outcome.stdout.head, sandbox.killed) == (Cause.LOST, b"part", True)
    assert outcome.cpu_ms > 0
    assert "protocol" in outcome.detail


async def test_a_silent_runner_is_killed_a_moment_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEADLINE_GRACE_S", 0.05)
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [wire.encode(wire.STDOUT, b"part")]})
    outcome = await run(sandbox, seconds=0.1)
    assert (outcome.cause, outcome.stdout.head, sandbox.killed) == (Cause.TIMED_OUT, b"part", True)


async def test_an_account_that_is_not_finished_in_time_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEADLINE_GRACE_S", 0.05)
    outcome = await run(FakeRunner({0: [HELLO], wire.CALL: [ended(code=0)]}), seconds=0.1)
    assert (outcome.cause, outcome.exit) == (Cause.TIMED_OUT, Exit(code=0))


async def test_the_runner_s_own_reason_stands_when_its_account_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEADLINE_GRACE_S", 0.05)
    killed = ended(cause="output_flood", code=None, signal=9)
    assert (await run(FakeRunner({0: [HELLO], wire.CALL: [killed]}), seconds=0.1)).cause is Cause.OUTPUT_FLOOD


async def test_a_cancelled_run_ends_in_order_when_it_can() -> None:
    cancelled = Cancellation()
    killed = ended(cause="cancelled", code=None, signal=9) + BYE
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [wire.encode(wire.STDOUT, b"part")], wire.CANCEL: [killed]})
    outcome = await run(sandbox, cancelled=cancelled, on_output=lambda _name, _data: cancelled.set())
    assert (outcome.cause, outcome.stdout.head, sandbox.killed) == (Cause.CANCELLED, b"part", False)


async def test_a_cancelled_run_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANCEL_GRACE_S", 0.05)
    cancelled = Cancellation()
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [wire.encode(wire.STDOUT, b"part")]})
    outcome = await run(sandbox, cancelled=cancelled, on_output=lambda _name, _data: cancelled.set())
    assert (outcome.cause, outcome.stdout.head, sandbox.killed) == (Cause.CANCELLED, b"part", True)
    assert [kind for kind, _ in sandbox.received] == [wire.CALL, wire.CANCEL]


async def test_a_cancel_over_a_broken_wire_is_still_a_cancel() -> None:
    cancelled = Cancellation()
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [wire.encode(wire.STDOUT, b"part"), None]})
    outcome = await run(sandbox, cancelled=cancelled, on_output=lambda _name, _data: cancelled.set())
    assert outcome.cause is Cause.CANCELLED


@pytest.mark.parametrize("greeting", [[], [HELLO]])
async def test_a_call_cancelled_before_it_started_runs_nothing(greeting: list[bytes | None]) -> None:
    cancelled = Cancellation()
    cancelled.set()
    sandbox = FakeRunner({0: greeting})
    outcome = await run(sandbox, cancelled=cancelled)
    assert (outcome.cause, sandbox.killed) == (Cause.CANCELLED, True)
    assert wire.CALL not in [kind for kind, _ in sandbox.received]


async def test_a_tool_that_ended_before_the_cancel_arrived_has_its_own_end() -> None:
    cancelled = Cancellation()
    stream = wire.encode(wire.STDOUT, b"x") + ended(code=3, stdout_bytes=1) + BYE
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [stream]})
    outcome = await run(sandbox, cancelled=cancelled, on_output=lambda _name, _data: cancelled.set())
    assert (outcome.cause, outcome.exit) == (Cause.EXITED, Exit(code=3))


@pytest.mark.parametrize(
    ("oom_kills", "oom_killed", "waited", "cause"),
    [
        (None, True, True, Cause.OUT_OF_MEMORY),
        (None, False, True, Cause.SIGNALLED),
        (0, True, True, Cause.OUT_OF_MEMORY),
        (2, False, False, Cause.OUT_OF_MEMORY),
    ],
)
async def test_a_kill_is_judged_by_the_evidence_of_runner_and_sandbox(
    oom_kills: int | None,
    oom_killed: bool,  # a column of the table
    waited: bool,
    cause: Cause,
) -> None:
    killed = ended(code=None, signal=9, oom_kills=oom_kills)
    report = ExitReport(0, oom_killed=oom_killed, evidence="")
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [killed + BYE]}, report)
    assert (await run(sandbox)).cause is cause
    assert sandbox.waited is waited


async def test_a_task_that_is_cancelled_from_outside_ends_at_once() -> None:
    sandbox = FakeRunner({0: [HELLO]})
    task = asyncio.ensure_future(run(sandbox))
    await sandbox.addressed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_secret_is_on_the_wire_once_and_in_no_repr() -> None:
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [ended() + BYE]})
    outcome = await run(sandbox, secrets=(DeliveredSecret("key", "file", Sealed(b"hunter2")),))
    assert json.dumps([payload.decode("latin-1") for _, payload in sandbox.received]).count("hunter2") == 1
    assert "hunter2" not in repr(outcome)


# --- what a cancelled call waits for -----------------------------------------------------------------------------


# --- a way out -------------------------------------------------------------------------------------------------

OPENED = wire.encode(wire.EGRESS_OPEN, b"\0\0\0\1\x0c\x38")
USAGE = EgressUsage(connections=1, sent_bytes=2, received_bytes=3)


class FakeSession:
    """Takes frames, answers the first with an abort, and knows when it was closed."""

    def __init__(self, outlet: Outlet, sandbox: FakeRunner) -> None:
        self._outlet = outlet
        self._sandbox = sandbox
        self.fed: list[Frame] = []
        self.closed = 0
        self.killed_before_close = False
        self.answers: list[asyncio.Task[None]] = []
        self.too_late: type[BaseException] | None = None

    def feed(self, frame: Frame) -> None:
        decode_egress(frame)
        self.fed.append(frame)
        self.answers.append(asyncio.get_running_loop().create_task(self._answer()))

    async def _answer(self) -> None:
        await self._outlet(encode_over(1))

    async def close(self) -> EgressUsage:
        self.closed += 1
        self.killed_before_close = self._sandbox.killed
        await asyncio.gather(*self.answers, return_exceptions=True)
        try:
            await self._outlet(encode_over(1))
        except ConnectionError as error:
            self.too_late = type(error)
        return USAGE


async def run_with_session(sandbox: FakeRunner, **options: Any) -> tuple[RunOutcome, FakeSession]:
    sessions: list[FakeSession] = []

    def open_session(outlet: Outlet) -> FakeSession:
        sessions.append(FakeSession(outlet, sandbox))
        return sessions[-1]

    outcome = await run(sandbox, egress=open_session, **options)
    (session,) = sessions
    assert session.closed == 1
    return outcome, session


async def test_a_session_takes_the_tools_connections_and_its_account_is_in_the_outcome() -> None:
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [OPENED], wire.EGRESS_CLOSE: [ended(), BYE]})
    outcome, session = await run_with_session(sandbox)
    assert (outcome.cause, outcome.egress) == (Cause.EXITED, USAGE)
    assert [frame.type for frame in session.fed] == [wire.EGRESS_OPEN]
    head, _ = wire.split_head(sandbox.received[0][1])
    assert head["egress"] == {"proxy": True, "ports": [], "authority": None, "mark": None}
    assert sandbox.received[1:] == [(wire.EGRESS_CLOSE, b"\0\0\0\1\1")]


async def test_nothing_is_sent_to_a_tool_that_has_ended() -> None:
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [ended(), BYE]})
    _, session = await run_with_session(sandbox)
    assert session.too_late is ConnectionResetError
    assert [kind for kind, _ in sandbox.received] == [wire.CALL]


@pytest.mark.parametrize("frame", [wire.encode(wire.EGRESS_CLOSE, b"\0\0\0\1\7"), ended() + OPENED])
async def test_a_violation_ends_the_sandbox_and_closes_the_session(frame: bytes) -> None:
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [frame]})
    outcome, session = await run_with_session(sandbox)
    assert (outcome.cause, outcome.egress) == (Cause.LOST, USAGE)
    assert "broke the protocol" in outcome.detail
    assert session.killed_before_close


async def test_a_connection_without_a_way_out_ends_the_sandbox() -> None:
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [OPENED]})
    outcome = await run(sandbox)
    assert (outcome.cause, sandbox.killed) == (Cause.LOST, True)


async def test_the_session_is_closed_after_the_kill_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEADLINE_GRACE_S", 0.0)
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [OPENED]})
    outcome, session = await run_with_session(sandbox, seconds=0.1)
    assert (outcome.cause, outcome.egress) == (Cause.TIMED_OUT, USAGE)
    assert session.killed_before_close


async def test_the_session_is_closed_when_the_wire_is_lost() -> None:
    outcome, _ = await run_with_session(FakeRunner({0: [HELLO], wire.CALL: [OPENED, None]}))
    assert (outcome.cause, outcome.egress) == (Cause.LOST, USAGE)


async def test_the_session_is_closed_when_the_supervision_is_cancelled() -> None:
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [OPENED]})
    closed: list[FakeSession] = []

    def open_session(outlet: Outlet) -> FakeSession:
        closed.append(FakeSession(outlet, sandbox))
        return closed[-1]

    task = asyncio.get_running_loop().create_task(run(sandbox, egress=open_session))
    await sandbox.addressed.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [session.closed for session in closed] == [1]


async def test_a_call_that_never_started_opens_no_session() -> None:
    def open_session(_: Outlet) -> FakeSession:
        raise AssertionError("there is no tool that could connect")

    with pytest.raises(CallError):
        await run(FakeRunner({0: [None]}), egress=open_session)


async def test_a_way_out_needs_both_ends() -> None:
    job = Job(Run(python="a:b"), b"{}", (), Limits(), Deadline(time.monotonic() + 60), NAMES)
    with pytest.raises(ValueError, match="both ends"):
        await supervise(
            FakeRunner({}),
            job,
            on_output=lambda _name, _data: None,
            cancelled=Cancellation(),
            egress=lambda outlet: FakeSession(outlet, FakeRunner({})),
        )


async def test_a_cancel_never_lands_inside_a_frame_of_the_session() -> None:
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [OPENED], wire.CANCEL: [ended(cause="cancelled", code=None), BYE]})
    cancelled = Cancellation()
    whole = sandbox.send
    stuck = asyncio.Event()

    async def in_two_halves(frame: bytes) -> None:
        await whole(frame[:3])
        if frame[0] == wire.EGRESS_CLOSE:
            cancelled.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stuck.wait(), 0.1)
        await whole(frame[3:])

    sandbox.send = in_two_halves  # type: ignore[method-assign]
    outcome, _ = await run_with_session(sandbox, cancelled=cancelled)
    assert outcome.cause is Cause.CANCELLED
    assert [kind for kind, _ in sandbox.received] == [wire.CALL, wire.EGRESS_CLOSE, wire.CANCEL]


async def test_a_sandbox_that_is_known_to_be_gone_is_sent_no_call_and_nothing_ran() -> None:
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [ended(), BYE]})
    sandbox.alive = False
    with pytest.raises(CallError) as refused:
        await run(sandbox, secrets=(DeliveredSecret("key", "file", Sealed(b"k")),))
    assert refused.value.reason is Reason.SANDBOX_UNAVAILABLE
    assert [kind for kind, _ in sandbox.received] == [wire.SECRET]


async def test_a_sandbox_that_goes_with_the_call_is_lost() -> None:
    sandbox = FakeRunner({0: [HELLO], wire.CALL: [None]})
    assert (await run(sandbox)).cause is Cause.LOST
