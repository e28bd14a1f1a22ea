"""A call: who asks for what, until when."""

from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, taken from the credential and from nowhere else.

    `key` is the id of the API key that it came with, if it did: no part of who it is, but what it makes ends with that.
    """

    tenant: str
    agent: str
    roles: tuple[str, ...] = ()
    task: str | None = None
    key: str | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The agent as it is named in the record and in policy: agents of one name in two tenants are two."""
        return f"{self.tenant}/{self.agent}"


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in monotonic time; durations never come from the wall clock."""

    monotonic_s: float

    def remaining_s(self, now_s: float) -> float:
        """Seconds left at monotonic `now_s`, never negative."""
        return max(0.0, self.monotonic_s - now_s)


class OnDisconnect(StrEnum):
    """What becomes of a call when the client that asked for it goes away."""

    DETACH = "detach"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True)
class CallRequest:
    """One request as a transport decoded it; nothing in it is trusted.

    `arguments_json` are the raw bytes of the arguments object, `deadline_ms` milliseconds from now,
    `transport` the edge it came through ("http" or "grpc"). `asynchronous` asks for an answer at once and the result
    later, `priority` (0 to 9, the larger the sooner) orders such calls among the same tenant's, `task` narrows the call
    to a task's grant, and `purpose` is what an approver is told of why it is wanted: the caller's own words.
    """

    tool: str
    arguments_json: bytes
    transport: str
    deadline_ms: int | None = None
    idempotency_key: str | None = None
    on_disconnect: OnDisconnect = OnDisconnect.DETACH
    asynchronous: bool = False
    priority: int = 5
    task: str | None = None
    purpose: str | None = None
