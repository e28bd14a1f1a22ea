"""What the steps of a call write that the gateway carries on by itself: approved or denied, begun, settled by hand.

How such a call is claimed, ended and found again after a crash is `entries.py`, where it is a call like any other.
"""

import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from callgate_server.backends.sqlite.binding import edited, refuse_edited
from callgate_server.backends.sqlite.entries import append_state, end_call
from callgate_server.backends.sqlite.rows import SELECT_WITHOUT_ANSWER, CallRow, carry, names, read, timestamp
from callgate_server.backends.sqlite.spending import charge
from callgate_server.backends.sqlite.writer import Transaction
from callgate_server.ledger.chain import Keys
from callgate_server.ledger.store import Beginning, Step
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import State, move
from callgate_server.model.spending import Charge
from callgate_server.model.strict_json import decode

# In the words of the index over what is in flight: a list of other states would be searched for in all calls.
_WAITING: Final = "state IN ('admitted', 'awaiting_approval', 'running') AND state != 'running'"
# What says of a call's events how an attempt of it went.
_STEPS: Final = """
    SELECT at, kind, body FROM events
    WHERE call_id = ? AND kind IN ('began', 'requeued', 'attempt_failed', 'outcome', 'settled') ORDER BY seq"""


def begin(transaction: Transaction, beginning: Beginning, boot: str) -> CallRow:
    """Move a call whose turn has come to `running`, in this life of the gateway, and return its row.

    Raises:
        CallError: `not_possible`: it is not waiting, or its row was edited.
    """
    row = read(transaction.connection, beginning.call_id)
    if row is None or State(row.state) is not State.ADMITTED or row.parcel is None:
        raise CallError(Reason.NOT_POSSIBLE, "This call does not wait for its turn, or not any more.")
    refuse_edited(transaction.connection, transaction.keys, row.call_id)
    row = replace(
        row,
        state=move(State.ADMITTED, State.RUNNING).value,
        boot=boot,
        policies=names(beginning.policies),
        # Of the tool that runs, which may be a newer one than was asked for.
        version=beginning.version,
        effect=beginning.effect,
    )
    carry(
        transaction.connection,
        row,
        append_state(
            transaction,
            "began",
            row,
            {
                "attempt": row.attempt,
                "version": row.version,
                "effect": row.effect,
                "tool_digest": beginning.tool_digest,
                "decision_id": beginning.decision_id,
                "policies": list(beginning.policies),
                "policy_version": beginning.policy_version,
                "deadline_at": timestamp(beginning.deadline_at),
            },
            known=True,
        ),
    )
    return row


def decide(
    transaction: Transaction, call_id: str, by: str, now: datetime, *, approve: bool, charges: Iterable[Charge] = ()
) -> CallRow:
    """Write an approver's word, and return the call as it is then. `charges` are given back where it is denied.

    Raises:
        CallError: `not_possible`: it waits for none, or not any more, or its row was edited; `policy_denied`: who would
            approve it has made it, of a dead letter of another's.
    """
    row = read(transaction.connection, call_id)
    if row is None or row.approval is None or State(row.state) is not State.AWAITING_APPROVAL:
        raise CallError(Reason.NOT_POSSIBLE, "This call does not wait for an approval, or not any more.")
    if row.expires_at is not None and row.expires_at <= timestamp(now):
        raise CallError(Reason.NOT_POSSIBLE, "The time to approve this call is over.")
    refuse_edited(transaction.connection, transaction.keys, row.call_id)
    if approve and row.follows is not None and _redriven_by(transaction.connection, row.follows, call_id) == by:
        raise CallError(Reason.POLICY_DENIED, "Who has redriven a call cannot approve it.")
    row = replace(row, decided_by=by, decided_at=transaction.at)
    if not approve:
        reason = Reason.APPROVAL_DENIED
        message = f"{by} denied the approval."
        charge(transaction.connection, charges)
        return end_call(transaction, "denied", row, State.DENIED, reason, message, None, {"by": by}, known=True)
    row = replace(row, state=move(State.AWAITING_APPROVAL, State.ADMITTED).value)
    carry(transaction.connection, row, append_state(transaction, "approved", row, {"by": by}, known=True))
    return row


def _redriven_by(connection: sqlite3.Connection, dead: str, call_id: str) -> str | None:
    """Who made this call of that dead letter."""
    for (text,) in connection.execute("SELECT body FROM events WHERE call_id = ? AND kind = 'redriven'", (dead,)):
        body = decode(text.encode())
        if isinstance(body, dict) and body.get("as") == call_id:
            return str(body.get("by"))
    return None


def settle_by_hand(transaction: Transaction, call_id: str, state: State, by: str) -> CallRow:
    """Write what somebody found out about a call whose effect was unknown.

    Raises:
        CallError: `not_possible`: its effect is not unknown.
    """
    row = read(transaction.connection, call_id)
    if row is None or State(row.state) is not State.UNKNOWN:
        raise CallError(Reason.NOT_POSSIBLE, "The effect of this call is not unknown; look at its state.")
    happened = state is State.SUCCEEDED
    reason = None if happened else Reason.EFFECT_UNKNOWN
    message = f"Settled by {by}: it {'took' if happened else 'did not take'} effect."
    # What took effect must not be done again under its key; what did not may be.
    return end_call(transaction, "settled", row, state, reason, message, None, {"by": by}, keeps_key=happened)


def read_waiting(connection: sqlite3.Connection) -> list[tuple[CallRow, int]]:
    """Calls that wait for their turn or for an approval, oldest first, each with the event that last changed it."""
    found = connection.execute(
        SELECT_WITHOUT_ANSWER.replace(" FROM calls", ", last_seq FROM calls")
        + f" WHERE {_WAITING} AND parcel IS NOT NULL ORDER BY received_at, call_id"
    ).fetchall()
    return [(CallRow(*values), last_seq) for *values, last_seq in found]


def read_approvals(connection: sqlite3.Connection, tenant: str, groups: Collection[str], most: int) -> list[CallRow]:
    """Calls that one of the groups was asked to approve: those that wait first, then the newest."""
    marks = ", ".join("?" * len(groups))
    found = connection.execute(
        SELECT_WITHOUT_ANSWER
        + f" WHERE tenant = ? AND approval IN ({marks})"
        + " ORDER BY state = 'awaiting_approval' DESC, received_at DESC, call_id DESC LIMIT ?",
        (tenant, *groups, most),
    ).fetchall()
    return [CallRow(*values) for values in found]


def read_dead(connection: sqlite3.Connection, tenant: str, agent: str | None, most: int) -> tuple[list[CallRow], int]:
    """The newest dead letters of a tenant, or of one of its agents, and how many there are."""
    whose, values = "tenant = ?", [tenant]
    if agent is not None:
        whose, values = whose + " AND agent = ?", [tenant, agent]
    condition = f" WHERE {whose} AND dead = 'open'"
    found = connection.execute(
        SELECT_WITHOUT_ANSWER + condition + " ORDER BY finished_at DESC, call_id DESC LIMIT ?", (*values, most)
    ).fetchall()
    counted = connection.execute("SELECT count(*) FROM calls" + condition, values)  # noqa: S608  # our own words
    (total,) = counted.fetchone()
    return [CallRow(*row) for row in found], int(total)


def read_census(connection: sqlite3.Connection) -> dict[str, int]:
    """How many calls wait for an approval, for their turn, and for somebody to look at them."""
    waiting = connection.execute(
        f"SELECT state, count(*) FROM calls WHERE {_WAITING} GROUP BY state"  # noqa: S608  # our own words
    )
    (dead,) = connection.execute("SELECT count(*) FROM calls WHERE dead IS NOT NULL AND dead = 'open'").fetchone()
    return {"admitted": 0, "awaiting_approval": 0, **dict(waiting.fetchall()), "dead_letters": int(dead)}


def read_unknown(connection: sqlite3.Connection, keys: Keys, most: int) -> list[CallRow]:
    """Calls whose effect is unknown and whose arguments are kept, oldest first, but for those that were edited."""
    found = connection.execute(
        SELECT_WITHOUT_ANSWER
        + " WHERE dead = 'open' AND state = 'unknown' AND parcel IS NOT NULL ORDER BY finished_at LIMIT ?",
        (most,),
    ).fetchall()
    rows = [CallRow(*values) for values in found]
    return [row for row in rows if not edited(connection, keys, row.call_id)]


def read_steps(connection: sqlite3.Connection, call_id: str) -> list[Step]:
    """The attempts of a call as its events have them, oldest first."""
    attempt, steps = 1, []
    for at, kind, text in connection.execute(_STEPS, (call_id,)):
        body = decode(text.encode())
        if not isinstance(body, dict):
            raise TypeError("an event's body is not an object")
        if kind in ("began", "requeued", "attempt_failed"):
            attempt = _number(body.get("attempt")) or attempt
        if kind in ("attempt_failed", "outcome", "settled"):
            steps.append(
                Step(attempt, datetime.fromisoformat(at), str(body.get("state")), str(body.get("reason") or ""))
            )
    return steps


def _number(value: Any) -> int | None:  # noqa: ANN401  # any JSON value
    return value if isinstance(value, int) else None
