from typing import Any

import pytest

from callgate import _wire
from callgate.types import Answer, CallSummary, Waiting
from callgate_proto.v1 import gateway_pb2 as pb


def test_arguments_become_one_json_object() -> None:
    assert _wire.encode_arguments(None) == b"{}"
    assert _wire.encode_arguments({"n": 2**70, "s": "ü", "l": [None, True]}) == (
        b'{"n":1180591620717411303424,"s":"\xc3\xbc","l":[null,true]}'
    )


def circle() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["itself"] = value
    return value


def deep() -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(100_000):
        value = {"in": value}
    return value


@pytest.mark.parametrize("arguments", [{"a": float("nan")}, {"a": [float("inf")]}, circle(), {"a": "\ud800"}, deep()])
def test_what_json_cannot_hold_is_refused_without_showing_it(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the arguments") as caught:
        _wire.encode_arguments(arguments)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("arguments", [[1], "text", {1: "a"}, {"a": b"bytes"}, {"a": {1, 2}}])
def test_what_json_has_no_type_for_is_refused(arguments: Any) -> None:
    with pytest.raises(TypeError):
        _wire.encode_arguments(arguments)


@pytest.mark.parametrize("deadline_s", [0, -1, float("nan"), float("inf")])
def test_a_deadline_is_a_positive_number_of_seconds(deadline_s: float) -> None:
    with pytest.raises(ValueError, match="deadline"):
        _wire.call_request("a.b", None, idempotency_key=None, deadline_s=deadline_s, on_disconnect="detach")


def test_what_is_not_given_is_absent_on_the_wire() -> None:
    request = _wire.call_request("a.b", None, idempotency_key=None, deadline_s=None, on_disconnect="detach")
    assert not request.HasField("idempotency_key")
    assert not request.HasField("deadline_ms")
    assert request.on_disconnect == pb.ON_DISCONNECT_DETACH


def test_an_exit_code_of_zero_is_told_from_none() -> None:
    assert _wire.answer(pb.Answer(exit=pb.Exit(code=0))).exit.code == 0
    assert _wire.answer(pb.Answer(exit=pb.Exit(signal=9))).exit.code is None


def test_bytes_of_an_output_are_kept_apart_from_its_text() -> None:
    assert _wire.answer(pb.Answer(stdout=pb.Output(text="\\x00", data=b"\0"))).stdout.data == b"\0"
    assert _wire.answer(pb.Answer(stdout=pb.Output(text="a"))).stdout.data is None


@pytest.mark.parametrize("document", [b"", b"{", b"NaN", b'{"a": Infinity}', b"[" * 100_000, b"\xff"])
def test_a_result_that_is_not_json_is_an_error(document: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whatever the decoder says
        _wire.answer(pb.Answer(result_json=document))


def test_a_call_is_an_answer_or_a_summary() -> None:
    assert isinstance(_wire.call_state(pb.GetCallResponse(answer=pb.Answer())), Answer)
    assert isinstance(_wire.call_state(pb.CancelCallResponse(summary=pb.CallSummary())), CallSummary)
    with pytest.raises(ValueError, match="neither"):
        _wire.call_state(pb.GetCallResponse())


def test_an_event_newer_than_this_client_is_passed_over() -> None:
    assert _wire.event(pb.StreamCallResponse(seq=3)) is None


def test_a_schema_must_be_an_object() -> None:
    with pytest.raises(ValueError, match="not an object"):
        _wire.tool(pb.Tool(input_json=b"[]", output_json=b"{}"))
    assert _wire.tool(pb.Tool(input_json=b"{}", output_json=b"{}", limits=pb.Limits(pids=5))).limits.pids == 5


def test_every_limit_of_the_wire_is_known_here() -> None:
    from dataclasses import fields

    from callgate.types import Limits

    assert [field.name for field in fields(Limits)] == [field.name for field in pb.Limits.DESCRIPTOR.fields]


def test_documents_have_the_words_of_the_wire() -> None:
    read = {
        pb.CallSummary: _wire.summary(pb.CallSummary()),
        pb.Approval: _wire.approval(pb.Approval()),
        pb.CallAttempt: _wire.dead_letter(pb.DeadLetter(attempts=[pb.CallAttempt()])).attempts[0],
        pb.CallApproval: _wire.summary(pb.CallSummary(approval=pb.CallApproval())).approval,
    }
    for message, value in read.items():
        words = [field.name.removesuffix("_json") for field in message.DESCRIPTOR.fields]
        assert value is not None
        assert sorted(value.to_json()) == sorted(words)


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"1", b'{"a":1,"a":2}', b'{"a":{"b":1,"b":1}}', b'{"a":1e400}', b'{"a":NaN}', b"[" * 100_000],
)
def test_arguments_that_cannot_be_shown_whole_are_an_error(document: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whatever the decoder says
        _wire.approval(pb.Approval(arguments_json=document))


def test_arguments_of_an_approval_that_are_left_out_are_told_from_none() -> None:
    assert _wire.approval(pb.Approval()).arguments is None
    assert _wire.approval(pb.Approval(arguments_json=b"{}")).arguments == {}


def test_waiting_says_for_what() -> None:
    turn = _wire.event(pb.StreamCallResponse(seq=1, waiting=pb.Waiting(call_id="c1", state="admitted")))
    assert turn == Waiting(1, "c1", "admitted")
    approval = _wire.event(pb.StreamCallResponse(seq=2, waiting=pb.Waiting(call_id="c1", state="x", group="g")))
    assert approval == Waiting(2, "c1", "x", "g")


def test_a_fallback_is_read_whole_and_a_gateway_that_does_not_count_made_one_attempt() -> None:
    message = pb.Answer(
        attempt=3,
        fallback=pb.Fallback(
            kind="last_good", error=pb.Failure(reason="timed_out"), tool="a.b", call_id="c", age_s=2.5
        ),
    )
    read = _wire.answer(message)
    assert read.fallback is not None
    assert (read.attempt, read.fallback.kind, read.fallback.error.reason) == (3, "last_good", "timed_out")
    assert (read.fallback.tool, read.fallback.call_id, read.fallback.age_s) == ("a.b", "c", 2.5)
    older = _wire.answer(pb.Answer())
    assert (older.attempt, older.fallback) == (1, None)


def test_a_list_has_a_length_that_the_gateway_gives() -> None:
    assert [_wire.list_limit(limit) for limit in (1, 200)] == [1, 200]
    for limit in (0, 201):
        with pytest.raises(ValueError, match="1 to 200"):
            _wire.list_limit(limit)
