"""Leases what a manifest names, hands it out sealed, and gives it back whatever happens.

The store is a backend. One path is read once a call, however many of its fields a manifest names, so that a
user name and its password come from the same dynamic credential.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from callgate_server.model.sealed import Sealed


@dataclass(frozen=True, slots=True)
class Lease:
    """What one read gave. `lease_id` is None for static secrets, which need no revocation."""

    values: Mapping[str, Sealed]
    lease_id: str | None
    ttl_s: float | None


class SecretStore(Protocol):
    async def read(self, path: str, *, timeout_s: float) -> Lease:
        """Read a path.

        Raises:
            CallError: `secrets_unavailable` (down, sealed, slow, broken), `secret_refused` (forbidden, absent).
        """

    async def revoke(self, lease_id: str, *, timeout_s: float) -> None:
        """Revoke a lease.

        Raises:
            CallError: `secrets_unavailable`.
        """
