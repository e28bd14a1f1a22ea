"""`catalog.lock`: what was built and reviewed, by digest. A gateway runs exactly that or does not start.

The lock belongs to a deployment, beside its configuration: an image built here differs from one built there.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from callgate_server.backends.catalog.manifests import declarations, image_folders
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.manifest import Manifest
from callgate_server.model.strict_json import decode, encode

_REMEDY: Final = "run `callgated catalog build`"
_MAX_BYTES: Final = 4 * 1024 * 1024
_Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1]
    images: dict[str, _Digest]
    tools: dict[str, _Digest]


@dataclass(frozen=True, slots=True)
class Lock:
    """Image digests by image name, and tool digests (of manifest and image together) by tool name."""

    images: Mapping[str, str]
    tools: Mapping[str, str]

    @classmethod
    def of(cls, manifests: Sequence[Manifest], images: Mapping[str, str]) -> "Lock":
        return cls(images, {each.tool: Tool.pin(each, images[each.image]).digest for each in manifests})


def read_lock(path: Path) -> Lock:
    """Read a lock.

    Raises:
        ValueError: there is none, or it is not one.
        OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES)
        document = _Document.model_validate(decode(content))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: {_REMEDY}") from None
    except ValidationError as error:
        keys = ", ".join(".".join(str(part) for part in fault["loc"]) or "(file)" for fault in error.errors())
        raise ValueError(f"{path} is not a catalog lock (at {keys}): {_REMEDY}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a catalog lock: {error}; {_REMEDY}") from None
    return Lock(document.images, document.tools)


def write_lock(path: Path, lock: Lock) -> None:
    """Replace the lock at once: a reader sees the old one or the new one.

    Raises:
        OSError: it cannot be written.
    """
    content = encode({"version": 1, "images": dict(lock.images), "tools": dict(lock.tools)})
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content + b"\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_catalog(directories: Sequence[Path], lock: Path) -> Catalog:
    """Return the tools that the folders declare, each pinned as the lock has it.

    Raises:
        ValueError: a manifest is not acceptable, or a tool or its image is not what the lock has; one bad tool
            refuses the whole catalog. The message says what to do.
        OSError: a file cannot be read.
    """
    locked = read_lock(lock)
    manifests = [each.manifest() for each in declarations(image_folders(directories).values())]
    return Catalog.of(*(_pinned(manifest, locked) for manifest in manifests))


def _pinned(manifest: Manifest, locked: Lock) -> Tool:
    image = locked.images.get(manifest.image)
    if image is None:
        raise ValueError(f"the image {manifest.image} of {manifest.tool} is not in the catalog lock: {_REMEDY}")
    tool = Tool.pin(manifest, image)
    if locked.tools.get(manifest.tool) != tool.digest:
        raise ValueError(f"{manifest.tool} is not what the catalog lock has: review it and {_REMEDY}")
    return tool
