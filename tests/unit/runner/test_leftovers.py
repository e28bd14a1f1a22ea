"""What imports left, looked for in a process that is to the lane what a zygote is."""

from pathlib import Path
from typing import Any

import pytest

from callgate_runner.leftovers import is_shared_memory
from support.lane_world import in_world

# As a zygote does it: everything that was open is held, and output goes where it can be looked at.
LOOKS = """
said, output = os.pipe2(os.O_NONBLOCK)
answer, told = os.pipe()
if os.fork() == 0:
    os.dup2(output, 1), os.dup2(output, 2)
    python_tool.become_a_python_program()
    held = [fd for fd in map(int, os.listdir("/proc/self/fd")) if leftovers._is_open(fd)]
    exec(left)
    os.write(told, json.dumps(leftovers.of_imports(held, said, [b"/tmp", b"/out"])).encode())
    os._exit(0)
os.close(told)
print(os.read(answer, 99).decode())
"""

LEFT = {
    "nothing": ("import json, ssl, decimal, threading", None),
    "a print": ("print('hello')", "output"),
    "half a line": ("sys.stdout.write('hello')", "output"),
    "a warning on the other stream": ("sys.stderr.write('x')", "output"),
    "no stream at all": ("sys.stdout = None", "output"),
    "a file that is open": ("one = open('/proc/1/status')", "descriptors"),
    "a socket": ("import socket; one = socket.socket()", "descriptors"),
    "a file that was closed again": ("open('/proc/1/status').close()", None),
    "a thread": ("import threading; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", "threads"),
    "a thread that has ended": ("import threading; one = threading.Thread(target=int); one.start(); one.join()", None),
    "a child": ("os.fork() or time.sleep(60)", "processes"),
    "a process that left": ("os.fork() or (os.fork() and os._exit(0)) or time.sleep(60)", "processes"),
    "memory for all": ("import mmap; one = mmap.mmap(-1, 4096)", "shared memory"),
    "memory for oneself": ("import mmap; one = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE)", None),
    "a file": ("open('/tmp/cache', 'w').close()", "files"),
    "a folder": ("import tempfile; place = tempfile.mkdtemp()", "files"),
    "an artifact": ("open('/out/one', 'w').close()", "files"),
    "a file that was removed": ("open('/tmp/one', 'w').close(); os.remove('/tmp/one')", None),
}  # fmt: skip


def look(folder: Path, left: str) -> Any:
    return in_world(folder, LOOKS, left=left)


@pytest.mark.parametrize("kind", LEFT)
def test_what_calls_would_share_or_miss_is_found(kind: str, tmp_path: Path) -> None:
    left, expected = LEFT[kind]
    assert look(tmp_path, left) == expected


@pytest.mark.parametrize(
    ("mapping", "shared"),
    [
        ("7f00-7f01 rw-s 00000000 00:01 2048 /dev/zero (deleted)", True),
        ("7f00-7f01 rw-s 00000000 00:01 2048 /SYSV00000000 (deleted)", True),
        ("7f00-7f01 r--s 00000000 00:17 9 /tmp/data", True),
        ("7f00-7f01 rw-s 00000000 00:17 9 /usr/lib/data", True),
        ("7f00-7f01 rw-s 00000000 00:00 0", True),
        ("7f00-7f01 r--s 00000000 08:01 9 /usr/lib/gconv-modules.cache", False),
        ("7f00-7f01 rw-p 00000000 00:00 0", False),
        ("7f00-7f01 r-xp 00000000 08:01 9 /usr/lib/libc.so.6", False),
        ("7f00-7f01 rw-p 00000000 00:00 0 [heap]", False),
    ],
)
def test_shared_memory_is_told_by_its_mapping(mapping: str, shared: bool) -> None:
    assert is_shared_memory(mapping) == shared
