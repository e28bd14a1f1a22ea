"""Tools that leave in /out what nobody should take."""

import base64
import hashlib
from typing import Any

from support.arena import TIMED_OUT, Arena, verdict

FILES, BYTES = 16, 2 << 20  # of the probe's manifest


def listed(answer: dict[str, Any]) -> dict[str, str | None]:
    """Why each was not taken, by name; None for those that were."""
    return {one["name"]: one["rejected"] for one in answer["artifacts"]}


def taken(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in answer["artifacts"] if one["rejected"] is None]


def test_only_plain_files_with_one_name_are_taken(any_arena: Arena) -> None:
    code = """
import os, socket
os.chdir('/out')
open('plain.txt', 'w').write('hello')
os.mkdir('folder'); open('folder/inside', 'w').write('x')
os.symlink('/etc/passwd', 'absolute'); os.symlink('plain.txt', 'relative'); os.symlink('/etc', 'to a folder')
os.symlink('/proc/1/environ', 'folder/process')
open('first', 'w').write('twice'); os.link('first', 'second')
os.mkfifo('pipe')
socket.socket(socket.AF_UNIX).bind('socket')
try:
    os.mknod('device', 0o20666, os.makedev(1, 3))
except OSError:
    pass
"""
    answer = any_arena.run(code)
    assert answer["state"] == "succeeded"
    reasons = listed(answer)
    if any_arena.runtime == "runsc":
        assert reasons.pop("device") == "not_a_regular_file"  # of gVisor's own kernel, with nothing behind it
    assert reasons == {
        "plain.txt": None,
        "folder/inside": None,
        "absolute": "symbolic_link",
        "relative": "symbolic_link",
        "to a folder": "symbolic_link",
        "folder/process": "symbolic_link",
        "first": "hard_link",
        "second": "hard_link",
        "pipe": "not_a_regular_file",
        "socket": "not_a_regular_file",
    }
    assert {one["data"] for one in answer["artifacts"] if one["rejected"]} == {""}
    (plain,) = [one for one in answer["artifacts"] if one["name"] == "plain.txt"]
    assert base64.b64decode(plain["data"]) == b"hello"
    assert plain["sha256"] == hashlib.sha256(b"hello").hexdigest()


def test_names_are_plain_relative_paths_without_anything_hidden(any_arena: Arena) -> None:
    code = """
import os
os.chdir('/out')
names = ['..%2f..%2fetc%2fpasswd', '-rf', '...', '~', 'a\\nb', '\\x1b[2J', '\\u202egnp.exe', 'zero\\u200bwidth', 'n' * 255]
for name in [*(name.encode() for name in names), b'\\xff\\xfe', b'\\xc0\\xae\\xc0\\xae']:
    open(name, 'w').write('x')
"""
    answer = any_arena.run(code)
    assert {one["name"] for one in taken(answer)} == {"..%2f..%2fetc%2fpasswd", "-rf", "...", "~", "n" * 255}
    assert {one["rejected"] for one in answer["artifacts"]} == {None, "bad_name"}
    for one in answer["artifacts"]:
        assert one["name"].isprintable()
        assert not one["name"].startswith("/")
        assert ".." not in one["name"].split("/")


def test_what_happens_to_the_folder_itself_is_the_tools_own_loss(arena: Arena) -> None:
    answer = arena.run("import os\nopen('/out/x', 'w').write('x')\nos.chmod('/out', 0)\nresult = 1")
    assert (verdict(answer), answer["artifacts"]) == (("succeeded", None), [])
    answer = arena.run("import os\nopen('/out/x', 'w').write('x')\nos.chmod('/out', 0o400)\nresult = 1")
    assert (verdict(answer), listed(answer)) == (("succeeded", None), {"x": "unreadable"})
    answer = arena.run("import os\nfor n in ('a', 'b'): open(f'/out/{n}', 'w').write(n)\nos.chmod('/out/a', 0)")
    assert listed(answer) == {"a": "unreadable", "b": None}
    answer = arena.run("import os\nos.rename('/out', '/tmp/out')")
    assert (verdict(answer), answer["artifacts"]) == (("failed", "tool_failed"), [])


def test_a_sparse_file_counts_by_its_length(any_arena: Arena) -> None:
    code = "open('/out/sparse', 'w').truncate(1 << 40)\nopen('/out/small', 'w').write('x')\nresult = 1"
    answers: list[dict[str, Any]] = []
    rise_kb = any_arena.peak_kb(lambda: answers.append(any_arena.run(code)))
    assert listed(answers[0]) == {"small": None, "sparse": "too_large"}
    assert next(one["size_bytes"] for one in answers[0]["artifacts"] if one["rejected"]) == 1 << 40
    assert rise_kb < 32 * 1024


def test_more_files_than_the_manifest_allows_are_listed_and_not_taken(any_arena: Arena) -> None:
    code = """
made = 0
try:
    while made < 2000:
        open(f'/out/{made:05}', 'w').write('x')
        made += 1
except OSError:
    pass
result = made
"""
    answer = any_arena.run(code)
    assert len(taken(answer)) == FILES
    assert [one["name"] for one in taken(answer)] == [f"{n:05}" for n in range(FILES)]
    refused = [one for one in answer["artifacts"] if one["rejected"]]
    assert {one["rejected"] for one in refused} <= {"too_many_files", "not_examined"}
    assert len(refused) <= 64
    if any_arena.runtime != "runsc":
        assert answer["result"] == 2 * FILES  # the folder's inodes, less its own


def test_all_files_together_stay_within_the_bytes_of_the_manifest(any_arena: Arena) -> None:
    code = "for n in range(3): open(f'/out/{n}', 'wb').write(bytes([n]) * (700 << 10))"
    answer = any_arena.run(code)
    assert answer["state"] == "succeeded"
    assert sum(one["size_bytes"] for one in taken(answer)) <= BYTES
    assert list(listed(answer).values()).count("too_large") == 1


def test_folders_in_folders_end(any_arena: Arena) -> None:
    code = """
import os
os.chdir('/out')
try:
    for _ in range(200):
        os.mkdir('d'); os.chdir('d'); open('f', 'w').write('x')
except OSError:
    pass
"""
    answer = any_arena.run(code)
    assert answer["state"] == "succeeded"
    assert "too_deep" in listed(answer).values()
    assert max(one["name"].count("/") for one in taken(answer)) < 16


def test_what_a_killed_tool_left_is_taken(any_arena: Arena) -> None:
    code = "open('/out/half', 'w').write('partial')\nimport os\nif os.fork() == 0: pass\nwhile True: pass"
    answer = any_arena.run(code, deadline_s=6)
    assert verdict(answer) == TIMED_OUT
    assert base64.b64decode(taken(answer)[0]["data"]) == b"partial"
