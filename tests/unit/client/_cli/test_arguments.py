import io
import sys
from pathlib import Path

import pytest

from callgate._cli.arguments import parse_arguments


def test_text_and_json_are_told_apart() -> None:
    given = ["code=print(1)", "n:=3", 'deep:={"a": [null, 1.5]}', "empty=", "equation=a=b:=c", "url=http://x:=1"]
    assert parse_arguments(given, None) == {
        "code": "print(1)",
        "n": 3,
        "deep": {"a": [None, 1.5]},
        "empty": "",
        "equation": "a=b:=c",
        "url": "http://x:=1",
    }


@pytest.mark.parametrize("text", ["code", "=1", ":=1", ""])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give --arg as name=text"):
        parse_arguments([text], None)


@pytest.mark.parametrize("value", ["", "{", "NaN", "-Infinity", '{"a":1,"a":2}', "[" * 60_000, "top-secret"])
def test_a_value_that_is_not_json_is_named_but_not_shown(value: str) -> None:
    with pytest.raises(ValueError, match="the value of `n` is not JSON") as caught:
        parse_arguments([f"n:={value}"], None)
    assert "top-secret" not in str(caught.value)


def test_a_repeated_argument_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "args.json"
    file.write_text('{"a": 1}')
    for given, source in ((["a=1", "a=2"], None), (["a=2"], file)):
        with pytest.raises(ValueError, match="`a` is given twice"):
            parse_arguments(given, source)


def test_a_file_and_arguments_go_together(tmp_path: Path) -> None:
    file = tmp_path / "args.json"
    file.write_text('{"a": 1}')
    assert parse_arguments(["b=2"], file) == {"a": 1, "b": "2"}


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO('{"a": "ü"}'.encode())))
    assert parse_arguments([], Path("-")) == {"a": "ü"}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[1]", "one JSON object"), (b"\xff", "not UTF-8"), (b'{"a":1,"a":2}', "same key twice"), (b"{", "is not JSON")],
)
def test_a_file_must_hold_one_json_object(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "args.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        parse_arguments([], file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere cannot be read"):
        parse_arguments([], tmp_path / "nowhere")
