"""A secret as a header on the way out, and out of what comes back.

Decides what may stand in a header at all. To which requests it is added is decided by the rules, and which forms of
a secret are looked for in an answer by `result/`, which is handed in from outside.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from callgate_server.model.egress import Credential
from callgate_server.model.sealed import Sealed

# A line break in a secret would begin another header.
_VALUE: Final = re.compile(rb"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


@dataclass(frozen=True, slots=True, repr=False)
class Header:
    """A header to be sent. Its value is a secret."""

    name: bytes
    value: bytes

    def __repr__(self) -> str:
        return "Header(***)"


class StreamStripper(Protocol):
    """Takes secrets out of bytes that come in pieces."""

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes, return what is certain by now."""

    def finish(self) -> bytes:
        """Return what was held back."""


class Stripper(Protocol):
    """Takes the secrets of one call out of bytes."""

    def data(self, data: bytes) -> bytes:
        """Return `data` without them."""

    def stream(self) -> StreamStripper:
        """Begin a stream."""


MakeStripper = Callable[[Mapping[str, Sealed]], Stripper]


def header_of(credential: Credential) -> Header | None:
    """Return the header of a credential, or None if its value cannot stand in one."""
    value = credential.prefix.encode("ascii") + credential.value.reveal()
    return Header(credential.header.encode("ascii"), value) if _VALUE.fullmatch(value) else None
