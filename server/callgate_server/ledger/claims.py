"""What an idempotency key means when it is seen again. Pure."""

from enum import StrEnum

from callgate_server.ledger.store import StoredCall
from callgate_server.model.lifecycle import FINISHED


class Claim(StrEnum):
    REPLAY = "replay"
    IN_FLIGHT = "in_flight"
    CONFLICT = "conflict"
    ENDED_WITHOUT_ANSWER = "ended_without_answer"


def judge(holder: StoredCall, arguments_digest: str) -> Claim:
    """Say what a second call with the same key is, given the first.

    Same arguments and finished: the stored answer again. Same arguments and not finished: it is in flight.
    Other arguments: a conflict, whatever became of the first.
    """
    if holder.arguments_digest != arguments_digest:
        return Claim.CONFLICT
    if holder.answer_json is not None:
        return Claim.REPLAY
    if holder.state in FINISHED:
        return Claim.ENDED_WITHOUT_ANSWER
    return Claim.IN_FLIGHT
