"""The gate's own certificate authority, by which it ends the TLS of a tool where it must see the requests.

Decides how long a certificate lives and where the key is: in one private file of this instance, made at the first
start, and in this process. It is trusted by nothing but the sandbox of a call that needs it; for which hosts it
signs is decided by the rules before. The certificate itself is public.
"""

import ipaddress
import os
import ssl
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from callgate_server.backends.private_files import create_private, locked, read_private, replace_private

_FILE: Final = "authority.pem"
_LOCK: Final = "authority.lock"
_LIMIT_BYTES: Final = 65536
_AUTHORITY_LIFE: Final = timedelta(days=3650)
# A new one is made at the first start after this much is left; calls get it with their sandbox.
_AUTHORITY_REST: Final = timedelta(days=90)
_LEAF_LIFE: Final = timedelta(days=7)
_LEAF_REST: Final = timedelta(days=1)
# The clock of a sandbox is the gate's; this is for one that was set back.
_BACKDATED: Final = timedelta(hours=1)
_MOST_LEAVES: Final = 256


class Authority:
    """Signs for hosts, and remembers what it signed."""

    def __init__(
        self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, now: Callable[[], datetime]
    ) -> None:
        self._key = key
        self._certificate = certificate
        self._now = now
        # One key for all leaves of this process: whoever had one would have all of them.
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._leaves: OrderedDict[str, tuple[datetime, ssl.SSLContext]] = OrderedDict()

    @classmethod
    def load(cls, directory: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Self:
        """Read the instance's authority, or make it.

        Raises:
            OSError: its file cannot be read or written, or others could read it.
            ValueError: its file holds something else.
        """
        path = directory / _FILE
        if not path.exists():
            create_private(path, _new_authority(now()))
        key, certificate = _parse(path)
        if certificate.not_valid_after_utc - now() < _AUTHORITY_REST:
            with locked(directory / _LOCK):
                key, certificate = _parse(path)
                if certificate.not_valid_after_utc - now() < _AUTHORITY_REST:
                    replace_private(path, _new_authority(now()))
                    key, certificate = _parse(path)
        return cls(key, certificate, now)

    @property
    def pem(self) -> bytes:
        """The certificate. Public."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def context(self, host: str) -> ssl.SSLContext:
        """Return what ends TLS as `host`, a plain one, and only for clients that ask for it by that name."""
        now = self._now()
        until, context = self._leaves.get(host, (now, None))
        if context is None or until - now < _LEAF_REST:
            until = min(now + _LEAF_LIFE, self._certificate.not_valid_after_utc)
            context = self._make_context(host, until)
            self._leaves[host] = until, context
        self._leaves.move_to_end(host)
        while len(self._leaves) > _MOST_LEAVES:
            self._leaves.popitem(last=False)
        return context

    def _make_context(self, host: str, until: datetime) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        _load_chain(context, self._leaf(host, until) + _private_pem(self._leaf_key))

        def same_name(_: ssl.SSLObject, asked: str | None, __: ssl.SSLContext) -> int | None:
            return None if asks_for(host, asked) else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

        context.sni_callback = same_name
        return context

    def _leaf(self, host: str, until: datetime) -> bytes:
        name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host)) if _is_address(host) else x509.DNSName(host)
        builder = (
            _builder(self._certificate.subject, self._leaf_key.public_key(), self._now(), until)
            # The name is in the extension; a common name could not hold a long one.
            .subject_name(x509.Name([]))
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def asks_for(host: str, name: str | None) -> bool:
    """Whether a client of TLS that names `name`, or nothing, means `host`. Addresses are not named (RFC 6066)."""
    if _is_address(host):
        return name is None or name == host
    return name is not None and name.lower() == host


def _new_authority(now: datetime) -> bytes:
    """Return key and certificate in one text: one file cannot hold halves of two authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Callgate egress gate")])
    builder = (
        _builder(name, key.public_key(), now, now + _AUTHORITY_LIFE)
        .subject_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    certificate = builder.sign(key, hashes.SHA256())
    return _private_pem(key) + certificate.public_bytes(serialization.Encoding.PEM)


def _builder(
    issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _parse(path: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    content, _ = read_private(path, _LIMIT_BYTES)
    try:
        key = serialization.load_pem_private_key(content, password=None)
        certificate = x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise ValueError(f"{path} holds no authority: move it away, and a new one is made") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError(f"{path} holds another key than its certificate's: move it away, and a new one is made")
    return key, certificate


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_chain(context: ssl.SSLContext, pem: bytes) -> None:
    # The library takes a file only. This one is memory, and gone when it is closed.
    descriptor = os.memfd_create("leaf", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(pem)
        stream.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
