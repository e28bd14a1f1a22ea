import pytest

import callgate
from callgate import Answer, Artifact, CallFailed, Callgate, Failure, Output, types
from support.examples import code_block, failed_doctests
from support.fake_gateway import TOKEN, FakeGateway


def test_the_examples_of_the_module_hold() -> None:
    assert failed_doctests(types) == 0


def test_the_example_of_the_package_runs(fake: FakeGateway, capsys: pytest.CaptureFixture[str]) -> None:
    code = code_block(callgate).replace("127.0.0.1:9090", fake.target)
    exec(code, {"Callgate": Callgate, "token": TOKEN})  # noqa: S102  # it is our own documentation
    assert "text.upper - Plays text.upper." in capsys.readouterr().out.splitlines()


def test_the_package_exports_what_it_names() -> None:
    for name in callgate.__all__:
        assert getattr(callgate, name) is not None


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("failed", Failure("tool_failed", "UNKNOWN", "")),
        ("lost", None),
        ("a state of tomorrow", None),
        ("succeeded", Failure("invalid_result", "UNKNOWN", "")),
    ],
)
def test_only_a_success_without_an_error_is_ok(state: str, error: Failure | None) -> None:
    answer = Answer("c1", "a.b", "1.0.0", state, error=error)
    assert not answer.ok
    with pytest.raises(CallFailed):
        answer.raise_for_state()


def test_the_content_of_an_output_is_its_bytes_where_they_differ() -> None:
    assert Output(text="ü").content == b"\xc3\xbc"
    assert Output(text="\\x1b", data=b"\x1b").content == b"\x1b"


def test_a_document_carries_bytes_in_base64() -> None:
    answer = Answer(
        "c1", "a.b", "1.0.0", "succeeded", stdout=Output("\\x00", b"\0", 1), artifacts=(Artifact("f", 1, "x", b"\xff"),)
    )
    document = answer.to_json()
    assert document["stdout"] == {"text": "\\x00", "data": "AA==", "total_bytes": 1, "truncated": False}
    assert document["artifacts"] == [{"name": "f", "size_bytes": 1, "sha256": "x", "data": "/w==", "rejected": None}]
    assert document["error"] is None


def test_the_bytes_of_an_artifact_are_not_in_its_representation() -> None:
    assert "hidden" not in repr(Artifact("f", 6, "x", b"hidden"))
