"""One exchange with an upstream, by way of the gate's proxy like any library's: bounded, and told where it came from.

What the upstream may be is not decided here: the gate decides each connection and each request, a redirect's too.
Whoever is away for now is told from a failure by the exit status, but only where nothing can have come of the request.
"""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn, TypedDict
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError, NewConnectionError, ProtocolError

MAX_REDIRECTS = 5
# Until a connection is there, and between two pieces of an answer; the whole is the call's deadline.
TIMEOUT_S = (15, 45)
_CHUNK = 65536
_MOVED = (301, 302, 303, 307, 308)
# These ask for the same request again, its body included (RFC 9110, sections 15.4.8 and 15.4.9).
_AS_IT_WAS = (307, 308)
# What may go along to another origin than the one it was meant for.
_HARMLESS = ("accept", "accept-language", "user-agent")
# Of the gate's own words: its header, and the mark of this call at the beginning of its value.
_GATES = "callgate-egress"
_MARK = "CALLGATE_EGRESS_MARK"
# EX_TEMPFAIL: nothing is wrong with the call, and another attempt may do it.
_NOT_NOW = 75
_UNAVAILABLE = (502, 503, 504)
# Why the gate says that: of a request that it has not sent, and of one that may have reached the upstream.
_UNSENT = ("unresolved", "unreachable", "circuit_open")
_CUT_OFF = ("broken_off", "idle")
_REFUSED_BY_THE_GATE = "The gateway does not let this tool reach that address; ask its operator for an egress rule"
_AWAY = "The upstream cannot be reached for now"
_NO_RULES = (
    "This tool has no egress rule here and reaches nothing; ask the gateway's operator to name what it may reach."
)


class Source(TypedDict):
    url: str
    final_url: str
    fetched_at: str
    sha256: str


@dataclass(frozen=True)
class Reply:
    """An upstream's answer. `body` is decoded as its Content-Encoding says, and cut at the limit if `truncated`."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    truncated: bool
    source: Source

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    @property
    def media_type(self) -> str:
        return self.header("content-type").partition(";")[0].strip().lower()

    def text(self) -> str | None:
        """Return the body as text, None if it is none, or none that could be handed on."""
        charset = requests.utils.get_encoding_from_headers({"content-type": self._charset_only()}) or "utf-8"
        try:
            text = self.body.decode(charset)
            # Some codecs give halves of characters.
            text.encode()
        except (ValueError, LookupError):
            return None
        return None if "\0" in text else text

    def _charset_only(self) -> str:
        """Return the media type with the charset it names: without one `text/*` would count as Latin-1."""
        value = self.header("content-type")
        return value if "charset=" in value.lower() else ""


def exchange(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes | None,
    limit_bytes: int,
    follow: bool,
    reads: bool = False,
) -> Reply:
    """Send one request, and with `follow` those that a GET or HEAD is redirected to; return the last answer.

    `reads` says that the tool has no effect, whatever became of its requests.

    Raises:
        SystemExit: no answer came. What is said is for the caller, and names no address. With status 75 another attempt
            may have one, and this one has had no effect.
    """
    asked = _sendable(url)
    with _Session() as session:
        for hop in range(MAX_REDIRECTS + 1):
            try:
                reply = _send(session, method, url, headers, body, limit_bytes)
            except (requests.RequestException, HTTPError) as error:
                _end(_said(error), not_now=_is_cut_off(error) if reads else hop == 0 and _is_unsent(error))
            _refuse_words_of_the_gate(reply, _UNSENT + _CUT_OFF if reads else _UNSENT if hop == 0 else ())
            reply.source["url"] = asked
            onward = _onward(reply) if follow and method in ("GET", "HEAD") else None
            if onward is None:
                return reply
            if _origin(_sendable(onward)) != _origin(url):
                if body is not None and reply.status in _AS_IT_WAS:
                    # Without it that would be another request, and the body was meant for the one origin.
                    return reply
                headers = {name: value for name, value in headers.items() if name.lower() in _HARMLESS}
                body = None
            url = onward
    raise SystemExit(f"The upstream redirects more than {MAX_REDIRECTS} times.")


class _Session(requests.Session):
    def get_redirect_target(self, _: requests.Response) -> None:
        """Leave redirects to us. The library would look into those that it is not to follow: read their bodies to the
        end, and fail by those that lead nowhere."""


def _send(
    session: requests.Session, method: str, url: str, headers: Mapping[str, str], body: bytes | None, limit_bytes: int
) -> Reply:
    """Return one answer."""
    with session.request(
        method, url, headers=headers, data=body, timeout=TIMEOUT_S, allow_redirects=False, stream=True
    ) as response:
        content = bytearray()
        for chunk in response.raw.stream(_CHUNK, decode_content=True):
            content += chunk
            if len(content) > limit_bytes:
                break
        received = list(response.raw.headers.iteritems())
        source = Source(
            url=url,
            final_url=url,
            fetched_at=datetime.now(UTC).isoformat(timespec="seconds"),
            sha256=hashlib.sha256(content[:limit_bytes]).hexdigest(),
        )
        cut = len(content) > limit_bytes
        return Reply(response.status_code, received, bytes(content[:limit_bytes]), cut, source)


def _onward(reply: Reply) -> str | None:
    """Return where an answer redirects to, None where that is nowhere."""
    target = reply.header("location")
    if not target or reply.status not in _MOVED:
        return None
    try:
        # Headers come as Latin-1; in this one UTF-8 is usual.
        return urljoin(reply.source["final_url"], target.encode("latin-1").decode())
    except ValueError:
        return None


def _sendable(url: str) -> str:
    """Return the address if it is one of the web, without credentials in it.

    Raises:
        SystemExit: it is not.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise SystemExit("The address must begin with http:// or https:// and name a host.")
    if "@" in parts.netloc:
        raise SystemExit("The address must hold no user name or password; the gateway adds credentials.")
    return url


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]


def _refuse_words_of_the_gate(reply: Reply, passing: Sequence[str]) -> None:
    """Tell what the gate says in an upstream's place from an upstream's answer. `passing` are reasons that pass.

    Only the gate knows the mark: an upstream that uses its words has answered.

    Raises:
        SystemExit: it was the gate.
    """
    mark, *words = reply.header(_GATES).split(" ")
    if not mark or mark != os.environ.get(_MARK):
        return
    error, why = words
    not_now = why in passing
    if why in _UNSENT:
        _end(f"{_AWAY} ({why}).", not_now=not_now)
    if error == "egress_refused":
        raise SystemExit(f"{_REFUSED_BY_THE_GATE} ({why}).")
    _end(f"The gateway could not bring back an answer of the upstream ({why}).", not_now=not_now)


def _end(text: str, *, not_now: bool) -> NoReturn:
    if not_now:
        sys.stderr.write(f"{text}\n")
        raise SystemExit(_NOT_NOW)
    raise SystemExit(text)


def _is_unsent(error: Exception) -> bool:
    """Whether there was no connection to send the request on, because whoever it was for is away."""
    return isinstance(error, requests.exceptions.ConnectTimeout) or _is_tunnel_unavailable(error)


def _is_cut_off(error: Exception) -> bool:
    """Whether the upstream is away, or went away before it began to answer."""
    match error:
        case requests.exceptions.ReadTimeout():
            return True
        case requests.exceptions.ConnectionError(args=(ProtocolError(args=(_, ConnectionError())),)):
            return True
        case _:
            return _is_unsent(error)


def _is_tunnel_unavailable(error: Exception) -> bool:
    """Whether the gate opened no tunnel because it could not reach the upstream. Its words are nowhere else."""
    words = tuple(f"Tunnel connection failed: {status}" for status in _UNAVAILABLE)
    cause = getattr(_cause(error), "original_error", None)
    return isinstance(error, requests.exceptions.ProxyError) and str(cause).startswith(words)


def _cause(error: Exception) -> object:
    return getattr(error.args[0] if error.args else None, "reason", None)


def _said(error: Exception) -> str:
    match error:
        case requests.exceptions.ProxyError() if _is_tunnel_unavailable(error):
            return f"{_AWAY}."
        case requests.exceptions.ProxyError():
            return f"{_REFUSED_BY_THE_GATE}."
        case requests.exceptions.SSLError():
            return "The upstream's certificate is not valid for that address."
        case requests.exceptions.ConnectTimeout() | requests.exceptions.ReadTimeout():
            return "The upstream did not answer in time."
        case requests.exceptions.ConnectionError() if isinstance(_cause(error), NewConnectionError):
            # A sandbox with rules has the gate for a proxy, and would not have tried by itself.
            return _NO_RULES
        case requests.exceptions.InvalidHeader() | requests.exceptions.InvalidURL():
            return "The address or a header has a character that it may not have."
        case requests.exceptions.ConnectionError() | requests.exceptions.RequestException() | HTTPError():
            return "The connection to the upstream failed, or ended before its answer was complete."
        case _:
            return "The request failed."
