from base64 import b64encode

import pytest

from callgate_server.backends.egress.credentials import header_of, values_of
from callgate_server.model.egress import Credential
from callgate_server.model.sealed import Sealed


def credential(value, prefix="Bearer ", name="key"):
    return Credential(name, "Authorization", prefix, Sealed(value))


def test_a_credential_is_its_header_with_prefix_and_value():
    header = header_of(credential(b"s3cr3t"))
    assert (header.name, header.value) == (b"Authorization", b"Bearer s3cr3t")


def test_a_header_does_not_show_its_value():
    assert "s3cr3t" not in repr(header_of(credential(b"s3cr3t")))


@pytest.mark.parametrize("value", [b"", b"a\r\nX-Evil: 1", b"a\nb", b"a\0b", b"a\x7f", b"\xc3\xa9", b"trailing "])
def test_a_value_that_would_be_more_than_a_header_is_none(value):
    assert header_of(credential(value, prefix="")) is None
    if value:
        assert header_of(credential(value)) is None


def test_all_values_of_a_call_are_looked_for():
    values = values_of([credential(b"one"), credential(b"two", name="other")])
    assert {name: value.reveal() for name, value in values.items()} == {"key": b"one", "other": b"two"}


def test_of_basic_authentication_the_pair_and_the_password_too():
    values = values_of([credential(b64encode(b"user:pass:word"), prefix="Basic ")])
    assert {value.reveal() for value in values.values()} == {
        b64encode(b"user:pass:word"),
        b"user:pass:word",
        b"pass:word",
    }


def test_a_basic_value_that_is_no_base64_is_looked_for_as_it_is():
    assert list(values_of([credential(b"not base64!", prefix="Basic ")])) == ["key"]
