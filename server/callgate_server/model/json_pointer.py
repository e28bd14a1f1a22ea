"""JSON Pointer (RFC 6901): how a key stands in one, and how one that somebody chose may stand in a message."""

from typing import Final

_LONGEST_SHOWN: Final = 64


def escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def unescaped(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


def visible(key: str) -> str:
    """A key as it may stand in a message: short, printable ASCII, or an ellipsis instead."""
    return key if len(key) <= _LONGEST_SHOWN and key.isascii() and key.isprintable() else "…"


def shown(key: str) -> str:
    """A key as it may stand in the pointer of a message."""
    return escaped(visible(key))
