"""The steps from fork to tool, in a process of their own: a fork of the test run would carry its threads."""

import subprocess
import sys
from pathlib import Path

RUNNER = Path(__file__).parents[3] / "sandbox_images/base"
PROGRAM = f"""
import os, select, sys
sys.path.insert(0, {str(RUNNER)!r})
from callgate_runner import child, kernel, wire
from callgate_runner.call import WayOut
link = wire.Wire.take_over()
kernel.set_dumpable(dumpable=False)
kernel.ignore_signals()
class Call:
    function = None
    command = {{command!r}}
    result_from_stdout = {{from_stdout!r}}
    open_files = 99
    names = {{{{"CALLGATE_CALL_ID": "call-1"}}}}
    egress = {{way_out!r}} and WayOut({{way_out!r}})
pid, pipes, gate = child.start(Call)
if {{watch_gate!r}}:
    os.write(link.sink, b"%d|" % len(select.select([pipes.stdout], [], [], 0.3)[0]))
os.close(gate)
os.close(pipes.stdin)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
for fd in (pipes.stdout, pipes.stderr):
    os.write(link.sink, os.read(fd, 65536) + b'|')
os.write(link.sink, b'%d %d' % (status, os.get_blocking(pipes.stdout)))
"""


def start(*command: str, from_stdout: bool = False, way_out: dict[str, object] | None = None) -> tuple[str, str, str]:
    program = PROGRAM.format(command=list(command), from_stdout=from_stdout, watch_gate=False, way_out=way_out)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    stdout, stderr, end = done.stdout.split("|")
    return stdout, stderr, end


def test_a_command_runs_with_four_descriptors_and_without_the_wire() -> None:
    # The listing's own descriptor is the next one.
    assert start("/bin/ls", "/proc/self/fd") == ("0\n1\n2\n3\n4\n", "", "0 0")


def test_there_is_no_result_descriptor_where_output_is_the_result() -> None:
    assert start("/bin/ls", "/proc/self/fd", from_stdout=True) == ("0\n1\n2\n3\n", "", "0 0")


def test_nothing_of_the_tool_runs_before_the_gate_is_opened() -> None:
    program = PROGRAM.format(command=["/bin/echo", "begun"], from_stdout=True, watch_gate=True, way_out=None)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0|begun\n||0 0"


def test_words_are_passed_without_a_shell() -> None:
    assert start("/bin/echo", "$HOME; `id`", "a  b") == ("$HOME; `id` a  b\n", "", "0 0")


def test_the_process_is_its_own_and_limited() -> None:
    stdout, _, _ = start(
        "/bin/sh",
        "-c",
        "pwd; umask; ulimit -n; ulimit -c; cat /proc/self/oom_score_adj; cut -d' ' -f6 /proc/$$/stat; echo $$",
    )
    *fixed, session, pid = stdout.split()
    assert fixed == ["/tmp", "0077", "99", "0", "1000"]
    assert session == pid


def test_a_tool_with_a_way_out_is_told_of_it_and_others_are_not() -> None:
    stdout, _, _ = start("/usr/bin/env", way_out={"proxy": True, "ports": [], "authority": None})
    assert "https_proxy=http://127.0.0.1:3128\n" in stdout
    assert "\nno_proxy=\n" in stdout
    assert "proxy" not in start("/usr/bin/env")[0].lower()


def test_signals_have_their_default_meaning() -> None:
    stdout, _, _ = start("/bin/grep", "-E", "SigIgn|SigBlk", "/proc/self/status")
    # Signals 32 and 33 are the C library's own: no program can set them, and what the tests' parent did stays.
    reserved = 0b11 << 31
    assert [int(line.split()[1], 16) & ~reserved for line in stdout.splitlines()] == [0, 0]


def test_a_command_that_does_not_exist_has_the_shell_status_for_it() -> None:
    stdout, stderr, end = start("/nonexistent/program")
    assert (stdout, end) == ("", "126 0")
    assert "FileNotFoundError" in stderr


def test_the_environment_is_fixed_but_for_the_names_of_the_call() -> None:
    stdout, _, _ = start("/usr/bin/env")
    assert sorted(stdout.splitlines()) == [
        "CALLGATE_CALL_ID=call-1",
        "CALLGATE_RESULT_FD=3",
        "HOME=/tmp",
        "LANG=C.UTF-8",
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "TMPDIR=/tmp",
    ]
