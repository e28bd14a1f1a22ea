"""Takes the secrets of one call out of everything the call gives back.

What counts as a secret's appearance is decided in `forms.py`; here they are found and replaced by
`[REDACTED:name]`. Every occurrence of every form is covered, overlapping ones by one label, so that no part of
the second secret of an overlapping pair stays visible. A stream is redacted as the whole would be, however it
is cut into chunks: what could be the beginning of a form is held back until it is known.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

from callgate_server.model.sealed import Sealed
from callgate_server.model.strict_json import Json
from callgate_server.result.forms import forms

# At a cut, this many bytes of a form are taken for a piece of the secret; fewer tell next to nothing.
MIN_FRAGMENT_BYTES: Final = 4
# Bounds the memory of one pass: the matches of a block exist as Python objects.
_BLOCK_BYTES: Final = 256 * 1024
# A DFA is fast and large; beyond this many bytes of forms the compact automaton is used.
_DFA_BYTES: Final = 32 * 1024
_ANCHOR_BYTES: Final = 4
_PROBE_BYTES: Final = 32


class Redactor:
    """The secrets of one call, compiled. Building takes about a millisecond for each short secret."""

    __slots__ = ("_automaton", "_labels", "_leading", "_trailing")

    def __init__(self, secrets: Mapping[str, Sealed]) -> None:
        """Compile all forms of `secrets`, by name.

        Raises:
            ValueError: a secret is empty.
        """
        labels: dict[bytes, bytes] = {}
        for name in sorted(secrets):
            for form in forms(secrets[name].reveal()):
                labels.setdefault(form, f"[REDACTED:{name}]".encode())
        self._automaton = _automaton(labels) if labels else None
        self._labels = list(labels.values())
        self._leading = _Edge(labels)
        self._trailing = _Edge({form[::-1]: label for form, label in labels.items()})

    def data(self, data: bytes) -> bytes:
        """Return `data` with every form replaced."""
        if self._automaton is None or (len(data) <= _BLOCK_BYTES and not self.spans(data)):
            return data
        stream = self.stream()
        return stream.feed(data) + stream.finish()

    def text(self, text: str) -> str:
        """The same for a string."""
        if self._automaton is None:
            return text
        return self.data(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def stream(self) -> "StreamRedactor":
        """Return a redactor for bytes that arrive in pieces."""
        return StreamRedactor(self)

    def cut(self, head: bytes, tail: bytes) -> tuple[bytes, bytes]:
        """Redact the two ends of an output whose middle was left out.

        A secret that the cut went through is redacted as well: the end of `head` that begins a form and the
        start of `tail` that ends one, from `MIN_FRAGMENT_BYTES` on.
        """
        if self._automaton is None:
            return head, tail
        stream = self.stream()
        kept_head = stream.feed(head) + stream.finish_cut()
        return kept_head, self._after_cut(tail)

    def json(self, value: Json) -> Json:
        """Return a copy of `value` with every string, key and number that shows a secret redacted.

        A number becomes a string then. Keys that become equal are numbered, so that no member is lost.
        """
        if self._automaton is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return self._members(value)
        if isinstance(value, list):
            return [self.json(item) for item in value]
        if value is None or isinstance(value, bool):
            return value
        shown = str(value)
        redacted = self.text(shown)
        return value if redacted == shown else redacted

    def spans(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Every occurrence of every form as (start, end, label), by start, the longest first."""
        if self._automaton is None:
            return []
        found = self._automaton.find_matches_as_indexes(data, overlapping=True)
        spans = [(start, end, self._labels[index]) for index, start, end in found]
        spans.sort(key=lambda span: (span[0], -span[1]))
        return spans

    def unfinished(self, data: bytes) -> tuple[int, bytes]:
        """Where the longest end of `data` that begins a form starts (its length, if none does), and the label."""
        return self._leading.find(data)

    def _members(self, value: dict[str, Json]) -> dict[str, Json]:
        members: dict[str, Json] = {}
        seen: Counter[str] = Counter()
        for key, item in value.items():
            shown = unique = self.text(key)
            while unique in members or (unique != key and unique in value):
                seen[shown] += 1
                unique = f"{shown}#{seen[shown] + 1}"
            members[unique] = self.json(item)
        return members

    def _after_cut(self, tail: bytes) -> bytes:
        from_end, label = self._trailing.find(tail[::-1])
        fragment = len(tail) - from_end
        if fragment < MIN_FRAGMENT_BYTES:
            return self.data(tail)
        stream = StreamRedactor(self, already_covered=fragment)
        return label + stream.feed(tail) + stream.finish()


class StreamRedactor:
    """Redacts one stream. Give it chunks in order, then finish it once."""

    __slots__ = ("_covered", "_held", "_redactor")

    def __init__(self, redactor: Redactor, *, already_covered: int = 0) -> None:
        """`already_covered` bytes at the start were replaced by the caller's label."""
        self._redactor = redactor
        self._held = b""
        self._covered = already_covered

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes, return what is certain by now."""
        if len(chunk) <= _BLOCK_BYTES:
            return self._feed_block(chunk)
        blocks = (chunk[at : at + _BLOCK_BYTES] for at in range(0, len(chunk), _BLOCK_BYTES))
        return b"".join([self._feed_block(block) for block in blocks])

    def finish(self) -> bytes:
        """Return what was held back; the stream ended here."""
        return self._emit(self._held, len(self._held))

    def finish_cut(self) -> bytes:
        """Return what was held back; the stream went on, but the rest is not shown."""
        fragment = self._held
        if len(fragment) < MIN_FRAGMENT_BYTES:
            return self.finish()
        self._held = b""
        # A fragment that starts inside a replaced secret belongs to that secret's label.
        return b"" if self._covered else self._redactor.unfinished(fragment)[1]

    def _feed_block(self, block: bytes) -> bytes:
        data = self._held + block if self._held else block
        return self._emit(data, self._redactor.unfinished(data)[0])

    def _emit(self, data: bytes, until: int) -> bytes:
        """Return `data[:until]` redacted and keep the rest. Every form that starts before `until` is complete."""
        parts: list[bytes] = []
        covered = self._covered
        for start, end, label in self._redactor.spans(data):
            if start >= until:
                break
            if start >= covered:
                parts += (data[covered:start], label)
            covered = max(covered, end)
        parts.append(data[covered:until])
        self._held = data[until:]
        self._covered = max(covered - until, 0)
        return b"".join(parts)


class _Edge:
    """Finds the longest end of some data that is the beginning, but not the whole, of a form.

    Only places where the first bytes of a form stand are looked at, and a longer comparison is made only where
    a short one held: data that repeats a beginning over and over costs no more than its length.
    """

    __slots__ = ("_anchors", "_forms", "_labels", "_longest", "_width")

    def __init__(self, labels: Mapping[bytes, bytes]) -> None:
        self._labels = labels
        self._forms = sorted(labels)
        self._longest = max(map(len, self._forms), default=0)
        self._width = min(_ANCHOR_BYTES, min(map(len, self._forms), default=0))
        anchors = {form[: self._width] for form in self._forms}
        self._anchors = _automaton(anchors) if anchors else None

    def find(self, data: bytes) -> tuple[int, bytes]:
        """Return where that end starts and the label of the form, or the length of `data` and no label."""
        if self._anchors is None:
            return len(data), b""
        first = max(0, len(data) - self._longest + 1)
        anchored = self._anchors.find_matches_as_indexes(data[first:], overlapping=True)
        for start in [first + start for _, start, _ in anchored] + self._too_short_for_anchors(data):
            if self._begun_by(data[start : start + _PROBE_BYTES]) is None:
                continue
            form = self._begun_by(data[start:])
            if form is not None:
                return start, self._labels[form]
        return len(data), b""

    def _too_short_for_anchors(self, data: bytes) -> list[int]:
        return list(range(max(0, len(data) - self._width + 1), len(data)))

    def _begun_by(self, beginning: bytes) -> bytes | None:
        """A form that is longer than `beginning` and begins with it. Forms are sorted, so it would stand next."""
        at = bisect_right(self._forms, beginning)
        if at < len(self._forms) and self._forms[at].startswith(beginning):
            return self._forms[at]
        return None


def _automaton(patterns: Iterable[bytes]) -> BytesAhoCorasick:
    listed = list(patterns)
    small = sum(map(len, listed)) <= _DFA_BYTES
    implementation = Implementation.DFA if small else Implementation.ContiguousNFA
    return BytesAhoCorasick(listed, MatchKind.Standard, implementation)
