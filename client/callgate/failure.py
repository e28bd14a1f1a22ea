"""Why a call was refused or failed, in the shape shared by answers and refusals.

Example:
    >>> busy = Failure("overloaded", "RESOURCE_EXHAUSTED", "At capacity.", retryable=True, retry_after_ms=500)
    >>> busy.retryable, busy.to_json()["reason"]
    (True, 'overloaded')
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Failure:
    """`reason` is a stable word, `code` its gRPC status name, `message` says to a person what to do next.

    `retryable` says that the same call may succeed later without a change by the caller.
    """

    reason: str
    code: str
    message: str
    retryable: bool = False
    retry_after_ms: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Violation:
    """One argument that does not fit: `path` is a JSON Pointer, `rule` the keyword of the schema that it breaks.

    Example:
        >>> Violation("/code", "type", "must be a string").path
        '/code'
    """

    path: str
    rule: str
    message: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
