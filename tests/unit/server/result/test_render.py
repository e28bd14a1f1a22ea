import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callgate_server.model.answer import Artifact, Output
from callgate_server.model.run import Captured, CapturedArtifact
from callgate_server.model.sealed import Sealed
from callgate_server.result.redact import Redactor
from callgate_server.result.render import render_artifact, render_output

KEY = b"whsec-4f1c2d9a7b"
REDACTOR = Redactor({"key": Sealed(KEY)})
NONE = Redactor({})


def test_clean_output_is_text_alone() -> None:
    assert render_output(Captured(b"hello\n", b"", 6), NONE) == Output("hello\n", None, 6, truncated=False)


def test_output_that_differs_from_its_text_keeps_its_bytes() -> None:
    data = b"\x1b[31mred\xff\x00"
    assert render_output(Captured(data, b"", 9), NONE) == Output(r"\x1b[31mred\xff\x00", data, 9, truncated=False)


def test_kept_bytes_are_redacted() -> None:
    output = render_output(Captured(b"\x1b" + KEY, b"", 17), REDACTOR)
    assert (output.text, output.data) == (r"\x1b[REDACTED:key]", b"\x1b[REDACTED:key]")


def test_a_marker_says_how_much_was_left_out() -> None:
    output = render_output(Captured(b"begin", b"end", 1000), NONE)
    assert output == Output("begin\n[… 992 bytes omitted …]\nend", None, 1000, truncated=True)


def test_head_and_tail_without_a_gap_are_joined_before_redaction() -> None:
    output = render_output(Captured(b"x" + KEY[:3], KEY[3:] + b"y", len(KEY) + 2), REDACTOR)
    assert output.text == "x[REDACTED:key]y"


def test_a_secret_that_the_cut_goes_through_is_redacted_on_both_sides() -> None:
    output = render_output(Captured(b"x " + KEY[:8], KEY[-5:] + b" y", 500), REDACTOR)
    assert output.text == "x [REDACTED:key]\n[… 483 bytes omitted …]\n[REDACTED:key] y"


def test_a_secret_at_an_end_that_nobody_saw_is_redacted_as_at_a_cut() -> None:
    output = render_output(Captured(b"x " + KEY[:8], b"", 10, open_end=True), REDACTOR)
    assert output == Output("x [REDACTED:key]", None, 10, truncated=False)


def test_a_character_that_the_cut_goes_through_is_left_out() -> None:
    rocket = "🚀".encode()
    output = render_output(Captured(b"a" + rocket[:3], rocket[2:] + b"z", 100), NONE)
    assert output == Output("a\n[… 98 bytes omitted …]\nz", None, 100, truncated=True)


@given(st.text(min_size=1), st.integers(0, 400), st.integers(0, 400))
def test_a_cut_anywhere_in_clean_text_leaves_clean_text(text: str, first: int, second: int) -> None:
    data = text.encode()
    head, tail = data[: first % (len(data) + 1)], data[len(data) - second % (len(data) + 1) :]
    output = render_output(Captured(head, tail, len(head) + len(tail) + 100), NONE)
    assert "\\x" not in output.text or "\\x" in render_output(Captured(data, b"", len(data)), NONE).text


@given(st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 10))
def test_rendering_any_bytes_gives_text_or_text_and_bytes(head: bytes, tail: bytes, gap: int) -> None:
    output = render_output(Captured(head, tail, len(head) + len(tail) + gap), REDACTOR)
    assert output.data is None or output.data != output.text.encode()
    assert output.total_bytes == len(head) + len(tail) + gap


def test_an_artifact_is_delivered_redacted_with_the_digest_of_what_is_delivered() -> None:
    data = b"key=[REDACTED:key]\n"
    artifact = render_artifact(CapturedArtifact("report.txt", 21, b"key=" + KEY + b"\n"), REDACTOR)
    assert artifact == Artifact("report.txt", len(data), hashlib.sha256(data).hexdigest(), data)


def test_the_name_of_an_artifact_is_redacted_and_cleaned() -> None:
    artifact = render_artifact(CapturedArtifact(f"{KEY.decode()}\u202egpj.exe", 1, b"x"), REDACTOR)
    assert artifact.name == r"[REDACTED:key]\u{202e}gpj.exe"


def test_a_rejected_artifact_has_its_reason_and_no_bytes() -> None:
    artifact = render_artifact(CapturedArtifact("big", 10**9, b"", f"too large \x1b {KEY.decode()}"), REDACTOR)
    assert artifact == Artifact("big", 10**9, rejected=r"too large \x1b [REDACTED:key]")


@pytest.mark.parametrize("secret", ["pässwörd-4711".encode(), b"\xff\xfe-4711-key"])
def test_a_secret_in_the_name_of_a_rejected_file_is_redacted_as_the_runner_shows_it(secret: bytes) -> None:
    """The runner shows such a name in escapes, and cuts it."""
    redactor = Redactor({"key": Sealed(secret)})
    shown = ascii("dir/" + secret.decode(errors="surrogateescape"))[1:-1]
    for name in (shown, shown[:-2]):
        artifact = render_artifact(CapturedArtifact(name, 3, rejected="bad_name"), redactor)
        assert artifact == Artifact("dir/[REDACTED:key]", 3, rejected="bad_name")
