"""Files that only the gateway's own user may read: opened, made and replaced without ever being open to others.

Decides what is safe to open. A link, a file of another user or one that others can read is refused, with the
command that mends it; nothing is ever loosened in silence.
"""

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path


def open_plain(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file that is not a link, and return its descriptor. What it makes is closed to others.

    Raises:
        PermissionError: it is a symbolic link.
        OSError: it cannot be opened.
    """
    try:
        # O_NONBLOCK: a named pipe in the file's place must not make the gateway wait for a writer.
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if path.is_symlink():
            raise PermissionError(f"{path} is a symbolic link; give the path of the file itself") from error
        raise


def refuse_shared(status: os.stat_result, path: Path, *, root_reads_any: bool = False) -> None:
    """See that a file is a plain one, ours, and closed to others.

    Args:
        status: of the file itself.
        path: its name, for the message.
        root_reads_any: root may look at files of any user.

    Raises:
        PermissionError: it is not.
    """
    if not stat.S_ISREG(status.st_mode):
        raise PermissionError(f"{path} is not a plain file")
    if status.st_uid != os.geteuid() and not (root_reads_any and os.geteuid() == 0):
        raise PermissionError(f"{path} belongs to another user: chown it to the user of the gateway")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionError(f"{path} is open to other users of this machine: chmod 600 {path}")


def read_private(path: Path, limit_bytes: int) -> tuple[bytes, os.stat_result]:
    """Return the content of a private file, and the status of what was read.

    Raises:
        PermissionError: see `refuse_shared`.
        ValueError: it is larger than `limit_bytes`.
        OSError: it cannot be read.
    """
    with open(open_plain(path), "rb") as stream:
        status = os.fstat(stream.fileno())
        refuse_shared(status, path)
        content = stream.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise ValueError(f"{path} is larger than {limit_bytes} bytes")
    return content, status


def create_private(path: Path, content: bytes) -> None:
    """Make a file with this content, unless there is one already. It appears whole, and is on the disk after.

    Raises:
        OSError: it cannot be written.
    """
    draft = _draft(path, content)
    try:
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()
    _sync_folder(path.parent)


def replace_private(path: Path, content: bytes) -> None:
    """Put a new file in the place of an old one: a reader sees one or the other, whole.

    Raises:
        OSError: it cannot be written.
    """
    draft = _draft(path, content)
    try:
        draft.replace(path)
    except BaseException:
        draft.unlink()
        raise
    _sync_folder(path.parent)


def take_lock(path: Path, *, wait: bool) -> int:
    """Lock a file made for nothing else, and return its descriptor: closing it gives the lock back.

    Raises:
        BlockingIOError: somebody else has it and `wait` is false.
        OSError: it cannot be made.
    """
    descriptor = open_plain(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock and hold it.

    Raises:
        OSError: it cannot be made.
    """
    descriptor = take_lock(path, wait=True)
    try:
        yield
    finally:
        os.close(descriptor)


def _draft(path: Path, content: bytes) -> Path:
    """Write the content beside `path`, under a name that nobody can guess."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(open_plain(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return draft


def _sync_folder(folder: Path) -> None:
    # A new name is durable only when its folder is.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
