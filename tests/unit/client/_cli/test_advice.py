import pytest

from callgate import CallRefused, Failure
from callgate._cli.advice import About, advice

CALL_ID = "01890a5d-ac96-774b-bcce-b302099a8057"


def refused(reason: str, *, retry_after_ms: int | None = None, call_id: str | None = None) -> CallRefused:
    failure = Failure(reason, "C", "No.", retryable=retry_after_ms is not None, retry_after_ms=retry_after_ms)
    return CallRefused(failure, call_id=call_id)


@pytest.mark.parametrize("about", ["calls", "approvals", "dead-letters", "tasks", "stops", "breakers"])
@pytest.mark.parametrize("reason", ["unknown_call", "not_possible"])
def test_what_was_not_found_or_cannot_be_done_is_looked_up_where_the_command_looks(reason: str, about: About) -> None:
    text = advice(refused(reason), about)
    assert text is not None
    assert f"callgate {about}" in text
    assert about == "calls" or "callgate calls" not in text


def test_a_task_is_looked_up_where_it_was_named() -> None:
    assert advice(refused("unknown_task"), "tasks") == "List your tasks: callgate tasks"
    assert "--task" in str(advice(refused("unknown_task"), "calls"))


def test_who_approves_looks_again_and_who_asked_makes_the_call_again() -> None:
    assert "callgate approvals ID" in str(advice(refused("approval_void"), "approvals"))
    assert advice(refused("approval_void"), "calls") == "Make the call again."


def test_what_opened_a_breaker_is_left_to_the_message() -> None:
    assert advice(refused("circuit_open", retry_after_ms=1500), "calls") == "Try again in 1.5 s."


def test_an_id_is_spoken_of_only_where_there_is_one() -> None:
    for reason in ("policy_denied", "policy_error"):
        assert "id" not in str(advice(refused(reason), "stops")).split()
        assert "id" in str(advice(refused(reason, call_id=CALL_ID), "calls")).split()


def test_where_there_is_nothing_to_say_nothing_is_said() -> None:
    assert advice(refused("a reason of tomorrow"), "calls") is None
