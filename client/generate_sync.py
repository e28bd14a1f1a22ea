"""Generates the sync client and its tests from the async ones, or with `--check` says whether they are current.

The two differ in a handful of words, and in the channel, which is written twice by hand. The words are replaced
in docstrings too, so that the examples stay right.
"""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PAIRS: Final = (
    (Path("client/callgate/_async/client.py"), Path("client/callgate/_sync/client.py")),
    (Path("tests/unit/client/_async/test_client.py"), Path("tests/unit/client/_sync/test_client.py")),
)
REPLACEMENTS: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\bThe async client\b", "The sync client"),
        (r"\basync (def|with|for)\b", r"\1"),
        (r"\bawait ", ""),
        (r"\bAsync(Callgate|Iterator)\b", r"\1"),
        (r"\bcallgate\._async\b", "callgate._sync"),
        (r"\b__a(enter|exit)__\b", r"__\1__"),
        (r"\banext\b", "next"),
    )
)


def generate(source: Path, target: Path) -> str:
    """Return the sync half of an async module, formatted as what it will be."""
    text = (ROOT / source).read_text()
    for pattern, replacement in REPLACEMENTS:
        text = pattern.sub(replacement, text)
    header = f"# Generated from {source.as_posix()} by client/generate_sync.py: change that file, not this one.\n"
    if target.parts[0] == "tests":
        # What only looks needless once its `async` is gone.
        header += "# ruff: noqa: C416, SIM117\n"
    return _ruff("format", target, _ruff("check", target, header + text, "--select=I", "--fix"))


def _ruff(command: str, target: Path, text: str, *options: str) -> str:
    program = Path(sysconfig.get_path("scripts")) / "ruff"
    arguments = [program, command, "--quiet", *options, "--stdin-filename", ROOT / target, "-"]
    done = subprocess.run(arguments, input=text, capture_output=True, text=True, check=True, cwd=ROOT)  # noqa: S603  # our own formatter
    return done.stdout


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: generate_sync.py [--check]\n")
        return 2
    stale = [(target, text) for source, target in PAIRS if (text := generate(source, target)) != _current(target)]
    for target, text in stale:
        if arguments:
            sys.stderr.write(f"{target.as_posix()} is stale: run `make sync-client`\n")
        else:
            (ROOT / target).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / target).write_text(text)
    return 1 if arguments and stale else 0


def _current(target: Path) -> str | None:
    path = ROOT / target
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
