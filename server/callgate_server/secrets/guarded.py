"""The secret store behind its circuit breaker: reads ask for leave. Revocations do not: they are owed."""

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from callgate_server.model.errors import CallError
from callgate_server.secrets.broker import Lease, SecretStore


class GuardedStore:
    """Implements `SecretStore` on another one."""

    def __init__(
        self,
        store: SecretStore,
        guard: Callable[[], AbstractAsyncContextManager[object]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`guard` gives the context in which one read happens: it refuses with `circuit_open`, and counts."""
        self._store = store
        self._guard = guard
        self._clock = clock

    async def read(self, path: str, *, timeout_s: float) -> Lease:
        """Read a path.

        Raises:
            CallError: `circuit_open`, and as the store's own.
        """
        until_s = self._clock() + timeout_s
        try:
            async with self._guard():
                try:
                    return await self._store.read(path, timeout_s=timeout_s)
                except CallError as error:
                    if self._clock() < until_s:
                        raise
                    raise _NoTimeLeftError(error) from error
        except _NoTimeLeftError as late:
            raise late.error from None

    async def revoke(self, lease_id: str, *, timeout_s: float) -> None:
        """Revoke a lease.

        Raises:
            CallError: as the store's own.
        """
        await self._store.revoke(lease_id, timeout_s=timeout_s)


class _NoTimeLeftError(Exception):
    """The call had no time left: that says nothing of the store, so it passes the breaker under another name."""

    def __init__(self, error: CallError) -> None:
        super().__init__()
        self.error = error
