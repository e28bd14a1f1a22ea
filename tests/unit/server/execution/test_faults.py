import pytest

from callgate_server.execution import faults
from callgate_server.execution.breaker import Outcome
from callgate_server.model.answer import Answer, Decision, Failure, SandboxInfo, Usage
from callgate_server.model.errors import Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.manifest import Limits

LIMITS = Limits(wall_s=10)


def answer(reason: Reason | None, state: State, wall_ms: float = 5) -> Answer:
    failure = None if reason is None else Failure(reason, "…")
    return Answer(
        "id", "text.echo", "1.0.0", state, Decision("d", ()), SandboxInfo("fake", "none", "container"),
        error=failure, usage=Usage(wall_ms=wall_ms),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "state", "outcome"),
    [
        (None, State.SUCCEEDED, Outcome.SUCCEEDED),
        (Reason.TOOL_FAILED, State.FAILED, Outcome.SUCCEEDED),
        (Reason.TOOL_UNAVAILABLE, State.FAILED, Outcome.FAILED),
        (Reason.INVALID_RESULT, State.FAILED, Outcome.FAILED),
        (Reason.OUT_OF_MEMORY, State.FAILED, Outcome.FAILED),
        (Reason.OUTPUT_FLOOD, State.FAILED, Outcome.NOTHING),
        (Reason.CANCELLED, State.CANCELLED, Outcome.NOTHING),
        (Reason.SANDBOX_LOST, State.LOST, Outcome.NOTHING),
    ],
)
def test_what_an_answer_says_of_its_tool(reason, state, outcome):
    assert faults.of_answer(answer(reason, state), LIMITS) is outcome


@pytest.mark.parametrize(
    ("wall_ms", "outcome"),
    [
        # At the tool's own limit, give or take what it waited before it was started.
        (10_004, Outcome.FAILED),
        (9_900, Outcome.FAILED),
        # The caller had less patience, or the call had waited for a sandbox for most of its time.
        (3_000, Outcome.NOTHING),
        # Killed from outside: the runner did not say a word, and nobody knows how long the tool had.
        (0, Outcome.NOTHING),
    ],
)
def test_a_time_out_is_the_tools_own_only_where_it_had_its_whole_time(wall_ms, outcome):
    assert faults.of_answer(answer(Reason.TIMED_OUT, State.TIMED_OUT, wall_ms), LIMITS) is outcome


def test_the_engine_answers_for_starts_alone():
    assert {reason for reason, outcome in faults.ENGINE.items() if outcome is Outcome.FAILED} == {
        Reason.SANDBOX_UNAVAILABLE
    }
    for reason in (Reason.IMAGE_MISSING, Reason.RUNTIME_MISSING, Reason.DEADLINE_EXCEEDED, Reason.CANCELLED):
        assert reason not in faults.ENGINE


def test_a_store_that_refuses_a_secret_works():
    assert faults.SECRETS == {
        Reason.SECRETS_UNAVAILABLE: Outcome.FAILED,
        Reason.SECRET_REFUSED: Outcome.SUCCEEDED,
    }
