import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_runner import json_text

HEAVY = ("json", "re", "enum", "signal", "typing", "functools", "collections", "contextlib", "ctypes", "traceback")
RUNNER = Path(__file__).parents[3] / "sandbox_images/base"
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(VALUES)
def test_what_is_written_is_what_the_standard_library_reads(value: Any) -> None:
    assert json.loads(json_text.encode(value)) == value
    assert json_text.decode(json_text.encode(value)) == value


@given(VALUES)
def test_what_the_standard_library_writes_is_read(value: Any) -> None:
    assert json_text.decode(json.dumps(value).encode()) == value
    assert json_text.decode(json.dumps(value, indent=1, ensure_ascii=False).encode()) == value


@pytest.mark.parametrize("text", [b"", b" ", b"{", b"1 2", b"[1],", b"nul", b"{'a':1}", b'{"a":1}}', b"NaN", b"[Infinity]", b"\xff", b'"\n"'])  # fmt: skip
def test_what_is_not_one_json_value_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of several kinds
        json_text.decode(text)


def itself() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")], "\ud800", itself()])
def test_what_json_cannot_hold_is_not_written(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of several kinds
        json_text.encode(value)


@pytest.mark.parametrize("value", [{1}, b"", object(), {(1,): 2}])
def test_a_value_of_another_type_is_not_written(value: object) -> None:
    with pytest.raises(TypeError):
        json_text.encode(value)


def test_a_runner_is_made_of_little_more_than_the_interpreter() -> None:
    """Each of these costs a good part of a call."""
    program = (
        f"import sys; sys.path.insert(0, {str(RUNNER)!r}); from callgate_runner.main import main\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
