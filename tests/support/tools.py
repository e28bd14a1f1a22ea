"""Calls a Python tool of `sandbox_images` in a process of its own, as the runner would, with this host's Python."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SANDBOX_IMAGES = Path(__file__).resolve().parents[2] / "sandbox_images"
_TIMEOUT_S = 60
_CALL = """
import importlib, json, sys
call = json.loads(sys.stdin.readline())
sys.path[:0] = call["path"]
for place, value in call["settings"].items():
    module, _, name = place.partition(":")
    setattr(importlib.import_module(module), name, value)
module, _, function = call["run"].partition(":")
result = getattr(importlib.import_module(module), function)(**call["arguments"])
open(call["result"], "w").write(json.dumps(result))
"""


@dataclass(frozen=True)
class Ended:
    """`status` as `subprocess` has it: negative for a signal. `result` is None when none was written."""

    status: int
    stdout: str
    stderr: str
    result: Any


def call(run: str, image: str | Path, folder: Path, arguments: dict[str, Any], **settings: str) -> Ended:
    """Call `module:function` of an image, by name or by folder; `settings` are module constants by `module__NAME`.

    Works below `folder`.
    """
    result = folder / "result.json"
    places = {"workspace:FOLDER": str(folder / "work")}
    places |= {key.replace("__", ":"): value for key, value in settings.items()}
    document = {
        "path": [str(SANDBOX_IMAGES / image / "tools"), str(SANDBOX_IMAGES / "base" / "tools")],
        "settings": places,
        "run": run,
        "arguments": arguments,
        "result": str(result),
    }
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-S", "-c", _CALL],
        capture_output=True,
        input=json.dumps(document) + "\n",
        timeout=_TIMEOUT_S,
        text=True,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr, json.loads(result.read_text()) if result.exists() else None)
