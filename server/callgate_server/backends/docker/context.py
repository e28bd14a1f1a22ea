"""What of an image's folder goes to the engine, byte for byte the same for the same folder.

Takes regular files only: a link could carry a file of the host into an image. Manifests and schemas stay out:
they belong to the catalog, and changing a summary must not make another image.
"""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

RUNNER: Final = "callgate_runner"
PACKAGES: Final = "packages"
TOOLS: Final = "tools"
DOCKERFILE: Final = "Dockerfile"
REQUIREMENTS: Final = "requirements.lock"

Files = Mapping[str, Path]
_DECLARATIONS: Final = (".yaml", ".yml", ".json", ".md")


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files of an image's folder that its build may see, by their path in it.

    Raises:
        ValueError: no Dockerfile, something that is not a regular file, or a name that is ours.
        OSError: the folder cannot be read.
    """
    files = {name: path for name, path in walk(folder).items() if not _is_left_out(name)}
    if DOCKERFILE not in files:
        raise ValueError(f"{folder} has no {DOCKERFILE}")
    if REQUIREMENTS in files and any(name.startswith(f"{PACKAGES}/") for name in files):
        raise ValueError(f"{folder}: {REQUIREMENTS} fills {PACKAGES}/, so it must not have files of its own")
    return files


def is_installed(name: str) -> bool:
    """Whether a file is put in place by the builder, after the image's own Dockerfile, which does not see it."""
    return name == REQUIREMENTS or name.split("/")[0] in (PACKAGES, RUNNER, TOOLS)


def walk(folder: Path) -> dict[str, Path]:
    """Return every file under `folder` by its relative path.

    Raises:
        ValueError: something that is neither a folder nor a regular file.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is a link or a special file; an image is built from regular files only")
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path
    return files


def digest(files: Files, *more: str) -> str:
    """Hash names, executable bits and contents, and whatever else decides about the image."""
    total = hashlib.sha256()
    for text in more:
        total.update(hashlib.sha256(text.encode()).digest())
    for name, path in sorted(files.items()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{len(name)}:{name} {_mode(path):o} {content}\n".encode())
    return total.hexdigest()


def write(files: Files, dockerfile: str, tar: IO[bytes]) -> None:
    """Write the build context, and rewind: `files` as root's, without dates, and `dockerfile` in place of theirs."""
    contents = {name: path for name, path in files.items() if name != DOCKERFILE}
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in (PACKAGES, TOOLS, RUNNER):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        _add(archive, DOCKERFILE, 0o644, dockerfile.encode())
        for name, path in sorted(contents.items()):
            _add(archive, name, _mode(path), path.read_bytes())
    tar.seek(0)


def _add(archive: tarfile.TarFile, name: str, mode: int, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    archive.addfile(info, io.BytesIO(content))


def _is_left_out(name: str) -> bool:
    parts = name.split("/")
    if any(part.startswith(".") or part == "__pycache__" for part in parts) or name.endswith(".pyc"):
        return True
    return parts[0] == TOOLS and name.endswith(_DECLARATIONS)


def _mode(path: Path) -> int:
    return 0o755 if path.stat().st_mode & 0o100 else 0o644
