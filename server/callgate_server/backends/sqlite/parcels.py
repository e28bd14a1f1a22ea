"""Sealing what is kept of a call: AES-256-GCM under a key of the ledger's, bound to the call's id.

Whoever reads the file without the key learns how large it is, and whoever moves it to another call, or edits it, makes
it unreadable. The nonce is random: with 96 bits and one parcel a call, a repetition is not to be expected within the
life of a key (NIST SP 800-38D allows 2^32 of them).
"""

import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from callgate_server.ledger.store import Parcel
from callgate_server.model.sealed import Sealed
from callgate_server.model.strict_json import decode, encode

_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = 4


def seal(key: Sealed, call_id: str, parcel: Parcel) -> bytes:
    """Return nonce and ciphertext. `key` has 32 bytes."""
    head = encode(
        {
            "tool_digest": parcel.tool_digest,
            "known_as": parcel.known_as,
            "deadline_ms": parcel.deadline_ms,
            "purpose": parcel.purpose,
        }
    )
    plain = len(head).to_bytes(_HEAD_BYTES, "big") + head + parcel.arguments_json
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key.reveal()).encrypt(nonce, plain, call_id.encode())


def unseal(key: Sealed, call_id: str, sealed: bytes) -> Parcel:
    """Return what was sealed for this call.

    Raises:
        ValueError: it was not sealed with this key for this call, or it was changed.
    """
    try:
        plain = AESGCM(key.reveal()).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], call_id.encode())
    except InvalidTag:
        raise ValueError("a parcel was changed, or belongs to another call") from None
    size = int.from_bytes(plain[:_HEAD_BYTES], "big")
    head = decode(plain[_HEAD_BYTES : _HEAD_BYTES + size])
    if not isinstance(head, dict):
        raise TypeError("a parcel's head is not an object")
    deadline_ms, purpose = head["deadline_ms"], head["purpose"]
    return Parcel(
        arguments_json=plain[_HEAD_BYTES + size :],
        tool_digest=str(head["tool_digest"]),
        known_as=str(head["known_as"]),
        deadline_ms=deadline_ms if isinstance(deadline_ms, int) else None,
        purpose=purpose if isinstance(purpose, str) else None,
    )
