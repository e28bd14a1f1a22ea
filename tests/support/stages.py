"""Behaving fakes of what the pipeline stands on. They share a journal, from which a test reads the order of effects."""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from callgate_runner import wire
from callgate_server.admission.authenticate import Authentication
from callgate_server.admission.authorize import Operation
from callgate_server.admission.bounds import BoundTable
from callgate_server.admission.fruitless import FRUITLESS, Fruitless
from callgate_server.admission.limits import Ceilings, Concurrency, DeadlineRule
from callgate_server.admission.loops import LoopGuard, LoopRule
from callgate_server.admission.queue import Queue, QueueRules
from callgate_server.admission.rates import Rate
from callgate_server.admission.stops import StopList
from callgate_server.admission.tasks import LiveTasks
from callgate_server.attempt import Attempts
from callgate_server.duplicates import Duplicates
from callgate_server.endings import Endings
from callgate_server.endurance import Endurance
from callgate_server.execution.breaker import BreakerRules
from callgate_server.execution.breakers import Breakers, Kind
from callgate_server.execution.egress import EgressTerms, Outlet
from callgate_server.execution.framing import Frame
from callgate_server.execution.running import RunningCalls
from callgate_server.execution.sandbox import ExitReport, Health, SandboxRequest
from callgate_server.fallback import Fallbacks
from callgate_server.kept import KeptCalls, Patience
from callgate_server.ledger.claims import holds_key, may_run_again
from callgate_server.ledger.store import (
    Beginning,
    ChainReport,
    Completion,
    Intent,
    Keeping,
    Parcel,
    Refusal,
    Step,
    StoredCall,
)
from callgate_server.limits import Limits
from callgate_server.model.answer import SandboxInfo, Usage
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.egress import EgressAsk, EgressUsage
from callgate_server.model.errors import CallError, Reason, Violation
from callgate_server.model.lifecycle import State, move
from callgate_server.model.manifest import Manifest
from callgate_server.model.sealed import Sealed
from callgate_server.model.spending import Charge
from callgate_server.model.strict_json import Json
from callgate_server.model.verdict import Ruling, Verdict
from callgate_server.pipeline import Pipeline
from callgate_server.secrets.broker import Broker, Lease

AGENT = Caller("acme", "bot", ("developer",))
OTHER_AGENT = Caller("rival", "bot", ("developer",))
SEAL = bytes(range(32))
CANARY = "sk-test-6vQ2hF8kLm0pRz4Xw9Yt3Nb7Jc1Gd5Sa"


TWO_AT_ONCE = QueueRules(2, 2, 16, 16, 16)
HALF_A_MINUTE = Patience(30, 30)


def manifest(**changes: object) -> Manifest:
    document: dict[str, object] = {
        "tool": "text.echo",
        "version": "1.0.0",
        "summary": "Echo.",
        "image": "python",
        "run": {"python": "echo:echo"},
        "input": {
            "type": "object",
            "properties": {"text": {"type": "string"}, "mode": {"type": "string"}},
            "additionalProperties": False,
        },
        "output": {},
        "effect": "read",
    }
    return Manifest.model_validate(document | changes)


def tool(**changes: object) -> Tool:
    return Tool.pin(manifest(**changes), "sha256:" + "0" * 64)


class Tokens:
    async def authenticate(self, token: str) -> Caller | None:
        return {"agent": AGENT, "other": OTHER_AGENT}.get(token)


class OneStringSchemas:
    """Accepts arguments whose values are strings, and any result but `"misfit"`."""

    def input_violations(self, tool: Tool, arguments: Json) -> list[Violation]:
        assert isinstance(arguments, dict)
        return [
            Violation(f"/{key}", "type", "must be a string") for key, v in arguments.items() if not isinstance(v, str)
        ]

    def output_violations(self, tool: Tool, result: Json) -> list[Violation]:
        return [Violation("/x", "type", "no")] if result == "misfit" else []


@dataclass
class Rulings:
    journal: list[str]
    ruling: Ruling = Ruling.ALLOW

    def decide(self, caller: Caller, tool: Tool, arguments: dict[str, Json]) -> Verdict:
        self.journal.append("authorize")
        return Verdict(self.ruling, ("p1",), "v1", "approvers")

    def consent(self, caller: Caller, tool: Tool, ask: EgressAsk) -> Verdict:
        self.journal.append(f"consent:{ask.host}")
        return Verdict(self.ruling, ("p2",), "v1")

    def may_administer(self, caller: Caller, operation: Operation) -> Verdict:
        self.journal.append(f"administer:{operation}")
        return Verdict(self.ruling, ("p3",), "v1")

    def could_allow(self, caller: Caller, tool: Tool) -> bool:
        return self.ruling in (Ruling.ALLOW, Ruling.NEEDS_APPROVAL)


@dataclass
class MemoryLedger:
    """Keeps rows in memory, moves them only as the lifecycle allows, and can be told to fail."""

    journal: list[str]
    rows: dict[str, StoredCall] = field(default_factory=dict)
    keys: dict[tuple[str, str, str, str], str] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    noted: list[tuple[str, Mapping[str, Json]]] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    parcels: dict[str, Parcel] = field(default_factory=dict)
    completions: list[Completion] = field(default_factory=list)
    intents: list[Intent] = field(default_factory=list)
    charges: list[Charge] = field(default_factory=list)

    def _write(self, what: str) -> None:
        if what in self.failing:
            raise CallError(Reason.AUDIT_UNAVAILABLE, "The record cannot be written.")
        self.journal.append(what)

    async def refuse(self, refusal: Refusal) -> None:
        self._write("refuse")
        self.rows[refusal.call_id] = StoredCall(
            refusal.call_id, refusal.caller, refusal.tool, refusal.version, State.DENIED, "", refusal.reason, "",
            refusal.policies, refusal.received_at, refusal.received_at, None,
        )  # fmt: skip

    async def find(self, caller: Caller, tool: str, idempotency_key: str) -> StoredCall | None:
        holder = self.keys.get((caller.tenant, caller.agent, tool, idempotency_key))
        return self.rows[holder] if holder else None

    async def last_good(self, like: StoredCall, since: datetime) -> StoredCall | None:
        good = [
            row
            for row in self.rows.values()
            if (row.caller.tenant, row.caller.agent, row.tool, row.version, row.arguments_digest)
            == (like.caller.tenant, like.caller.agent, like.tool, like.version, like.arguments_digest)
            and row.state is State.SUCCEEDED
            and row.reason is None
            and row.finished_at is not None
            and row.finished_at >= since
        ]
        return good[-1] if good else None

    async def claim(self, intent: Intent, keeping: Keeping | None = None) -> StoredCall | None:
        if intent.idempotency_key is not None:
            key = (intent.caller.tenant, intent.caller.agent, intent.tool, intent.idempotency_key)
            holder = self.rows[self.keys[key]] if key in self.keys else None
            if holder and not may_run_again(holder.state, holder.arguments_digest, intent.arguments_digest):
                return holder
            self.keys[key] = intent.call_id
        self._write("claim")
        self.intents.append(intent)
        self.charges += intent.charges
        self.rows[intent.call_id] = StoredCall(
            intent.call_id, intent.caller, intent.tool, intent.version, State.RUNNING, intent.arguments_digest, None,
            "", intent.policies, intent.received_at, None, None, intent.effect,
        )  # fmt: skip
        if keeping is not None:
            self._keep(intent.call_id, keeping)
        return None

    def _keep(self, call_id: str, keeping: Keeping) -> None:
        self.parcels[call_id] = keeping.parcel
        self.rows[call_id] = replace(
            self.rows[call_id],
            state=State.ADMITTED if keeping.approval is None else State.AWAITING_APPROVAL,
            kept=True,
            priority=keeping.priority,
            attempt=1,
            approval=keeping.approval,
            expires_at=keeping.expires_at,
            follows=keeping.redrives,
            changed_seq=len(self.journal),
        )
        if keeping.redrives is not None:
            self.rows[keeping.redrives] = replace(self.rows[keeping.redrives], dead="redriven", kept=False)

    async def parcel(self, call_id: str) -> Parcel | None:
        return self.parcels.get(call_id) if self.rows[call_id].kept else None

    async def begin(self, beginning: Beginning) -> None:
        self._write("begin")
        row = self.rows[beginning.call_id]
        self.rows[row.call_id] = replace(row, state=move(row.state, State.RUNNING))

    async def decide(self, call_id: str, by: str, *, approve: bool, charges: tuple[Charge, ...] = ()) -> StoredCall:
        self._write("approve" if approve else "deny")
        row = self.rows[call_id]
        if row.state is not State.AWAITING_APPROVAL:
            raise CallError(Reason.NOT_POSSIBLE, "It does not wait.")
        changes: dict[str, object] = {"decided_by": by, "decided_at": datetime.now(UTC), "state": State.ADMITTED}
        if not approve:
            self.charges += charges
            changes |= {"state": State.DENIED, "reason": Reason.APPROVAL_DENIED, "message": "Denied.", "kept": False}
        self.rows[call_id] = replace(row, **changes)  # type: ignore[arg-type]
        return self.rows[call_id]

    async def waiting(self) -> list[StoredCall]:
        return [
            row for row in self.rows.values() if row.kept and row.state in (State.ADMITTED, State.AWAITING_APPROVAL)
        ]

    async def approvals(self, tenant: str, groups: Collection[str], limit: int) -> list[StoredCall]:
        return [row for row in self.rows.values() if row.caller.tenant == tenant and row.approval in groups][:limit]

    async def dead_letters(self, tenant: str, agent: str | None, limit: int) -> tuple[list[StoredCall], int]:
        dead = [
            row
            for row in self.rows.values()
            if row.dead == "open" and row.caller.tenant == tenant and agent in (None, row.caller.agent)
        ]
        return dead[:limit], len(dead)

    async def census(self) -> Mapping[str, int]:
        return {"dead_letters": sum(row.dead == "open" for row in self.rows.values())}

    async def unknown(self, limit: int) -> list[StoredCall]:
        return [row for row in self.rows.values() if row.state is State.UNKNOWN and row.kept][:limit]

    async def discard(self, call_id: str, by: str) -> StoredCall:
        self._write("discard")
        self.rows[call_id] = replace(self.rows[call_id], dead="discarded", kept=False)
        return self.rows[call_id]

    async def settle(self, call_id: str, state: State, by: str) -> StoredCall:
        self._write("settle")
        row = self.rows[call_id]
        self.rows[call_id] = replace(row, state=move(row.state, state), dead=None)
        return self.rows[call_id]

    async def steps(self, call_id: str) -> list[Step]:
        row = self.rows[call_id]
        at = row.finished_at or row.received_at
        return [Step(1, at, row.state.value, row.reason.value if row.reason else "")]

    async def note(self, call_id: str, kind: str, body: Mapping[str, Json]) -> None:
        self._write(f"note:{kind}")
        self.notes.append((call_id, kind))
        self.noted.append((kind, body))

    async def remark(self, kind: str, body: Mapping[str, Json]) -> None:
        self._write(f"remark:{kind}")
        self.noted.append((kind, body))

    async def replayed(self, original: StoredCall, call_id: str, caller: Caller, at: datetime) -> None:
        self._write("replayed")

    async def complete(self, completion: Completion) -> None:
        self.completions.append(completion)
        self._write(f"complete:{completion.state.value}")
        self.charges += completion.charges
        row = self.rows[completion.call_id]
        self.rows[completion.call_id] = replace(
            row,
            state=move(row.state, completion.state),
            reason=completion.reason,
            message=completion.message,
            answer_json=completion.answer_json,
            finished_at=datetime.now(UTC),
        )
        failed = completion.state in (State.FAILED, State.TIMED_OUT, State.LOST, State.UNKNOWN)
        if row.kept or completion.state is State.UNKNOWN:
            ended = self.rows[row.call_id]
            self.rows[row.call_id] = replace(ended, kept=row.kept and failed, dead="open" if failed else None)
        if not holds_key(completion.state, answered=completion.answer_json is not None):
            self.keys = {key: holder for key, holder in self.keys.items() if holder != completion.call_id}

    async def get(self, call_id: str) -> StoredCall | None:
        return self.rows.get(call_id)

    async def recent(self, caller: Caller, limit: int) -> list[StoredCall]:
        own = [row for row in self.rows.values() if row.caller == caller]
        return sorted(own, key=lambda row: row.received_at, reverse=True)[:limit]

    async def verify(self) -> ChainReport:
        return ChainReport(len(self.rows), "", None)

    def digest(self, data: bytes) -> str:
        return hashlib.sha256(b"key" + data).hexdigest()


@dataclass
class Vault:
    journal: list[str]
    error: CallError | None = None

    async def read(self, path: str, *, timeout_s: float) -> Lease:
        if self.error:
            raise self.error
        self.journal.append("lease")
        return Lease({"key": Sealed(CANARY.encode())}, "lease-1", 60.0)

    async def revoke(self, lease_id: str, *, timeout_s: float) -> None:
        self.journal.append("revoke")


class ScriptedSandbox:
    """Speaks the runner's side of the wire: greets, waits for the call, then plays `frames`."""

    info = SandboxInfo("fake", "none", "container")
    alive = True

    def __init__(self, journal: list[str], frames: list[bytes], gate: asyncio.Event | None, *, number: int = 1) -> None:
        self.id = f"fake-{number}"
        self._journal, self._frames, self._gate = journal, frames, gate
        self._decoder = wire.Decoder()
        self._called = asyncio.Event()
        self._killed = asyncio.Event()
        self._greeted = False
        self.received: list[bytes] = []

    async def send(self, data: bytes) -> None:
        for kind, payload in self._decoder.feed(data):
            self.received.append(payload)
            if kind == wire.CALL:
                self._journal.append("run")
                self._frames.insert(0, wire.encode(wire.SEAL, SEAL))
                self._called.set()
            if kind == wire.CANCEL:
                self._killed.set()

    async def receive(self) -> bytes:
        if not self._greeted:
            self._greeted = True
            return wire.encode_document(wire.HELLO, {"wire": 1})
        await self._called.wait()
        if self._gate is not None and not self._killed.is_set():
            waits = [asyncio.ensure_future(event.wait()) for event in (self._gate, self._killed)]
            _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for waiter in pending:
                waiter.cancel()
        if self._killed.is_set():
            return b""
        return self._frames.pop(0) if self._frames else b""

    async def wait_exit(self, timeout_s: float) -> ExitReport:
        return ExitReport(137, oom_killed=False, evidence="exit code 137")

    async def kill(self) -> None:
        self._killed.set()

    async def destroy(self) -> None:
        self._journal.append("destroy")


def exit_frame(**changes: object) -> bytes:
    document: dict[str, object] = {
        "seal": SEAL.hex(), "cause": "ended", "code": 0, "signal": None, "oom_kills": 0,
        "stdout_bytes": 0, "stderr_bytes": 0, "result_truncated": False, "cpu_ms": 1.0, "wall_ms": 2.0, "max_rss_kb": 1000,
    }  # fmt: skip
    return wire.encode_document(wire.EXIT, document | changes)


def success(result: object, stdout: bytes = b"") -> list[bytes]:
    frames = [wire.encode(wire.STDOUT, stdout)] if stdout else []
    frames += [exit_frame(stdout_bytes=len(stdout)), wire.encode(wire.RESULT, json.dumps(result).encode())]
    return [*frames, wire.encode(wire.BYE, b"")]


@dataclass
class Sandboxes:
    journal: list[str]
    frames: list[bytes] = field(default_factory=lambda: success("done", b"hello\n"))
    # What the first ones play instead, in turn.
    first: list[list[bytes]] = field(default_factory=list)
    # What the first openings raise, in turn; one that raises nothing has None.
    errors: list[CallError | None] = field(default_factory=list)
    error: CallError | None = None
    gate: asyncio.Event | None = None
    # Set: a call waits here before it gets its sandbox.
    turn: asyncio.Event | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    # So many of the first are dead when a call gets them.
    dead: int = 0
    opened: list[ScriptedSandbox] = field(default_factory=list)
    requests: list[SandboxRequest] = field(default_factory=list)

    async def open(self, request: SandboxRequest) -> ScriptedSandbox:
        self.asked.set()
        if self.turn is not None:
            await self.turn.wait()
        if self.error:
            raise self.error
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        self.journal.append("acquire")
        self.requests.append(request)
        sandbox = ScriptedSandbox(
            self.journal, list(self.first.pop(0) if self.first else self.frames), self.gate, number=len(self.opened) + 1
        )
        sandbox.alive = len(self.opened) >= self.dead
        self.opened.append(sandbox)
        return sandbox

    async def reap(self) -> int:
        return 0

    async def health(self) -> Mapping[str, Health]:
        return {}

    async def close(self) -> None:
        return


@dataclass
class Session:
    """Asks for one connection when the call ends, as a tool would, and tells the record of it."""

    terms: EgressTerms
    journal: list[str]
    host: str = "api.example.com"

    def feed(self, frame: Frame) -> None:
        raise ValueError("no connections are expected")

    async def close(self) -> EgressUsage:
        ask = EgressAsk("https", self.host, 443)
        allowed = self.terms.consent(ask).ruling is Ruling.ALLOW
        with contextlib.suppress(CallError):
            await self.terms.record("egress_allowed" if allowed else "egress_refused", {"host": ask.host})
        self.journal.append("egress closed")
        return EgressUsage(connections=1, sent_bytes=10, received_bytes=32)


@dataclass
class Gate:
    journal: list[str]
    opened: list[EgressTerms] = field(default_factory=list)
    authority_pem: bytes = b"PEM"
    host: str = "api.example.com"

    def open(self, terms: EgressTerms, outlet: Outlet) -> Session:
        self.opened.append(terms)
        return Session(terms, self.journal, self.host)


@dataclass
class Seen:
    """A Watch that remembers."""

    refusals: list[tuple[str, Reason]] = field(default_factory=list)
    ends: list[tuple[str, State]] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)
    connections: list[tuple[str, str]] = field(default_factory=list)
    starts: list[tuple[str, str]] = field(default_factory=list)
    retries: list[tuple[str, Reason]] = field(default_factory=list)
    fallbacks: list[tuple[str, str, Reason]] = field(default_factory=list)
    phases: list[set[str]] = field(default_factory=list)

    def refused(self, tool: str, reason: Reason, phases_ms: Mapping[str, float]) -> None:
        self.refusals.append((tool, reason))
        self.phases.append(set(phases_ms))

    def started(self, call_id: str, tool: str, sandbox: str) -> None:
        self.starts.append((call_id, sandbox))

    def finished(self, tool: str, state: State, usage: Usage, phases_ms: Mapping[str, float]) -> None:
        self.ends.append((tool, state))
        self.phases.append(set(phases_ms))

    def retried(self, tool: str, reason: Reason) -> None:
        self.retries.append((tool, reason))

    def fell_back(self, tool: str, kind: str, reason: Reason) -> None:
        self.fallbacks.append((tool, kind, reason))

    def egress(self, tool: str, event: str, body: Mapping[str, Json]) -> None:
        self.connections.append((tool, event))

    def unexpected(self, call_id: str, error: BaseException) -> None:
        self.defects.append(type(error).__name__)


class World:
    """A pipeline and all it stands on. Use as an async context manager."""

    def __init__(
        self,
        *tools: Tool,
        calls: int = 8,
        waiting: int = 64,
        max_s: float = 60,
        bounds: BoundTable = BoundTable(),  # noqa: B008  # it is frozen
        loop: LoopRule | None = None,
        fruitless: Rate = FRUITLESS,
        kept: QueueRules = TWO_AT_ONCE,
        patience: Patience = HALF_A_MINUTE,
        rules: Mapping[Kind, BreakerRules] | None = None,
    ) -> None:
        self.journal: list[str] = []
        self.policy = Rulings(self.journal)
        self.ledger = MemoryLedger(self.journal)
        self.vault = Vault(self.journal)
        self.sandboxes = Sandboxes(self.journal)
        self.gate = Gate(self.journal)
        self.watch = Seen()
        self.running = RunningCalls(self.watch.unexpected)
        self.catalog = Catalog.of(*(tools or (tool(),)))
        noise = Fruitless(fruitless)
        self.limits = Limits(bounds, LiveTasks(), StopList(), LoopGuard(loop), self.catalog, fruitless=noise)
        schemas, broker = OneStringSchemas(), Broker(self.vault, now=time.monotonic)
        self.breakers = Breakers(rules or {}, lambda _: None)
        attempts = Attempts(schemas, self.policy, self.ledger, broker, self.sandboxes, self.watch, self.gate)
        self.endurance = Endurance(attempts, self.ledger, self.watch)
        self.pipeline = Pipeline(
            authentication=Authentication(Tokens()),
            catalog=self.catalog,
            schemas=schemas,
            policy=self.policy,
            concurrency=Concurrency(Ceilings(calls, calls)),
            limits=self.limits,
            deadlines=DeadlineRule(max_s),
            ledger=self.ledger,
            attempts=Fallbacks(
                self.endurance,
                self.catalog,
                schemas,
                self.policy,
                self.ledger,
                self.watch,
                self.limits,
                self.breakers,
            ),
            breakers=self.breakers,
            running=self.running,
            duplicates=Duplicates(self.ledger, self.running, Concurrency(Ceilings(waiting, waiting))),
            kept=KeptCalls(self.ledger, Queue(kept), patience, self.watch, self.limits),
            endings=Endings(self.ledger, self.limits, self.watch),
        )

    async def __aenter__(self) -> "World":
        await self.running.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.running.__aexit__(None, None, None)
