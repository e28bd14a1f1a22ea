"""How a channel is opened: the options that the sync and the async client share.

gRPC retries nothing by itself here: whether a call may be repeated is decided at one place, by whoever knows
its effect and its idempotency key.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from callgate._target import Target

_RECONNECT_FIRST_MS: Final = 200
_RECONNECT_MOST_MS: Final = 5_000


@dataclass(frozen=True, slots=True)
class Dial:
    """`ca_pem` are the roots to trust instead of the built-in ones; `secure` says whether TLS is used at all."""

    target: Target
    secure: bool
    ca_pem: bytes | None
    max_answer_bytes: int

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca_pem)

    def options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", self.max_answer_bytes),
            ("grpc.initial_reconnect_backoff_ms", _RECONNECT_FIRST_MS),
            ("grpc.min_reconnect_backoff_ms", _RECONNECT_FIRST_MS),
            ("grpc.max_reconnect_backoff_ms", _RECONNECT_MOST_MS),
            # A proxy from the environment would read what is not encrypted, and its loopback is not ours.
            ("grpc.enable_http_proxy", int(self.secure)),
            # Two clients in one process must not share a connection: each has its own credential and limits.
            ("grpc.use_local_subchannel_pool", 1),
        ]


def read_ca(path: str | Path | None) -> bytes | None:
    """Read the roots to trust.

    Raises:
        ValueError: the file holds no certificate.
        OSError: it cannot be read.
    """
    if path is None:
        return None
    pem = Path(path).read_bytes()
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise ValueError(f"{path} holds no PEM certificate")
    return pem
