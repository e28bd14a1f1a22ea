"""Whose calls are refused, whatever else is allowed. Pure bookkeeping; stops are durable in the ledger.

A stop holds for every call: also one that repeats an answer, and one that waited. It does not hold for looking: what
became of a stopped agent's calls is what its owner wants to know then, and looking has no effect.
"""

from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.task import Stop


class StopList:
    """Who is stopped."""

    def __init__(self) -> None:
        self._stops: dict[tuple[str, str], Stop] = {}

    def put(self, stop: Stop) -> None:
        self._stops[stop.tenant, stop.agent] = stop

    def lift(self, tenant: str, agent: str) -> None:
        self._stops.pop((tenant, agent), None)

    def of(self, tenant: str) -> list[Stop]:
        """The stops of a tenant, oldest first."""
        return sorted((stop for stop in self._stops.values() if stop.tenant == tenant), key=lambda stop: stop.at)

    def refuse(self, caller: Caller) -> None:
        """Refuse a caller that is stopped, itself or with its whole tenant.

        Raises:
            CallError: `stopped`.
        """
        for agent in ("", caller.agent):
            if (caller.tenant, agent) in self._stops:
                whom = "This agent" if agent else "Every agent of this tenant"
                raise CallError(Reason.STOPPED, f"{whom} is stopped; an administrator of the tenant can resume it.")
