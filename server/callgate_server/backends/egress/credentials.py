"""A secret as a header on the way out, and out of what comes back.

Decides what may stand in a header at all. To which requests it is added is decided by the rules, and which forms of
a secret are looked for in an answer by `result/`, which is handed in from outside.
"""

import base64
import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
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


def values_of(credentials: Iterable[Credential]) -> dict[str, Sealed]:
    """Return what must not come back, by the name under which it is hidden: with basic authentication, the pair and
    the password that the value stands for as well."""
    values: dict[str, Sealed] = {}
    for one in credentials:
        values[one.name] = one.value
        if one.prefix.strip().lower() == "basic":
            # Raises nothing: what is no base64 is left out, and what is no pair has no password.
            with contextlib.suppress(ValueError):
                pair = base64.b64decode(one.value.reveal(), validate=True)
                values[f"{one.name}.pair"] = Sealed(pair)
                values[f"{one.name}.password"] = Sealed(pair.partition(b":")[2] or pair)
    return values
