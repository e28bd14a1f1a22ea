"""Tools that abuse what they may write to, and the result descriptor."""

import base64
from typing import Any

import pytest

from support.arena import TIMED_OUT, Arena, verdict

KEPT = 256 << 10  # of each stream, by the manifest
FLOOD = 16 << 20
OUTPUT_FLOOD = ("failed", "output_flood")
INVALID = ("failed", "invalid_result")

FLOODS = {
    "yes": "import os\nos.execv('/usr/bin/yes', ['yes'])",
    "zeros": "import os\nos.execv('/bin/cat', ['cat', '/dev/zero'])",
    "one line of a GiB": "import os\nfor _ in range(1 << 14): os.write(1, b'x' * 65536)",
    "both streams": """
import os, threading
def write(fd):
    while True: os.write(fd, b'%d' % fd * 32768)
threading.Thread(target=write, args=(2,)).start()
write(1)
""",
}
NOT_CLEAN = b"\x1b]52;c;aGk=\x07\x1b[2J\x00\xff\xfeok\r\n\xe2\x80\xaeab\xf0\x9f\x98\x80\n"
# What stands in the result descriptor when the tool ends with status 0.
RESULTS = {
    "more than may be kept": "b'\"' + b'x' * (300 << 10) + b'\"'",
    "not JSON": "b'success'",
    "nested without end": "b'[' * 100_000 + b']' * 100_000",
    "a key twice": 'b\'{"a": 1, "a": 2}\'',
    "not a number": "b'NaN'",
    "infinity": "b'1e400'",
    "an integer of thousands of digits": "b'1' * 5000",
    "half a character": "b'\"\\\\ud800\"'",
    "not UTF-8": "b'\"\\xff\"'",
    "two documents": "b'1 2'",
    "half a document": "b'{\"a\":'",
}
WRITE_RESULT = """
import os
left = {content}
while left:
    left = left[os.write(3, left):]
os._exit(0)
"""


def data(stream: dict[str, Any]) -> bytes:
    """The bytes of an output stream, which stand beside its text where the two differ."""
    return stream["text"].encode() if stream["data"] is None else base64.b64decode(stream["data"])


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_is_cut_and_ended(flood: str, any_arena: Arena) -> None:
    answers: list[dict[str, Any]] = []
    rise_kb = any_arena.peak_kb(lambda: answers.append(any_arena.run(FLOODS[flood])))
    (answer,) = answers
    assert verdict(answer) == OUTPUT_FLOOD
    streams = [answer["stdout"], answer["stderr"]] if flood == "both streams" else [answer["stdout"]]
    assert FLOOD < sum(stream["total_bytes"] for stream in streams) < 2 * FLOOD
    for stream in streams:
        assert stream["truncated"] is True
        kept = data(stream)
        assert kept.count(b"bytes omitted") == 1
        assert KEPT - 8 <= len(kept) <= KEPT + 64
        assert len(kept.partition(b"\n[")[0]) >= KEPT // 2 - 4
    assert rise_kb < 2 * FLOOD // 1024


def test_no_flood_reaches_a_log_of_the_engine(arena: Arena) -> None:
    code = "print('ready', flush=True)\n" + FLOODS["one line of a GiB"].replace("1 << 14", "250")
    with arena.holding(code + "\nimport time; time.sleep(60)") as flooding:
        arena.harmless()
        assert flooding.container["HostConfig"]["LogConfig"]["Type"] == "none"
        assert flooding.container["LogPath"] == ""
        assert flooding.disk_bytes() < 1 << 20
        flooding.cancel()


def test_what_stays_below_a_flood_is_cut_and_no_failure(arena: Arena) -> None:
    answer = arena.run("import os\nfor number in range(160): os.write(1, b'%05d' % number * 16384)\nresult = 1")
    assert (verdict(answer), answer["result"]) == (("succeeded", None), 1)
    assert answer["stdout"]["total_bytes"] == 160 * 5 * 16384
    assert answer["stdout"]["text"].startswith("0000000000")
    assert answer["stdout"]["text"].endswith("0015900159")


def test_the_result_descriptor_is_no_way_round(any_arena: Arena) -> None:
    assert verdict(any_arena.run("import os\nwhile True: os.write(3, b'1' * 65536)")) == OUTPUT_FLOOD


def test_output_in_single_bytes_costs_the_gateway_little(arena: Arena) -> None:
    """Each byte may become a frame and an event of its own."""
    code = "import os\nfor _ in range(200_000): os.write(1, b'x'); os.write(2, b'y')"
    assert arena.peak_kb(lambda: arena.run(code)) < 48 * 1024


def test_bytes_are_preserved_and_text_is_harmless(any_arena: Arena) -> None:
    code = f"import os\nos.write(1, {NOT_CLEAN!r})\nos.write(2, b'\\x9b31m\\xc0\\xaf\\0')"
    answer = any_arena.run(code)
    assert data(answer["stdout"]) == NOT_CLEAN
    assert data(answer["stderr"]) == b"\x9b31m\xc0\xaf\x00"
    assert answer["stdout"]["text"] == "\\x1b]52;c;aGk=\\x07\\x1b[2J\\x00\\xff\\xfeok\r\n\\u{202e}ab😀\n"
    assert answer["stderr"]["text"] == "\\x9b31m\\xc0\\xaf\\x00"
    assert answer["stdout"]["total_bytes"] == len(NOT_CLEAN)


def test_interleaved_streams_stay_apart_and_whole(arena: Arena) -> None:
    code = "import os\nfor n in range(2000):\n    os.write(1, b'out %d\\n' % n)\n    os.write(2, b'err %d\\n' % n)"
    answer = arena.run(code)
    assert answer["stdout"]["text"] == "".join(f"out {n}\n" for n in range(2000))
    assert answer["stderr"]["text"] == "".join(f"err {n}\n" for n in range(2000))


def test_standard_input_ends(any_arena: Arena) -> None:
    code = (
        "import subprocess, sys\n"
        "result = [sys.stdin.read(), subprocess.run(['/bin/cat'], capture_output=True).stdout.decode()]"
    )
    assert any_arena.run(code)["result"] == ["", ""]


def test_who_waits_for_input_that_never_comes_meets_the_deadline(any_arena: Arena) -> None:
    code = "import os\nos.mkfifo('/tmp/never')\nprint('begun', flush=True)\nopen('/tmp/never').read()"
    answer = any_arena.run(code, deadline_s=6)
    assert verdict(answer) == TIMED_OUT
    assert answer["stdout"]["text"] == "begun\n"


def test_output_before_the_deadline_is_kept(any_arena: Arena) -> None:
    code = (
        "import os\nos.write(1, b'partial \\xff')\nos.write(2, b'more')\nos.write(3, b'{\"done\": 1')\nwhile True: pass"
    )
    answer = any_arena.run(code, deadline_s=6)
    assert verdict(answer) == TIMED_OUT
    assert (data(answer["stdout"]), answer["stderr"]["text"]) == (b"partial \xff", "more")
    assert answer["result"] is None


def test_output_before_a_cancellation_is_kept(any_arena: Arena) -> None:
    with any_arena.holding("print('half', 'ready', flush=True)\nimport time\ntime.sleep(60)") as held:
        any_arena.harmless()
        answer = held.cancel()
        with any_arena.gateway.web() as web:
            assert web.get(f"/v1/calls/{held.call_id}").json()["state"] == "cancelled"
    assert verdict(answer) == ("cancelled", "cancelled")
    assert answer["stdout"]["text"] == "half ready\n"
    assert answer["exit"] == {"code": None, "signal": 9}


def test_a_result_that_is_not_one_is_refused(arena: Arena) -> None:
    verdicts = {what: verdict(arena.run(WRITE_RESULT.format(content=RESULTS[what]))) for what in RESULTS}
    assert verdicts == dict.fromkeys(RESULTS, INVALID)


def test_a_result_that_does_not_fit_the_schema_is_refused_and_not_quoted(arena: Arena) -> None:
    """The tool's own code is stepped over: its descriptor is within reach of the program that it runs."""
    document = b'{"exit_code": "a-value-nobody-declared", "files": []}'
    answer = arena.call("python.run", {"code": f"import os\nos.write(3, {document!r})\nos._exit(0)"})
    assert verdict(answer) == INVALID
    assert "/exit_code" in answer["error"]["message"]
    assert "nobody" not in str(answer)


def test_the_same_ends_by_the_other_wire(arena: Arena) -> None:
    ends = {
        "held = bytearray()\nwhile True: held += bytearray(1 << 20)": "out_of_memory",
        FLOODS["yes"]: "output_flood",
        "while True: pass": "timed_out",
    }
    with arena.gateway.sdk() as client:
        for code, reason in ends.items():
            answer = client.call("probe.run", {"code": code}, deadline_s=8)
            arena.calls.append(answer.call_id)
            assert answer.error is not None
            assert answer.error.reason == reason
        answer = client.call("probe.run", {"code": f"import os\nos.write(1, {NOT_CLEAN!r})"})
        assert answer.stdout.data == NOT_CLEAN
