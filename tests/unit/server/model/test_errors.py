import pytest

from callgate_server.model.errors import REASONS, CallError, Reason, Violation

GRPC_CODES = {
    "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
}  # fmt: skip
# The order of the enumeration: refusals, then what can only happen to a call whose tool was started.
OUTCOMES = list(Reason)[list(Reason).index(Reason.TOOL_FAILED) :]


def test_every_reason_has_its_line_in_the_table():
    assert set(REASONS) == set(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_means_something_on_both_wires(reason):
    spec = REASONS[reason]
    assert spec.grpc in GRPC_CODES
    assert spec.http == 200 or 400 <= spec.http < 600
    assert spec.title
    assert spec.title[0].isupper()
    assert not spec.title.endswith(".")


@pytest.mark.parametrize("reason", Reason)
def test_a_refusal_is_an_http_error_and_an_outcome_is_an_answer(reason):
    # Who uses the key of a call whose effect is unknown is refused with that reason.
    assert (REASONS[reason].http == 200) == (reason in OUTCOMES and reason is not Reason.EFFECT_UNKNOWN)


@pytest.mark.parametrize("reason", OUTCOMES)
def test_a_run_invites_another_only_where_it_was_cut_off_or_the_tool_says_so(reason):
    assert REASONS[reason].retryable == (reason in (Reason.INTERRUPTED, Reason.TOOL_UNAVAILABLE))


@pytest.mark.parametrize("reason", Reason)
def test_what_http_calls_unavailable_may_be_tried_again(reason):
    if REASONS[reason].http == 503:
        assert REASONS[reason].retryable


def test_an_error_carries_its_reason_and_says_no_more_than_its_message():
    violation = Violation("/x", "type", "must be a string")
    error = CallError(
        Reason.OVERLOADED, "At capacity.", violations=[violation], policies=["p"], retry_after_ms=5, call_id="c"
    )
    assert str(error) == "At capacity."
    assert error.spec is REASONS[Reason.OVERLOADED]
    assert (error.violations, error.policies, error.retry_after_ms, error.call_id) == ((violation,), ("p",), 5, "c")
