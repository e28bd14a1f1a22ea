"""How a secret may look in what a tool gives back: every encoding that redaction covers, and no other.

Covered: the bytes themselves, also in lower case (as names of hosts are written); base64 (standard and URL-safe, at
each of the three alignments, padded or not, wrapped at 64 or 76 columns); hexadecimal (both cases, plain, separated,
wrapped at 60 columns, `\\x` escapes); percent encoding (from minimal to complete, both cases, `+` for a space); JSON
string escapes, once and twice; Python escapes; HTML entities (named, decimal, hexadecimal); all of it reversed byte by
byte or character by character. Each line of a secret of several lines counts as a secret.

Not covered, because no list of encodings ends: compression, encryption, rot13, other character sets, characters
put between, pieces printed apart. A tool that means to leak a secret it was given can; policy decides which tool
is given which secret, and the sandbox has no network to send it through.
"""

import base64
import html
import html.entities
import json
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, quote_plus

# A line shorter than this would redact ordinary text.
MIN_LINE_BYTES: Final = 8
# Above this, the rarer encodings are left out: a key file of many lines would make a matcher of many megabytes.
_LONG_BYTES: Final = 1024
_HEX_SEPARATORS: Final = (":", " ", "-", ", 0x")
_PEM_BORDER: Final = re.compile(rb"-----(BEGIN|END) [A-Z0-9 ]+-----")
_PERCENT: Final = re.compile(r"%[0-9A-F]{2}")
_UNICODE_ESCAPE: Final = re.compile(r"\\u[0-9a-f]{4}")
# What encodeURI and encodeURIComponent leave as it is (ECMA-262, section 19.2.6).
_URI_COMPONENT_SAFE: Final = "!'()*"
_URI_SAFE: Final = ";,/?:@&=+$#" + _URI_COMPONENT_SAFE


def forms(secret: bytes) -> frozenset[bytes]:
    """Return every covered form of `secret`, itself included. Time and size are linear in the secret's length.

    Raises:
        ValueError: the secret is empty.
    """
    if not secret.strip():
        raise ValueError("an empty secret has no form to look for")
    found: set[bytes] = set()
    for value in {secret, secret.strip(), *_lines(secret)}:
        found.update(_common(value))
        if len(secret) <= _LONG_BYTES:
            found.update(_rare(value))
    return frozenset(found)


def _lines(secret: bytes) -> set[bytes]:
    lines = {line.strip() for line in secret.splitlines()}
    return {line for line in lines if len(line) >= MIN_LINE_BYTES and not _PEM_BORDER.fullmatch(line)}


def _common(value: bytes) -> Iterator[bytes]:
    yield value
    yield value.lower()
    yield value[::-1]
    yield from _base64(value)
    yield value.hex().encode()
    yield value.hex().upper().encode()
    yield quote(value, safe="").encode()
    text = _text(value)
    if text is not None:
        yield json.dumps(text)[1:-1].encode()
        yield json.dumps(text, ensure_ascii=False)[1:-1].encode()


def _rare(value: bytes) -> Iterator[bytes]:
    yield from _hexadecimal(value)
    yield from _percent(value)
    yield repr(value)[2:-1].encode()
    # How the runner shows the name of a file that it did not take.
    yield ascii(value.decode(errors="surrogateescape"))[1:-1].encode()
    text = _text(value)
    if text is not None:
        yield text[::-1].encode()
        yield repr(text)[1:-1].encode()
        yield from _json(text)
        yield from _entities(text)


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _base64(value: bytes) -> Iterator[bytes]:
    """Whatever stands before the secret shifts it by 0, 1 or 2 bytes.

    The characters that also hold bits of a neighbour are left out, so the form is found between any neighbours;
    a second form runs to the end of the encoding, where there is none.
    """
    for shift in range(3):
        padded = base64.b64encode(b"\0" * shift + value)
        begin = -(-8 * shift // 6)
        certain = 8 * (shift + len(value)) // 6
        for encoded in (padded[begin:certain], padded[begin:], padded[begin:].rstrip(b"=")):
            yield encoded
            yield encoded.translate(bytes.maketrans(b"+/", b"-_"))
    for columns in (64, 76):
        yield _wrapped(base64.b64encode(value), columns)


def _hexadecimal(value: bytes) -> Iterator[bytes]:
    shapes = [value.hex(" ").replace(" ", separator) for separator in _HEX_SEPARATORS]
    shapes.append("\\x" + value.hex(" ").replace(" ", "\\x"))
    shapes.append(_wrapped(value.hex().encode(), 60).decode())
    for shape in shapes:
        yield shape.encode()
        # Upper-case digits; the x of a prefix stays small.
        yield shape.upper().replace("X", "x").encode()


def _percent(value: bytes) -> Iterator[bytes]:
    every_byte = "".join(f"%{byte:02X}" for byte in value)
    safes = ("", "/", _URI_COMPONENT_SAFE, _URI_SAFE)
    shapes = [every_byte, quote_plus(value), *(quote(value, safe=safe) for safe in safes)]
    for shape in shapes:
        yield shape.encode()
        yield _PERCENT.sub(lambda match: match[0].lower(), shape).encode()


def _json(text: str) -> Iterator[bytes]:
    units = text.encode("utf-16-be")
    every_unit = "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
    ascii_only = json.dumps(text)[1:-1]
    plain = json.dumps(text, ensure_ascii=False)[1:-1]
    markup_safe = re.sub("[<>&']", lambda match: f"\\u{ord(match[0]):04x}", ascii_only)
    for shape in (every_unit, ascii_only, plain, markup_safe):
        for variant in (shape, shape.replace("/", "\\/"), json.dumps(shape, ensure_ascii=False)[1:-1]):
            yield variant.encode()
            yield _UNICODE_ESCAPE.sub(lambda match: "\\u" + match[0][2:].upper(), variant).encode()


def _entities(text: str) -> Iterator[bytes]:
    yield html.escape(text, quote=False).encode()
    for apostrophe in ("&#x27;", "&#39;", "&apos;"):
        yield html.escape(text).replace("&#x27;", apostrophe).encode()
    yield "".join(_named_entity(character) for character in text).encode()
    yield "".join(f"&#{ord(character)};" for character in text).encode()
    yield "".join(f"&#x{ord(character):x};" for character in text).encode()
    yield "".join(f"&#x{ord(character):X};" for character in text).encode()


def _named_entity(character: str) -> str:
    name = html.entities.codepoint2name.get(ord(character))
    return f"&{name};" if name else character


def _wrapped(encoded: bytes, columns: int) -> bytes:
    return b"\n".join(encoded[at : at + columns] for at in range(0, len(encoded), columns))
