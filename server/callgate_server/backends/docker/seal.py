"""What may be in a sandbox's root file system. Pure: tar bytes in, tar bytes out; knows no engine.

A finished image is what this filter let through of a built one. Doing it here instead of in Dockerfiles means
that an author of tools cannot forget it, that nothing removed lives on in a lower layer, and that the image's
own configuration (user, entry point, volumes, environment) is gone with its layers.

`faults` checks the same rules again, on the image as the engine exports it: the filter is not believed.
"""

import hashlib
import inspect
import io
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

SANDBOX_UID: Final = 65532
_RUNNER: Final = "opt/callgate/runner/callgate_runner/main.py"

# Package managers and what they keep: a sandbox installs nothing, and these are root's tools.
_PACKAGE_MANAGER: Final = re.compile(
    r"(usr/)?(local/)?s?bin/((apt|dpkg|debconf)[^/]*|pip[0-9.]*)"
    r"|(usr/)?lib/(apt|dpkg)(/.*)?|usr/libexec/dpkg(/.*)?|etc/(apt|dpkg)(/.*)?|var/lib/(apt|dpkg)(/.*)?"
    r"|usr/(local/)?lib/python3[^/]*/(dist|site)-packages/pip(/.*|-[^/]*(/.*)?)?"
)
_DEAD_WEIGHT: Final = re.compile(
    r"usr/share/(man|info|locale|lintian|bug)/.+|usr/share/doc/.+/(?!copyright$)[^/]+|var/(cache|log)/.+"
)
# Mount points and engine's own: whatever lies there would be hidden, or shared by every call.
_EMPTIED: Final = re.compile(r"(dev|proc|sys|tmp|var/tmp|run|out|root|home)/.+|\.dockerenv")
_KEPT_MOUNT_POINTS: Final = frozenset({"run/secrets"})

_REQUIRED: Final = (
    "usr/bin/python3",
    _RUNNER,
    "opt/callgate/tools",
    "opt/callgate/packages",
    "run/secrets",
    "out",
    "tmp",
)
_SETUID_SETGID: Final = 0o6000
_XATTR: Final = "SCHILY.xattr."
_BLOCK: Final = 1 << 20


def rules_digest() -> str:
    """Name these rules, so that an image sealed by other rules is built again."""
    return hashlib.sha256(inspect.getsource(sys.modules[__name__]).encode()).hexdigest()


def sealed(archive: IO[bytes]) -> Iterator[bytes]:
    """Yield the tar of a root file system with everything removed that a sandbox must not have.

    Raises:
        ValueError: a file to keep is a hard link to one to remove.
        tarfile.TarError: not a tar.
    """
    removed: set[str] = set()
    with tarfile.open(fileobj=archive, mode="r|", bufsize=_BLOCK) as tar:
        for member in tar:
            if not _is_kept(member):
                removed.add(_plain(member.name))
                continue
            if member.islnk() and _plain(member.linkname) in removed:
                raise ValueError(f"/{_plain(member.name)} is a hard link to a file that an image must not have")
            member.mode &= ~_SETUID_SETGID
            member.pax_headers = {k: v for k, v in member.pax_headers.items() if not k.startswith(_XATTR)}
            yield member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            if member.isreg():
                yield from _content(tar, member)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def faults(archive: IO[bytes]) -> list[str]:
    """Return what is wrong with an exported root file system, one sentence each; empty when nothing is.

    Raises:
        tarfile.TarError: not a tar.
    """
    found: list[str] = []
    names: set[str] = set()
    users = b""
    with tarfile.open(fileobj=archive, mode="r|", bufsize=_BLOCK) as tar:
        for member in tar:
            name = _plain(member.name)
            names.add(name)
            found += _faults_of(member, name)
            if name == "etc/passwd" and member.isreg() and (stream := tar.extractfile(member)):
                users = stream.read()
    found += [f"/{path} is missing" for path in _REQUIRED if path not in names]
    if not any(line.split(b":")[2:3] == [b"%d" % SANDBOX_UID] for line in users.splitlines()):
        found.append(f"/etc/passwd has no user {SANDBOX_UID}")
    return found


def readable(chunks: Iterable[bytes]) -> IO[bytes]:
    """Return a file over chunks as they arrive, so that an export of any size passes through little memory."""
    return io.BufferedReader(_Chunks(chunks), _BLOCK)


class _Chunks(io.RawIOBase):
    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        room = memoryview(buffer)
        size = min(len(room), len(self._rest))
        room[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _plain(name: str) -> str:
    return name.removeprefix("./").strip("/")


def _is_kept(member: tarfile.TarInfo) -> bool:
    name = _plain(member.name)
    if member.isdir() and name in _KEPT_MOUNT_POINTS:
        return True
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        return False
    return not any(rule.fullmatch(name) for rule in (_PACKAGE_MANAGER, _DEAD_WEIGHT, _EMPTIED))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    stream = tar.extractfile(member)
    if stream is None:
        raise tarfile.ReadError("a regular file has no content")
    while block := stream.read(_BLOCK):
        yield block
    yield b"\0" * (-member.size % tarfile.BLOCKSIZE)


def _faults_of(member: tarfile.TarInfo, name: str) -> list[str]:
    found = []
    if member.mode & _SETUID_SETGID:
        found.append(f"/{name} is setuid or setgid")
    if any(key.startswith(_XATTR) and "capability" in key for key in member.pax_headers):
        found.append(f"/{name} has file capabilities")
    # The engine itself puts a few device files under /dev of every export.
    if (member.ischr() or member.isblk()) and not name.startswith("dev/"):
        found.append(f"/{name} is a device")
    if _PACKAGE_MANAGER.fullmatch(name):
        found.append(f"/{name} belongs to a package manager")
    return found
