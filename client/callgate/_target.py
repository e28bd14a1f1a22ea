"""Where the gateway is, and whether a credential may go there in clear.

Plaintext is for loopback. Anything else gets TLS, unless the caller says in so many words that the token may
cross the network readable. Decides nothing about the token itself.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final

_HOST: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_TARGET: Final = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]:/@\s]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Target:
    """`text` as the user wrote it, `address` as gRPC dials it."""

    text: str
    address: str
    loopback: bool


def parse_target(text: str) -> Target:
    """Read `host:port` or `[ipv6]:port`.

    Raises:
        ValueError: it is neither. gRPC's own schemes (`xds:`, `dns://server/…`, `unix:`) are not taken, because
            they would hide from us where the credential goes.
    """
    match = _TARGET.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError("the target must be host:port or [ipv6]:port, like 127.0.0.1:9090")
    if match["ipv6"] is not None:
        try:
            loopback = IPv6Address(match["ipv6"]).is_loopback
        except ValueError:
            raise ValueError("the target has a malformed IPv6 address") from None
    elif not _HOST.fullmatch(match["host"]):
        raise ValueError("the target has a malformed host name")
    else:
        loopback = _is_loopback(match["host"])
    # The scheme is spelt out, so that a host called `unix` or `xds` stays a host.
    return Target(text, f"dns:///{text}", loopback)


def choose_tls(target: Target, *, tls: bool | None, roots: bool, token: bool, token_in_clear: bool) -> bool:
    """Return whether to use TLS; None leaves it to the target, and to whether there are `roots` to trust.

    Raises:
        ValueError: a token would leave this machine in clear, or there are roots and TLS is switched off.
    """
    secure = (roots or not target.loopback) if tls is None else tls
    if roots and not secure:
        raise ValueError("roots to trust are for TLS, which is switched off: leave out one of the two")
    if token and not secure and not target.loopback and not token_in_clear:
        raise ValueError(
            f"refusing to send a token in clear to {target.text}: use TLS, or pass send_token_in_clear=True "
            "if something else encrypts the way there"
        )
    return secure


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
