"""Calls a Python tool of `sandbox_images` in a process of its own, as the runner would, with this host's Python and
the packages of the tool's image."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from callgate_server.backends.docker import wheels

ROOT = Path(__file__).resolve().parents[2]
SANDBOX_IMAGES = ROOT / "sandbox_images"
_TIMEOUT_S = 60
_CALL = """
import importlib, json, resource, sys
call = json.loads(sys.stdin.readline())
if call["memory_bytes"]:
    resource.setrlimit(resource.RLIMIT_AS, (call["memory_bytes"], call["memory_bytes"]))
sys.path[:0] = call["path"]
for place, value in call["settings"].items():
    module, _, name = place.partition(":")
    setattr(importlib.import_module(module), name, value)
module, _, function = call["run"].partition(":")
tool = getattr(importlib.import_module(module), function)
each = [tool(**arguments) for arguments in call["arguments"]]
open(call["result"], "w").write(json.dumps(each))
"""


@dataclass(frozen=True)
class Ended:
    """`status` as `subprocess` has it: negative for a signal. `result` is None when none was written."""

    status: int
    stdout: str
    stderr: str
    result: Any


def call(run: str, image: str | Path, folder: Path, arguments: dict[str, Any], **options: Any) -> Ended:
    """Call `module:function` of an image once; `options` as of `call_each`."""
    ended = call_each(run, image, folder, [arguments], **options)
    return replace(ended, result=None if ended.result is None else ended.result[0])


def call_each(
    run: str,
    image: str | Path,
    folder: Path,
    arguments: Sequence[dict[str, Any]],
    *,
    packages: bool = False,
    environment: Mapping[str, str] | None = None,
    memory_bytes: int | None = None,
    **settings: Any,
) -> Ended:
    """Call `module:function` of an image, by name or by folder, with each of the arguments in one process.

    The result is a list, as long as none fails. `settings` are module constants by `module__NAME`.
    Works below `folder`, with the image's `packages` where they are asked for. It sees the given environment and
    nothing of ours, and may take `memory_bytes` of address space.
    """
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    places = {"workspace:FOLDER": str(folder / "work")}
    places |= {key.replace("__", ":", 1): value for key, value in settings.items()}
    document = {
        "path": tools_path(image, packages=packages),
        "settings": places,
        "run": run,
        "arguments": list(arguments),
        "result": str(result),
        "memory_bytes": memory_bytes,
    }
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-S", "-c", _CALL],
        capture_output=True,
        input=json.dumps(document) + "\n",
        timeout=_TIMEOUT_S,
        text=True,
        check=False,
        env={"PATH": os.defpath, "LANG": "C.UTF-8", **(environment or {})},
    )
    return Ended(done.returncode, done.stdout, done.stderr, json.loads(result.read_text()) if result.exists() else None)


def tools_path(image: str | Path, *, packages: bool) -> list[str]:
    """Where a tool of an image finds its modules: its own, those of every image, and its packages."""
    places = [SANDBOX_IMAGES / image / "tools", SANDBOX_IMAGES / "base" / "tools"]
    if packages:
        places.append(_packages(SANDBOX_IMAGES / image))
    return list(map(str, places))


@cache
def _packages(image: Path) -> Path:
    """Fetched once, into the cache that the images are built from."""
    version = "{}.{}".format(*sys.version_info)
    cache_folder = ROOT / ".callgate" / "packages"
    return wheels.fetch(image / "requirements.lock", cache_folder, python=version, machine=platform.machine())
