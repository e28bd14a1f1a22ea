"""The form in which a call's arguments enter the record: recognisable to who holds the key, readable to nobody. Pure.

Every value becomes a keyed hash, numbers, booleans and nulls too: a four-digit PIN is a number, and a plain hash
of it is a table of ten thousand lines away from the PIN. What is hashed is the value together with its place, and
the value as JSON, so that 1, "1" and true differ, and so that a password given in one argument does not show
itself as a user name given in another. Equal values in the same place do give equal hashes across calls: that
somebody sent the same thing again is what a reader of the record must be able to see. The price is that who reads
many records can count values of one argument; a field with few possible values is hidden, not unguessable.

Property names below the first level may be a caller's text as well (a map from e-mail addresses, say) and are
hashed like values. First-level names are the manifest's: its input schema is closed.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Final

from callgate_server.model.strict_json import Json, encode

MAX_CLEAR_BYTES: Final = 1024
MAX_LEAVES: Final = 64
MAX_DEPTH: Final = 6

Digest = Callable[[bytes], str]


def recorded(arguments: Mapping[str, Json], clear: Collection[str], digest: Digest) -> dict[str, Json]:
    """Return the record form of checked arguments.

    A clear argument stands as it is up to `MAX_CLEAR_BYTES` of JSON and `MAX_DEPTH` levels. Of any other the
    shape is kept and every value hashed, unless it has more than `MAX_LEAVES` values or is nested deeper than
    `MAX_DEPTH`: then one hash stands for all of it.

    Args:
        arguments: arguments that fit the tool's schema.
        clear: names of arguments that the manifest marks as fit to be read.
        digest: keyed hash (hex).
    """
    return {
        name: value if name in clear and _may_be_clear(value) else _hidden(name, value, digest)
        for name, value in arguments.items()
    }


def _may_be_clear(value: Json) -> bool:
    # Bounded in depth as well: the record nests it further, and a reader of the record refuses what is too deep.
    return len(encode(value)) <= MAX_CLEAR_BYTES and _is_shallow(value, MAX_DEPTH)


def _is_shallow(value: Json, depth: int) -> bool:
    if not isinstance(value, list | dict):
        return True
    children = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(child, depth - 1) for child in children)


def _hidden(name: str, value: Json, digest: Digest) -> Json:
    if _leaves(value, MAX_DEPTH) > MAX_LEAVES:
        return _hash([name], value, digest)
    return _hash_leaves([name], value, digest)


def _leaves(value: Json, depth: int) -> int:
    """How many values there are, empty containers among them; more than `MAX_LEAVES` when there are too many."""
    if not isinstance(value, list | dict) or not value:
        return 1
    if depth == 0 or len(value) > MAX_LEAVES:
        return MAX_LEAVES + 1
    count = 0
    for child in value.values() if isinstance(value, dict) else value:
        count += _leaves(child, depth - 1)
        if count > MAX_LEAVES:
            break
    return count


def _hash_leaves(path: list[str | int], value: Json, digest: Digest) -> Json:
    if isinstance(value, dict) and value:
        return {
            _hash([*path, "name of"], key, digest): _hash_leaves([*path, key], child, digest)
            for key, child in value.items()
        }
    if isinstance(value, list) and value:
        return [_hash_leaves([*path, index], child, digest) for index, child in enumerate(value)]
    return _hash(path, value, digest)


def _hash(path: list[str | int], value: Json, digest: Digest) -> str:
    # 128 bits of the HMAC: nobody can search for collisions without the key.
    return "hmac:" + digest(encode([path, value]))[:32]
