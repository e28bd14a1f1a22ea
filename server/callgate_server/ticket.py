"""What the pipeline knows of one call, step by step, and the forms in which the stages need it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from secrets import token_urlsafe
from typing import Final, assert_never

from callgate_server.execution.breakers import Passage
from callgate_server.execution.egress import (
    Consent,
    EgressBudget,
    EgressGate,
    EgressSession,
    EgressTerms,
    Outlet,
    Record,
)
from callgate_server.execution.egress_rules import is_seen
from callgate_server.execution.sandbox import LaneTerms, SandboxRequest
from callgate_server.ledger.record import recorded
from callgate_server.ledger.store import Beginning, Completion, Intent, Parcel, Refusal
from callgate_server.model.answer import Answer, Decision, Failure, SandboxInfo, Usage
from callgate_server.model.call import Caller, CallRequest, Deadline
from callgate_server.model.catalog import Tool
from callgate_server.model.egress import Credential
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.identifiers import new_call_id
from callgate_server.model.lifecycle import State
from callgate_server.model.run import CallNames, DeliveredSecret, EgressWire, Job
from callgate_server.model.spending import Charge
from callgate_server.model.strict_json import Json, encode
from callgate_server.model.verdict import Ruling, Verdict
from callgate_server.observe.phases import Phases
from callgate_server.result.conclude import new_nonce

Digest = Callable[[bytes], str]
# Connections that one call may have at the same time.
EGRESS_AT_ONCE: Final = 16


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Redrive:
    """The dead letter that a call is made of, who asked for that, and what the tool knows both by."""

    call_id: str
    by: str
    known_as: str


@dataclass(slots=True)
class Ticket:
    """A call from its receipt on. A refusal records as much of it as was known by then."""

    caller: Caller
    request: CallRequest
    id: str = field(default_factory=new_call_id)
    received_at: datetime = field(default_factory=utc_now)
    received_s: float = field(default_factory=time.monotonic)
    # When its deadline began to count, if that was not at its receipt: a kept call has its time from its turn on.
    counted_from: datetime | None = None
    phases: Phases = field(default_factory=Phases)
    tool: Tool | None = None
    arguments: dict[str, Json] = field(default_factory=dict)
    verdict: Verdict | None = None
    # The backend's own name for the sandbox that the call got.
    sandbox: str = ""
    queue_ms: float = 0.0
    # What its attempts have used that another one followed; None where no tool ran in any of them.
    used: Usage | None = None
    redrive: Redrive | None = None
    # Its way through the circuit breaker of its tool.
    passage: Passage = field(default_factory=Passage)
    # Why its tool is not to be run, where its fallback answers instead.
    stopped: CallError | None = None

    @property
    def tool_name(self) -> str:
        """The name of the catalog's tool, or empty: an unknown name is a caller's text and goes nowhere."""
        return self.tool.name if self.tool else ""

    def refusal(self, error: CallError, digest: Digest) -> Refusal:
        clear = self.tool.manifest.record_clear if self.tool else ()
        return Refusal(
            call_id=self.id,
            caller=self.caller,
            tool=self.tool_name,
            version=self.tool.manifest.version if self.tool else "",
            reason=error.reason,
            policies=error.policies,
            policy_version=self.verdict.policy_version if self.verdict else "",
            arguments=recorded(self.arguments, clear, digest),
            received_at=self.received_at,
            transport=self.request.transport,
        )


@dataclass(frozen=True, slots=True)
class WayOut:
    """The two ends of a call's way out: what its sandbox offers, and what begins its session at the gate."""

    wire: EgressWire | None = None
    begin: Callable[[Outlet], EgressSession] | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """A call that may run, should its claim be won. `arguments_json` is canonical, the digest its keyed hash."""

    ticket: Ticket
    tool: Tool
    verdict: Verdict
    arguments_json: bytes
    arguments_digest: str
    deadline: Deadline
    decision_id: str = field(default_factory=new_call_id)
    # What its tool knows the call by, where an earlier attempt of it has settled that.
    known_as: str | None = None
    # Which attempt of the call is made, or the first to make: higher than 1 where an earlier life made some.
    attempt: int = 1

    @property
    def key(self) -> tuple[str, str, str, str] | None:
        """The idempotency key and whose it is."""
        caller, key = self.ticket.caller, self.ticket.request.idempotency_key
        return None if key is None else (caller.tenant, caller.agent, self.tool.name, key)

    @property
    def deadline_at(self) -> datetime:
        since = self.ticket.counted_from or self.ticket.received_at
        return since + timedelta(seconds=self.deadline.monotonic_s - self.ticket.received_s)

    def names(self, digest: Digest) -> CallNames:
        """What its tool may know it by: what the caller repeats with a key has one key of ours, else each its own."""
        if self.known_as is not None:
            return CallNames(self.ticket.id, self.known_as, self.attempt)
        same: list[Json] = [self.ticket.id] if self.key is None else [*self.key, self.arguments_digest]
        return CallNames(self.ticket.id, digest(encode(["attempts of", *same]))[:32], self.attempt)

    @property
    def approval(self) -> str | None:
        """The group that has to approve the call, if policy wants that."""
        return self.verdict.group if self.verdict.ruling is Ruling.NEEDS_APPROVAL else None

    @property
    def is_kept(self) -> bool:
        """Whether it does not run at once, so that the gateway has to keep what it needs."""
        return self.ticket.request.asynchronous or self.approval is not None

    def parcel(self, digest: Digest) -> Parcel:
        """What has to be kept of it."""
        request = self.ticket.request
        known_as = self.names(digest).idempotency_key
        return Parcel(self.arguments_json, self.tool.digest, known_as, request.deadline_ms, request.purpose)

    def beginning(self) -> Beginning:
        """What decided that the call may begin now, after it was kept."""
        verdict, manifest = self.verdict, self.tool.manifest
        return Beginning(
            self.ticket.id,
            manifest.version,
            manifest.effect,
            self.tool.digest,
            self.decision_id,
            verdict.policies,
            verdict.policy_version,
            self.deadline_at,
        )

    @property
    def tool_arguments_json(self) -> bytes:
        """What the tool gets: the caller's arguments and the deployment's."""
        fixed = self.tool.manifest.fixed
        return encode({**self.ticket.arguments, **fixed}) if fixed else self.arguments_json

    def job(self, secrets: tuple[DeliveredSecret, ...], out: WayOut, digest: Digest) -> Job:
        """What its sandbox is to run."""
        manifest = self.tool.manifest
        return Job(
            manifest.run,
            self.tool_arguments_json,
            secrets,
            manifest.limits,
            self.deadline,
            self.names(digest),
            out.wire,
        )

    def intent(self, digest: Digest, charges: tuple[Charge, ...] = ()) -> Intent:
        manifest = self.tool.manifest
        return Intent(
            call_id=self.ticket.id,
            caller=self.ticket.caller,
            tool=manifest.tool,
            version=manifest.version,
            tool_digest=self.tool.digest,
            effect=manifest.effect,
            idempotency_key=self.ticket.request.idempotency_key,
            arguments=recorded(self.ticket.arguments, manifest.record_clear, digest),
            arguments_digest=self.arguments_digest,
            decision_id=self.decision_id,
            policies=self.verdict.policies,
            policy_version=self.verdict.policy_version,
            received_at=self.ticket.received_at,
            deadline_at=self.deadline_at,
            transport=self.ticket.request.transport,
            charges=charges,
        )

    def sandbox_request(self) -> SandboxRequest:
        manifest = self.tool.manifest
        return SandboxRequest(
            call_id=self.ticket.id,
            tenant=self.ticket.caller.tenant,
            tool=self.tool.name,
            image_digest=self.tool.image_digest,
            runtime=manifest.runtime,
            limits=manifest.limits,
            deadline=self.deadline,
            deadline_at=self.deadline_at,
            lane=self._lane_terms(),
        )

    def way_out(
        self, gate: EgressGate | None, credentials: Mapping[str, Credential], consent: Consent, record: Record
    ) -> WayOut:
        """What the call may reach: nothing, unless its tool has rules."""
        manifest = self.tool.manifest
        if not manifest.rules:
            return WayOut()
        if gate is None:
            raise ValueError("a tool has egress, and this gateway has no gate")
        limits = manifest.limits
        budget = EgressBudget(
            bytes=limits.egress_kb * 1024,
            connections=limits.egress_connections,
            requests=limits.egress_requests,
            concurrent=EGRESS_AT_ONCE,
        )
        mark = token_urlsafe(16)
        terms = EgressTerms(
            self.ticket.caller.tenant, manifest.rules, credentials, consent, budget, self.deadline, record, mark
        )
        ends_tls = any(rule.scheme == "https" and is_seen(rule) for rule in manifest.rules)
        wire = EgressWire(
            proxy=any(rule.scheme != "tcp" for rule in manifest.rules),
            ports=tuple(rule.local_port for rule in manifest.rules if rule.local_port is not None),
            authority_pem=gate.authority_pem if ends_tls else None,
            mark=mark,
        )
        return WayOut(wire, partial(gate.open, terms))

    @property
    def state_after_a_defect(self) -> State:
        """Where a defect of ours leaves the call: once a sandbox was there, an unsafe tool may have taken effect."""
        may_have_run = "acquire" in self.ticket.phases.ms and self.tool.manifest.effect == "unsafe"
        return State.UNKNOWN if may_have_run else State.FAILED

    def _lane_terms(self) -> LaneTerms | None:
        manifest = self.tool.manifest
        match manifest.isolation:
            case "container":
                return None
            case "fork":
                return LaneTerms(self.tool.digest, manifest.run, manifest.secrets)
            case _:
                assert_never(manifest.isolation)

    def blank(self, sandbox: SandboxInfo) -> Answer:
        """The answer as far as it is known before the end."""
        decision = Decision(self.decision_id, self.verdict.policies)
        return Answer(
            self.ticket.id,
            self.tool.name,
            self.tool.manifest.version,
            State.RUNNING,
            decision,
            sandbox,
            attempt=self.attempt,
        )

    def completion(self, answer: Answer, document: bytes) -> Completion:
        """What the record keeps of the answer, which is `document` in its public shape."""
        error = answer.fallback.error if answer.fallback else answer.error
        reason, message = (error.reason, error.message) if error else (None, "")
        kind = answer.fallback.kind if answer.fallback else None
        return Completion(self.ticket.id, answer.state, reason, message, document, self.ticket.sandbox, kind)

    def nothing_ran(self) -> Answer:
        """The answer of a call whose last attempt got no further than its claim, to be given a state."""
        blank = self.blank(SandboxInfo("", "", self.tool.manifest.isolation))
        blank = replace(blank, nonce=new_nonce(), usage=self.ticket.used or Usage())
        return blank.timed(self.ticket.queue_ms, dict(self.ticket.phases.ms))

    def cancelled_early(self) -> Answer:
        """The answer of a call that was cancelled while it waited for a sandbox."""
        failure = Failure(Reason.CANCELLED, "The call was cancelled before there was a sandbox for it.")
        blank = self.blank(SandboxInfo("", "", self.tool.manifest.isolation))
        return replace(blank, state=State.CANCELLED, error=failure, nonce=new_nonce())
