r"""Makes text fit for a terminal. The gateway has cleaned it already; this end does not rely on that.

What would drive the terminal or reorder a line is shown as an escape, `\x1b` or `\u{202e}`. Text that is clean
stays as it is.
"""

import json
import re
from typing import Any, Final

_ACTIVE: Final = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]|\r(?!\n)"
)
# Letters and marks that count as printable and show nothing, or change what stands before them.
_BLANK: Final = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0]")
# JSON itself has escaped the control characters below U+0020.
_NOT_ASCII: Final = re.compile("[^\n -~]")


def clean(text: str) -> str:
    """Return `text` with everything that a terminal would act on made visible; lines stay lines."""
    return _ACTIVE.sub(lambda match: _escape(match[0]), text)


def one_line(text: str) -> str:
    """Return `text` cleaned, on one line."""
    return " ".join(clean(text).split())


def to_json_text(document: Any, *, indent: int | None = 2) -> str:  # noqa: ANN401  # any JSON value
    """Write JSON that a terminal can show: what is not printable is escaped as JSON does, so it means the same."""
    text = json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)
    return _NOT_ASCII.sub(_json_escape, text)


def _json_escape(match: re.Match[str]) -> str:
    shows = match[0].isprintable() and not _BLANK.fullmatch(match[0])
    return match[0] if shows else json.dumps(match[0])[1:-1]


def _escape(character: str) -> str:
    point = ord(character)
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{{{point:04x}}}"
