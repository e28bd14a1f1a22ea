"""What an idempotency key means when it is seen again. Pure."""

from callgate_server.ledger.store import StoredCall
from callgate_server.model.answer import from_stored
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import IN_FLIGHT, State
from callgate_server.model.strict_json import Json


def holds_key(state: State, *, answered: bool) -> bool:
    """Whether a call in this state keeps its idempotency key, so that the same key cannot start another.

    A call keeps it while it is carried, for its answer, and when nobody knows whether it took effect. A call that
    ended before its tool started, or that may be run again, gives it back: who tries again with the same key must
    not be refused for ever because the first try met a full gateway.
    """
    if state is State.UNKNOWN or state in IN_FLIGHT:
        return True
    return answered and state not in (State.DENIED, State.REPLAYED, State.INTERRUPTED)


def replayable(holder: StoredCall, arguments_digest: str) -> dict[str, Json]:
    """Return the stored answer of the call that holds the key, flagged `replayed`.

    Args:
        holder: the call that has the key. A call that ended before its tool started holds none.
        arguments_digest: keyed hash of the new call's canonical arguments.

    Raises:
        CallError: `idempotency_conflict` (other arguments, whatever became of the first call),
            `call_in_flight` (not finished), `effect_unknown` (its gateway died; it is never run again by itself).
    """
    if holder.arguments_digest != arguments_digest:
        raise CallError(Reason.IDEMPOTENCY_CONFLICT, "This key was used with other arguments; use a new one.")
    if holder.state is State.UNKNOWN:
        raise CallError(
            Reason.EFFECT_UNKNOWN, f"Call {holder.call_id} holds this key, and whether it took effect is unknown."
        )
    if holder.answer_json is None:
        raise CallError(
            Reason.CALL_IN_FLIGHT, f"Call {holder.call_id} holds this key and is running.", retry_after_ms=500
        )
    return from_stored(holder.answer_json) | {"replayed": True}
