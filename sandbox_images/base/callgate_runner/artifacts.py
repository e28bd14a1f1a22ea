"""Which files of the tool's output folder are taken, and why the others are not.

It runs when every process of the tool is dead, so that nothing changes under it; still nothing is followed:
each folder is opened relative to its parent, and only plain files with one name are read. Everything is
counted: files, bytes, entries looked at, depth, and refusals listed.
"""

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

ARTIFACTS_FOLDER = "/out"
MAX_REJECTED = 64
MAX_NAME_BYTES = 512
# A folder can hold a million names; looking at all of them would be the attack.
MAX_EXAMINED = 4096
MAX_DEPTH = 16

_SHOWN_NAME = 200
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_OPEN_FOLDER = _OPEN_FILE | os.O_DIRECTORY


class Found:
    """A file that is taken (`fd` is open until the next one is asked for), or the reason why one is not."""

    __slots__ = ("fd", "name", "rejected", "size")

    def __init__(self, name: str, size: int, *, fd: int = -1, rejected: str | None = None) -> None:
        self.name = name
        self.size = size
        self.fd = fd
        self.rejected = rejected


def open_folder() -> int | None:
    """Open the output folder, if that can be done."""
    return _open(ARTIFACTS_FOLDER, _OPEN_FOLDER, None)


def find(folder: int, files: int, size: int) -> "Iterator[Found]":
    """Yield what lies in the open output folder, taking at most `files` files of `size` bytes in all."""
    walk = _Walk(files, size)
    yield from walk.folder(folder, "", 1)
    yield from walk.remainder()


class _Walk:
    """One walk, and what is left of its budgets."""

    __slots__ = ("_bytes_left", "_examined", "_files_left", "_listed", "_whole")

    def __init__(self, files: int, size: int) -> None:
        self._files_left = files
        self._bytes_left = size
        self._examined = 0
        self._listed = 0
        self._whole = True

    def folder(self, fd: int, prefix: str, depth: int) -> "Iterator[Found]":
        for name in self._names(fd):
            yield from self._entry(fd, name, prefix + name, depth)

    def remainder(self) -> "Iterator[Found]":
        """Say, in the last place of the list, that it is not whole."""
        if not self._whole or self._listed >= MAX_REJECTED:
            yield Found("", 0, rejected="not_examined")

    def _names(self, folder: int) -> list[str]:
        names: list[str] = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if self._examined >= MAX_EXAMINED:
                        self._whole = False
                        break
                    self._examined += 1
                    names.append(entry.name)
        except OSError:
            self._whole = False
        # The order of a file system is not the tool's doing: sorted, equal calls take equal files.
        return sorted(names)

    def _entry(self, folder: int, name: str, path: str, depth: int) -> "Iterator[Found]":
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except OSError:
            # A folder that may be listed and not searched.
            yield from self._reject(path, 0, "unreadable")
            return
        is_folder = stat.S_ISDIR(status.st_mode)
        reason = _unacceptable(status, path) or self._unaffordable(status, depth)
        fd = None if reason else _open(name, _OPEN_FOLDER if is_folder else _OPEN_FILE, folder)
        if fd is None:
            yield from self._reject(path, status.st_size, reason or "unreadable")
            return
        try:
            if is_folder:
                yield from self.folder(fd, path + "/", depth + 1)
            else:
                self._files_left -= 1
                self._bytes_left -= status.st_size
                yield Found(path, status.st_size, fd=fd)
        finally:
            os.close(fd)

    def _unaffordable(self, status: os.stat_result, depth: int) -> str | None:
        if stat.S_ISDIR(status.st_mode):
            return "too_deep" if depth >= MAX_DEPTH else None
        if self._files_left == 0:
            return "too_many_files"
        # The size that a reader would see: a sparse file costs its length.
        return "too_large" if status.st_size > self._bytes_left else None

    def _reject(self, path: str, size: int, reason: str) -> "Iterator[Found]":
        self._listed += 1
        if self._listed < MAX_REJECTED:
            yield Found(ascii(path)[1:-1][:_SHOWN_NAME], size, rejected=reason)


def _unacceptable(status: os.stat_result, path: str) -> str | None:
    # Names that are not UTF-8 arrive with surrogates, which are not printable either.
    if not path.isprintable() or len(path.encode()) > MAX_NAME_BYTES:
        return "bad_name"
    if stat.S_ISLNK(status.st_mode):
        return "symbolic_link"
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        return "not_a_regular_file"
    return "hard_link" if status.st_nlink > 1 else None


def _open(name: str, flags: int, folder: int | None) -> int | None:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError:
        return None
