"""JSON as it must be when an adversary wrote it.

The usual decoders keep the last of duplicate keys, take NaN, turn 1e400 into infinity and recurse without end.
This one refuses all of it. Callers cap the size first.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"

MAX_DEPTH: Final = 64
_MAX_DIGITS: Final = 128
_STRING_OR_BRACKET: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{\]}]', re.DOTALL)


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    decoded = dict(pairs)
    if len(decoded) != len(pairs):
        raise ValueError("an object has the same key twice")
    return decoded


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer has more than {_MAX_DIGITS} digits")
    return int(text)


def _real(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number is too large for a double")
    return number


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_real, parse_constant=_constant)


def decode(document: bytes, *, max_depth: int = MAX_DEPTH) -> Json:
    """Decode UTF-8 JSON.

    Raises:
        ValueError: not UTF-8, not JSON, duplicate keys, NaN or infinities, numbers too large, a lone
            surrogate, or nesting deeper than `max_depth`. The message never quotes the document.
    """
    try:
        text = document.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("the document is not UTF-8") from None
    if _nesting(text, max_depth) > max_depth:
        raise ValueError(f"the document is nested deeper than {max_depth} levels")
    try:
        value: Json = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    if "\\ud" in text or "\\uD" in text:
        _refuse_lone_surrogates(value)
    return value


def encode(value: "Json | Mapping[str, Any] | Sequence[Any]") -> bytes:
    """Encode as canonical JSON: sorted keys, no spaces, UTF-8. Equal values give equal bytes."""
    return _ENCODER.encode(value).encode()


def _nesting(text: str, enough: int) -> int:
    """Deepest nesting of brackets outside strings, without recursion; 0 where it cannot exceed `enough`."""
    if text.count("[") + text.count("{") <= enough:
        return 0
    depth = deepest = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        character = token[0]
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _refuse_lone_surrogates(value: Json) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a string has a lone surrogate") from None
