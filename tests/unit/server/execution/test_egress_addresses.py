from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.execution.egress_addresses import refuse_address, refuse_addresses
from callgate_server.execution.egress_rules import Why
from callgate_server.model.egress import InternalService

HOST = "api.example.com"
PUBLIC = ("8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e")


def judged(address, internal=(), port=443):
    return refuse_address(ip_address(address), HOST, port, internal)


def internal(*networks, host=HOST, port=None):
    return InternalService(host, port, tuple(map(ip_network, networks)))


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_may_be_dialled(address):
    assert judged(address) is None


# Judged on the address itself, in both families by the same rules.
REFUSED = [
    ("169.254.169.254", Why.METADATA_ADDRESS),
    ("fd00:ec2::254", Why.METADATA_ADDRESS),
    ("100.100.100.200", Why.METADATA_ADDRESS),
    ("168.63.129.16", Why.METADATA_ADDRESS),
    ("169.254.170.2", Why.METADATA_ADDRESS),
    ("127.0.0.1", Why.LOOPBACK_ADDRESS),
    ("127.255.255.254", Why.LOOPBACK_ADDRESS),
    ("::1", Why.LOOPBACK_ADDRESS),
    ("0.0.0.0", Why.UNSPECIFIED_ADDRESS),
    ("0.1.2.3", Why.UNSPECIFIED_ADDRESS),
    ("::", Why.UNSPECIFIED_ADDRESS),
    ("169.254.1.1", Why.LINK_LOCAL_ADDRESS),
    ("fe80::1", Why.LINK_LOCAL_ADDRESS),
    ("10.0.0.1", Why.PRIVATE_ADDRESS),
    ("172.16.0.1", Why.PRIVATE_ADDRESS),
    ("172.31.255.255", Why.PRIVATE_ADDRESS),
    ("192.168.1.1", Why.PRIVATE_ADDRESS),
    ("fc00::1", Why.PRIVATE_ADDRESS),
    ("fec0::1", Why.PRIVATE_ADDRESS),
    ("100.64.0.1", Why.SHARED_ADDRESS),
    ("100.127.255.255", Why.SHARED_ADDRESS),
    ("::ffff:127.0.0.1", Why.EMBEDDED_ADDRESS),
    ("::ffff:8.8.8.8", Why.EMBEDDED_ADDRESS),
    ("::ffff:0:127.0.0.1", Why.EMBEDDED_ADDRESS),
    ("64:ff9b::7f00:1", Why.EMBEDDED_ADDRESS),
    ("64:ff9b::a9fe:a9fe", Why.EMBEDDED_ADDRESS),
    ("64:ff9b:1::1", Why.EMBEDDED_ADDRESS),
    ("2002:7f00:1::", Why.EMBEDDED_ADDRESS),
    ("2001:0:1::1", Why.EMBEDDED_ADDRESS),
    ("192.88.99.1", Why.EMBEDDED_ADDRESS),
    ("::127.0.0.1", Why.RESERVED_ADDRESS),
    ("224.0.0.1", Why.MULTICAST_ADDRESS),
    ("ff02::1", Why.MULTICAST_ADDRESS),
    ("240.0.0.1", Why.RESERVED_ADDRESS),
    ("255.255.255.255", Why.RESERVED_ADDRESS),
    ("192.0.2.1", Why.DOCUMENTATION_ADDRESS),
    ("198.51.100.1", Why.DOCUMENTATION_ADDRESS),
    ("203.0.113.1", Why.DOCUMENTATION_ADDRESS),
    ("2001:db8::1", Why.DOCUMENTATION_ADDRESS),
    ("3fff::1", Why.DOCUMENTATION_ADDRESS),
    ("198.18.0.1", Why.RESERVED_ADDRESS),
    ("192.0.0.1", Why.RESERVED_ADDRESS),
    ("2001:10::1", Why.RESERVED_ADDRESS),
    ("5f00::1", Why.RESERVED_ADDRESS),
    ("100::1", Why.RESERVED_ADDRESS),
]


@pytest.mark.parametrize(("address", "why"), REFUSED)
def test_an_address_off_the_public_internet_is_refused(address, why):
    assert judged(address) is why


@given(st.ip_addresses())
def test_nothing_is_dialled_that_the_standard_library_does_not_call_global(address):
    if judged(address) is None:
        assert address.is_global
        assert not address.is_multicast


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_is_refused_whichever_it_is(inner):
    number = int(inner)
    for outer in ("::ffff:0:0", "::", "64:ff9b::", "::ffff:0:0:0"):
        assert judged(IPv6Address(int(IPv6Address(outer)) | number)) is not None
    assert judged(IPv6Address(0x2002 << 112 | number << 80)) is Why.EMBEDDED_ADDRESS


def test_a_declared_service_lives_in_its_networks():
    declared = [internal("10.1.0.0/16", "127.0.0.0/8", "fd12::/16")]
    for address in ("10.1.2.3", "127.0.0.1", "fd12::1"):
        assert judged(address, declared) is None
    for address in ("10.2.0.1", "8.8.8.8", "::1"):
        assert judged(address, declared) is Why.UNDECLARED_ADDRESS


def test_another_host_or_port_gains_nothing_by_a_declaration():
    assert judged("10.1.2.3", [internal("10.0.0.0/8", host="other.example.com")]) is Why.PRIVATE_ADDRESS
    assert judged("10.1.2.3", [internal("10.0.0.0/8", port=5432)]) is Why.PRIVATE_ADDRESS
    assert judged("10.1.2.3", [internal("10.0.0.0/8", port=443)]) is None


def test_two_declarations_of_a_host_add_up():
    declared = [internal("10.1.0.0/16"), internal("10.2.0.0/16", port=443)]
    assert judged("10.1.0.1", declared) is None
    assert judged("10.2.0.1", declared) is None
    assert judged("10.2.0.1", declared, port=80) is Why.UNDECLARED_ADDRESS


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "fd00:ec2::254",
        "100.100.100.200",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
    ],
)
def test_what_nobody_may_reach_cannot_be_declared(address):
    assert judged(address, [internal("0.0.0.0/0", "::/0")]) is not None


# One bad address among good ones is enough.
@given(st.permutations([*map(ip_address, PUBLIC), ip_address("127.0.0.1")]))
def test_one_bad_address_refuses_them_all(addresses):
    assert refuse_addresses(addresses, HOST, 443, ()) is Why.LOOPBACK_ADDRESS


def test_a_name_without_addresses_leads_nowhere():
    assert refuse_addresses((), HOST, 443, ()) is Why.UNRESOLVED


def test_only_good_addresses_may_be_dialled():
    assert refuse_addresses([IPv4Address("8.8.8.8"), IPv6Address("2606:4700::1")], HOST, 443, ()) is None
