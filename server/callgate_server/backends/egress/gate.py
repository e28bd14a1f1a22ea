"""The gate of this instance: the authority, the dialler and the tasks that the sessions of all calls share."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from callgate_server.backends.egress.authority import Authority
from callgate_server.backends.egress.checkpoint import Report
from callgate_server.backends.egress.credentials import MakeStripper
from callgate_server.backends.egress.dialler import Dialler
from callgate_server.backends.egress.session import Session
from callgate_server.execution.breakers import Breakers
from callgate_server.execution.egress import EgressSession, EgressTerms, Outlet
from callgate_server.model.egress import InternalService


@dataclass(frozen=True, slots=True)
class GateOptions:
    """What the operator decides.

    `authority_dir` is private to the gateway; `ca_file` adds to the roots by which upstreams are known; a connection
    on which nothing moves for `idle_s` is ended.
    """

    authority_dir: Path
    internal: Sequence[InternalService] = ()
    ca_file: Path | None = None
    dns_timeout_s: float = 5.0
    connect_timeout_s: float = 10.0
    idle_s: float = 60.0


class Gate:
    """Implements `EgressGate`. An async context manager, left after the last call has ended."""

    def __init__(self, options: GateOptions, make_stripper: MakeStripper, breakers: Breakers, report: Report) -> None:
        """Read or make the authority.

        Raises:
            OSError: its file, or `ca_file`, cannot be used.
            ValueError: its file holds something else.
        """
        self._authority = Authority.load(options.authority_dir)
        self._dialler = Dialler(
            internal=options.internal,
            ca_file=options.ca_file,
            dns_timeout_s=options.dns_timeout_s,
            connect_timeout_s=options.connect_timeout_s,
        )
        self._idle_s = options.idle_s
        self._make_stripper = make_stripper
        self._breakers = breakers
        self._report = report
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._dialler.close()
        # Sessions end their own tasks; there is nothing to hand on to the group.
        await self._tasks.__aexit__(None, None, None)

    @property
    def authority_pem(self) -> bytes:
        """See `EgressGate`."""
        return self._authority.pem

    def open(self, terms: EgressTerms, outlet: Outlet) -> EgressSession:
        """See `EgressGate`."""
        return Session(
            terms,
            outlet,
            dialler=self._dialler,
            breakers=self._breakers,
            authority=self._authority,
            make_stripper=self._make_stripper,
            idle_s=self._idle_s,
            spawn=self._spawn,
            report=self._report,
        )

    def _spawn(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        return self._tasks.create_task(work)
