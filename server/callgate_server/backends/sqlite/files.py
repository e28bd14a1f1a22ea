"""The files of the embedded ledger: the key that seals it, and the one process that may write it."""

import os
import secrets
import stat
from pathlib import Path
from typing import Final, Self

from callgate_server.backends.private_files import create_private, open_plain, read_private, refuse_shared, take_lock
from callgate_server.model.sealed import Sealed

KEY_BYTES: Final = 32


def load_or_create_key(path: Path) -> Sealed:
    """Return the ledger's key, making a new one when there is none yet.

    Without this file the record cannot be verified; with it, it can be forged.

    Raises:
        PermissionError: the file is a link, belongs to somebody else or is open to others.
        ValueError: it does not hold a key.
        OSError: it cannot be read or made.
    """
    if not os.path.lexists(path):
        create_private(path, secrets.token_bytes(KEY_BYTES))
    return load_key(path)


def load_key(path: Path) -> Sealed:
    """Return the ledger's key.

    Raises:
        FileNotFoundError: there is none.
        PermissionError, ValueError, OSError: see `load_or_create_key`.
    """
    value, _ = read_private(path, KEY_BYTES)
    if len(value) != KEY_BYTES:
        raise ValueError(f"{path} does not hold a ledger key of {KEY_BYTES} bytes; restore it from a backup")
    return Sealed(value)


class LedgerFiles:
    """The ledger's path, held for one process until `release`."""

    def __init__(self, path: Path, lock: int, opened: os.stat_result) -> None:
        self.path = path
        self._name = os.fspath(path)
        self._lock = lock
        self._opened = opened

    @classmethod
    def hold(cls, path: Path) -> Self:
        """Make or take the ledger file and keep every other gateway away from it.

        Raises:
            PermissionError: the file or its folder is open to others.
            BlockingIOError: another gateway has it.
            OSError: it cannot be made or written.
        """
        _refuse_shared_folder(path.parent)
        try:
            # A file of its own: closing any descriptor of the database would drop the locks SQLite holds on it.
            lock = take_lock(path.with_name(path.name + ".lock"), wait=False)
        except BlockingIOError as error:
            raise BlockingIOError(f"another gateway holds {path}; give each gateway a ledger of its own") from error
        try:
            return cls(path, lock, _make(path))
        except BaseException:
            os.close(lock)
            raise

    def check(self) -> None:
        """See that the path still leads to the file that was opened, and that it is still private.

        A store that writes on to a file which somebody removed or replaced would acknowledge what nobody will
        ever read.

        Raises:
            OSError: it is gone, replaced or open to others.
        """
        status = os.lstat(self._name)
        if not os.path.samestat(status, self._opened):
            raise FileNotFoundError(f"{self.path} was replaced while the gateway runs; put it back, or restart")
        refuse_shared(status, self.path)

    def release(self) -> None:
        os.close(self._lock)


def check_readable(path: Path) -> None:
    """See that a ledger, which a gateway may be writing just now, is a plain private file.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: it is a link, of another user, or open to others.
    """
    refuse_shared(path.lstat(), path, root_reads_any=True)


def _refuse_shared_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        raise PermissionError(f"{folder} is open to other users of this machine: chmod 700 {folder}")


def _make(path: Path) -> os.stat_result:
    descriptor = open_plain(path, os.O_RDWR | os.O_CREAT)
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    refuse_shared(status, path)
    return status
