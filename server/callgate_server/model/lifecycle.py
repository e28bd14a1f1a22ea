"""The states of a call and the moves between them: the only place that says which move is legal."""

from enum import StrEnum


class State(StrEnum):
    RECEIVED = "received"
    DENIED = "denied"
    REPLAYED = "replayed"
    ADMITTED = "admitted"
    AWAITING_APPROVAL = "awaiting_approval"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"
    INTERRUPTED = "interrupted"
    UNKNOWN = "unknown"


_ENDS = frozenset({State.SUCCEEDED, State.FAILED, State.TIMED_OUT, State.CANCELLED, State.LOST})
_CRASHED = frozenset({State.INTERRUPTED, State.UNKNOWN})

MOVES: dict[State, frozenset[State]] = {
    State.RECEIVED: frozenset({State.DENIED, State.REPLAYED, State.ADMITTED}),
    # Denied: what waited for its turn is judged once more before it runs.
    State.ADMITTED: frozenset({State.AWAITING_APPROVAL, State.RUNNING, State.DENIED}) | _ENDS | _CRASHED,
    State.AWAITING_APPROVAL: frozenset({State.ADMITTED, State.DENIED, State.CANCELLED}),
    State.RUNNING: _ENDS | _CRASHED,
    # An interrupted call may be run again; an unknown one is settled by a person or a declared check.
    State.INTERRUPTED: frozenset({State.ADMITTED}) | _ENDS,
    State.UNKNOWN: _ENDS,
    State.DENIED: frozenset(),
    State.REPLAYED: frozenset(),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.TIMED_OUT: frozenset(),
    State.CANCELLED: frozenset(),
    State.LOST: frozenset(),
}

# Calls that somebody is carrying, or could.
IN_FLIGHT = frozenset({State.ADMITTED, State.AWAITING_APPROVAL, State.RUNNING})
FINISHED = frozenset(state for state, targets in MOVES.items() if not targets)


def move(current: State, target: State) -> State:
    """Return `target` if the table allows it.

    Raises:
        ValueError: the move is not in the table.
    """
    if target not in MOVES[current]:
        raise ValueError(f"a call cannot go from {current} to {target}")
    return target
