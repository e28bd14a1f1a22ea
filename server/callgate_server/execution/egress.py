"""The contract of the one way out: what a call may reach, who decides it, and what carries the bytes.

`EgressTerms` come with a call, `EgressGate` is the backend that dials, `EgressSession` is one call's part of it.
The supervisor hands the session every egress frame and closes it; the session sends frames of its own through the
`Outlet`. What may be reached is decided in `egress_rules.py`, purely; how a connection's frames become a stream is
`egress_streams.py`.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from callgate_server.execution.framing import Frame
from callgate_server.model.call import Deadline
from callgate_server.model.egress import Credential, EgressAsk, EgressRule, EgressUsage
from callgate_server.model.strict_json import Json
from callgate_server.model.verdict import Verdict

# Writes an event of the call into the record. Raises CallError `audit_unavailable`: then nothing is dialled.
Record = Callable[[str, Mapping[str, Json]], Awaitable[None]]
# Policy on one connection or request (Cedar `connect`), bound to the call's caller and tool. Never raises.
Consent = Callable[[EgressAsk], Verdict]


@dataclass(frozen=True, slots=True)
class EgressBudget:
    """Ceilings of one call's connections, both directions together; `concurrent` at the same time."""

    bytes: int
    connections: int
    requests: int
    concurrent: int


@dataclass(frozen=True, slots=True)
class EgressTerms:
    """All that decides what one call may reach. `credentials` by the name that rules give them.

    `tenant` is whose calls an upstream's circuit breaker is for. `mark` is drawn for the call: by it the tool knows
    the gate's own words from an upstream's, which cannot know it.
    """

    tenant: str
    rules: tuple[EgressRule, ...]
    credentials: Mapping[str, Credential]
    consent: Consent
    budget: EgressBudget
    deadline: Deadline
    record: Record
    mark: str


# Sends one encoded frame to the runner. Raises ConnectionError: the wire is gone.
Outlet = Callable[[bytes], Awaitable[None]]


class EgressSession(Protocol):
    """The connections of one call."""

    def feed(self, frame: Frame) -> None:
        """Take an egress frame of the runner. Never blocks: what is kept is bounded by the windows.

        Raises:
            ValueError: the frame breaks the protocol; the sandbox is to be killed.
        """

    async def close(self) -> EgressUsage:
        """End every connection, record what they were, and return the sum. Idempotent. Never raises `CallError`:
        the account of a connection that cannot be recorded is reported, since its decision was recorded before.
        """


class EgressGate(Protocol):
    """Implemented by `backends/egress/`."""

    @property
    def authority_pem(self) -> bytes:
        """The certificate by which a sandbox knows the gate's own TLS. Public."""

    def open(self, terms: EgressTerms, outlet: Outlet) -> EgressSession:
        """Begin a call's part. Its tasks end with `close`."""
