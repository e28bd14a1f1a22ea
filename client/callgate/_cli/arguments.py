"""The arguments of a call as they are typed: `name=text`, `name:=JSON`, or a file with one JSON object.

Messages name arguments and never show their values.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

_FORM = "give --arg as name=text, or as name:=JSON for numbers, lists and objects"


def parse_arguments(given: Sequence[str], file: Path | None) -> dict[str, Any]:
    """Put the arguments together.

    Raises:
        ValueError: a malformed or repeated argument, or a file that is not one JSON object.
    """
    arguments = {} if file is None else read_object(file)
    for text in given:
        name, value = _pair(text)
        if name in arguments:
            raise ValueError(f"argument `{name}` is given twice")
        arguments[name] = value
    return arguments


def read_object(path: Path) -> dict[str, Any]:
    """Read a file with one JSON object; - is standard input.

    Raises:
        ValueError: it cannot be read, or holds something else; the message names it.
    """
    source = "standard input" if str(path) == "-" else str(path)
    try:
        text = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        arguments = _decode(text.decode())
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{source} is not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{source} is not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"{source} must hold one JSON object")
    return arguments


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.rstrip(":"):
        raise ValueError(_FORM)
    if not name.endswith(":"):
        return name, value
    name = name[:-1]
    try:
        return name, _decode(value)
    except ValueError as error:
        raise ValueError(f"the value of `{name}` is not JSON ({error}); for plain text write {name}=text") from None


def _decode(text: str) -> Any:  # noqa: ANN401  # any JSON value
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    decoded = dict(pairs)
    if len(decoded) != len(pairs):
        raise ValueError("an object has the same key twice")
    return decoded


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON has")
