"""JSON by the interpreter's own scanner and encoder, which the `json` package is a front to.

A runner lives for one call. The package brings regular expressions, and enumerations with them, for the sake of its
error messages: importing it takes longer than all of the runner together.
"""

import _json

# What may stand around a value.
_SPACE = " \t\n\r"


class _Reading:
    """What the scanner asks of its owner: plain Python values, and no NaN."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")


# Whatever has these fields will do; the stubs name a type that has more.
_scan = _json.make_scanner(_Reading())  # type: ignore[arg-type]


def decode(document: bytes) -> object:
    """Return the value of a document in UTF-8.

    Raises:
        ValueError: it is not one JSON value.
    """
    text = document.decode().strip(_SPACE)
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        raise ValueError("not JSON") from None
    if end != len(text):
        raise ValueError("more than one JSON value")
    return value


def encode(value: object) -> bytes:
    """Return a value as JSON in UTF-8, without spaces.

    Raises:
        ValueError: NaN, an infinity, a lone surrogate, or a value that holds itself.
        TypeError: JSON has no such value.
        RecursionError: it is nested too deep.
    """
    markers: dict[int, object] = {}
    encoder = _json.make_encoder(markers, _refuse, _json.encode_basestring, None, ":", ",", False, False, False)
    return "".join(encoder(value, 0)).encode()


def _refuse(value: object) -> object:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
