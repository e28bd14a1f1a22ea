"""What administrators may see of the circuit breakers, and set by hand.

Breakers of a tenant (`tool:acme/…`, `upstream:acme/…`) are its administrators'. Those that all tenants share (`engine`,
`secrets`) are seen by each of them, and set by who policy permits `shared_breakers`. Another tenant's answer exactly
like one that does not exist; so does that of a tool which does not exist, or an operator who mistyped its name would
believe it stopped.
"""

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from callgate_server.admission.authenticate import Authentication
from callgate_server.admission.authorize import Administration
from callgate_server.model.errors import CallError, Reason


class BreakerView(Protocol):
    """A breaker as it is now: `calls`, `failures` and `slow` are those of its window.

    `retry_after_s` is how long it stays open by itself, None for one that is not open or was opened by hand.
    """

    @property
    def state(self) -> str: ...
    @property
    def calls(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def slow(self) -> int: ...
    @property
    def retry_after_s(self) -> float | None: ...


class BreakerSet(Protocol):
    def list(self) -> Mapping[str, BreakerView]:
        """What there is, by name."""

    def open(self, name: str, by: str = "") -> BreakerView:
        """Refuse everybody there until `close`.

        Raises:
            ValueError: the name is none of a breaker.
        """

    def close(self, name: str, by: str = "") -> BreakerView:
        """Let everybody through.

        Raises:
            ValueError: the name is none of a breaker.
        """


@dataclass(frozen=True, slots=True)
class Breakers:
    """`tools` are the names of those that there are."""

    authentication: Authentication
    administration: Administration
    breakers: BreakerSet
    tools: Container[str]

    async def list(self, token: str | None) -> list[dict[str, Any]]:
        """The breakers of the administrator's tenant and the shared ones, by name.

        Raises:
            CallError: `policy_denied`, `policy_error`.
        """
        caller = await self.authentication.identify(token)
        await self.administration.permit(caller, "breakers")
        return [
            breaker_document(name, view)
            for name, view in sorted(self.breakers.list().items())
            if _tenant_of(name) in ("", caller.tenant)
        ]

    async def set(self, token: str | None, name: str, *, open_it: bool) -> dict[str, Any]:
        """Open a breaker until it is closed by hand, or close it.

        Raises:
            CallError: `policy_denied`, `policy_error`, `not_possible`: there is no such breaker.
        """
        caller = await self.authentication.identify(token)
        tenant = _tenant_of(name)
        await self.administration.permit(caller, "breakers" if tenant else "shared_breakers")
        if tenant not in ("", caller.tenant) or self._of_no_tool(name):
            raise _unknown()
        by = caller.name
        try:
            view = self.breakers.open(name, by) if open_it else self.breakers.close(name, by)
        except ValueError:
            raise _unknown() from None
        return breaker_document(name, view)

    def _of_no_tool(self, name: str) -> bool:
        """Whether this is the breaker of a tool that does not exist, and never did while breakers were counted."""
        kind, _, rest = name.partition(":")
        return kind == "tool" and rest.partition("/")[2] not in self.tools and name not in self.breakers.list()


def breaker_document(name: str, view: BreakerView) -> dict[str, Any]:
    left_s = view.retry_after_s
    return {
        "name": name,
        "state": str(view.state),
        "calls": view.calls,
        "failures": view.failures,
        "slow": view.slow,
        # Rounded up: who comes after it is not told once more to wait.
        "retry_after_ms": None if left_s is None else math.ceil(left_s * 1000),
    }


def _tenant_of(name: str) -> str:
    """`tool:acme/text.diff` is of acme, `engine` of nobody."""
    _, colon, rest = name.partition(":")
    return rest.partition("/")[0] if colon else ""


def _unknown() -> CallError:
    return CallError(
        Reason.NOT_POSSIBLE,
        "No such breaker. List breakers and tools to see their names: one is engine, secrets, tool:TENANT/TOOL or "
        "upstream:TENANT/HOST:PORT.",
    )
