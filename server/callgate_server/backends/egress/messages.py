"""HTTP messages as they go on: what a request asks for, which headers pass, and what is said when nothing does. Pure.

Everything here has been parsed by h11 and is written by h11 again: the upstream sees the gate's own framing, and no
byte by which it could find another request in it than the one that was judged.
"""

import math
import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Final

import h11

from callgate_server.backends.egress.credentials import Header
from callgate_server.backends.egress.pipes import RefusedError
from callgate_server.execution.egress_names import plain_authority, plain_path, split_absolute
from callgate_server.execution.egress_rules import Why
from callgate_server.model import strict_json
from callgate_server.model.egress import DEFAULT_PORTS, EgressAsk

Headers = list[tuple[bytes, bytes]]

_METHOD: Final = re.compile(rb"[A-Z]{1,20}")
# TRACE sends back what the gate added to the request.
_REFUSED_METHODS: Final = frozenset({b"CONNECT", b"TRACE", b"TRACK"})
# Of one connection, not of the message (RFC 9110, section 7.6.1), or written anew by the gate.
_OWN: Final = frozenset(
    b"connection keep-alive te trailer transfer-encoding upgrade http2-settings expect host content-length".split()
)
# By these some upstreams take another method or another path than those that were judged.
_OVERRIDES: Final = frozenset(
    (
        *(b"x-http-method", b"x-http-method-override", b"x-method-override"),
        *(b"x-original-uri", b"x-original-url", b"x-rewrite-url"),
    )
)
# What a proxy says of its client, which the upstream may believe of the gate's address.
_FORWARDED: Final = frozenset({b"forwarded", b"via", b"x-real-ip"})
_FORWARDED_FAMILY: Final = b"x-forwarded-"
# With a credential, the answer must come as text, and whole: a part of an echo is no form of a secret.
_UNREADABLE: Final = frozenset({b"accept-encoding", b"range", b"if-range"})
_BODILESS: Final = frozenset({204, 304})


def connect_ask(request: h11.Request) -> EgressAsk:
    """Return what a CONNECT asks for.

    Raises:
        RefusedError: `bad_request`, `bad_host`.
    """
    raw = request.target.decode("ascii")
    if has_body(request):
        raise RefusedError(Why.BAD_REQUEST, EgressAsk("https", raw, 0))
    host, port = _destination("https", raw, None)
    ask = EgressAsk("https", host, port)
    _check_host(request, ask)
    return ask


def request_ask(request: h11.Request, inside: tuple[str, int] | None) -> tuple[EgressAsk, bytes]:
    """Return what a request asks for, and its target as an upstream takes it.

    `inside` is the host and port of the TLS that it came in; without, it is a proxy's, and names its own.

    Raises:
        RefusedError: `bad_request`, `bad_host`, `bad_path`.
    """
    target = request.target.decode("ascii")
    if inside is None:
        host, port, target = _from_absolute(target)
        ask = EgressAsk("http", host, port)
    else:
        ask = EgressAsk("https", *inside)
    if not _METHOD.fullmatch(request.method) or request.method in _REFUSED_METHODS:
        raise RefusedError(Why.BAD_REQUEST, ask)
    ask = EgressAsk(ask.scheme, ask.host, ask.port, request.method.decode("ascii"))
    _check_host(request, ask)
    if any(_plain(name) in _OVERRIDES for name, _ in request.headers):
        raise RefusedError(Why.BAD_REQUEST, ask)
    if _values(request.headers, b"transfer-encoding") and _values(request.headers, b"content-length"):
        raise RefusedError(Why.BAD_REQUEST, ask)
    try:
        path = plain_path(target)
    except ValueError as error:
        raise RefusedError(Why.BAD_PATH, ask) from error
    return EgressAsk(ask.scheme, ask.host, ask.port, ask.method, path), target.encode("ascii")


def has_body(request: h11.Request) -> bool:
    """Whether something follows the head."""
    lengths = _values(request.headers, b"content-length")
    return bool(_values(request.headers, b"transfer-encoding")) or any(length.strip(b"0") for length in lengths)


def request_headers(request: h11.Request, ask: EgressAsk, header: Header | None) -> Headers:
    """Return what goes to the upstream: `header` in the place of whatever the tool put under its name."""
    dropped = _dropped(request.headers) | {_plain(name) for name, _ in request.headers if _is_forwarded(name)}
    if header is not None:
        dropped |= _UNREADABLE | {_plain(header.name)}
    onward: Headers = [(b"host", _authority(ask))]
    onward += [(name, value) for name, value in request.headers if _plain(name) not in dropped]
    if _values(request.headers, b"transfer-encoding"):
        onward.append((b"transfer-encoding", b"chunked"))
    else:
        onward += [(b"content-length", value) for value in _values(request.headers, b"content-length")]
    if header is not None:
        onward += [(b"accept-encoding", b"identity"), (header.name, header.value)]
    return onward


def is_readable(response: h11.Response, *, head: bool) -> bool:
    """Whether the body is plain, as was asked for, so that an echoed credential can be seen in it."""
    plain = all(value.lower() == b"identity" for value in _values(response.headers, b"content-encoding"))
    return plain or _is_bodiless(response, head=head)


def response_for_tool(response: h11.Response, *, head: bool, strip: Callable[[bytes], bytes] | None) -> h11.Response:
    """Return an upstream's answer as the tool gets it. `strip` takes secrets out of text; its length may change.

    The reason phrase is the usual one: it is text that nobody needs.
    """
    dropped = _dropped(response.headers)
    headers = [(name, value) for name, value in response.headers if _plain(name) not in dropped]
    if strip is not None:
        headers = [(name, strip(value)) for name, value in headers if strip(name) == name]
    if strip is None or _is_bodiless(response, head=head):
        headers += [(b"content-length", value) for value in _values(response.headers, b"content-length")]
    return h11.Response(status_code=response.status_code, headers=headers, reason=_phrase(response.status_code))


def plain_answer(
    error: str, why: Why, mark: str, *, last: bool, retry_after_s: float | None = None
) -> tuple[h11.Response, bytes]:
    """Return the gate's own words to a tool: one document, and never more. After the `last` the connection ends.

    They are in a header too, after the call's mark: by that alone they are known to be the gate's.
    """
    body = strict_json.encode({"error": error, "why": why.value})
    status = _STATUS.get(why, HTTPStatus.FORBIDDEN)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode("ascii")),
        (b"callgate-egress", f"{mark} {error} {why.value}".encode("ascii")),
    ]
    if retry_after_s is not None:
        # Whole seconds (RFC 9110, section 10.2.3), and none too few.
        headers.append((b"retry-after", str(math.ceil(retry_after_s)).encode("ascii")))
    if last:
        headers.append((b"connection", b"close"))
    return h11.Response(status_code=status, headers=headers, reason=_phrase(status)), body


_STATUS: Final = {
    Why.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    Why.CIRCUIT_OPEN: HTTPStatus.SERVICE_UNAVAILABLE,
    Why.UNRESOLVED: HTTPStatus.BAD_GATEWAY,
    Why.UNREACHABLE: HTTPStatus.BAD_GATEWAY,
    Why.BROKEN_OFF: HTTPStatus.BAD_GATEWAY,
    Why.UNTRUSTED_CERTIFICATE: HTTPStatus.BAD_GATEWAY,
    Why.TLS_FAILED: HTTPStatus.BAD_GATEWAY,
    Why.BAD_ANSWER: HTTPStatus.BAD_GATEWAY,
    Why.ENCODED_ANSWER: HTTPStatus.BAD_GATEWAY,
    Why.IDLE: HTTPStatus.GATEWAY_TIMEOUT,
}


def _from_absolute(target: str) -> tuple[str, int, str]:
    try:
        authority, rest = split_absolute(target)
    except ValueError as error:
        raise RefusedError(Why.BAD_REQUEST, EgressAsk("http", "", 0)) from error
    host, port = _destination("http", authority, DEFAULT_PORTS["http"])
    return host, port, rest


def _destination(scheme: str, authority: str, default_port: int | None) -> tuple[str, int]:
    try:
        return plain_authority(authority, default_port)
    except ValueError as error:
        ask = EgressAsk("https" if scheme == "https" else "http", authority, 0)
        raise RefusedError(Why.BAD_HOST, ask) from error


def _check_host(request: h11.Request, ask: EgressAsk) -> None:
    """See that the Host header names what the target does: an upstream may go by either.

    h11 refuses more than one, and none, but only of HTTP/1.1.
    """
    if request.http_version not in (b"1.0", b"1.1"):
        raise RefusedError(Why.BAD_REQUEST, ask)
    for value in _values(request.headers, b"host"):
        try:
            # Clients leave out the usual port of CONNECT here or not, as they like.
            named = plain_authority(value.decode("latin-1"), DEFAULT_PORTS[ask.scheme])
        except ValueError as error:
            raise RefusedError(Why.BAD_REQUEST, ask) from error
        if named != (ask.host, ask.port):
            raise RefusedError(Why.BAD_REQUEST, ask)


def _authority(ask: EgressAsk) -> bytes:
    host = f"[{ask.host}]" if ":" in ask.host else ask.host
    return (host if ask.port == DEFAULT_PORTS[ask.scheme] else f"{host}:{ask.port}").encode("ascii")


def _dropped(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """Names that end here: the gate's own, a proxy's, and those that `Connection` lists."""
    listed = {_plain(token.strip()) for value in _values(headers, b"connection") for token in value.split(b",")}
    proxy = {_plain(name) for name, _ in headers if _plain(name).startswith(b"proxy-")}
    return {*_OWN, *listed, *proxy}


def _values(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name == wanted]


def _is_bodiless(response: h11.Response, *, head: bool) -> bool:
    return head or response.status_code in _BODILESS


def _is_forwarded(name: bytes) -> bool:
    return _plain(name) in _FORWARDED or _plain(name).startswith(_FORWARDED_FAMILY)


def _plain(name: bytes) -> bytes:
    # Many an upstream's gateway interface writes both as an underscore, and takes the last.
    return name.lower().replace(b"_", b"-")


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""
