"""Is there room. Pure bookkeeping of running calls: a full gateway says so at once instead of queueing."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from callgate_server.model.call import Caller, Deadline
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.spending import Scope


@dataclass(frozen=True, slots=True)
class Ceilings:
    """How many calls may run at once: in all, and of one tenant."""

    calls: int
    calls_per_tenant: int


class Concurrency:
    """Counts the running calls."""

    def __init__(self, ceilings: Ceilings) -> None:
        self._ceilings = ceilings
        self._by_tenant: Counter[str] = Counter()
        self._running = 0

    @property
    def running(self) -> int:
        return self._running

    @contextmanager
    def slot(self, caller: Caller) -> Iterator[None]:
        """Hold a place for one call.

        Raises:
            CallError: `overloaded`.
        """
        if self._running >= self._ceilings.calls:
            raise CallError(Reason.OVERLOADED, "The gateway is at capacity; try again.", retry_after_ms=1000)
        if self._by_tenant[caller.tenant] >= self._ceilings.calls_per_tenant:
            raise CallError(
                Reason.OVERLOADED, "This tenant's share of the gateway is in use; try again.", retry_after_ms=1000
            )
        self._running += 1
        self._by_tenant[caller.tenant] += 1
        try:
            yield
        finally:
            self._running -= 1
            self._by_tenant[caller.tenant] -= 1
            if not self._by_tenant[caller.tenant]:
                del self._by_tenant[caller.tenant]


class Shares:
    """Counts the running calls of those who may have only so many at once."""

    def __init__(self) -> None:
        self._held: Counter[Scope] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    @contextmanager
    def hold(self, wanted: Sequence[tuple[Scope, int]]) -> Iterator[None]:
        """Hold a place for one call in each.

        Raises:
            CallError: `overloaded`.
        """
        for scope, most in wanted:
            if self._held[scope] >= most:
                raise CallError(
                    Reason.OVERLOADED, f"All {most} places of {scope} are in use; try again.", retry_after_ms=1000
                )
        scopes = [scope for scope, _ in wanted]
        self._held.update(scopes)
        try:
            yield
        finally:
            self._held.subtract(scopes)
            for scope in scopes:
                if not self._held[scope]:
                    del self._held[scope]


@dataclass(frozen=True, slots=True)
class DeadlineRule:
    """The server's own bounds on how long a call may take, in seconds."""

    max_s: float

    def deadline(self, now_s: float, client_ms: int | None, manifest_s: float) -> Deadline:
        """The smallest of the client's, the manifest's and the server's, counted from monotonic `now_s`."""
        wishes_s = [manifest_s, self.max_s]
        if client_ms is not None:
            wishes_s.append(client_ms / 1000)
        return Deadline(now_s + max(0.0, min(wishes_s)))
