"""What the fake gateway does about calls that wait, are approved, or failed for good: the other half of it.

A call keeps a log of its events, so that anybody may follow it from any of them on. `Break` in a log ends the stream
of whoever comes to it first, as a connection that breaks would.
"""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from callgate_proto.v1 import gateway_pb2 as pb

GROUP = "finance"
EXPIRES_AT = "2100-01-02T03:04:05Z"
# Each attempt's events begin at a number of their own.
ATTEMPT_SEQ = 1000


class Break:
    """The connection breaks here, once."""


@dataclass
class Call:
    id: str
    tool: str
    arguments: dict[str, Any]
    request: pb.CallRequest
    state: str = "admitted"
    attempt: int = 1
    cancelled: threading.Event = field(default_factory=threading.Event)
    decided: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    answer: pb.Answer | None = None
    failure: pb.Failure | None = None
    approval: pb.Approval | None = None
    attempts: list[pb.CallAttempt] = field(default_factory=list)
    dead: bool = False
    follows: str | None = None
    log: list[pb.StreamCallResponse | Break] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def waits_for_approval(self) -> bool:
        return self.approval is not None and self.approval.state == "waiting"

    def tell(self, **event: Any) -> None:
        """Add an event to the log; its number follows that of the one before."""
        with self.changed:
            last = max((one.seq for one in self.log if isinstance(one, pb.StreamCallResponse)), default=-1)
            seq = max(last + 1, ATTEMPT_SEQ * (self.attempt - 1))
            self.log.append(pb.StreamCallResponse(seq=seq, **event))
            self.changed.notify_all()

    def break_here(self) -> None:
        with self.changed:
            self.log.append(Break())
            self.changed.notify_all()

    def end(self, state: str) -> None:
        with self.changed:
            self.state = state
            self.ended.set()
            self.changed.notify_all()

    def events(self, after: int = -1, listens: Callable[[], bool] = lambda: True) -> Iterator[pb.StreamCallResponse]:
        """Yield what happened after an event, until the call has ended or the connection breaks.

        Whoever does not listen any more leaves the call alone.
        """
        at = 0
        while True:
            with self.changed:
                while len(self.log) <= at:
                    if self.ended.is_set():
                        return
                    self.changed.wait(timeout=60)
                if not listens():
                    return
                one = self.log[at]
                if isinstance(one, Break):
                    del self.log[at]
                    return
            at += 1
            if one.seq > after:
                yield one

    def last(self) -> list[pb.StreamCallResponse]:
        """Return the event that a call ended with, if it has one."""
        return [event for event in self.log[-1:] if isinstance(event, pb.StreamCallResponse)]

    def summary(self) -> pb.CallSummary:
        summary = pb.CallSummary(
            call_id=self.id, tool=self.tool, version="1.0.0", state=self.state, policies=["permit-demo"]
        )
        summary.received_at.FromJsonString("2026-01-02T03:04:05.678901Z")
        if self.ended.is_set():
            summary.finished_at.FromJsonString("2026-01-02T03:04:06Z")
        failure = self.failure or (self.answer.error if self.answer and self.answer.HasField("error") else None)
        if failure is not None:
            summary.error.CopyFrom(failure)
        if self.request.HasField("task"):
            summary.task = self.request.task
        if self.request.asynchronous:
            summary.attempt = self.attempt
        if self.follows is not None:
            summary.follows = self.follows
        if self.approval is not None:
            summary.approval.CopyFrom(pb.CallApproval(group=GROUP, expires_at=self.approval.expires_at))
            if self.approval.HasField("decided_by"):
                summary.approval.decided_by = self.approval.decided_by
        return summary

    def ask_for_approval(self) -> None:
        approval = pb.Approval(
            call_id=self.id,
            tool=self.tool,
            version="1.0.0",
            summary=f"Plays {self.tool}.",
            effect="unsafe",
            tenant="acme",
            agent="clerk",
            group=GROUP,
            policies=["ask-finance"],
            arguments_json=self.request.arguments_json,
            digest="sha256:" + sha256(self.request.arguments_json + self.tool.encode()).hexdigest(),
            state="waiting",
        )
        for name in ("task", "purpose"):
            if self.request.HasField(name):
                setattr(approval, name, getattr(self.request, name))
        approval.requested_at.FromJsonString("2026-01-02T03:04:05Z")
        approval.expires_at.FromJsonString(EXPIRES_AT)
        self.state, self.approval = "awaiting_approval", approval
        waiting = pb.Waiting(call_id=self.id, state=self.state, group=GROUP, expires_at=approval.expires_at)
        self.tell(waiting=waiting)

    def decide(self, *, approve: bool) -> None:
        assert self.approval is not None
        self.approval.state = "approved" if approve else "denied"
        self.approval.decided_by = "acme/boss"
        self.approval.decided_at.FromJsonString("2026-01-02T03:05:00Z")
        self.decided.set()

    def letter(self) -> pb.DeadLetter:
        summary = self.summary()
        return pb.DeadLetter(
            call_id=self.id,
            tool=self.tool,
            version="1.0.0",
            tenant="acme",
            agent="clerk",
            task=summary.task if summary.HasField("task") else None,
            state=self.state,
            error=summary.error,
            effect="unsafe",
            received_at=summary.received_at,
            finished_at=summary.finished_at,
            attempts=self.attempts,
            redrivable=self.state != "unknown",
            follows=self.follows,
        )


def arguments_of(request: pb.CallRequest) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(request.arguments_json)
    return decoded
