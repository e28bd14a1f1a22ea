"""`callgated check-config`: all that `serve` loads before it touches engine, secret store and record.

What only they know (an image that is gone, a secret id that is refused, an address that is taken) is not looked at.
"""

import os
import ssl
from typing import Final

from callgate_server.backends import api_keys
from callgate_server.backends.catalog.manifests import declarations, image_folders
from callgate_server.backends.egress.dialler import trust
from callgate_server.backends.sqlite.files import load_key
from callgate_server.config import Listen, Settings, as_decided, deployed_catalog
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.parts import basis

_NO_IMAGE: Final = "sha256:" + "0" * 64


def check(settings: Settings) -> list[str]:
    """Return what is to be known of a configuration that is right, most of all what could not be checked.

    Raises:
        ValueError, OSError: `serve` would refuse it; the text is the same, and says what to do.
    """
    remarks: list[str] = []
    if settings.catalog.lock.exists():
        catalog = deployed_catalog(settings)
    else:
        catalog = as_decided(settings, _unpinned(settings))
        remarks.append(
            "not checked: that tools and images are those that were reviewed; "
            f"{settings.catalog.lock} does not exist: run `callgated catalog build`"
        )
    purpose = _purpose(settings)
    if purpose == "dev":
        remarks.append("its keys are for `callgated dev`; `callgated serve` refuses them")
    basis(settings, catalog, purpose, lambda _: None)
    if os.path.lexists(settings.ledger.key_file):
        load_key(settings.ledger.key_file)
    for edge in (settings.http, settings.grpc):
        _check_certificate(edge)
    if settings.egress is not None:
        trust(settings.egress.ca_file)
    return remarks


def _unpinned(settings: Settings) -> Catalog:
    """The catalog as the manifests have it, before anything is built."""
    manifests = [each.manifest() for each in declarations(image_folders(settings.catalog.directories).values())]
    return Catalog.of(*(Tool.pin(manifest, _NO_IMAGE) for manifest in manifests))


def _purpose(settings: Settings) -> api_keys.Purpose:
    """What its keys are for: the configuration that `callgated dev` writes may be checked too."""
    file = settings.auth.api_keys_file
    return "production" if file is None else api_keys.load(file).purpose


def _check_certificate(edge: Listen | None) -> None:
    if edge is None or edge.tls is None:
        return
    for path in (edge.tls.cert_file, edge.tls.key_file):
        # An error of the TLS library does not name the file.
        path.open("rb").close()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(edge.tls.cert_file, edge.tls.key_file)
    except ssl.SSLError:
        raise ValueError(f"{edge.tls.cert_file} and {edge.tls.key_file} are no certificate and its key") from None
