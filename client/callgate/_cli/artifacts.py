"""Saves files that a tool left behind. Their names and bytes are the tool's: nothing about them is believed.

A name is a relative path of plain parts below the folder. It is walked by descriptor without following links, and
a file is made new, never written over, so that no name and nothing planted in the folder leads anywhere else.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from callgate.types import Artifact

_MAX_NAME_BYTES: Final = 255
_MAX_PARTS: Final = 16
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def save(artifact: Artifact, folder: Path, *, overwrite: bool) -> Path:
    """Write one artifact below `folder`, which is made if it is missing, and return where it is.

    Raises:
        ValueError: its name is not one to write to, or its bytes are not those that the gateway announced.
        FileExistsError: something of that name is there, and `overwrite` is false.
        OSError: it cannot be written, or a link stands in the way.
    """
    parts = _parts(artifact.name)
    if hashlib.sha256(artifact.data).hexdigest() != artifact.sha256:
        raise ValueError("its bytes do not match its digest")
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        _write(root, parts, artifact.data, overwrite=overwrite)
    return folder.joinpath(*parts)


def _parts(name: str) -> list[str]:
    parts = name.split("/")
    if len(parts) > _MAX_PARTS:
        raise ValueError("its name has too many parts")
    for part in parts:
        if not part or part.startswith((".", "-")):
            raise ValueError("its name is absolute, hidden, leads elsewhere or looks like an option")
        if not part.isprintable() or "\\" in part:
            raise ValueError("its name has characters that do not belong into a file name")
        if len(part.encode()) > _MAX_NAME_BYTES:
            raise ValueError("its name is too long")
    return parts


def _write(folder: int, parts: list[str], data: bytes, *, overwrite: bool) -> None:
    name, *rest = parts
    if rest:
        with suppress(FileExistsError):
            os.mkdir(name, 0o777, dir_fd=folder)
        with _opened(os.open(name, _FOLDER, dir_fd=folder)) as inner:
            return _write(inner, rest, data, overwrite=overwrite)
    if overwrite:
        # Removed and made anew: writing into what is there would follow a hard link.
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
    with os.fdopen(os.open(name, _NEW_FILE, 0o666, dir_fd=folder), "wb") as file:
        file.write(data)
    return None


@contextmanager
def _opened(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
