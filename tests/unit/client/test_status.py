import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from callgate import CallRefused, GatewayUnreachable
from callgate._status import ended_early, from_rpc_error, may_pass, reading, translating

CALL_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
Metadata = tuple[tuple[str, str | bytes], ...]


class Rpc(grpc.RpcError):
    """An RPC that failed, as both halves of gRPC show it."""

    def __init__(
        self,
        code: grpc.StatusCode,
        trailing: Metadata | None = (),
        initial: Metadata | None = (),
        text: str | None = None,
    ) -> None:
        self._code, self._trailing, self._initial, self._text = code, trailing, initial, text

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._text

    def initial_metadata(self) -> Metadata | None:
        return self._initial

    def trailing_metadata(self) -> Metadata | None:  # type: ignore[override]  # the async half's type
        return self._trailing


def details(code: int, *messages: Message) -> Metadata:
    packed = []
    for message in messages:
        one = AnyMessage()
        one.Pack(message)
        packed.append(one)
    return (("grpc-status-details-bin", Status(code=code, message="No.", details=packed).SerializeToString()),)


def test_typed_details_become_a_refusal() -> None:
    info = ErrorInfo(
        reason="overloaded",
        domain="callgate",
        metadata={"retryable": "true", "call_id": CALL_ID, "policies": "first,second"},
    )
    retry = RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    fields = BadRequest(field_violations=[BadRequest.FieldViolation(field="/a", reason="type", description="is text")])
    error = from_rpc_error(Rpc(grpc.StatusCode.RESOURCE_EXHAUSTED, details(8, info, retry, fields)), "h:1")
    assert isinstance(error, CallRefused)
    assert (error.reason, error.failure.code, error.message) == ("overloaded", "RESOURCE_EXHAUSTED", "No.")
    assert (error.retryable, error.retry_after_ms, error.call_id) == (True, 1500, CALL_ID)
    assert error.policies == ("first", "second")
    assert [violation.path for violation in error.violations] == ["/a"]


@pytest.mark.parametrize(
    "trailing",
    [
        None,
        (),
        (("grpc-status-details-bin", b"\xff\xff"),),
        (("grpc-status-details-bin", "text"),),
        details(7, ErrorInfo(reason="policy_denied", domain="callgate")),
        details(14, ErrorInfo(reason="policy_denied", domain="elsewhere.example")),
        (
            (
                "grpc-status-details-bin",
                Status(
                    code=14, details=[AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")]
                ).SerializeToString(),
            ),
        ),
    ],
    ids=["none", "empty", "not protobuf", "not bytes", "of another status", "of another domain", "broken detail"],
)
def test_a_status_that_is_not_the_gateways_is_no_refusal_of_it(trailing: Metadata | None) -> None:
    error = from_rpc_error(Rpc(grpc.StatusCode.UNAVAILABLE, trailing, None), "h:1")
    assert isinstance(error, GatewayUnreachable)
    assert "No gateway answers at h:1" in str(error)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_request_turned_away_in_between_is_refused(code: grpc.StatusCode) -> None:
    error = from_rpc_error(Rpc(code), "h:1")
    assert isinstance(error, CallRefused)
    assert (error.reason, error.retryable) == (code.name.lower(), False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SERVER: Received message larger than max (2097182 vs. 1048576)", "It takes 1048576 bytes, not 2097182."),
        ("Received message larger than max", "operator's to say"),
    ],
)
def test_a_request_that_is_too_large_has_the_reason_that_http_gives(text: str, says: str) -> None:
    error = from_rpc_error(Rpc(grpc.StatusCode.RESOURCE_EXHAUSTED, text=text), "h:1")
    assert isinstance(error, CallRefused)
    assert (error.reason, error.failure.code, error.retryable) == ("request_too_large", "RESOURCE_EXHAUSTED", False)
    assert says in error.message


def test_an_answer_that_is_too_large_for_this_side_is_no_refusal() -> None:
    text = "Stream removed (CLIENT: Received message larger than max (3820 vs. 1000))"
    error = from_rpc_error(Rpc(grpc.StatusCode.RESOURCE_EXHAUSTED, text=text), "h:1")
    assert isinstance(error, GatewayUnreachable)
    assert "larger than this client takes" in str(error)


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_a_call_that_was_accepted_is_never_reported_as_refused(code: grpc.StatusCode) -> None:
    error = from_rpc_error(Rpc(code, (), (("callgate-call-id", CALL_ID),)), "h:1")
    assert isinstance(error, GatewayUnreachable)
    assert error.call_id == CALL_ID
    assert CALL_ID in str(error)


def test_a_malformed_call_id_is_not_believed() -> None:
    error = from_rpc_error(Rpc(grpc.StatusCode.UNAVAILABLE, (), (("callgate-call-id", "\x1b[2J"),)), "h:1")
    assert isinstance(error, GatewayUnreachable)
    assert error.call_id is None


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "did not answer in time"),
        (grpc.StatusCode.CANCELLED, "was given up"),
        (grpc.StatusCode.UNIMPLEMENTED, "does not speak callgate.v1"),
        (grpc.StatusCode.INTERNAL, "does not speak callgate.v1"),
    ],
)
def test_the_diagnosis_follows_the_status(code: grpc.StatusCode, text: str) -> None:
    assert text in str(from_rpc_error(Rpc(code), "h:1"))


def test_translating_and_reading_raise_what_it_means() -> None:
    with pytest.raises(GatewayUnreachable), translating("h:1"):
        raise Rpc(grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(GatewayUnreachable, match=CALL_ID), reading("h:1", CALL_ID):
        raise ValueError("not JSON")
    with pytest.raises(KeyError), reading("h:1"):
        raise KeyError


def test_a_stream_that_ended_early_names_the_call_if_it_can() -> None:
    assert CALL_ID in str(ended_early("h:1", CALL_ID))
    assert "No gateway answers" in str(ended_early("h:1", None))


@pytest.mark.parametrize(
    ("code", "passes"),
    [(grpc.StatusCode.UNAVAILABLE, True), (grpc.StatusCode.INTERNAL, False), (grpc.StatusCode.UNIMPLEMENTED, False)],
)
def test_a_broken_connection_may_pass_and_another_protocol_does_not(code: grpc.StatusCode, passes: bool) -> None:
    with pytest.raises(GatewayUnreachable) as caught, translating("h:1"):
        raise Rpc(code)
    assert may_pass(caught.value) is passes


def test_an_early_end_may_pass_and_an_answer_that_cannot_be_read_does_not() -> None:
    assert may_pass(ended_early("h:1", CALL_ID))
    with pytest.raises(GatewayUnreachable) as caught, reading("h:1"):
        raise ValueError
    assert not may_pass(caught.value)
