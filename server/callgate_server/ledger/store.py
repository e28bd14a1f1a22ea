"""What the pipeline needs of a durable record. One implementation per store, in `backends/`.

Every method that writes returns only after the write is durable. Whatever cannot be written raises
`CallError(audit_unavailable)`: a call that cannot be recorded is refused.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from callgate_server.model.call import Caller
from callgate_server.model.errors import Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.spending import Charge
from callgate_server.model.strict_json import Json


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that did not run. `tool`, `version` and `arguments` are empty where it was refused before they were known.

    `tool` is only ever the name of a tool of the catalog, or empty: an unknown name is a caller's text. `arguments`
    is their record form, as in `Intent`.
    """

    call_id: str
    caller: Caller
    tool: str
    version: str
    reason: Reason
    policies: tuple[str, ...]
    policy_version: str
    arguments: Mapping[str, Json]
    received_at: datetime
    transport: str


@dataclass(frozen=True, slots=True)
class Intent:
    """An admitted call, written before its first effect.

    `arguments` is the record form of the arguments (keyed hashes but for fields marked clear),
    `arguments_digest` the keyed hash of their canonical bytes, `deadline_at` wall time. `charges` are what it spends by
    being admitted; they are written where the claim is won.
    """

    call_id: str
    caller: Caller
    tool: str
    version: str
    tool_digest: str
    effect: str
    idempotency_key: str | None
    arguments: Mapping[str, Json]
    arguments_digest: str
    decision_id: str
    policies: tuple[str, ...]
    policy_version: str
    received_at: datetime
    deadline_at: datetime
    transport: str
    charges: tuple[Charge, ...] = ()


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a call needs that nobody sends again: the store seals it, and opens it for nobody but the gateway.

    `arguments_json` are the canonical bytes that were checked, `tool_digest` names the tool that they were meant for,
    `known_as` is what its tool tells repetitions by, over all attempts of it.
    """

    arguments_json: bytes
    tool_digest: str
    known_as: str
    deadline_ms: int | None = None
    purpose: str | None = None


@dataclass(frozen=True, slots=True)
class Keeping:
    """How an admitted call is kept that does not run at once: until when, and for whose approval, if it needs one."""

    parcel: Parcel
    priority: int
    expires_at: datetime
    approval: str | None = None
    # The dead letter that this call is made of; it is one no longer.
    redrives: str | None = None
    redriven_by: str = ""


@dataclass(frozen=True, slots=True)
class Beginning:
    """A kept call whose turn has come: what decided that it may run now, until when it may, and which tool it is."""

    call_id: str
    version: str
    effect: str
    tool_digest: str
    decision_id: str
    policies: tuple[str, ...]
    policy_version: str
    deadline_at: datetime


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of an admitted call. `answer_json` is the redacted document, None when the tool never started.

    `sandbox` is the backend's own name for the sandbox the call had, empty when it had none. `fallback` is the kind of
    fallback that a success is; `reason` and `message` then say why the call's own tool failed. `charges` are what it
    spent by running, or gives back where it did not.
    """

    call_id: str
    state: State
    reason: Reason | None
    message: str
    answer_json: bytes | None
    sandbox: str = ""
    fallback: str | None = None
    charges: tuple[Charge, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredCall:
    """A call as the store has it."""

    call_id: str
    caller: Caller
    tool: str
    version: str
    state: State
    arguments_digest: str
    reason: Reason | None
    message: str
    policies: tuple[str, ...]
    received_at: datetime
    finished_at: datetime | None
    answer_json: bytes | None
    effect: str = ""
    # From here on: of calls that the gateway carries on by itself.
    kept: bool = False
    priority: int | None = None
    attempt: int | None = None
    approval: str | None = None
    decided_by: str | None = None
    decided_at: datetime | None = None
    expires_at: datetime | None = None
    dead: str | None = None
    follows: str | None = None
    # The number of the event that last changed it.
    changed_seq: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a call's life as the record has it: which attempt, and what became of it."""

    attempt: int
    at: datetime
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class OpenLease:
    """A secret's lease that was noted and not yet noted as revoked."""

    call_id: str
    lease_id: str


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What `verify` found: `events` checked, `head` hash (hex), and the first fault, or None when the chain holds."""

    events: int
    head: str
    fault: str | None


class Ledger(Protocol):
    async def refuse(self, refusal: Refusal) -> None:
        """Record a refusal: a row in state `denied` and its event."""

    async def find(self, caller: Caller, tool: str, idempotency_key: str) -> StoredCall | None:
        """The call that holds this key for this tenant, agent and tool. Refused calls hold no key."""

    async def last_good(self, like: StoredCall, since: datetime) -> StoredCall | None:
        """The newest success since then with the tenant, agent, tool, version and arguments of `like`, and its answer.

        One that was itself a fallback is none.
        """

    async def claim(self, intent: Intent, keeping: Keeping | None = None) -> StoredCall | None:
        """Write claim and intent in one transaction: the row in state `running`, and its event.

        With `keeping` the row is `admitted`, or `awaiting_approval` where that names a group.

        Returns None when the claim is won, or the call that already holds the idempotency key. A holder that was
        interrupted with the same arguments is no obstacle: it hands its key to this attempt, and both say so.
        """

    async def parcel(self, call_id: str) -> Parcel | None:
        """Open what was kept of a call; None when nothing is, or not any more.

        Raises:
            CallError: `audit_unavailable`, or `not_possible` where it does not open: somebody changed it.
        """

    async def begin(self, beginning: Beginning) -> None:
        """Move a kept call whose turn has come to `running`.

        Raises:
            CallError: `not_possible`: it is not waiting any more.
        """

    async def decide(self, call_id: str, by: str, *, approve: bool, charges: tuple[Charge, ...] = ()) -> StoredCall:
        """Approve a call that waits for that, which moves it to `admitted`, or deny it. Once.

        `charges` are what it gives back where it is denied.

        Raises:
            CallError: `not_possible`: it does not wait, or not any more.
        """

    async def waiting(self) -> list[StoredCall]:
        """The kept calls that wait for their turn or for an approval, oldest first."""

    async def approvals(self, tenant: str, groups: Collection[str], limit: int) -> list[StoredCall]:
        """The calls of a tenant that one of these groups was asked to approve: waiting ones first, then the newest."""

    async def dead_letters(self, tenant: str, agent: str | None, limit: int) -> tuple[list[StoredCall], int]:
        """The newest dead letters of a tenant, or of one agent of it, and how many there are."""

    async def census(self) -> Mapping[str, int]:
        """How many kept calls there are in each state that somebody may have to look at, and how many dead letters."""

    async def unknown(self, limit: int) -> list[StoredCall]:
        """The calls whose effect is unknown and whose arguments are kept, oldest first."""

    async def discard(self, call_id: str, by: str) -> StoredCall:
        """Give up a dead letter.

        Raises:
            CallError: `not_possible`: it is none.
        """

    async def settle(self, call_id: str, state: State, by: str) -> StoredCall:
        """Say what became of a call whose effect is unknown: `succeeded` or `failed`.

        Raises:
            CallError: `not_possible`: its effect is not unknown.
        """

    async def steps(self, call_id: str) -> list[Step]:
        """The attempts of a call, oldest first."""

    async def note(self, call_id: str, kind: str, body: Mapping[str, Json]) -> None:
        """Append an event to a claimed call, such as a lease that must be revoked should the gateway die.

        `secret_leased` and `secret_revoked` hold `{"lease_id": …}`: a lease that was not revoked is found again at
        the next start.
        """

    async def remark(self, kind: str, body: Mapping[str, Json]) -> None:
        """Append an event that belongs to no call, such as a breaker that opened."""

    async def replayed(self, original: StoredCall, call_id: str, caller: Caller, at: datetime) -> None:
        """Record that a stored answer was given again, as a row of its own in state `replayed`."""

    async def complete(self, completion: Completion) -> None:
        """Write the end of a call and its event. Only moves that the lifecycle table allows."""

    async def get(self, call_id: str) -> StoredCall | None:
        """The call with this id, whoever it belongs to: the pipeline decides who may see it."""

    async def recent(self, caller: Caller, limit: int) -> list[StoredCall]:
        """The newest calls of this caller, newest first, at most `limit`; refused ones among them.

        Of a caller that is confined to a task of ours, the calls of that task.

        Their `answer_json` is left out: a list is no place for outputs of any size.
        """

    async def verify(self) -> ChainReport:
        """Recompute the whole chain, and check every row against its last event."""

    def digest(self, data: bytes) -> str:
        """Keyed hash (hex) of a value that must be recognisable but not readable in the record."""
