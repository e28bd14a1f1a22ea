"""What each move of a call writes: its row afterwards, and the event that explains it.

Every change of state goes through the lifecycle's table, and its event holds the row's fingerprint. What an
event says is fit to be read by an auditor: names, digests, reasons; no argument and no output. A row that somebody else
has edited goes on to its end, and no event holds its fingerprint any more.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Literal

from callgate_server.backends.sqlite.binding import OF_STATE, edited, refuse_edited
from callgate_server.backends.sqlite.rows import (
    CallRow,
    carry,
    end,
    fingerprint,
    insert,
    names,
    read,
    read_expired,
    read_key_holder,
    read_open,
    timestamp,
)
from callgate_server.backends.sqlite.spending import charge
from callgate_server.backends.sqlite.writer import Transaction
from callgate_server.ledger.chain import keyed_hash
from callgate_server.ledger.claims import holds_key, may_run_again
from callgate_server.ledger.store import Completion, Intent, Keeping, OpenLease, Refusal, StoredCall
from callgate_server.model.call import Caller
from callgate_server.model.errors import REASONS, CallError, Reason
from callgate_server.model.lifecycle import IN_FLIGHT, State, move
from callgate_server.model.strict_json import Json, decode

GENESIS: Final = "genesis"
# Kinds that bind a row of `register.py`.
OF_REGISTER: Final = frozenset({"task_created", "task_ended", "stopped", "resumed"})
# Whom an event belongs to that belongs to no call.
NO_CALL: Final = ""
# What is looked for by its call.
_OF_CALLS: Final = frozenset({"secret_leased", "secret_revoked"})
# How often a call that the gateway carries is begun: one whose gateway dies each time is perhaps why.
BEGUN_AT_MOST: Final = 3
_FAILED_FOR_GOOD: Final = frozenset({State.FAILED, State.TIMED_OUT, State.LOST})
_RUNS_AGAIN: Final = frozenset({"read", "idempotent"})
_OPEN_LEASES: Final = """
    SELECT call_id FROM events WHERE kind IN ('secret_leased', 'secret_revoked')
    GROUP BY call_id HAVING sum(kind = 'secret_leased') > sum(kind = 'secret_revoked')"""
_LEASE_EVENTS: Final = """
    SELECT kind, body FROM events WHERE call_id = ? AND kind IN ('secret_leased', 'secret_revoked') ORDER BY seq"""


def refuse(transaction: Transaction, refusal: Refusal, boot: str) -> None:
    row = _new_row(
        refusal,
        move(State.RECEIVED, State.DENIED),
        boot,
        reason=refusal.reason.value,
        message=REASONS[refusal.reason].title,
        finished_at=transaction.at,
    )
    body: dict[str, Json] = {
        "policy_version": refusal.policy_version,
        "arguments": dict(refusal.arguments),
        "transport": refusal.transport,
    }
    who = _who(row, refusal.caller, refusal.policies)
    insert(transaction.connection, row, append_state(transaction, "refused", row, who | body, known=True))


def claim(
    transaction: Transaction,
    intent: Intent,
    key_digest: str | None,
    boot: str,
    keeping: Keeping | None = None,
    parcel: bytes | None = None,
) -> CallRow:
    """Write the intent and return its row, or return that of the call that already holds the key.

    An interrupted holder of the same arguments hands the key over, and the two name each other. `parcel` is what
    `keeping` holds, sealed.

    Raises:
        CallError: `not_possible`: what `keeping` redrives is no dead letter.
    """
    row = _new_row(
        intent,
        _first_state(keeping),
        boot,
        effect=intent.effect,
        arguments_digest=intent.arguments_digest,
        key_digest=key_digest,
        holds_key=int(key_digest is not None),
    )
    if keeping is not None:
        row = replace(
            row,
            parcel=parcel,
            priority=keeping.priority,
            attempt=1,
            approval=keeping.approval,
            expires_at=timestamp(keeping.expires_at),
            follows=keeping.redrives,
        )
    again: dict[str, Json] = {}
    if key_digest is not None:
        holder = read_key_holder(transaction.connection, row.tenant, row.agent, row.tool, key_digest)
        if holder is not None:
            if not may_run_again(State(holder.state), holder.arguments_digest, intent.arguments_digest):
                return holder
            _let_go(transaction, "retried", replace(holder, holds_key=0), {"by": intent.call_id})
            again = {"retry_of": holder.call_id}
    if keeping is not None and keeping.redrives is not None:
        bury(transaction, keeping.redrives, "redriven", {"by": keeping.redriven_by, "as": intent.call_id})
    body: dict[str, Json] = {
        "tool_digest": intent.tool_digest,
        "effect": intent.effect,
        "decision_id": intent.decision_id,
        "policy_version": intent.policy_version,
        "arguments": dict(intent.arguments),
        "arguments_digest": intent.arguments_digest,
        "deadline_at": timestamp(intent.deadline_at),
        "transport": intent.transport,
    }
    if keeping is not None:
        body |= {"approval": row.approval, "expires_at": row.expires_at, "follows": row.follows}
    who = _who(row, intent.caller, intent.policies)
    insert(transaction.connection, row, append_state(transaction, "intent", row, who | body | again, known=True))
    charge(transaction.connection, intent.charges)
    return row


def bury(
    transaction: Transaction, call_id: str, kind: Literal["redriven", "discarded"], body: dict[str, Json]
) -> CallRow:
    """End a dead letter: a new call was made of it, or it is given up. What was kept of it goes.

    Raises:
        CallError: `not_possible`: it is none, or a new call would be made of what somebody has edited.
    """
    row = read(transaction.connection, call_id)
    if row is None or row.dead != "open":
        raise CallError(Reason.NOT_POSSIBLE, "This call is no dead letter, or not any more; look at its state.")
    looked = kind == "redriven"
    if looked:
        refuse_edited(transaction.connection, transaction.keys, call_id)
    row = replace(row, dead=kind, parcel=None)
    carry(transaction.connection, row, append_state(transaction, kind, row, body, known=looked))
    return row


def note(transaction: Transaction, call_id: str, kind: str, body: dict[str, Json]) -> None:
    """Append an event that changes no state.

    Raises:
        ValueError: the kind is reserved, or there is no such call.
    """
    if kind in OF_STATE:
        raise ValueError("this kind of event belongs to a change of state")
    if transaction.connection.execute("SELECT 1 FROM calls WHERE call_id = ?", (call_id,)).fetchone() is None:
        raise ValueError("a note on a call that is not in the record")
    transaction.append(call_id, kind, body)


def remark(transaction: Transaction, kind: str, body: dict[str, Json]) -> None:
    """Append an event that belongs to no call.

    Raises:
        ValueError: events of this kind belong to one, or begin the record.
    """
    if kind in OF_STATE or kind in OF_REGISTER or kind in _OF_CALLS or kind == GENESIS:
        raise ValueError("this kind of event is not for remarks")
    transaction.append(NO_CALL, kind, body)


def replay(
    transaction: Transaction, original: StoredCall, call_id: str, caller: Caller, at: datetime, boot: str
) -> None:
    row = CallRow(
        call_id,
        caller.tenant,
        caller.agent,
        caller.task,
        names(caller.roles),
        original.tool,
        original.version,
        names(original.policies),
        timestamp(at),
        boot,
        move(State.RECEIVED, State.REPLAYED).value,
        arguments_digest=original.arguments_digest,
        finished_at=transaction.at,
    )
    body = _who(row, caller, original.policies) | {"original": original.call_id}
    insert(transaction.connection, row, append_state(transaction, "replayed", row, body, known=True))


def complete(transaction: Transaction, completion: Completion, known: CallRow | None = None) -> None:
    """Write the end of a call. `known` is its row as this process wrote it, which then need not be read.

    Raises:
        ValueError: there is no such call, or its state does not allow this end.
    """
    row = known or read(transaction.connection, completion.call_id)
    if row is None:
        raise ValueError("the end of a call that is not in the record")
    end: dict[str, Json] = {"sandbox": completion.sandbox}
    if completion.fallback is not None:
        end["fallback"] = completion.fallback
    reason, answer = completion.reason, completion.answer_json
    known_row = known is not None
    end_call(transaction, "outcome", row, completion.state, reason, completion.message, answer, end, known=known_row)
    charge(transaction.connection, completion.charges)


def complete_late(transaction: Transaction, completion: Completion) -> None:
    """Write the end of a call that waited in the spool, unless it is there: its write may only have seemed lost."""
    row = read(transaction.connection, completion.call_id)
    if row is not None and State(row.state) in IN_FLIGHT:
        complete(transaction, completion)


def expire(transaction: Transaction, before: datetime, most: int) -> int:
    """Forget the keys and the answers of calls that ended before then, at most so many; return how many it were.

    The rows stay, and the keyed hashes of the answers in their events.
    """
    rows = read_expired(transaction.connection, timestamp(before), most)
    for row in rows:
        _let_go(transaction, "expired", replace(row, holds_key=0, answer=None), {})
    return len(rows)


def expire_dead(transaction: Transaction, before: datetime, most: int) -> int:
    """Give up dead letters that nobody looked at since then, at most so many; return how many it were.

    Not those whose effect is unknown: time does not settle what happened.
    """
    found = transaction.connection.execute(
        "SELECT call_id FROM calls WHERE dead = 'open' AND state != 'unknown' AND finished_at < ? LIMIT ?",
        (timestamp(before), most),
    ).fetchall()
    for (call_id,) in found:
        bury(transaction, call_id, "discarded", {"by": "time"})
    return len(found)


def settle(transaction: Transaction, boot: str, ended: Collection[str] = ()) -> list[OpenLease]:
    """End the calls of other boots that nobody carries on, and list the leases still open.

    `ended` are calls whose outcome waits in the spool: their row stays open until it takes that.
    """
    for row in read_open(transaction.connection, boot):
        if row.call_id in ended:
            continue
        if row.state in (State.ADMITTED, State.AWAITING_APPROVAL) and row.parcel is not None:
            continue  # nothing of it runs, and it goes on waiting in this life of the gateway
        again = row.effect in _RUNS_AGAIN
        state, reason = (State.INTERRUPTED, Reason.INTERRUPTED) if again else (State.UNKNOWN, Reason.EFFECT_UNKNOWN)
        settled = end_call(transaction, "settled", row, state, reason, REASONS[reason].title + ".", None)
        if again and settled.parcel is not None:
            _begin_again(transaction, settled)
    open_calls = transaction.connection.execute(_OPEN_LEASES).fetchall()
    return [lease for (call_id,) in open_calls for lease in _open_leases(transaction, call_id)]


def end_call(
    transaction: Transaction,
    kind: str,
    row: CallRow,
    state: State,
    reason: Reason | None,
    message: str,
    answer: bytes | None,
    more: dict[str, Json] | None = None,
    *,
    keeps_key: bool = False,
    known: bool = False,
) -> CallRow:
    """Write where a call has come to, and return its row as it is now. `known` is as for `append_state`.

    `keeps_key` leaves it its idempotency key where no answer does. What is kept of it stays only where somebody may
    still begin it: a dead letter, or one that was interrupted.
    """
    moved = move(State(row.state), state)
    holds = row.holds_key and (keeps_key or holds_key(moved, answered=answer is not None))
    dead = moved is State.UNKNOWN or (row.parcel is not None and moved in _FAILED_FOR_GOOD)
    # Only then is there more to write than the end of a call: each column costs its indexes.
    write = carry if dead or row.dead is not None or row.attempt is not None else end
    row = replace(
        row,
        state=moved.value,
        reason=None if reason is None else reason.value,
        message=message,
        holds_key=int(holds),
        finished_at=transaction.at,
        answer=answer,
        dead="open" if dead else (None if row.dead == "open" else row.dead),
        parcel=row.parcel if dead or moved is State.INTERRUPTED else None,
    )
    body: dict[str, Json] = {
        "message": message,
        "answer": None if answer is None else keyed_hash(transaction.keys.row, answer),
        **(more or {}),
    }
    write(transaction.connection, row, append_state(transaction, kind, row, body, known=known))
    return row


def _begin_again(transaction: Transaction, row: CallRow) -> None:
    """Let an interrupted call that the gateway carries wait for its turn again, unless it had its turns."""
    begun = row.attempt or 1
    if begun >= BEGUN_AT_MOST:
        message = f"The gateway stopped {begun} times while it ran; it is not begun again by itself."
        end_call(transaction, "outcome", row, State.FAILED, Reason.INTERRUPTED, message, None)
        return
    row = replace(row, state=move(State.INTERRUPTED, State.ADMITTED).value, attempt=begun + 1)
    row = replace(row, reason=None, message="", finished_at=None)
    carry(transaction.connection, row, append_state(transaction, "requeued", row, {"attempt": row.attempt}))


def _first_state(keeping: Keeping | None) -> State:
    admitted = move(State.RECEIVED, State.ADMITTED)
    if keeping is None:
        return move(admitted, State.RUNNING)
    return admitted if keeping.approval is None else move(admitted, State.AWAITING_APPROVAL)


def _let_go(transaction: Transaction, kind: str, row: CallRow, body: dict[str, Json]) -> None:
    """Write that a call has lost its key, or its answer too. Its state stays what it is."""
    end(transaction.connection, row, append_state(transaction, kind, row, body))


def _open_leases(transaction: Transaction, call_id: str) -> list[OpenLease]:
    noted: dict[str, OpenLease] = {}
    for kind, body in transaction.connection.execute(_LEASE_EVENTS, (call_id,)):
        lease = decode(body.encode())
        lease_id = lease.get("lease_id") if isinstance(lease, dict) else None
        if not isinstance(lease_id, str):
            continue
        if kind == "secret_leased":
            noted[lease_id] = OpenLease(call_id, lease_id)
        else:
            noted.pop(lease_id, None)
    return list(noted.values())


def _new_row(entry: Refusal | Intent, state: State, boot: str, **columns: Any) -> CallRow:  # noqa: ANN401  # each its own
    return CallRow(
        entry.call_id,
        entry.caller.tenant,
        entry.caller.agent,
        entry.caller.task,
        names(entry.caller.roles),
        entry.tool,
        entry.version,
        names(entry.policies),
        timestamp(entry.received_at),
        boot,
        state.value,
        **columns,
    )


def _who(row: CallRow, caller: Caller, policies: Sequence[str]) -> dict[str, Json]:
    return {
        "tenant": row.tenant,
        "agent": row.agent,
        "task": row.task,
        "roles": list(caller.roles),
        "tool": row.tool,
        "version": row.version,
        "policies": list(policies),
        "received_at": row.received_at,
    }


def append_state(
    transaction: Transaction, kind: str, row: CallRow, body: dict[str, Json], *, known: bool = False
) -> int:
    """Append an event of state. It says what the row says, and holds the row's fingerprint.

    What is in the file until now is looked at before, unless it is `known`: new, changed from a row that this process
    wrote, or looked at by who asks.
    """
    bound = known or not edited(transaction.connection, transaction.keys, row.call_id)
    moved: dict[str, Json] = {
        "state": row.state,
        "reason": row.reason,
        "row": fingerprint(transaction.keys, row) if bound else None,
    }
    return transaction.append(row.call_id, kind, body | moved)
