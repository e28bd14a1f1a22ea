"""Ctrl-C, and the signals that end a program, as one `KeyboardInterrupt` that comes at a time when it can be obeyed.

A call can be cancelled once its id is known. Until then an interruption is kept back, so that no call goes on that
nobody knows of, and no task; a second one is not kept back.
"""

import signal
from types import FrameType, TracebackType
from typing import Any, Final, Self

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """A context that keeps interruptions back until `release()`."""

    def __init__(self) -> None:
        self._keeps = True
        self._came = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._interrupted) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def came(self) -> bool:
        """Whether one is kept back."""
        return self._came

    def release(self) -> None:
        """From here on interruptions come at once.

        Raises:
            KeyboardInterrupt: one came meanwhile.
        """
        self._keeps = False
        if self._came:
            self._came = False
            raise KeyboardInterrupt

    def _interrupted(self, _number: int, _frame: FrameType | None) -> None:
        if self._keeps and not self._came:
            self._came = True
            return
        raise KeyboardInterrupt
