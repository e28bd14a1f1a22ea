"""One exchange with an upstream, by way of the gate's proxy like any library's: bounded, and told where it came from.

What the upstream may be is not decided here: the gate decides each connection and each request, a redirect's too.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypedDict
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError, NewConnectionError

MAX_REDIRECTS = 5
# Until a connection is there, and between two pieces of an answer; the whole is the call's deadline.
TIMEOUT_S = (15, 45)
_CHUNK = 65536
_MOVED = (301, 302, 303, 307, 308)
# What may go along to another origin than the one it was meant for.
_HARMLESS = ("accept", "accept-language", "user-agent")
_GATE_BYTES = 200
_REFUSED_BY_THE_GATE = "The gateway does not let this tool reach that address; ask its operator for an egress rule"
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
        """Return the body as text, None if it is none."""
        charset = requests.utils.get_encoding_from_headers({"content-type": self._charset_only()}) or "utf-8"
        try:
            text = self.body.decode(charset)
        except (UnicodeDecodeError, LookupError):
            return None
        return None if "\0" in text else text

    def _charset_only(self) -> str:
        """Return the media type with the charset it names: without one `text/*` would count as Latin-1."""
        value = self.header("content-type")
        return value if "charset=" in value.lower() else ""


def exchange(
    method: str, url: str, *, headers: Mapping[str, str], body: bytes | None, limit_bytes: int, follow: bool
) -> Reply:
    """Send one request, and with `follow` those that a GET or HEAD is redirected to; return the last answer.

    Raises:
        SystemExit: no answer came. The text is for the caller, and names no address.
    """
    asked = _sendable(url)
    with requests.Session() as session:
        for _ in range(MAX_REDIRECTS + 1):
            try:
                reply, onward = _send(session, method, url, headers, body, limit_bytes)
            except (requests.RequestException, HTTPError) as error:
                raise SystemExit(_said(error)) from None
            _refuse_words_of_the_gate(reply)
            reply.source["url"] = asked
            if onward is None or not follow or method not in ("GET", "HEAD"):
                return reply
            if _origin(_sendable(onward)) != _origin(url):
                headers = {name: value for name, value in headers.items() if name.lower() in _HARMLESS}
            url = onward
    raise SystemExit(f"The upstream redirects more than {MAX_REDIRECTS} times.")


def _send(
    session: requests.Session, method: str, url: str, headers: Mapping[str, str], body: bytes | None, limit_bytes: int
) -> tuple[Reply, str | None]:
    """Return one answer, and where it redirects to."""
    with session.request(
        method, url, headers=headers, data=body, timeout=TIMEOUT_S, allow_redirects=False, stream=True
    ) as response:
        content = bytearray()
        for chunk in response.raw.stream(_CHUNK, decode_content=True):
            content += chunk
            if len(content) > limit_bytes:
                break
        target = session.get_redirect_target(response)
        onward = requests.compat.urljoin(url, target) if target and response.status_code in _MOVED else None
        received = list(response.raw.headers.iteritems())
        source = Source(
            url=url,
            final_url=url,
            fetched_at=datetime.now(UTC).isoformat(timespec="seconds"),
            sha256=hashlib.sha256(content[:limit_bytes]).hexdigest(),
        )
        cut = len(content) > limit_bytes
        return Reply(response.status_code, received, bytes(content[:limit_bytes]), cut, source), onward


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


def _refuse_words_of_the_gate(reply: Reply) -> None:
    """Tell what the gate says in an upstream's place from an upstream's answer.

    Raises:
        SystemExit: it was the gate.
    """
    if reply.status < requests.codes.bad_request or len(reply.body) > _GATE_BYTES:
        return
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError):
        return
    if not isinstance(document, dict) or document.keys() != {"error", "why"}:
        return
    why = str(document["why"])[:40]
    if document["error"] == "egress_refused":
        raise SystemExit(f"{_REFUSED_BY_THE_GATE} ({why}).")
    if document["error"] == "egress_failed":
        raise SystemExit(f"The gateway could not bring back an answer of the upstream ({why}).")


def _said(error: Exception) -> str:
    cause = error.args[0] if error.args else None
    match error:
        case requests.exceptions.ProxyError():
            return f"{_REFUSED_BY_THE_GATE}."
        case requests.exceptions.SSLError():
            return "The upstream's certificate is not valid for that address."
        case requests.exceptions.ConnectTimeout() | requests.exceptions.ReadTimeout():
            return "The upstream did not answer in time."
        case requests.exceptions.ConnectionError() if isinstance(getattr(cause, "reason", None), NewConnectionError):
            # A sandbox with rules has the gate for a proxy, and would not have tried by itself.
            return _NO_RULES
        case requests.exceptions.InvalidHeader() | requests.exceptions.InvalidURL():
            return "The address or a header has a character that it may not have."
        case requests.exceptions.ConnectionError() | requests.exceptions.RequestException() | HTTPError():
            return "The connection to the upstream failed, or ended before its answer was complete."
        case _:
            return "The request failed."
