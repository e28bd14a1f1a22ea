"""What stands behind the edges in their tests: calls played in memory with real `Running`s, and servers on free ports.

text.echo     answers with its arguments as the result
text.noisy    writes to both streams, leaves a file, exits with 3
demo.wait     accepted, writes "started\n", runs until `release` is set or it is cancelled
demo.denied   refused by policy
demo.misfit   refused for its arguments
demo.late     accepted, then no sandbox can be started
demo.full     refused for want of room
demo.broken   raises an error whose text holds the canary
"""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import grpc
import httpx
from starlette.types import ASGIApp

from callgate_proto.v1 import gateway_pb2_grpc
from callgate_server.execution.running import Running, RunningCalls
from callgate_server.model.answer import (
    Answer,
    Artifact,
    Decision,
    Exit,
    Failure,
    Output,
    SandboxInfo,
    Usage,
    failure_document,
    to_document,
)
from callgate_server.model.call import Caller, CallRequest, OnDisconnect
from callgate_server.model.errors import CallError, Reason, Violation
from callgate_server.model.identifiers import new_call_id
from callgate_server.model.lifecycle import State
from callgate_server.model.manifest import Limits
from callgate_server.model.sealed import Sealed
from callgate_server.model.strict_json import decode
from callgate_server.stops import MAX_REASON
from callgate_server.tasks import MAX_LIFETIME_S, TaskWish
from callgate_server.transports.gate import Access, Gate, Readiness
from callgate_server.transports.http import http_app
from callgate_server.transports.limits import TransportLimits
from callgate_server.transports.places import Places
from callgate_server.transports.server import GrpcServer, HttpServer

CANARY = "sk-live-3Jx8Qv1Zr7Lm5Tn9Wc2Yb6"
TOKEN = "cg_agent_0123456789"
AUTHORIZED = {"authorization": f"Bearer {TOKEN}"}
# `root` administers its tenant; the others are agents as `bot` is.
AGENTS = {TOKEN: "bot", "cg_root_0123456789": "root"} | {f"cg_agent_{number}": f"bot{number}" for number in range(20)}
NONCE = "0123456789abcdef0123456789abcdef"
LARGE = 32 * 1024 * 1024
BYTES = b"\x1b[31mred\x00"
TOOL = {
    "tool": "text.echo",
    "version": "1.0.0",
    "summary": "Echo.",
    "effect": "read",
    "isolation": "container",
    "input": {"type": "object", "properties": {}, "additionalProperties": True},
    "output": {"type": "object", "maximum": 2**53 + 1},
    "limits": Limits(cpu=0.5).model_dump(mode="json"),
    "digest": "sha256:" + "0" * 64,
}


def answer(call_id: str, tool: str = "text.echo", **changes: Any) -> dict[str, Any]:
    """An answer in its public shape."""
    blank = Answer(
        call_id,
        tool,
        "1.0.0",
        State.SUCCEEDED,
        Decision("d1", ("p1", "p2")),
        SandboxInfo("fake", "none", "container"),
        exit=Exit(0),
        usage=Usage(1.5, 2.5, 3.5, 4096, 0, {"run": 2.5}),
        nonce=NONCE,
    )
    return to_document(replace(blank, **changes))


def noisy(call_id: str) -> dict[str, Any]:
    """An answer with everything in it that can be in one."""
    return answer(
        call_id,
        "text.noisy",
        state=State.FAILED,
        error=Failure(Reason.TOOL_FAILED, "The tool exited with 3.", 1500),
        exit=Exit(3),
        stdout=Output("red", BYTES, 9, True),
        stderr=Output("plain"),
        artifacts=(
            Artifact("out.bin", 8, "ab" * 32, BYTES),
            Artifact("big.bin", 2**40, rejected="larger than what is left"),
        ),
    )


REFUSALS = {
    "demo.denied": CallError(
        Reason.POLICY_DENIED, "Policy does not permit it.", policies=("no-shell",), call_id=new_call_id()
    ),
    "demo.misfit": CallError(
        Reason.INVALID_ARGUMENTS,
        "The arguments do not fit.",
        violations=(Violation("/text", "type", "must be a string"), Violation("/n", "minimum", "is below 1")),
        call_id=new_call_id(),
    ),
    "demo.full": CallError(Reason.OVERLOADED, "The gateway is at capacity; try again.", retry_after_ms=1200),
}


@dataclass
class Played:
    """The calls, and what is asked about them: shaped like the pipeline and the queries."""

    running: RunningCalls
    release: asyncio.Event = field(default_factory=asyncio.Event)
    # Set when a call waits; where `hold_start` is there, a call waits for it before it is claimed.
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    hold_start: asyncio.Event | None = None
    starting: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[CallRequest] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    calls_seen: list[Running] = field(default_factory=list)
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    ready: bool = True

    def __post_init__(self) -> None:
        self.asked, self.dead = Asked(self), Dead(self)

    async def start(self, token: str | None, request: CallRequest) -> Running:
        await self.identify(token)
        self.requests.append(request)
        if request.tool in REFUSALS:
            raise REFUSALS[request.tool]
        if request.tool == "demo.broken":
            raise RuntimeError(f"the database says {CANARY}")
        if request.tool not in ("text.echo", "text.noisy", "text.large", "demo.wait", "demo.late", "demo.asked"):
            raise CallError(Reason.UNKNOWN_TOOL, "No such tool.")
        if not isinstance(_arguments(request.arguments_json), dict):
            raise CallError(Reason.INVALID_REQUEST, "The arguments must be a JSON object.")
        running = self.running.spawn(new_call_id(), lambda running: self._carry(running, request))
        self.calls_seen.append(running)
        await running.started(leaving_cancels=request.on_disconnect is OnDisconnect.CANCEL)
        return running

    async def _carry(self, running: Running, request: CallRequest) -> None:
        self.starting.set()
        if self.hold_start is not None:
            await self.hold_start.wait()
        running.accept()
        match request.tool:
            case "demo.late":
                running.fail(
                    CallError(Reason.SANDBOX_UNAVAILABLE, "No sandbox could be started.", call_id=running.call_id)
                )
                return
            case "text.noisy":
                running.output("stdout", "red")
                running.output("stderr", "plain\nafter\r\nbreaks")
                document = noisy(running.call_id)
            case "text.large":
                document = answer(running.call_id, "text.large", result="a" * LARGE)
            case "demo.wait":
                document = await self._wait(running)
            case "demo.asked":
                at = datetime(2026, 3, 4, 5, 6, 7, 89, UTC)
                running.wait_for(State.AWAITING_APPROVAL, "finance", at)
                await running.decided.wait()
                document = await self._wait(running)
            case _:
                document = answer(running.call_id, result=decode(request.arguments_json))
        self.documents[running.call_id] = document
        running.answer(document)

    async def _wait(self, running: Running) -> dict[str, Any]:
        running.output("stdout", "started\n")
        self.waiting.set()
        ends = [asyncio.ensure_future(event.wait()) for event in (self.release, running.cancelled)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        if running.cancelled.is_set():
            failure = Failure(Reason.CANCELLED, "Cancelled.")
            return answer(running.call_id, "demo.wait", state=State.CANCELLED, error=failure, stdout=Output("started"))
        return answer(running.call_id, "demo.wait", result="released")

    async def identify(self, token: str | None) -> Caller:
        self.tokens.append(token)
        if token not in AGENTS:
            raise CallError(Reason.UNAUTHENTICATED, "Send a valid credential.")
        return Caller("acme", AGENTS[token])

    def operates(self, caller: Caller) -> bool:
        return caller.agent == "root"

    async def metrics(self, token: str | None) -> bytes:
        if not self.operates(await self.identify(token)):
            raise CallError(Reason.POLICY_DENIED, "No policy lets you.")
        return b"# HELP callgate_calls Calls\n"

    async def tools(self, token: str | None) -> list[dict[str, Any]]:
        await self.identify(token)
        return [TOOL]

    async def tool(self, token: str | None, name: str) -> dict[str, Any]:
        await self.identify(token)
        if name != TOOL["tool"]:
            raise CallError(Reason.UNKNOWN_TOOL, "No such tool.")
        return TOOL

    async def call(self, token: str | None, call_id: str) -> dict[str, Any]:
        await self.identify(token)
        if call_id in self.documents:
            return self.documents[call_id]
        for running in self.calls_seen:
            if running.call_id == call_id:
                return summary(call_id)
        raise CallError(Reason.UNKNOWN_CALL, "No such call.")

    async def calls(self, token: str | None, limit: int) -> list[dict[str, Any]]:
        await self.identify(token)
        return [summary(running.call_id) for running in reversed(self.calls_seen)][:limit]

    async def follow(self, token: str | None, call_id: str, after: int) -> Running:
        await self.call(token, call_id)
        return next(running for running in self.calls_seen if running.call_id == call_id)

    async def cancel(self, token: str | None, call_id: str) -> dict[str, Any]:
        await self.call(token, call_id)
        running = self.running.get(call_id)
        if running is not None:
            running.cancel()
            await running.finished.wait()
        return await self.call(token, call_id)


def summary(call_id: str, *, failed: bool = False) -> dict[str, Any]:
    """A call without its result, in its public shape."""
    at = datetime(2026, 3, 4, 5, 6, 7, 89, UTC)
    return {
        "call_id": call_id,
        "tool": "demo.wait",
        "version": "1.0.0",
        "state": "failed" if failed else "running",
        "error": failure_document(Failure(Reason.SANDBOX_UNAVAILABLE, "None.")) if failed else None,
        "received_at": at.isoformat(),
        "finished_at": at.isoformat() if failed else None,
        "policies": ["p1"],
        "approval": {"group": "finance", "expires_at": at.isoformat(), "decided_by": None},
        "task": None,
        "attempt": 1,
        "follows": None,
    }


DIGEST = "ab" * 32


def approval(call_id: str, **changes: Any) -> dict[str, Any]:
    """A call that needs an approval, as its approvers see it."""
    at = datetime(2026, 3, 4, 5, 6, 7, 89, UTC).isoformat()
    return {
        "call_id": call_id,
        "tool": "pay.send",
        "version": "1.0.0",
        "summary": "Send money.",
        "effect": "unsafe",
        "tenant": "acme",
        "agent": "bot",
        "task": None,
        "group": "finance",
        "policies": ["p1"],
        "purpose": "An invoice is due.",
        "arguments": {"amount": 2**53 + 1},
        "digest": DIGEST,
        "state": "waiting",
        "requested_at": at,
        "expires_at": at,
        "decided_at": None,
        "decided_by": None,
    } | changes


def dead_letter(call_id: str) -> dict[str, Any]:
    """A call that failed for good, in its public shape."""
    at = datetime(2026, 3, 4, 5, 6, 7, 89, UTC).isoformat()
    return {
        "call_id": call_id,
        "tool": "demo.wait",
        "version": "1.0.0",
        "tenant": "acme",
        "agent": "bot",
        "task": None,
        "state": "failed",
        "error": failure_document(Failure(Reason.TOOL_FAILED, "It failed.")),
        "effect": "read",
        "received_at": at,
        "finished_at": at,
        "attempts": [{"attempt": 1, "at": at, "state": "failed", "reason": "tool_failed"}],
        "redrivable": True,
        "follows": None,
    }


@dataclass
class Kept:
    """What is asked and decided about calls that go on by themselves: `a1` asks for an approval, `d1` is dead."""

    played: "Played"
    decisions: list[bool] = field(default_factory=list)
    settled: list[bool] = field(default_factory=list)
    buried: list[str] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)

    async def _known(self, token: str | None, call_id: str, known: str) -> None:
        await self.played.identify(token)
        if call_id != known:
            raise CallError(Reason.UNKNOWN_CALL, "No such call.")


class Asked(Kept):
    async def list(self, token: str | None) -> list[dict[str, Any]]:
        await self._known(token, "a1", "a1")
        return [approval("a1", arguments=None, purpose=None, digest="")]

    async def show(self, token: str | None, call_id: str) -> dict[str, Any]:
        await self._known(token, call_id, "a1")
        return approval(call_id)

    async def decide(self, token: str | None, call_id: str, digest: str, *, approve: bool) -> dict[str, Any]:
        await self._known(token, call_id, "a1")
        if digest != DIGEST:
            raise CallError(Reason.APPROVAL_VOID, "Another digest.")
        self.decisions.append(approve)
        return approval(call_id, state="approved" if approve else "denied", decided_by="acme/boss")


class Dead(Kept):
    async def list(self, token: str | None, limit: int) -> tuple[list[dict[str, Any]], int]:
        await self._known(token, "d1", "d1")
        self.limits.append(limit)
        return [dead_letter("d1")], 7

    async def show(self, token: str | None, call_id: str) -> dict[str, Any]:
        await self._known(token, call_id, "d1")
        return dead_letter(call_id)

    async def redrive(self, token: str | None, call_id: str) -> dict[str, Any]:
        await self._known(token, call_id, "d1")
        return summary("d2") | {"follows": call_id}

    async def discard(self, token: str | None, call_id: str) -> dict[str, Any]:
        await self._known(token, call_id, "d1")
        self.buried.append(call_id)
        return summary(call_id, failed=True)

    async def settle(self, token: str | None, call_id: str, *, happened: bool) -> dict[str, Any]:
        await self._known(token, call_id, "d1")
        self.settled.append(happened)
        return summary(call_id, failed=not happened)


def _arguments(document: bytes) -> Any:
    try:
        return decode(document)
    except ValueError:
        raise CallError(Reason.INVALID_REQUEST, "The arguments are not acceptable JSON.") from None


TASK = {
    "task_id": "task-0190a6e4-8f5e-7000-8000-000000000000",
    "name": "tidy up",
    "agent": "bot",
    "grant": {"tools": {"text.echo": {"required": ["n"]}}},
    "budget": {"calls": 3, "cpu_s": 1.5, "egress_bytes": None, "cost": None},
    "spent": {"calls": 1, "cpu_s": 0.25, "egress_bytes": 0, "cost": 1.0},
    "created_at": "2026-03-04T05:06:07+00:00",
    "expires_at": "2026-03-04T06:06:07+00:00",
    "ended_at": None,
}
STOP = {"agent": "other", "reason": "it loops", "at": "2026-03-04T05:06:07+00:00", "by": "bot"}
BREAKER = {
    "name": "tool:acme/text.echo",
    "state": "open",
    "calls": 9,
    "failures": 2,
    "slow": 1,
    "retry_after_ms": 12_300,
}


@dataclass
class Tasks:
    """Keeps what was asked for; knows `TASK`."""

    played: Played
    wishes: list[TaskWish] = field(default_factory=list)

    async def create(self, token: str | None, wish: TaskWish) -> tuple[dict[str, Any], Sealed]:
        await self.played.identify(token)
        if not (1 <= len(wish.name) <= 200 and 0 < wish.lifetime_s <= MAX_LIFETIME_S):
            raise CallError(Reason.INVALID_REQUEST, "Not a task.")
        self.wishes.append(wish)
        return TASK, Sealed(b"cgt_secret")

    async def list(self, token: str | None, limit: int) -> list[dict[str, Any]]:
        await self.played.identify(token)
        return [TASK][:limit]

    async def show(self, token: str | None, task_id: str) -> dict[str, Any]:
        await self.played.identify(token)
        if task_id != TASK["task_id"]:
            raise CallError(Reason.UNKNOWN_TASK, "No such task.")
        return TASK

    async def end(self, token: str | None, task_id: str) -> dict[str, Any]:
        return {**await self.show(token, task_id), "ended_at": "2026-03-04T05:30:00+00:00"}


@dataclass
class Stops:
    """Stops everybody but the whole tenant, which policy does not allow here."""

    played: Played
    asked: list[tuple[str, ...]] = field(default_factory=list)

    async def list(self, token: str | None) -> list[dict[str, Any]]:
        await self.played.identify(token)
        return [STOP]

    async def stop(self, token: str | None, agent: str, reason: str) -> tuple[dict[str, Any], int]:
        await self.played.identify(token)
        if not agent:
            raise CallError(Reason.POLICY_DENIED, "No.")
        if len(reason) > MAX_REASON:
            raise CallError(Reason.INVALID_REQUEST, "Too long.")
        self.asked.append(("stop", agent, reason))
        return {**STOP, "agent": agent, "reason": reason}, 2

    async def resume(self, token: str | None, agent: str) -> None:
        await self.played.identify(token)
        if agent == "nobody":
            raise CallError(Reason.NOT_POSSIBLE, "It is not stopped.")
        self.asked.append(("resume", agent))


@dataclass
class Breakers:
    played: Played

    async def list(self, token: str | None) -> list[dict[str, Any]]:
        await self.played.identify(token)
        return [BREAKER]

    async def set(self, token: str | None, name: str, *, open_it: bool) -> dict[str, Any]:
        await self.played.identify(token)
        return {**BREAKER, "name": name, "state": "forced_open" if open_it else "closed", "retry_after_ms": None}


@dataclass
class Edge:
    """A gate with its calls, and what it was told."""

    played: Played
    gate: Gate
    limits: TransportLimits
    places: Places
    unexpected: list[tuple[str, BaseException]]
    accessed: list[Access]
    # Set when a request has been handled, whatever became of it.
    handled: asyncio.Event

    def app(self, **options: Any) -> ASGIApp:
        return http_app(self.gate, self.limits, self.places, **options)


@asynccontextmanager
async def edge(limits: TransportLimits | None = None) -> AsyncIterator[Edge]:
    """A gate whose calls end with the test."""
    unexpected: list[tuple[str, BaseException]] = []
    accessed: list[Access] = []
    handled = asyncio.Event()
    async with RunningCalls(lambda call_id, error: unexpected.append((call_id, error))) as running:
        played = Played(running)

        async def ready() -> Readiness:
            return Readiness(played.ready, {"ledger": played.ready, "secrets": False})

        def note(access: Access) -> None:
            accessed.append(access)
            handled.set()

        gate = Gate(
            calls=played,
            queries=played,
            approvals=played.asked,
            dead_letters=played.dead,
            tasks=Tasks(played),
            stops=Stops(played),
            breakers=Breakers(played),
            ready=ready,
            metrics=played.metrics,
            unexpected=lambda error_id, error: unexpected.append((error_id, error)),
            accessed=note,
        )
        try:
            limits = limits or TransportLimits()
            yield Edge(played, gate, limits, Places(limits, played), unexpected, accessed, handled)
        finally:
            played.release.set()


@asynccontextmanager
async def in_memory(edge: Edge, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application without a network, holding a valid credential."""
    transport = httpx.ASGITransport(edge.app(**options), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=AUTHORIZED) as client:
        yield client


@asynccontextmanager
async def http_port(edge: Edge, **options: Any) -> AsyncIterator[int]:
    server = HttpServer(edge.app(**options), "127.0.0.1", 0, edge.limits)
    await server.start()
    try:
        yield server.port
    finally:
        await server.stop(0.1)


@asynccontextmanager
async def grpc_server(edge: Edge, **options: Any) -> AsyncIterator[GrpcServer]:
    server = GrpcServer(edge.gate, "127.0.0.1", 0, edge.limits, edge.places, **options)
    await server.start()
    server.set_serving(serving=True)
    try:
        yield server
    finally:
        await server.stop(0.1)


@asynccontextmanager
async def grpc_stub(edge: Edge) -> AsyncIterator[gateway_pb2_grpc.GatewayStub]:
    async with grpc_server(edge) as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield gateway_pb2_grpc.GatewayStub(channel)


def authorized(agent: str) -> dict[str, str]:
    [token] = [token for token, name in AGENTS.items() if name == agent]
    return {"authorization": f"Bearer {token}"}


def metadata(agent: str = "bot") -> tuple[tuple[str, str], ...]:
    return tuple(authorized(agent).items())


def base64(data: bytes) -> str:
    return b64encode(data).decode()
