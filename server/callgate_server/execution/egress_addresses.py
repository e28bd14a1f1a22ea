"""Which addresses a connection may go to, whatever name led there. Pure.

Decides on the resolved address itself, never on how it was written. What is not plainly part of the public
internet is refused, unless the operator declared the host as internal with the networks it lives in. Some
addresses nothing can declare: those of cloud metadata services, of groups, and those that hide another address.
The blocks are those of the IANA special-purpose address registries (RFC 6890 and its updates).
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

from callgate_server.execution.egress_rules import Why
from callgate_server.model.egress import InternalService

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_GLOBAL_V6: Final = IPv6Network("2000::/3")
# Never, even if declared. The order counts: the first block that holds an address names the reason.
_NEVER: Final[tuple[tuple[Network, Why], ...]] = tuple(
    (ip_network(block), why)
    for block, why in (
        ("169.254.169.254/32", Why.METADATA_ADDRESS),
        ("169.254.170.0/24", Why.METADATA_ADDRESS),  # container credentials of AWS
        ("100.100.100.200/32", Why.METADATA_ADDRESS),
        ("168.63.129.16/32", Why.METADATA_ADDRESS),  # the wire server of Azure, in public space
        ("192.0.0.192/32", Why.METADATA_ADDRESS),
        ("fd00:ec2::/32", Why.METADATA_ADDRESS),
        ("fd20:ce::254/128", Why.METADATA_ADDRESS),
        ("0.0.0.0/8", Why.UNSPECIFIED_ADDRESS),
        ("::/128", Why.UNSPECIFIED_ADDRESS),
        ("224.0.0.0/4", Why.MULTICAST_ADDRESS),
        ("ff00::/8", Why.MULTICAST_ADDRESS),
        ("240.0.0.0/4", Why.RESERVED_ADDRESS),
        # An IPv4 address inside an IPv6 one would be reached by a way that nobody looks at.
        ("::ffff:0:0/96", Why.EMBEDDED_ADDRESS),
        ("::ffff:0:0:0/96", Why.EMBEDDED_ADDRESS),
        ("64:ff9b::/96", Why.EMBEDDED_ADDRESS),
        ("64:ff9b:1::/48", Why.EMBEDDED_ADDRESS),
        ("2002::/16", Why.EMBEDDED_ADDRESS),
        ("2001::/32", Why.EMBEDDED_ADDRESS),
        ("192.88.99.0/24", Why.EMBEDDED_ADDRESS),  # relays of 6to4
    )
)
_NOT_PUBLIC: Final[tuple[tuple[Network, Why], ...]] = tuple(
    (ip_network(block), why)
    for block, why in (
        ("127.0.0.0/8", Why.LOOPBACK_ADDRESS),
        ("::1/128", Why.LOOPBACK_ADDRESS),
        ("169.254.0.0/16", Why.LINK_LOCAL_ADDRESS),
        ("fe80::/10", Why.LINK_LOCAL_ADDRESS),
        ("10.0.0.0/8", Why.PRIVATE_ADDRESS),
        ("172.16.0.0/12", Why.PRIVATE_ADDRESS),
        ("192.168.0.0/16", Why.PRIVATE_ADDRESS),
        ("fc00::/7", Why.PRIVATE_ADDRESS),
        ("fec0::/10", Why.PRIVATE_ADDRESS),  # site-local, deprecated and still routed by some
        ("100.64.0.0/10", Why.SHARED_ADDRESS),
        ("192.0.2.0/24", Why.DOCUMENTATION_ADDRESS),
        ("198.51.100.0/24", Why.DOCUMENTATION_ADDRESS),
        ("203.0.113.0/24", Why.DOCUMENTATION_ADDRESS),
        ("2001:db8::/32", Why.DOCUMENTATION_ADDRESS),
        ("3fff::/20", Why.DOCUMENTATION_ADDRESS),
        ("192.0.0.0/24", Why.RESERVED_ADDRESS),
        ("198.18.0.0/15", Why.RESERVED_ADDRESS),  # benchmarks
        ("2001::/23", Why.RESERVED_ADDRESS),
    )
)


def refuse_address(address: Address, host: str, port: int, internal: Sequence[InternalService]) -> Why | None:
    """Return why a connection to `host` must not go to `address`, or None.

    A declared host lives in its networks and nowhere else: where it leads to another address, public or not,
    something stands between the declaration and the name.
    """
    for block, why in _NEVER:
        if address in block:
            return why
    declared = [one for one in internal if one.covers(host, port)]
    if declared:
        inside = any(address in network for one in declared for network in one.networks)
        return None if inside else Why.UNDECLARED_ADDRESS
    for block, why in _NOT_PUBLIC:
        if address in block:
            return why
    if isinstance(address, IPv6Address) and address not in _GLOBAL_V6:
        return Why.RESERVED_ADDRESS
    return None


def refuse_addresses(
    addresses: Sequence[Address], host: str, port: int, internal: Sequence[InternalService]
) -> Why | None:
    """Return why nothing may be dialled, or None: a name with one bad address among good ones is not trusted."""
    if not addresses:
        return Why.UNRESOLVED
    for address in addresses:
        if why := refuse_address(address, host, port, internal):
            return why
    return None
