"""What a follower sees of a tool's output while it runs: the same redaction and cleaning as in the answer.

Bytes that may be the beginning of a secret or of a character are held back until they are known. The live view
ends where the head of the output ends; the answer has the tail as well.
"""

import codecs
from collections.abc import Callable
from typing import Literal

from callgate_server.result.redact import Redactor
from callgate_server.result.sanitize import clean

Stream = Literal["stdout", "stderr"]


class LiveViews:
    """Both output streams of one call. `publish` is called with cleaned text and must not block."""

    def __init__(self, redactor: Redactor, publish: Callable[[Stream, str], None]) -> None:
        self._publish = publish
        self._redactors = {"stdout": redactor.stream(), "stderr": redactor.stream()}
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {"stdout": decoder("backslashreplace"), "stderr": decoder("backslashreplace")}

    def feed(self, stream: Stream, data: bytes) -> None:
        """Take the next bytes of a stream."""
        text = self._decoders[stream].decode(self._redactors[stream].feed(data))
        if text:
            self._publish(stream, clean(text))
