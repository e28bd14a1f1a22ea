"""`messages.post`: one message to a webhook, told apart from its repetitions by a key.

The key is in the `Idempotency-Key` header. The same message to the same address has the same key unless the caller
gives another, so that an upstream which heeds it posts a message that is sent again only once.
"""

import hashlib
import json
from typing import Annotated, TypedDict

import exchange

_KEPT_BYTES = 4096
_SUCCESS = range(200, 300)
_CALLERS_FAULT = range(400, 500)


class Posted(TypedDict):
    status: Annotated[int, "The upstream's status code, one of success.", ("minimum", 200), ("maximum", 299)]
    idempotency_key: Annotated[str, "The key that the upstream was given."]
    reply: Annotated[str, "The beginning of what the upstream said; empty where that is not text."]


def post(
    url: Annotated[str, ("maxLength", 2048)],
    text: Annotated[str, ("minLength", 1), ("maxLength", 40_000)],
    fields: Annotated[dict[str, Annotated[str, ("maxLength", 8192)]], ("maxProperties", 32)] | None = None,
    idempotency_key: Annotated[str, ("minLength", 1), ("maxLength", 200), ("pattern", "^[!-~]+$")] | None = None,
) -> Posted:
    """Post a message to a webhook, as JSON with `text` and further fields. The gateway adds the credential.

    Args:
        url: The webhook's address.
        text: The message.
        fields: Further members of the JSON object, like `channel`.
        idempotency_key: What makes this message one; the same key is posted once by upstreams that heed it.
    """
    if "text" in (fields or {}):
        raise SystemExit("`text` is given beside `fields`, not in it.")
    body = json.dumps({**(fields or {}), "text": text}, sort_keys=True, ensure_ascii=False).encode()
    key = idempotency_key or hashlib.sha256(url.encode() + b"\n" + body).hexdigest()
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    reply = exchange.exchange("POST", url, headers=headers, body=body, limit_bytes=_KEPT_BYTES, follow=False)
    if reply.status not in _SUCCESS:
        if reply.status in _CALLERS_FAULT:
            raise SystemExit(f"The upstream refused the message with status {reply.status}.")
        raise SystemExit(
            f"The upstream answered {reply.status}; whether it has the message is not known. "
            f"To post it again and not twice, give the idempotency key {key}."
        )
    return {"status": reply.status, "idempotency_key": key, "reply": reply.text() or ""}
