"""What an idempotency key means when it is seen again. Pure.

Why it means that, state by state: `server/adr/0007-a-key-is-one-call.md`.
"""

from callgate_server.ledger.store import StoredCall
from callgate_server.model.answer import from_stored
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.lifecycle import IN_FLIGHT, State
from callgate_server.model.strict_json import Json


def holds_key(state: State, *, answered: bool) -> bool:
    """Whether a call in this state keeps its idempotency key, so that the same key cannot start another.

    A call keeps it while it is carried, for its answer, and when its gateway died: nobody knows whether it took
    effect, or the next attempt takes the key over. A call that ended before its tool started gives it back: who
    tries again with the same key must not be refused for ever because the first try met a full gateway.
    """
    if state in IN_FLIGHT or state in (State.UNKNOWN, State.INTERRUPTED):
        return True
    return answered and state not in (State.DENIED, State.REPLAYED)


def may_run_again(state: State, held_digest: str, arguments_digest: str) -> bool:
    """Whether a new call takes the key over from its holder: the same call, which may run twice, was interrupted."""
    return state is State.INTERRUPTED and held_digest == arguments_digest


def in_flight(holder: StoredCall, arguments_digest: str) -> bool:
    """Whether the key's holder is the same call and has not ended, so that its answer can be waited for."""
    return holder.state in IN_FLIGHT and holder.arguments_digest == arguments_digest


def replayable(holder: StoredCall, arguments_digest: str) -> dict[str, Json]:
    """Return the stored answer of the call that holds the key, flagged `replayed`.

    Args:
        holder: the call that has the key, unless it may run again. One that ended before its tool started has none.
        arguments_digest: keyed hash of the new call's canonical arguments.

    Raises:
        CallError: `idempotency_conflict` (other arguments, whatever became of the first call),
            `effect_unknown` (its gateway died; it is never run again by itself), `call_in_flight` (not finished),
            or why the tool of the first call never started.
    """
    if holder.arguments_digest != arguments_digest:
        raise CallError(Reason.IDEMPOTENCY_CONFLICT, "This key was used with other arguments; use a new one.")
    if holder.state is State.UNKNOWN:
        raise CallError(
            Reason.EFFECT_UNKNOWN,
            f"Call {holder.call_id} ran with this key and was not seen to its end: whether it took effect is unknown. "
            "It is not run again. Look at what it was to change, and use a new key if it is still wanted.",
        )
    if holder.answer_json is None and holder.state is State.SUCCEEDED:
        raise CallError(
            Reason.EFFECT_UNKNOWN,
            f"Call {holder.call_id} took effect with this key, as was found out later, and has no answer. "
            "It is not run again.",
        )
    if holder.answer_json is None and holder.reason is not None:
        # It ended between two looks, before its tool started: this is what the first one was told.
        raise CallError(holder.reason, holder.message)
    if holder.answer_json is None:
        raise CallError(
            Reason.CALL_IN_FLIGHT,
            f"Call {holder.call_id} holds this key and has not ended; ask for that call, or repeat this one.",
            retry_after_ms=500,
        )
    return from_stored(holder.answer_json) | {"replayed": True}
