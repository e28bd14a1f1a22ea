"""`http.request`: one request to an upstream that the deployment allows, and its answer as data."""

import base64
import json as json_text
from typing import Annotated, Any, Literal, TypedDict

import exchange

# Values deeper than this do not fit into an answer.
MAX_DEPTH = 48

# Any JSON value.
Json = Any
HeaderValue = Annotated[str, ("maxLength", 8192)]


class Header(TypedDict):
    name: str
    value: str


class Source(TypedDict):
    """Where the answer came from."""

    url: Annotated[str, "The address that was asked for."]
    final_url: Annotated[str, "The address that answered."]
    fetched_at: Annotated[str, "When, in UTC.", ("format", "date-time")]
    sha256: Annotated[str, "Digest of the body's bytes that were kept.", ("pattern", "^[0-9a-f]{64}$")]


class Response(TypedDict):
    status: Annotated[int, "The status code; one that says failure is an answer too."]
    headers: list[Header]
    json: Annotated[Json, "The body where it is JSON, else null."]
    text: Annotated[str | None, "The body where it is other text, else null."]
    base64: Annotated[str | None, "The body where it is neither, else null."]
    size_bytes: Annotated[int, "How many bytes of the body were kept."]
    truncated: Annotated[bool, "There was more, which was left out."]
    source: Source


def request(
    *,
    url: Annotated[str, ("maxLength", 8192)],
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] = "GET",
    headers: Annotated[dict[str, HeaderValue], ("maxProperties", 64)] | None = None,
    body: Annotated[str, ("maxLength", 1_000_000)] | None = None,
    json: Json = None,
    follow_redirects: bool = False,
    max_bytes: Annotated[int, ("minimum", 1), ("maximum", 524_288)] = 262_144,
) -> Response:
    """Send an HTTP request to an address that the gateway allows, and get the answer as data.

    Args:
        url: The address, with its query. Credentials are the gateway's to add.
        method: The method.
        headers: Further headers.
        body: The body as text; say in `headers` what type it is of.
        json: The body as a JSON value, instead of `body`.
        follow_redirects: Follow where a GET or HEAD is redirected to, if the gateway allows that address too.
        max_bytes: Keep at most this much of the answer's body.
    """
    sent, content = dict(headers or {}), None if body is None else body.encode()
    if json is not None:
        if body is not None:
            raise SystemExit("Give either `body` or `json`.")
        content = json_text.dumps(json, ensure_ascii=False).encode()
        if not any(name.lower() == "content-type" for name in sent):
            sent["Content-Type"] = "application/json"
    reply = exchange.exchange(
        method, url, headers=sent, body=content, limit_bytes=int(max_bytes), follow=follow_redirects
    )
    return {
        "status": reply.status,
        "headers": [{"name": name, "value": value} for name, value in reply.headers],
        **_body(reply),
        "size_bytes": len(reply.body),
        "truncated": reply.truncated,
        "source": reply.source,
    }


def _body(reply: exchange.Reply) -> dict[str, Any]:
    """Return the body in the first of three shapes that holds it exactly."""
    text = reply.text()
    shapes: dict[str, Any] = {"json": None, "text": None, "base64": None}
    if text is None:
        shapes["base64"] = base64.b64encode(reply.body).decode()
    elif (value := _json(reply, text)) is not None:
        shapes["json"] = value
    else:
        shapes["text"] = text
    return shapes


def _json(reply: exchange.Reply, text: str) -> Json:
    """Return the value of a JSON body, None if it is none, or none that a second reader would read as the first."""
    if reply.truncated or not (reply.media_type == "application/json" or reply.media_type.endswith("+json")):
        return None
    try:
        value = json_text.loads(text, object_pairs_hook=_object, parse_constant=_refuse, parse_int=_integer)
        # Refuses what has become infinite on the way, and lone surrogates.
        json_text.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if _depth(value) <= MAX_DEPTH else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    decoded = dict(pairs)
    if len(decoded) != len(pairs):
        raise ValueError("an object has the same key twice")
    return decoded


def _refuse(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > 100:
        raise ValueError("an integer has too many digits")
    return int(digits)


def _depth(value: Json) -> int:
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        depth += 1
        level = [
            item
            for container in level
            for item in (
                container.values() if isinstance(container, dict) else container if isinstance(container, list) else ()
            )
            if isinstance(item, dict | list)
        ]
    return depth
