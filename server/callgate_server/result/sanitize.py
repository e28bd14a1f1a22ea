r"""Makes text safe to look at: what a person or a model cannot see becomes visible, and nothing is dropped.

Neutralised, as `\x1b` or `\u{202e}`: control characters (with them every terminal sequence, which begins with
ESC or a C1 control), bidirectional controls, zero-width and filler characters, tags, variation selectors,
interlinear and musical controls, private use, lone surrogates, noncharacters, and bytes that are not UTF-8.

Kept, where they are ordinary writing: tab and newline (a carriage return only before a newline); the joiners and
the presentation selector inside an emoji; the joiners between letters of the scripts from Arabic to Sinhala,
which cannot be spelled without them. Code points that Unicode has not assigned yet are kept too: they show as a
box, and next year they are somebody's letters. A flag made of tag characters is taken apart.

A result is data with a schema, not a text view: `json_strings` touches only what would stay invisible even in the
JSON document. Control characters below U+0020 are written as escapes by every JSON encoder, so a file's `\r\n` or
form feed comes back as it was. What must survive whatever it holds belongs into base64 or an artifact.

All of it takes linear time, and cleaning what is clean changes nothing.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from callgate_server.model.strict_json import Json

_INVISIBLE: Final = (
    "\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb"
    "\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff\U000f0000-\U0010ffff"
    + "".join(f"{chr(plane | 0xFFFE)}{chr(plane | 0xFFFF)}" for plane in range(0, 0x100000, 0x10000))
)
_CONTROL: Final = "\0-\x08\x0b\x0c\x0e-\x1f"
_EMOJI: Final = (
    "\xa9\xae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u2460-\u24ff\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff"
    "\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
_JOINING_LETTERS: Final = "\u0620-\u06d3\u06ee-\u06ff\u0750-\u077f\u08a0-\u08c9\u0900-\u0dff"

_HIDDEN_IN_TEXT: Final = re.compile(f"[{_CONTROL}{_INVISIBLE}]+")
_HIDDEN_IN_JSON: Final = re.compile(f"[{_INVISIBLE}]+")
# Joiners and selectors are kept or not by what stands beside them.
_CONTEXTUAL: Final = re.compile("[\u200c\u200d\ufe0e\ufe0f]+")
_ORDINARY_WRITING: Final = re.compile(
    f"(?<=[{_EMOJI}])[\ufe0e\ufe0f]"
    f"|(?<=[{_EMOJI}])\u200d(?=[{_EMOJI}])"
    f"|(?<=[{_EMOJI}]\ufe0f)\u200d(?=[{_EMOJI}])"
    "|(?<=[0-9#*])\ufe0f(?=\u20e3)"
    f"|(?<=[{_JOINING_LETTERS}])[\u200c\u200d](?=[{_JOINING_LETTERS}])"
)
_CARRIAGE_RETURN: Final = re.compile("\r(?!\n)")


def text_view(data: bytes) -> tuple[str, bool]:
    """Decode and clean an output; the flag says that the view differs from the bytes."""
    try:
        decoded, broken = data.decode(), False
    except UnicodeDecodeError:
        decoded, broken = data.decode(errors="backslashreplace"), True
    cleaned = clean(decoded)
    return cleaned, broken or cleaned != decoded


def clean(text: str) -> str:
    """Return `text` with everything hidden or active made visible."""
    if text.isascii() and text.isprintable():
        return text
    if "\r" in text:
        text = _CARRIAGE_RETURN.sub(_escape, text)
    return _cleaned(text, _HIDDEN_IN_TEXT)


def json_strings(value: Json) -> tuple[Json, bool]:
    """Return a copy of a result whose strings and keys hide nothing; the flag says that something was hidden.

    Keys that become equal are numbered, so that no member is lost.
    """
    hidden = False

    def visible(text: str) -> str:
        nonlocal hidden
        if text.isascii() and "\x7f" not in text:
            return text
        cleaned = _cleaned(text, _HIDDEN_IN_JSON)
        hidden = hidden or cleaned != text
        return cleaned

    return _mapped(value, visible), hidden


def _cleaned(text: str, hidden: re.Pattern[str]) -> str:
    if not text.isascii():
        text = _CONTEXTUAL.sub(_escape_out_of_place, text)
    return hidden.sub(_escape, text)


def _mapped(value: Json, change: Callable[[str], str]) -> Json:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    if isinstance(value, dict):
        # Escapes tell apart what they replace; only a key that spells out another's escape could collide.
        members = {change(key): _mapped(item, change) for key, item in value.items()}
        if len(members) == len(value):
            return members
        return {f"{change(key)}#{number}": _mapped(item, change) for number, (key, item) in enumerate(value.items(), 1)}
    return value


def _escape(match: re.Match[str]) -> str:
    return "".join(map(_escaped, match[0]))


@lru_cache(4096)
def _escaped(character: str) -> str:
    point = ord(character)
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{{{point:04x}}}"


def _escape_out_of_place(match: re.Match[str]) -> str:
    """Keep the characters of a run that belong to what stands before it: two at most, a selector and a joiner."""
    run, kept = match[0], 0
    while kept < min(len(run), 2) and _ORDINARY_WRITING.match(match.string, match.start() + kept):
        kept += 1
    return run[:kept] + "".join(map(_escaped, run[kept:]))
