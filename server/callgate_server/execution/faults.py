"""What the end of a call says of whom: each circuit breaker counts failures of its own kind and no others.

What is not a breaker's own kind says nothing to it, neither good nor bad: a tool that is refused for want of a secret
has not failed, and an engine that lacks an image works. What speaks of an upstream is the gate's business.
"""

from typing import Final

from callgate_server.execution.breaker import Outcome
from callgate_server.model.answer import Answer
from callgate_server.model.errors import Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.manifest import Limits

# Not the missing image or runtime, of which a working engine speaks, and not the deadline of who asked. Nor what is
# particular, of the engine or the store: one tool's misfit must not stop it for all.
ENGINE: Final = {Reason.SANDBOX_UNAVAILABLE: Outcome.FAILED}
# A store that refuses a secret has answered.
SECRETS: Final = {Reason.SECRETS_UNAVAILABLE: Outcome.FAILED, Reason.SECRET_REFUSED: Outcome.SUCCEEDED}

# A tool that reports a failure works: callers bring their own mistakes. A lost sandbox is the engine's or the host's
# doing, and a flood mostly that of the arguments.
_OF_TOOL: Final = {
    Reason.TOOL_FAILED: Outcome.SUCCEEDED,
    Reason.TOOL_UNAVAILABLE: Outcome.FAILED,
    Reason.INVALID_RESULT: Outcome.FAILED,
    Reason.OUT_OF_MEMORY: Outcome.FAILED,
}
# The share of its own limit that a tool must have had for its time-out to be its own: the rest went on waiting.
_OWN_SHARE: Final = 0.9


def of_answer(answer: Answer, limits: Limits) -> Outcome:
    """What a call's answer says of its tool: also one whose result is a fallback's, which says why its tool failed."""
    error = answer.fallback.error if answer.fallback else answer.error
    if error is None:
        return Outcome.SUCCEEDED if answer.state is State.SUCCEEDED else Outcome.NOTHING
    if error.reason is Reason.TIMED_OUT:
        # By the runner's own clock: where a caller had less patience, or the call had waited, it is not the tool's.
        own = answer.usage.wall_ms >= limits.wall_s * 1000 * _OWN_SHARE
        return Outcome.FAILED if own else Outcome.NOTHING
    return _OF_TOOL.get(error.reason, Outcome.NOTHING)
