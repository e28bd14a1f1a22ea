"""`python.run`: a program runs as if it were alone, and its end is the call's end."""

import base64
from pathlib import Path
from typing import Any

import pytest

from support.tools import Ended, call


def run(folder: Path, code: str, **arguments: Any) -> Ended:
    (folder / "out").mkdir(exist_ok=True)
    return call(
        "python_run:run", "python", folder, {"code": code, **arguments}, python_run__OUTPUT_FOLDER=str(folder / "out")
    )


def test_output_is_the_programs_own_and_a_clean_end_is_a_success(tmp_path: Path) -> None:
    ended = run(tmp_path, "import sys\nprint('out')\nprint('err', file=sys.stderr)")
    assert (ended.status, ended.stdout, ended.stderr) == (0, "out\n", "err\n")
    assert ended.result == {"exit_code": 0, "files": []}


def test_an_uncaught_exception_fails_the_call_and_shows_only_the_programs_frames(tmp_path: Path) -> None:
    ended = run(tmp_path, "def f():\n    return 1 / 0\n\nf()\n")
    assert ended.status == 1
    assert ended.result is None
    program = tmp_path / "work" / "main.py"
    frames = [line.strip() for line in ended.stderr.splitlines() if line.startswith("  File")]
    assert frames == [f'File "{program}", line 4, in <module>', f'File "{program}", line 2, in f']
    assert "return 1 / 0" in ended.stderr
    assert ended.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_a_chain_of_exceptions_is_shown_whole(tmp_path: Path) -> None:
    ended = run(tmp_path, "try:\n    {}['x']\nexcept KeyError:\n    raise ValueError('second')\n")
    assert "KeyError: 'x'" in ended.stderr
    assert "ValueError: second" in ended.stderr
    assert "python_run" not in ended.stderr


def test_a_syntax_error_points_at_the_programs_line(tmp_path: Path) -> None:
    ended = run(tmp_path, "x = 1\ny = = 2\n")
    assert ended.status == 1
    assert "line 2" in ended.stderr
    assert "y = = 2" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_code_with_a_nul_is_an_error_of_the_program(tmp_path: Path) -> None:
    ended = run(tmp_path, "print(1)\0")
    assert ended.status == 1
    assert "null bytes" in ended.stderr


@pytest.mark.parametrize(("end", "status"), [("sys.exit(3)", 3), ("exit(4)", 4), ("raise SystemExit(True)", 1)])
def test_an_exit_status_is_passed_on(tmp_path: Path, end: str, status: int) -> None:
    ended = run(tmp_path, f"import sys\n{end}")
    assert ended.status == status
    assert ended.result is None


@pytest.mark.parametrize("end", ["sys.exit()", "sys.exit(0)", "quit()"])
def test_an_exit_without_a_fault_is_a_success(tmp_path: Path, end: str) -> None:
    assert run(tmp_path, f"import sys\n{end}\nprint('never')").result == {"exit_code": 0, "files": []}


def test_an_exit_with_a_text_prints_it_and_fails(tmp_path: Path) -> None:
    ended = run(tmp_path, "import sys; sys.exit('no luck')")
    assert (ended.status, ended.stderr) == (1, "no luck\n")


def test_the_program_is_main_with_its_arguments_and_its_folder(tmp_path: Path) -> None:
    code = (
        "import os, sys, __main__\n"
        "me = 'here'\n"
        "print(__name__, sys.argv[1:], os.path.basename(__file__), os.getcwd() == os.path.dirname(__file__))\n"
        "print(__main__.me, 'run' in globals())"
    )
    ended = run(tmp_path, code, args=["-v", "x y"])
    assert ended.stdout == "__main__ ['-v', 'x y'] main.py True\nhere False\n"


def test_files_are_beside_the_program_and_can_be_imported(tmp_path: Path) -> None:
    files = [
        {"name": "mine.py", "content": "answer = 42"},
        {"name": "blob.bin", "content_base64": base64.b64encode(b"\x00\xff").decode()},
    ]
    ended = run(tmp_path, "import mine; print(mine.answer, open('blob.bin', 'rb').read())", files=files)
    assert ended.stdout == "42 b'\\x00\\xff'\n"


def test_files_left_in_the_output_folder_are_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import os\n"
        f"out = {str(out)!r}\n"
        "os.mkdir(f'{out}/b')\n"
        "for name in ('b/two.csv', 'a.txt'): open(f'{out}/{name}', 'w').close()\n"
        "os.symlink('/etc/passwd', f'{out}/link')\n"
        "open(os.fsencode(out) + b'/\\xff', 'w').close()\n"
    )
    assert run(tmp_path, code).result["files"] == ["a.txt", "b/two.csv"]


def test_a_list_of_files_has_an_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = run(tmp_path, f"for n in range(300): open(f'{out}/{{n:03}}', 'w').close()")
    assert len(ended.result["files"]) == 100


def test_there_is_no_input_to_wait_for(tmp_path: Path) -> None:
    ended = run(tmp_path, "input()")
    assert ended.status == 1
    assert "EOFError" in ended.stderr
