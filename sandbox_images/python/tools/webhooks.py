"""`webhooks.sign`: signs what a caller wants to send with a key that the caller never sees."""

import hashlib
import hmac
import time
from typing import Annotated, Literal, TypedDict

KEY_FILE = "/run/secrets/key"
# As long as the hash (RFC 2104, section 3); what is shorter can be guessed from one signature.
MIN_KEY_BYTES = 32


class Signature(TypedDict):
    signature: Annotated[str, "HMAC in hex.", ("pattern", "^[0-9a-f]{64}$")]
    timestamp: Annotated[int, "Unix seconds of the signature; send it along."]
    algorithm: Literal["hmac-sha256"]


def sign(payload: Annotated[str, ("maxLength", 262_144)]) -> Signature:
    """Sign `timestamp.payload` with the tenant's webhook key. The time is the signer's, never the caller's.

    Args:
        payload: The body that will be sent, exactly.
    """
    with open(KEY_FILE, "rb") as file:
        key = file.read()
    if len(key) < MIN_KEY_BYTES:
        raise SystemExit(f"The webhook key is shorter than {MIN_KEY_BYTES} bytes; store a longer one.")
    timestamp = int(time.time())
    signature = hmac.new(key, f"{timestamp}.{payload}".encode(), hashlib.sha256).hexdigest()
    return {"signature": signature, "timestamp": timestamp, "algorithm": "hmac-sha256"}
