import ssl
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from callgate_server.backends.egress.authority import Authority, asks_for

HOST = "api.example.com"


def shake_hands(server, pem, name, *, strict=False):
    """Complete a handshake in memory, and return the server's certificate as the client saw it."""
    context = ssl.create_default_context(cadata=pem.decode())
    if strict:
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["h2", "http/1.1"])
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname=name)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(10):
        done = True
        for side in (client, other):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                done = False
        if done:
            break
    assert client.selected_alpn_protocol() == "http/1.1"
    return x509.load_der_x509_certificate(client.getpeercert(binary_form=True))


def test_the_authority_is_made_once_and_is_private(tmp_path):
    folder = tmp_path / "authority"
    first = Authority.load(folder)
    assert Authority.load(folder).pem == first.pem
    assert [stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()] == [0o600]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_is_handed_out_is_the_certificate_alone(tmp_path):
    pem = Authority.load(tmp_path).pem
    assert b"PRIVATE" not in pem
    constraints = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.BasicConstraints).value
    assert constraints.ca
    assert constraints.path_length == 0


def test_two_instances_have_two_authorities(tmp_path):
    assert Authority.load(tmp_path / "one").pem != Authority.load(tmp_path / "two").pem


def test_an_authority_that_others_could_read_is_refused(tmp_path):
    Authority.load(tmp_path)
    (tmp_path / "authority.pem").chmod(0o640)
    with pytest.raises(PermissionError):
        Authority.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_file_with_something_else_is_refused(tmp_path, content):
    Authority.load(tmp_path)
    (tmp_path / "authority.pem").write_bytes(content)
    with pytest.raises(ValueError, match="holds no authority"):
        Authority.load(tmp_path)


def test_a_key_of_another_certificate_is_refused(tmp_path):
    texts = []
    for name in ("one", "two"):
        Authority.load(tmp_path / name)
        texts.append((tmp_path / name / "authority.pem").read_bytes())
    key, certificate = (text.split(b"-----BEGIN CERT") for text in texts)
    (tmp_path / "one" / "authority.pem").write_bytes(key[0] + b"-----BEGIN CERT" + certificate[1])
    with pytest.raises(ValueError, match="another key"):
        Authority.load(tmp_path / "one")


def test_an_authority_that_is_about_to_end_is_replaced(tmp_path):
    first = Authority.load(tmp_path).pem
    later = datetime.now(UTC) + timedelta(days=3600)
    second = Authority.load(tmp_path, lambda: later)
    assert second.pem != first
    assert Authority.load(tmp_path, lambda: later).pem == second.pem


def test_a_host_gets_a_certificate_for_itself_and_no_longer_than_a_week(tmp_path):
    authority = Authority.load(tmp_path)
    leaf = shake_hands(authority.context(HOST), authority.pem, HOST)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [HOST]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=7)


def test_the_certificates_pass_a_strict_client(tmp_path):
    authority = Authority.load(tmp_path)
    shake_hands(authority.context(HOST), authority.pem, HOST, strict=True)


def test_a_long_name_and_an_address_get_certificates_too(tmp_path):
    authority = Authority.load(tmp_path)
    long_name = ".".join(["a" * 60] * 4)
    for name in (long_name, "127.0.0.1", "::1"):
        shake_hands(authority.context(name), authority.pem, name)


def test_a_client_that_asks_for_another_host_gets_nothing(tmp_path):
    authority = Authority.load(tmp_path)
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized|callback"):
        shake_hands(authority.context(HOST), authority.pem, "other.example.com")


def test_another_authority_is_not_trusted(tmp_path):
    authority, stranger = Authority.load(tmp_path / "one"), Authority.load(tmp_path / "two")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(authority.context(HOST), stranger.pem, HOST)


def test_leaves_are_kept_until_they_near_their_end(tmp_path):
    now = [datetime.now(UTC)]
    authority = Authority.load(tmp_path, lambda: now[0])
    first = authority.context(HOST)
    now[0] += timedelta(days=5)
    assert authority.context(HOST) is first
    now[0] += timedelta(days=1, hours=1)
    assert authority.context(HOST) is not first


def test_no_more_leaves_are_kept_than_a_few_hundred(tmp_path):
    authority = Authority.load(tmp_path)
    first = authority.context("host-0.example.com")
    for number in range(1, 257):
        authority.context(f"host-{number}.example.com")
    assert authority.context("host-0.example.com") is not first


@pytest.mark.parametrize(
    ("host", "name", "fits"),
    [
        (HOST, HOST, True),
        (HOST, "API.example.com", True),
        (HOST, "example.com", False),
        (HOST, None, False),
        ("127.0.0.1", None, True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", HOST, False),
    ],
)
def test_who_asks_for_a_host(host, name, fits):
    assert asks_for(host, name) is fits
