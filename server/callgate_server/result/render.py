"""Turns what a tool left behind into what a caller gets: redacted first, then cleaned for the eye.

Redaction comes before cleaning, because cleaning changes the bytes that a secret is recognised by. The bytes
stay available beside the text wherever the text differs from them.
"""

import hashlib
from typing import Final

from callgate_server.model.answer import Artifact, Output
from callgate_server.model.run import Captured, CapturedArtifact
from callgate_server.result.redact import Redactor
from callgate_server.result.sanitize import clean, text_view

_LONGEST_CHARACTER: Final = 4


def render_output(captured: Captured, redactor: Redactor) -> Output:
    """Return one output stream for the answer. A marker stands where the middle was left out."""
    data = _shown(captured, redactor)
    text, changed = text_view(data)
    return Output(text, data if changed else None, captured.total_bytes, captured.truncated)


def render_artifact(captured: CapturedArtifact, redactor: Redactor) -> Artifact:
    """Return a file for the answer. Size and digest are those of the bytes that are delivered."""
    if captured.rejected is not None:
        # The runner cuts such a name, perhaps within a secret.
        name, _ = redactor.cut(captured.name.encode("utf-8", "surrogatepass"), b"")
        return Artifact(text_view(name)[0], captured.size_bytes, rejected=clean(redactor.text(captured.rejected)))
    data = redactor.data(captured.data)
    return Artifact(clean(redactor.text(captured.name)), len(data), hashlib.sha256(data).hexdigest(), data)


def _shown(captured: Captured, redactor: Redactor) -> bytes:
    if captured.open_end:
        # It may end where the runner's room for the head did, within a secret.
        return redactor.cut(captured.head, b"")[0]
    if not captured.truncated:
        return redactor.data(captured.head + captured.tail)
    head, tail = _whole_characters(captured.head, captured.tail)
    omitted = captured.total_bytes - len(head) - len(tail)
    head, tail = redactor.cut(head, tail)
    return head + f"\n[… {omitted} bytes omitted …]\n".encode() + tail


def _whole_characters(head: bytes, tail: bytes) -> tuple[bytes, bytes]:
    """Leave out the two halves of a character that the cut went through."""
    for length in range(1, min(_LONGEST_CHARACTER, len(head) + 1)):
        lead = head[-length]
        if lead >= 0xC0:
            if length < _encoded_length(lead):
                head = head[:-length]
            break
        if lead < 0x80:
            break
    continuation = 0
    while continuation < min(_LONGEST_CHARACTER - 1, len(tail)) and tail[continuation] & 0xC0 == 0x80:
        continuation += 1
    return head, tail[continuation:]


def _encoded_length(lead: int) -> int:
    """How many bytes the character has that begins with `lead` (RFC 3629, section 3)."""
    return 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
