"""The working folder of tools that run a caller's program: what the caller's files may be called, and writing them.

For every image's tools: the builder puts what is in this folder beside them.
"""

import binascii
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

FOLDER = "/tmp/work"  # noqa: S108  # the sandbox's own
_INITIALS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_PLAIN = _INITIALS | {".", "-"}
_LONGEST_NAME = 100
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def enter(files: "Iterable[Mapping[str, Any]]") -> None:
    """Make the folder, write `files` (each `name` with `content` or `content_base64`) and go there.

    Raises:
        ValueError: a name that is not plain, a name given twice, or text that is not Base64.
    """
    os.makedirs(FOLDER, exist_ok=True)
    for file in files:
        _write(file)
    os.chdir(FOLDER)


def _write(file: "Mapping[str, Any]") -> None:
    name = file["name"]
    if not _is_plain(name):
        raise ValueError("a file's name may have letters, digits, dots, dashes and underscores, and no folder")
    encoded = file.get("content_base64")
    content = file["content"].encode() if encoded is None else binascii.a2b_base64(encoded, strict_mode=True)
    try:
        descriptor = os.open(os.path.join(FOLDER, name), _NEW_FILE, 0o600)
    except FileExistsError:
        raise ValueError(f"two files are called {name}") from None
    with open(descriptor, "wb") as stream:
        stream.write(content)


def _is_plain(name: str) -> bool:
    return 0 < len(name) <= _LONGEST_NAME and name[0] in _INITIALS and _PLAIN.issuperset(name)
