import errno
import io

import pytest

from callgate_server.cli.output import tell


class Terminal(io.StringIO):
    """One that can be closed while somebody writes to it."""

    gone = False

    def write(self, text: str) -> int:
        if self.gone:
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


def test_what_is_told_on_the_way_ends_nothing_when_nobody_can_read_it_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    tell("callgated: ready [bold]:smile:")
    terminal.gone = True
    tell("callgated: not heard")
    assert terminal.getvalue() == "callgated: ready [bold]:smile:\n"
