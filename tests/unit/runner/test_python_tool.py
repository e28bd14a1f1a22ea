"""A Python tool in a process of its own, with pipes in place of the runner's."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from callgate_runner import python_tool

RUNNER = Path(__file__).parents[3] / "sandbox_images/base"


def run(tmp_path: Path, source: str, stdin: str = "{}\n", *, with_result: bool = True) -> tuple[int, str, str, str]:
    """Return exit status, standard output, standard error and result."""
    (tmp_path / "tool.py").write_text(source)
    reading, writing = os.pipe()
    program = (
        f"import os, sys; sys.path.insert(0, {str(RUNNER)!r}); os.dup2({writing}, 3)\n"
        "from callgate_runner import python_tool\n"
        f"python_tool.TOOLS_FOLDER = {str(tmp_path)!r}\n"
        f"os._exit(python_tool.run('tool:main', with_result={with_result}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], input=stdin, capture_output=True, text=True, pass_fds=[writing]
    )
    os.close(writing)
    with os.fdopen(reading) as result:
        return done.returncode, done.stdout, done.stderr, result.read()


def test_arguments_become_keywords_and_the_value_the_result(tmp_path: Path) -> None:
    source = "def main(a, b=2):\n    print('x')\n    return {'sum': a + b, 'é': None}\n"
    assert run(tmp_path, source, '{"a": 40}\n') == (0, "x\n", "", '{"sum":42,"é":null}')


def test_a_value_is_dropped_where_output_is_the_result(tmp_path: Path) -> None:
    assert run(tmp_path, "def main():\n    print('x')\n    return {1}\n", with_result=False) == (0, "x\n", "", "")


def test_secrets_go_only_to_who_takes_them(tmp_path: Path) -> None:
    stdin = '{}\n{"pin": "1"}\n'
    assert run(tmp_path, "def main(secrets):\n    return secrets\n", stdin)[3] == '{"pin":"1"}'
    assert run(tmp_path, "def main(**rest):\n    return rest\n", stdin)[3] == "{}"
    assert run(tmp_path, "def main(secrets):\n    return secrets\n")[3] == "{}"


def test_an_argument_named_secrets_is_refused(tmp_path: Path) -> None:
    status, _, said, result = run(tmp_path, "def main(secrets):\n    return 1\n", '{"secrets": {}}\n')
    assert (status, result) == (1, "")
    assert "TypeError" in said


def test_the_tool_is_found_before_the_runner_is(tmp_path: Path) -> None:
    source = (
        "import sys\ndef main():\n    return [sys.path[0], any('callgate/runner' in p for p in sys.path), sys.argv]\n"
    )
    assert json.loads(run(tmp_path, source)[3]) == [str(tmp_path), False, [""]]


def test_output_that_no_newline_ended_is_flushed(tmp_path: Path) -> None:
    source = "import sys\ndef main():\n    print('a', end='')\n    print('b', end='', file=sys.stderr)\n"
    assert run(tmp_path, source) == (0, "a", "b", "null")


def test_output_that_is_not_unicode_keeps_its_bytes(tmp_path: Path) -> None:
    source = "import sys\ndef main():\n    print('\\udcc3\\udca9')\n    print('\\ud800', file=sys.stderr)\n"
    assert run(tmp_path, source) == (0, "é\n", "\\ud800\n", "null")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("return float('inf')", 1),
        ("return b''", 1),
        ("x = []; x.append(x); return x", 1),
        ("return '\\ud800'", 1),
        ("import sys; sys.exit(259)", 3),
        ("import sys; sys.exit(-1)", 255),
        ("import sys; sys.exit('text')", 1),
        ("import sys; sys.exit()", 0),
        ("raise Exception", 1),
        ("import atexit; atexit.register(lambda: 1 / 0); return 1", 0),
        ("import threading; threading.Thread(target=lambda: None).start(); raise Exception", 1),
    ],
)
def test_the_end_of_the_function_is_the_status_of_the_process(tmp_path: Path, body: str, status: int) -> None:
    assert run(tmp_path, f"def main():\n    {body}\n")[0] == status


@pytest.mark.parametrize("source", ["", "def other(): pass\n", "syntax error\n", "import nonexistent_module\n"])
def test_a_tool_that_is_not_there_is_a_failure_with_a_traceback(tmp_path: Path, source: str) -> None:
    status, _, said, result = run(tmp_path, source)
    assert (status, result) == (1, "")
    assert "Error" in said


def test_a_traceback_begins_with_the_tool(tmp_path: Path) -> None:
    _, _, said, _ = run(tmp_path, "def main():\n    return 1 / 0\n")
    lines = said.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "tool.py" in lines[1]
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert "python_tool.py" not in said


def test_a_tool_may_put_other_objects_in_the_place_of_its_streams(tmp_path: Path) -> None:
    assert run(tmp_path, "import sys\ndef main():\n    sys.stdout = None\n    return 1\n")[0] == 120


PRELOADS = """
import os, sys
sys.path.insert(0, {runner!r})
from callgate_runner import python_tool
python_tool.TOOLS_FOLDER = {tools!r}
python_tool.become_a_python_program()
kept = python_tool.preload("tool:main")
print(kept, "tool" in sys.modules, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "True True"),
        ("raise RuntimeError", "False False"),
        ("raise SystemExit", "False False"),
        ("raise KeyboardInterrupt", "False False"),
        ("import nonexistent_module", "False False"),
        ("syntax error", "False False"),
    ],
)
def test_a_preload_that_fails_is_told_and_not_raised(tmp_path: Path, source: str, said: str) -> None:
    (tmp_path / "tool.py").write_text(source)
    program = PRELOADS.format(runner=str(RUNNER), tools=str(tmp_path))
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{said}\n", "")


def test_a_wrapped_function_is_asked_for_its_own_parameters() -> None:
    def inner(a: int, *, secrets: dict[str, str]) -> None: ...

    @functools.wraps(inner)
    def outer(*args: object, **keywords: object) -> None: ...

    def local() -> None:
        secrets = 1
        del secrets

    assert python_tool._takes_secrets(inner)
    assert python_tool._takes_secrets(outer)
    assert not python_tool._takes_secrets(local)
