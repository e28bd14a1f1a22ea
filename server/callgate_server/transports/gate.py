"""What a transport is given, and so all that it can do: start calls, ask about them, say how the gateway is.

Transports decode, pass on and encode. They decide nothing about a call.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from callgate_server.execution.running import Running
from callgate_server.model.call import Caller, CallRequest
from callgate_server.model.sealed import Sealed
from callgate_server.tasks import TaskWish


class Calls(Protocol):
    """The pipeline."""

    async def start(self, token: str | None, request: CallRequest) -> Running:
        """Take one call as far as its claim. Once its caller is known, who stops waiting cuts nothing in half.

        Raises:
            CallError: the call is refused.
        """


class Lookups(Protocol):
    """What a caller may ask besides making a call. Everything raises CallError for a refusal."""

    async def identify(self, token: str | None) -> Caller: ...

    def operates(self, caller: Caller) -> bool: ...

    async def tools(self, token: str | None) -> list[dict[str, Any]]: ...

    async def tool(self, token: str | None, name: str) -> dict[str, Any]: ...

    async def call(self, token: str | None, call_id: str) -> dict[str, Any]: ...

    async def calls(self, token: str | None, limit: int) -> list[dict[str, Any]]: ...

    async def cancel(self, token: str | None, call_id: str) -> dict[str, Any]: ...

    async def follow(self, token: str | None, call_id: str, after: int) -> Running: ...


class Approving(Protocol):
    """What an approver may ask and decide. Everything raises CallError for a refusal."""

    async def list(self, token: str | None) -> list[dict[str, Any]]: ...

    async def show(self, token: str | None, call_id: str) -> dict[str, Any]: ...

    async def decide(self, token: str | None, call_id: str, digest: str, *, approve: bool) -> dict[str, Any]: ...


class Failures(Protocol):
    """What may be asked and done about calls that failed for good. Everything raises CallError for a refusal."""

    async def list(self, token: str | None, limit: int) -> tuple[list[dict[str, Any]], int]: ...

    async def show(self, token: str | None, call_id: str) -> dict[str, Any]: ...

    async def redrive(self, token: str | None, call_id: str) -> dict[str, Any]: ...

    async def discard(self, token: str | None, call_id: str) -> dict[str, Any]: ...

    async def settle(self, token: str | None, call_id: str, *, happened: bool) -> dict[str, Any]: ...


class TaskDesk(Protocol):
    """What an agent does with its tasks. Everything raises CallError for a refusal."""

    async def create(self, token: str | None, wish: TaskWish) -> tuple[dict[str, Any], Sealed]: ...

    async def list(self, token: str | None, limit: int) -> list[dict[str, Any]]: ...

    async def show(self, token: str | None, task_id: str) -> dict[str, Any]: ...

    async def end(self, token: str | None, task_id: str) -> dict[str, Any]: ...


class StopDesk(Protocol):
    """The kill switch of administrators. Everything raises CallError for a refusal."""

    async def list(self, token: str | None) -> list[dict[str, Any]]: ...

    async def stop(self, token: str | None, agent: str, reason: str) -> tuple[dict[str, Any], int]: ...

    async def resume(self, token: str | None, agent: str) -> None: ...


class BreakerDesk(Protocol):
    """The circuit breakers as administrators see them. Everything raises CallError for a refusal."""

    async def list(self, token: str | None) -> list[dict[str, Any]]: ...

    async def set(self, token: str | None, name: str, *, open_it: bool) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the gateway can serve, and which of its parts work. Names only: anybody may read it."""

    ready: bool
    components: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Access:
    """One request as the access log may show it: no query, no header, no text of the caller's.

    `route` is the served pattern (or empty when nothing matched), `status` the HTTP number or gRPC name, and `caller`
    who it is by its credential (or empty when that is not known).
    """

    transport: str
    method: str
    route: str
    status: str
    duration_ms: float
    caller: str = ""


def _unseen(_access: Access) -> None:
    """Keep no access log."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Everything behind the transports.

    A part that is None has no pages and no methods.

    `ready` must be quick: it is asked by anybody, at any rate. `metrics` gives a caller that may see them the text
    exposition of Prometheus. `unexpected` takes the id that the client was told and the error that it was not.
    `accessed` sees every request that came as far as a handler; neither may raise.
    """

    calls: Calls
    queries: Lookups
    approvals: Approving
    dead_letters: Failures
    ready: Callable[[], Awaitable[Readiness]]
    metrics: Callable[[str | None], Awaitable[bytes]]
    unexpected: Callable[[str, BaseException], None]
    accessed: Callable[[Access], None] = _unseen
    tasks: TaskDesk | None = None
    stops: StopDesk | None = None
    breakers: BreakerDesk | None = None
