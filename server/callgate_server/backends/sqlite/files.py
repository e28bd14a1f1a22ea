"""The files of the embedded ledger: who may read them, who holds them, and the key that seals them.

Decides what is safe to open. A file that others can read or that is not a plain file of our own is refused, with
the command that mends it; nothing is ever loosened or silently replaced.
"""

import contextlib
import fcntl
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from callgate_server.model.sealed import Sealed

KEY_BYTES: Final = 32


def load_or_create_key(path: Path) -> Sealed:
    """Return the ledger's key, making a new one when there is none yet.

    Losing this file makes the record impossible to verify; who reads it can forge the record.

    Raises:
        PermissionError: the file is a link, belongs to somebody else or can be read by others.
        ValueError: it does not hold a key.
        OSError: it cannot be read or made.
    """
    if not os.path.lexists(path):
        _create_key(path)
    descriptor = _open_plain(path)
    try:
        _refuse_unsafe(os.fstat(descriptor), path)
        value = os.read(descriptor, KEY_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(value) != KEY_BYTES:
        raise ValueError(f"{path} does not hold a ledger key of {KEY_BYTES} bytes; restore it from a backup")
    return Sealed(value)


def _create_key(path: Path) -> None:
    """Write the key under another name first: a crash leaves a whole key or none, a race leaves the first one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, secrets.token_bytes(KEY_BYTES))
        os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        os.close(descriptor)
        draft.unlink()
    _sync_directory(path.parent)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which file it is, whatever its name."""

    device: int
    inode: int


class LedgerFiles:
    """The ledger's path, held for one process until `release`."""

    def __init__(self, path: Path, lock: int, identity: Identity) -> None:
        self.path = path
        self._lock = lock
        self._identity = identity

    @classmethod
    def hold(cls, path: Path) -> Self:
        """Make or take the ledger file and keep every other gateway away from it.

        Raises:
            PermissionError: the file or its folder is open to others.
            BlockingIOError: another gateway has it.
            OSError: it cannot be made or written.
        """
        _private_directory(path.parent)
        lock = _lock(path.with_name(path.name + ".lock"))
        try:
            return cls(path, lock, _touch(path))
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
        status = self.path.lstat()
        if Identity(status.st_dev, status.st_ino) != self._identity:
            raise FileNotFoundError(f"{self.path} was replaced while the gateway runs; put it back or restart")
        _refuse_unsafe(status, self.path)

    def release(self) -> None:
        os.close(self._lock)


def check_readable(path: Path) -> None:
    """See that a ledger which somebody else may be writing is a plain private file.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: it is a link or open to others.
    """
    _refuse_unsafe(path.lstat(), path, any_owner=os.geteuid() == 0)


def _private_directory(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stat.S_IMODE(folder.stat().st_mode) & 0o077:
        raise PermissionError(f"{folder} is open to other users of this machine: chmod 700 {folder}")


def _lock(path: Path) -> int:
    # A file of its own: closing any descriptor of the database would drop the locks SQLite holds on it.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BlockingIOError(f"another gateway holds {path.with_suffix('')}; give each its own ledger") from None
    return descriptor


def _touch(path: Path) -> Identity:
    descriptor = _open_plain(path, os.O_RDWR | os.O_CREAT)
    try:
        status = os.fstat(descriptor)
        _refuse_unsafe(status, path)
        return Identity(status.st_dev, status.st_ino)
    finally:
        os.close(descriptor)


def _open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if path.is_symlink():
            raise PermissionError(f"{path} is a symbolic link; give the path of the file itself") from error
        raise


def _refuse_unsafe(status: os.stat_result, path: Path, *, any_owner: bool = False) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise PermissionError(f"{path} is not a plain file")
    if status.st_uid != os.geteuid() and not any_owner:
        raise PermissionError(f"{path} belongs to another user: chown it to the user of the gateway")
    if stat.S_IMODE(status.st_mode) != 0o600:
        raise PermissionError(f"{path} must be readable and writable by its owner alone: chmod 600 {path}")


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
