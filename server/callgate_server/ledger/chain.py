"""The append-only chain of events: how each event is bound to the one before it, and how a break is found. Pure.

An event's hash is an HMAC over the hash before it and everything in the event, so whoever lacks the ledger's key
cannot edit, remove, insert or reorder events unnoticed. Two things a chain cannot know by itself: that its tail
was cut off (the store checks every row against its last event, and an operator may keep a head elsewhere and
expect it again), and what somebody does who holds the key.
"""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from callgate_server.ledger.store import ChainReport
from callgate_server.model.sealed import Sealed
from callgate_server.model.strict_json import decode, encode

# What the first event builds on.
GENESIS: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `at` is ISO 8601 in UTC, `body` canonical JSON of an object, `hash` hex."""

    seq: int
    at: str
    call_id: str
    kind: str
    body: str
    hash: str


@dataclass(frozen=True, slots=True)
class Head:
    """The place the chain has reached. Written `seq:hash`, so that it can be kept somewhere else."""

    seq: int = 0
    hash: str = GENESIS

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Read `seq:hash`.

        Raises:
            ValueError: it does not look like one.
        """
        seq, colon, digest = text.partition(":")
        if not (
            colon and seq.isascii() and seq.isdigit() and len(digest) == 64 and set(digest) <= set("0123456789abcdef")
        ):
            raise ValueError("a head looks like `128:` followed by 64 hexadecimal digits")
        return cls(int(seq), digest)


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys derived from the ledger's one key, so that a hash made for one purpose means nothing for another."""

    chain: Sealed
    row: Sealed
    value: Sealed
    idempotency: Sealed
    spool: Sealed
    parcel: Sealed

    @classmethod
    def derive(cls, key: Sealed) -> "Keys":
        def subkey(purpose: str) -> Sealed:
            return Sealed(hmac.digest(key.reveal(), b"callgate ledger v1 " + purpose.encode(), "sha256"))

        return cls(
            subkey("chain"), subkey("row"), subkey("value"), subkey("idempotency"), subkey("spool"), subkey("parcel")
        )


def keyed_hash(key: Sealed, data: bytes) -> str:
    """HMAC-SHA256 as hex."""
    return hmac.digest(key.reveal(), data, "sha256").hex()


def follow(key: Sealed, head: Head, at: str, call_id: str, kind: str, body: str) -> Event:
    """Return the event that comes after `head`."""
    seq = head.seq + 1
    return Event(seq, at, call_id, kind, body, _link(key, head.hash, seq, at, call_id, kind, body))


def check(key: Sealed, events: Iterable[Event], expected: Head | None = None) -> ChainReport:
    """Recompute the chain from its first event and report the first fault.

    `expected` is a head that this chain is known to have had: it must still be on it.
    """
    head = Head()
    for event in events:
        if event.seq != head.seq + 1:
            return ChainReport(head.seq, head.hash, f"event {head.seq + 1} is missing: the next one is {event.seq}")
        if event.hash != _link(key, head.hash, event.seq, event.at, event.call_id, event.kind, event.body):
            fault = f"event {event.seq} does not follow from the one before it: one of them was changed"
            return ChainReport(head.seq, head.hash, fault)
        head = Head(event.seq, event.hash)
        if expected is not None and expected.seq == head.seq and expected != head:
            return ChainReport(head.seq, head.hash, f"event {head.seq} is not the one that was expected there")
    if expected is not None and expected.seq > head.seq:
        fault = f"the chain ends at event {head.seq}, but was known to reach {expected.seq}: its tail was cut off"
        return ChainReport(head.seq, head.hash, fault)
    return ChainReport(head.seq, head.hash, None)


def to_document(event: Event) -> dict[str, Any]:
    """Return an event as JSON for people and programs.

    Raises:
        ValueError: its body is not JSON, so somebody changed it.
    """
    return {
        "seq": event.seq,
        "at": event.at,
        "call_id": event.call_id,
        "kind": event.kind,
        "body": decode(event.body.encode()),
        "hash": event.hash,
    }


def _link(key: Sealed, previous: str, seq: int, at: str, call_id: str, kind: str, body: str) -> str:
    # An array of JSON values has one reading only: no field can borrow characters from its neighbour.
    return keyed_hash(key, encode([previous, seq, at, call_id, kind, body]))
