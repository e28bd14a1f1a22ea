"""What a tool may write as a host, an authority, a target or a path, and the one form in which it is judged. Pure.

Decides what is refused because it could be read in two ways: by this gate in one and by a resolver, a library or
the upstream in the other. It does not decide where anything may go; `egress_rules.py` does, on these forms.
"""

import re
import unicodedata
from ipaddress import IPv4Address, IPv6Address
from typing import Final
from urllib.parse import unquote

_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*")
# "Ends in a number" (WHATWG URL, host parsing): resolvers take such names for IPv4 addresses, in octal, in
# hexadecimal and with fewer parts than four. Only the plain dotted form may be one.
_NUMERIC: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_AUTHORITY: Final = re.compile(r"(?P<host>\[[^\[\]]*\]|[^\[\]:]+)(:(?P<port>[0-9]{1,5}))?")
_ABSOLUTE: Final = re.compile(r"http://(?P<authority>[^/?#]+)(?P<rest>[/?][^#]*)?", re.IGNORECASE)
_ORIGIN: Final = re.compile(r"/[^#]*")
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# An encoded slash separates segments for some upstreams, an encoded percent sign hides another escape.
_KEPT_ESCAPES: Final = (b"/", b"%")
_MAX_NAME: Final = 253
_MOST_DECODED: Final = 4


def plain_host(text: str) -> str:
    """Return a host in the one form in which it is compared: lower case, no final dot, no brackets.

    Raises:
        ValueError: it is not plain ASCII, holds more than a host, or could be read as another one.
    """
    if not text.isascii():
        raise ValueError("a host is written in ASCII; international names in their xn-- form")
    lowered = text.lower()
    if lowered.startswith("["):
        return _bracketed(lowered)
    host = lowered.removesuffix(".")
    if len(host) > _MAX_NAME or not _NAME.fullmatch(host):
        raise ValueError("not the name of a host")
    if _NUMERIC.fullmatch(host.rsplit(".", 1)[-1]):
        return str(IPv4Address(host))
    return host


def plain_authority(text: str, default_port: int | None) -> tuple[str, int]:
    """Return host and port of `host[:port]`.

    Raises:
        ValueError: it is not that (user information is never part of it), or no port is given where none is usual.
    """
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        raise ValueError("not a host and a port")
    port = int(found["port"]) if found["port"] else default_port
    if port is None or not 1 <= port <= 65535:
        raise ValueError("not a port")
    return plain_host(found["host"]), port


def split_absolute(target: str) -> tuple[str, str]:
    """Return the authority of a target `http://authority/path?query`, and what follows it.

    Raises:
        ValueError: it is not such a target.
    """
    found = _ABSOLUTE.fullmatch(target)
    if found is None:
        raise ValueError("not an absolute target of plain http")
    rest = found["rest"] or "/"
    return found["authority"], rest if rest.startswith("/") else "/" + rest


def plain_path(target: str) -> str:
    """Return the path of a target `/path?query`, each escape decoded once, without the query.

    `%2F` and `%25` stay, so that what the result means does not depend on who reads it.

    Raises:
        ValueError: it is not such a target; an escape is malformed or not UTF-8; or there is a dot segment, a
            backslash or a control character, which upstreams read differently.
    """
    if not target.isascii() or not _ORIGIN.fullmatch(target):
        raise ValueError("not a path")
    raw = target.partition("?")[0].encode()
    if _BAD_ESCAPE.search(raw):
        raise ValueError("a malformed escape")
    path = _ESCAPE.sub(_decoded, raw).decode("utf-8")
    if "\\" in path or _CONTROL.search(path):
        raise ValueError("a backslash or a control character in a path")
    if any(segment.partition(";")[0] in (".", "..") for segment in path.replace("%2F", "/").split("/")):
        raise ValueError("a dot segment in a path")
    return path


def is_certain(path: str) -> bool:
    """Whether no upstream reads a path from `plain_path` in another way: only such a one can meet a condition.

    Empty segments are merged by some, parameters after `;` dropped, `%` decoded again, and what is not ASCII is
    mapped to what is.
    """
    return path.isascii() and not re.search(r"[%;?#]|//", path)


def loosest_path(path: str) -> str:
    """Return a path from `plain_path` as the most liberal upstream reads it: every escape decoded, characters mapped
    to their plain ones, parameters dropped, empty and dot segments resolved. It says the same of a certain one.

    Raises:
        ValueError: escapes hide escapes, deeper than anybody decodes.
    """
    for _ in range(_MOST_DECODED):
        path = unquote(path)
    if unquote(path) != path:
        raise ValueError("escapes within escapes")
    path = re.split(r"[?#]", unicodedata.normalize("NFKC", path).replace("\\", "/"), maxsplit=1)[0]
    segments: list[str] = []
    for segment in (part.partition(";")[0] for part in path.split("/")):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    return "/" + "/".join(segments) + ("/" if segments and path.endswith("/") else "")


def path_matches(pattern: str, path: str) -> bool:
    """Whether a path meets a declared pattern: a segment `*` stands for any one, at the end for any rest."""
    wanted, given = pattern.split("/"), path.split("/")
    if wanted[-1] == "*":
        wanted.pop()
        if len(given) <= len(wanted):
            return False
        del given[len(wanted) :]
    if len(wanted) != len(given):
        return False
    return all(have == want or (want == "*" and have) for want, have in zip(wanted, given, strict=True))


def host_matches(pattern: str, host: str) -> bool:
    """Whether a plain host is the declared one; `*.` stands for exactly one label, as in certificates."""
    if not pattern.startswith("*."):
        return host == pattern
    first, _, rest = host.partition(".")
    return bool(first) and rest == pattern[2:] and not _NUMERIC.fullmatch(rest.rsplit(".", 1)[-1])


def _bracketed(text: str) -> str:
    # A zone (`%eth0`) would choose the interface: the gate's, not the sandbox's.
    if not text.endswith("]") or "%" in text:
        raise ValueError("not an IPv6 address")
    return str(IPv6Address(text[1:-1]))


def _decoded(escape: re.Match[bytes]) -> bytes:
    value = bytes.fromhex(escape[1].decode())
    return escape[0].upper() if value in _KEPT_ESCAPES else value
