"""What carries bytes in the gate, and the two ways in which carrying them ends early."""

from typing import Final, Protocol

from callgate_server.execution.egress_rules import Why
from callgate_server.model.egress import EgressAsk

# What is read or written at a time.
CHUNK_BYTES: Final = 65536


class Pipe(Protocol):
    """Bytes both ways: a connection of the tool, one of the gate to an upstream, or TLS on either."""

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end of the other side.

        Raises:
            ConnectionError: the connection broke.
        """

    async def write(self, data: bytes) -> None:
        """Send, and wait until there is room for more.

        Raises:
            ConnectionError: the connection broke.
        """

    async def finish(self) -> None:
        """Say that no more is sent. Where the other side cannot be told alone, do nothing."""

    async def abort(self) -> None:
        """End both ways at once. Idempotent. Never raises."""


class RefusedError(Exception):
    """The gate decided against it: nothing was sent. `ask.host` may be text that only the tool has judged."""

    def __init__(
        self, why: Why, ask: EgressAsk, policies: tuple[str, ...] = (), *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(why.value)
        self.why = why
        self.ask = ask
        self.policies = policies
        self.retry_after_s = retry_after_s


class FailedError(Exception):
    """What was allowed did not come to its end: the upstream failed, or a budget or a time was over."""

    def __init__(self, why: Why) -> None:
        super().__init__(why.value)
        self.why = why
