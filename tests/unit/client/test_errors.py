from callgate import (
    Answer,
    CallFailed,
    CallgateError,
    CallPending,
    CallRefused,
    CallSummary,
    Failure,
    GatewayUnreachable,
    Violation,
    errors,
)
from support.examples import failed_doctests


def test_the_examples_of_the_module_hold() -> None:
    assert failed_doctests(errors) == 0


def test_every_exception_can_be_caught_as_one() -> None:
    for kind in (CallRefused, CallFailed, CallPending, GatewayUnreachable):
        assert issubclass(kind, CallgateError)


def test_a_refusal_names_every_field_that_does_not_fit() -> None:
    refusal = CallRefused(
        Failure("invalid_arguments", "INVALID_ARGUMENT", "The arguments do not fit."),
        violations=[Violation("/code", "type", "must be a string"), Violation("", "required", "lacks `n`")],
        policies=["p"],
        call_id="c1",
    )
    assert str(refusal) == (
        "invalid_arguments: The arguments do not fit.; /code: must be a string; /: lacks `n` (call c1)"
    )
    assert refusal.to_json() == {
        "call_id": "c1",
        "error": refusal.failure.to_json(),
        "policies": ["p"],
        "violations": [
            {"path": "/code", "rule": "type", "message": "must be a string"},
            {"path": "", "rule": "required", "message": "lacks `n`"},
        ],
    }


def test_a_failed_call_does_not_repeat_what_the_tool_wrote() -> None:
    answer = Answer("c1", "python.run", "1.0.0", "failed", error=Failure("tool_failed", "UNKNOWN", "Exit code 1."))
    assert str(CallFailed(answer)) == "python.run failed: Exit code 1. (call c1)"


def test_a_missing_answer_has_the_shape_of_a_refusal() -> None:
    document = GatewayUnreachable("Nothing answers.", target="h:1", call_id="c1").to_json()
    assert document["call_id"] == "c1"
    assert document["error"]["reason"] == "gateway_unreachable"
    assert document.keys() == CallRefused(Failure("r", "C", "m")).to_json().keys()


def test_a_pending_call_is_no_refusal_and_keeps_what_is_known_of_it() -> None:
    summary = CallSummary("c1", "a.b", "1.0.0", "a state of tomorrow")
    assert not isinstance(CallPending(summary), CallRefused)
    assert CallPending(summary).summary is summary
    assert str(CallPending(summary)) == "a.b is a state of tomorrow: ask for it with get() or follow() (call c1)"
