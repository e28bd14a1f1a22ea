import pytest

from callgate_server.backends.egress.hello import HelloReader
from support.pipes import client_hello

HOST = "api.example.com"


def test_the_first_message_for_the_host_is_enough():
    assert HelloReader(HOST).feed(client_hello(HOST))


def test_it_may_come_in_any_pieces():
    reader, hello = HelloReader(HOST), client_hello(HOST)
    assert not any(reader.feed(hello[at : at + 1]) for at in range(len(hello) - 1))
    assert reader.feed(hello[-1:])


def test_an_address_is_asked_for_without_a_name():
    assert HelloReader("192.0.2.7").feed(client_hello(None))


@pytest.mark.parametrize("name", ["other.example.com", "example.com", None])
def test_another_host_is_refused(name):
    with pytest.raises(ValueError, match="another host"):
        HelloReader(HOST).feed(client_hello(name))


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n", b"SSH-2.0-x\r\n", b"\0" * 64])
def test_what_is_no_tls_is_refused(said):
    with pytest.raises(ValueError, match="no TLS"):
        HelloReader(HOST).feed(said)


def test_an_end_before_the_end_of_the_message_is_refused():
    reader = HelloReader(HOST)
    assert not reader.feed(client_hello(HOST)[:50])
    with pytest.raises(ValueError, match=r"does not end|no TLS"):
        reader.feed(b"")


def test_a_message_without_end_is_refused():
    reader = HelloReader(HOST)
    # A handshake message of 16 MB, in records that are as long as they may be.
    records = b"\x16\x03\x01\x40\x00" + b"\x01\xff\xff\xff" + b"\0" * 16380
    with pytest.raises(ValueError, match=r"."):
        for _ in range(100):
            reader.feed(records)
