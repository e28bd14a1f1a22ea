"""`text.diff`: a unified diff that other programs can apply."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.tools import call


def diff(folder: Path, before: str, after: str, **arguments: Any) -> dict[str, Any]:
    return call("text_diff:diff", "python", folder, {"before": before, "after": after, **arguments}).result


def test_equal_texts_have_no_difference(tmp_path: Path) -> None:
    assert diff(tmp_path, "a\nb\n", "a\nb\n") == {"diff": "", "added": 0, "removed": 0, "equal": True}


def test_a_change_is_shown_and_counted(tmp_path: Path) -> None:
    found = diff(tmp_path, "a\nb\nc\n", "a\nB\nc\nd\n")
    assert found["diff"] == "--- before\n+++ after\n@@ -1,3 +1,4 @@\n a\n-b\n+B\n c\n+d\n"
    assert (found["added"], found["removed"], found["equal"]) == (2, 1, False)


def test_lines_that_look_like_headers_are_counted_as_lines(tmp_path: Path) -> None:
    found = diff(tmp_path, "-- x\n", "++ y\n")
    assert (found["added"], found["removed"]) == (1, 1)


@pytest.mark.parametrize("context", [0, 1, 1.0])
def test_as_much_context_is_shown_as_was_asked_for(tmp_path: Path, context: float) -> None:
    before = "".join(f"{n}\n" for n in range(20))
    found = diff(tmp_path, before, before.replace("10\n", "ten\n"), context=context)
    assert sum(line.startswith(" ") for line in found["diff"].splitlines()) == 2 * context


@pytest.mark.parametrize(
    ("before", "after"),
    [("a\nb", "a\nb\n"), ("a\nb\n", "a\nb"), ("", "x"), ("x\n", ""), ("a\rb\u2028c\x0bd\n", "a\rb\u2028C\x0bd\n")],
)
def test_patch_turns_the_old_text_into_the_new_one(tmp_path: Path, before: str, after: str) -> None:
    file = tmp_path / "text"
    file.write_bytes(before.encode())
    patch = diff(tmp_path, before, after)["diff"]
    subprocess.run(["patch", "--binary", "-s", str(file)], input=patch.encode(), check=True)
    assert (file.read_bytes() if file.exists() else b"") == after.encode()
