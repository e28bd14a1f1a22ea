import json

import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from callgate_proto.envelope import render
from callgate_proto.v1 import gateway_pb2
from callgate_server.execution.running import Accepted, Answered, Failed, OutputChunk
from callgate_server.model.call import OnDisconnect
from callgate_server.model.errors import REASONS, CallError, Reason, Violation
from callgate_server.model.manifest import Limits
from callgate_server.transports import wire
from support.edge import BYTES, NONCE, REFUSALS, TOOL, answer, noisy, summary


def body(**members: object) -> bytes:
    return json.dumps({"arguments": {}} | members).encode()


def refusal(body: bytes, key: str | None = None) -> str:
    with pytest.raises(CallError) as caught:
        wire.call_from_json("text.echo", body, key)
    assert caught.value.reason is Reason.INVALID_REQUEST
    return caught.value.message


@pytest.mark.parametrize("values", [[], ["Basic x"], ["Bearer"], ["Bearer "], ["Bearer a b"], ["Bearer a", "Bearer a"]])
def test_anything_but_one_bearer_token_is_no_credential(values: list[str]) -> None:
    assert wire.bearer(values) is None


@pytest.mark.parametrize("value", ["Bearer abc.DEF-1", "bearer abc.DEF-1", "BEARER  abc.DEF-1"])
def test_a_bearer_token_is_taken_whatever_the_case_of_its_scheme(value: str) -> None:
    assert wire.bearer([value]) == "abc.DEF-1"


def test_a_json_call_is_decoded_with_canonical_arguments() -> None:
    request = wire.call_from_json(
        "text.echo", b'{"deadline_ms": 5, "arguments": {"b": 9007199254740993, "a": "\xc3\xa4"}}', "k 1"
    )
    assert request.arguments_json == '{"a":"ä","b":9007199254740993}'.encode()
    assert (request.tool, request.transport, request.deadline_ms) == ("text.echo", "http", 5)
    assert (request.idempotency_key, request.on_disconnect) == ("k 1", OnDisconnect.DETACH)


def test_a_json_call_without_extras_asks_for_none() -> None:
    request = wire.call_from_json("text.echo", body(), None)
    assert (request.deadline_ms, request.idempotency_key, request.on_disconnect) == (None, None, OnDisconnect.DETACH)


def test_an_unknown_key_is_named() -> None:
    assert "`deadline`" in refusal(body(deadline=3))


def test_a_key_that_is_not_plain_text_is_not_repeated() -> None:
    assert "\x1b" not in refusal(body(**{"\x1b[2J": 1}))
    assert "AAAA" not in refusal(body(**{"A" * 65: 1}))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        b'{"arguments": []}',
        b'{"arguments": null}',
        b'{"arguments": {"a": 1, "a": 2}}',
        b'{"arguments": {}, "arguments": {}}',
        b'{"arguments": {"a": NaN}}',
        b'{"arguments": {"a": 1e400}}',
        b'{"arguments": {"a": -Infinity}}',
        b'{"arguments": {"a": "\\ud800"}}',
        b'{"arguments": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        b'{"arguments": {"a": ' + b"9" * 5000 + b"}}",
    ],
)
def test_json_that_means_two_things_or_nothing_is_refused(document: bytes) -> None:
    refusal(document)


@pytest.mark.parametrize("value", [0, -1, 1.5, 0.0, 1e300, True, "5", None, wire.MAX_DEADLINE_MS + 1, 10**100])
def test_a_deadline_is_a_whole_number_within_a_day(value: object) -> None:
    assert "`deadline_ms`" in refusal(body(deadline_ms=value))


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert wire.call_from_json("text.echo", b'{"arguments": {}, "deadline_ms": 5.0}', None).deadline_ms == 5


@pytest.mark.parametrize("value", ["", "kill", None, 1, ["cancel"], {}])
def test_on_disconnect_is_one_of_two_words(value: object) -> None:
    assert "`on_disconnect`" in refusal(body(on_disconnect=value))


@pytest.mark.parametrize("key", ["", " a", "a ", "ä", "a\x7f", "a" * 256])
def test_an_idempotency_key_is_short_printable_ascii(key: str) -> None:
    assert "idempotency key" in refusal(body(), key)
    with pytest.raises(CallError, match="idempotency key"):
        wire.call_from_proto(gateway_pb2.CallRequest(idempotency_key=key), None)


def test_a_proto_call_is_decoded() -> None:
    request = wire.call_from_proto(
        gateway_pb2.CallRequest(
            tool="text.echo",
            arguments_json=b"{}",
            idempotency_key="k",
            deadline_ms=900,
            on_disconnect=gateway_pb2.ON_DISCONNECT_CANCEL,
        ),
        None,
    )
    assert (request.tool, request.arguments_json, request.transport) == ("text.echo", b"{}", "grpc")
    assert (request.idempotency_key, request.deadline_ms, request.on_disconnect) == ("k", 900, OnDisconnect.CANCEL)


@pytest.mark.parametrize(
    ("field_ms", "rpc_s", "expected_ms"),
    [
        (None, None, None),
        (None, 0.2, 200),
        (300, 0.2, 200),
        (100, 0.2, 100),
        (None, -1.0, 0),
        (None, 1e300, 86_400_000),
    ],
)
def test_the_smaller_of_the_two_deadlines_of_an_rpc_counts(
    field_ms: int | None, rpc_s: float | None, expected_ms: int | None
) -> None:
    assert wire.call_from_proto(gateway_pb2.CallRequest(deadline_ms=field_ms), rpc_s).deadline_ms == expected_ms


def test_a_proto_call_with_a_word_of_the_future_is_refused() -> None:
    with pytest.raises(CallError, match="on_disconnect"):
        wire.call_from_proto(gateway_pb2.CallRequest(on_disconnect=7), None)  # type: ignore[arg-type]


def test_a_problem_says_what_the_table_says() -> None:
    document = wire.problem(REFUSALS["demo.misfit"])
    assert (document["status"], document["code"], document["retryable"]) == (422, "INVALID_ARGUMENT", False)
    assert document["violations"][0] == {"path": "/text", "rule": "type", "message": "must be a string"}
    assert document["call_id"] == REFUSALS["demo.misfit"].call_id


@pytest.mark.parametrize("reason", [reason for reason in Reason if REASONS[reason].http != 200])
def test_every_refusal_has_a_status_on_both_wires(reason: Reason) -> None:
    error = CallError(reason, "why", retry_after_ms=1500, call_id="c1", policies=("a", "b"))
    status = wire.status(error)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        reason.value,
        "callgate",
        {"retryable": str(REASONS[reason].retryable).lower(), "call_id": "c1", "policies": "a,b"},
    )
    assert retry.retry_delay.ToMilliseconds() == 1500
    assert wire.problem(error)["status"] == REASONS[reason].http >= 400


def test_violations_become_field_violations() -> None:
    fields = error_details_pb2.BadRequest()
    assert wire.status(REFUSALS["demo.misfit"]).details[1].Unpack(fields)
    assert [(one.field, one.reason, one.description) for one in fields.field_violations] == [
        ("/text", "type", "must be a string"),
        ("/n", "minimum", "is below 1"),
    ]


@given(st.text(max_size=3000), st.integers(0, 16), st.lists(st.text(max_size=300), max_size=40))
def test_a_status_always_fits_into_trailers(text: str, violations: int, policies: list[str]) -> None:
    text = text.encode("utf-8", "replace").decode()
    policies = [policy.encode("utf-8", "replace").decode() for policy in policies]
    error = CallError(
        Reason.INVALID_ARGUMENTS, text, violations=[Violation(text, "type", text)] * violations, policies=policies
    )
    status = wire.status(error)
    assert status.ByteSize() * 4 / 3 + 3 * len(status.message.encode()) < 8192 - 512


def test_events_are_one_block_each_whatever_they_hold() -> None:
    events = [
        Accepted(0, "c1"),
        OutputChunk(1, "stdout", "a\n\nevent: answer\ndata: {}\r\r\u2028"),
        Answered(2, answer("c1")),
        Failed(2, REFUSALS["demo.full"]),
    ]
    names = []
    for event in events:
        block = wire.event_to_sse(event)
        lines = block.decode().split("\n")
        assert lines[3:] == ["", ""]
        assert "\r" not in block.decode()
        assert lines[0] == f"id: {event.seq}"
        names.append(lines[1])
        json.loads(lines[2].removeprefix("data: "))
    assert names == ["event: accepted", "event: output", "event: answer", "event: error"]


def test_events_go_over_grpc_with_their_place() -> None:
    assert wire.event_to_proto(Accepted(0, "c1")).accepted.call_id == "c1"
    chunk = wire.event_to_proto(OutputChunk(7, "stderr", "x"))
    assert (chunk.seq, chunk.output.stream, chunk.output.text) == (7, "stderr", "x")
    assert wire.event_to_proto(Answered(2, answer("c1"))).answer.call_id == "c1"
    error = wire.event_to_proto(Failed(3, REFUSALS["demo.misfit"])).error
    assert error.failure.reason == "invalid_arguments"
    assert error.call_id == REFUSALS["demo.misfit"].call_id
    assert [violation.path for violation in error.violations] == ["/text", "/n"]


def test_an_answer_loses_nothing_over_grpc() -> None:
    message = wire.answer_to_proto(noisy("c1"))
    assert (message.state, message.exit.code, message.exit.HasField("signal")) == ("failed", 3, False)
    assert (message.error.reason, message.error.code, message.error.retry_after_ms) == ("tool_failed", "UNKNOWN", 1500)
    assert (message.stdout.text, message.stdout.data, message.stdout.total_bytes, message.stdout.truncated) == (
        "red", BYTES, 9, True,
    )  # fmt: skip
    assert not message.stderr.HasField("data")
    assert message.artifacts[0].data == BYTES
    assert (message.artifacts[1].size_bytes, message.artifacts[1].rejected) == (2**40, "larger than what is left")
    assert dict(message.usage.phases_ms) == {"run": 2.5}
    assert (message.untrusted, message.replayed, list(message.decision.policies)) == (True, False, ["p1", "p2"])


def test_the_text_for_a_model_is_made_where_it_is_asked_for() -> None:
    plain, shown = wire.answer_to_proto(noisy("c1")), wire.answer_to_proto(noisy("c1"), with_text=True)
    assert (plain.content.nonce, plain.content.untrusted, plain.content.HasField("text")) == (NONCE, True, False)
    assert shown.content.text == render(noisy("c1"))
    event = Answered(2, noisy("c1"))
    assert wire.event_to_proto(event, with_text=True).answer.content.text == shown.content.text
    assert json.dumps(shown.content.text)[1:-1].encode() in wire.event_to_sse(event, with_text=True)
    assert shown.content.text.splitlines()[0].encode() not in wire.event_to_sse(event)


def test_what_has_no_nonce_has_no_text() -> None:
    older = {key: value for key, value in answer("c1").items() if key != "content"}
    assert wire.with_content_text(older) == older
    assert not wire.answer_to_proto(older, with_text=True).HasField("content")
    assert wire.with_content_text(summary("c1")) == summary("c1")
    assert wire.with_content_text(answer("c1", nonce=""))["content"]["text"] is None


def test_a_result_is_there_exactly_for_a_success() -> None:
    assert not wire.answer_to_proto(noisy("c1")).HasField("result_json")
    assert wire.answer_to_proto(answer("c1", result=None)).result_json == b"null"
    assert wire.answer_to_proto(answer("c1", result={"n": 2**53 + 1})).result_json == b'{"n":9007199254740993}'


def test_a_summary_keeps_its_times_to_the_microsecond() -> None:
    message = wire.summary_to_proto(summary("c1", failed=True))
    assert message.received_at.ToJsonString() == "2026-03-04T05:06:07.000089Z"
    assert message.error.reason == "sandbox_unavailable"
    assert not wire.summary_to_proto(summary("c1")).HasField("finished_at")


def test_every_limit_that_a_manifest_can_set_is_told() -> None:
    told = {field.name for field in gateway_pb2.Limits.DESCRIPTOR.fields}
    assert told == set(Limits.model_fields)


def test_a_tool_keeps_its_schemas_and_limits() -> None:
    message = wire.tool_to_proto(TOOL)
    assert json.loads(message.output_json) == TOOL["output"]
    assert (message.limits.cpu, message.limits.artifacts_kb, message.effect) == (0.5, 4096, "read")


def test_answers_and_summaries_are_told_apart() -> None:
    assert wire.is_answer(answer("c1"))
    assert not wire.is_answer(summary("c1"))
