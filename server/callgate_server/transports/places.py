"""Who has how many requests open: at each edge, and of one agent at both together. Pure bookkeeping on one loop.

Decides who is refused for want of a place. One agent gets a share of them, and a smaller one of event streams, which
last as long as their calls wait. What operators do goes beyond both, into a reserve: a kill switch has to work while
agents hold everything else. Half of the reserve is only for those whom policy lets administer, since an agent may ask
for these pages too and take its time about it.
"""

from typing import Final, Literal, Protocol

from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.transports.limits import TransportLimits

# What is counted at an edge. Probes of gRPC wait for a message, HTTP's do not, and are not counted.
Edge = Literal["http", "grpc", "probes"]
_RESERVE: Final = ("reserve",)
_ANYBODYS: Final = ("reserve of anybody",)


class Callers(Protocol):
    async def identify(self, token: str | None) -> Caller: ...

    def operates(self, caller: Caller) -> bool: ...


class Places:
    """The places of both edges."""

    def __init__(self, limits: TransportLimits, callers: Callers) -> None:
        self.limits = limits
        self.callers = callers
        self._taken: dict[tuple[str, ...], int] = {}

    def __len__(self) -> int:
        """How many different things are counted now: none where nobody is there."""
        return len(self._taken)

    def at(self, edge: Edge, *, operating: bool = False) -> "Place":
        """Return a place that is not taken yet. `operating`: it is for something that operators do."""
        return Place(self, edge, operating=operating)

    def taken(self, what: tuple[str, ...]) -> int:
        return self._taken.get(what, 0)

    def take(self, what: tuple[str, ...]) -> None:
        self._taken[what] = self._taken.get(what, 0) + 1

    def give(self, what: tuple[str, ...]) -> None:
        left = self._taken[what] - 1
        if left:
            self._taken[what] = left
        else:
            del self._taken[what]


class Place:
    """One request's. Whoever has it must `leave`, whatever happens."""

    __slots__ = ("_edge", "_held", "_operating", "_places", "caller")

    def __init__(self, places: Places, edge: Edge, *, operating: bool) -> None:
        # Whose it is, once that is known.
        self.caller: Caller | None = None
        self._places = places
        self._edge = (edge,)
        self._operating = operating
        self._held: list[tuple[str, ...]] = []

    def enter(self) -> None:
        """Take it, for nobody yet: that is short, since who does not say who it is goes at once.

        What operators do has no place yet where there is none: the reserve is for callers who are known, and until
        then connections bound it.

        Raises:
            CallError: `overloaded`.
        """
        if not self._take(self._edge, self._places.limits.concurrent_requests) and not self._operating:
            raise self._overloaded("Too many requests at once; try again.")

    async def identified(self, token: str | None) -> Caller:
        """Learn whose request it is, and count it as one of that agent's.

        Raises:
            CallError: `unauthenticated`, or `overloaded`: the agent has too many.
        """
        self.caller = caller = await self._places.callers.identify(token)
        agent, most = (caller.tenant, caller.agent), self._places.limits.agent_requests
        if self._edge in self._held:
            if self._take(("requests", *agent), most):
                return caller
            text = f"This agent has {most} requests open, all that one may have; wait until one ends, or end one."
            if not self._reserved():
                raise self._overloaded(text)
            self._give(self._edge)
        elif not self._reserved():
            raise self._overloaded("Too many requests at once; try again.")
        if not self._takes_of_reserve(caller):
            raise self._overloaded("Too many requests at once, also of those that operators make; try again.")
        return caller

    def stream(self) -> None:
        """Count it as an event stream too, once it is known whose it is.

        Raises:
            CallError: `overloaded`.
        """
        caller, most = self.caller, self._places.limits.agent_streams
        if caller is None or not self._take(("streams", caller.tenant, caller.agent), most):
            raise self._overloaded(
                f"This agent has {most} event streams open, all that one may have; end one, or ask for the call itself."
            )

    @property
    def name(self) -> str:
        """Whose it is, or empty."""
        return "" if self.caller is None else self.caller.name

    def leave(self) -> None:
        """Give it back. Once more changes nothing."""
        while self._held:
            self._places.give(self._held.pop())

    def _reserved(self) -> bool:
        return self._operating and self._take(_RESERVE, self._places.limits.operator_requests)

    def _takes_of_reserve(self, caller: Caller) -> bool:
        """Whether it may stay in the reserve: one place for any agent, some more for who administers."""
        reserve, mine = self._places.limits.operator_requests, ("reserve", caller.tenant, caller.agent)
        if self._places.taken(mine) == 0 and self._take(_ANYBODYS, reserve // 2):
            return self._take(mine, 1)
        return (
            self._places.taken(mine) < max(1, reserve // 4)
            and self._places.callers.operates(caller)
            and self._take(mine, reserve)
        )

    def _take(self, what: tuple[str, ...], most: int) -> bool:
        if self._places.taken(what) >= most:
            return False
        self._places.take(what)
        self._held.append(what)
        return True

    def _give(self, what: tuple[str, ...]) -> None:
        self._held.remove(what)
        self._places.give(what)

    def _overloaded(self, message: str) -> CallError:
        return CallError(Reason.OVERLOADED, message, retry_after_ms=self._places.limits.retry_after_ms)
