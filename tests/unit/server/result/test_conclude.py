import base64
import json
import re
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from callgate_server.backends.json_schema import CompiledSchemas
from callgate_server.execution.collect import Collector
from callgate_server.execution.framing import Frame, FrameType
from callgate_server.model.answer import Answer, Decision, Exit, SandboxInfo
from callgate_server.model.catalog import Catalog
from callgate_server.model.errors import Reason, Violation
from callgate_server.model.lifecycle import State
from callgate_server.model.manifest import Limits
from callgate_server.model.run import Captured, CapturedArtifact, Cause, RunOutcome
from callgate_server.model.sealed import Sealed
from callgate_server.model.strict_json import Json
from callgate_server.result.conclude import conclude
from callgate_server.result.redact import Redactor
from support.stages import tool

SECRET = "sk-test-6vQ2hF8kLm0pRz4Xw9Yt"
BLANK = Answer("c1", "a.b", "1.0.0", State.RUNNING, Decision("d1", ("p1",)), SandboxInfo("fake", "none", "container"))
REDACTOR = Redactor({"key": Sealed(SECRET.encode())})


def fits(result: Json) -> Sequence[Violation]:
    return ()


def ended(result: bytes | None = b"1", code: int = 0, **changes: object) -> RunOutcome:
    return RunOutcome(Cause.EXITED, "", Exit(code), result_json=result, **changes)  # type: ignore[arg-type]


def test_success_needs_exit_status_zero_and_a_fitting_result() -> None:
    answer = conclude(BLANK, ended(b'{"n": 1}'), REDACTOR, fits)
    assert (answer.state, answer.result, answer.error) == (State.SUCCEEDED, {"n": 1}, None)


def test_a_tool_without_a_result_answers_null() -> None:
    assert conclude(BLANK, ended(None), REDACTOR, fits).result is None


def test_a_result_counts_for_nothing_when_the_tool_failed() -> None:
    answer = conclude(BLANK, ended(b'"all is well"', code=2), REDACTOR, fits)
    assert (answer.state, answer.result) == (State.FAILED, None)
    assert answer.error is not None
    assert answer.error.message == "The tool exited with status 2."


@pytest.mark.parametrize(
    "result", [b"", b"{", b'{"a":1,"a":2}', b"NaN", b"1e999", b"[" * 100_000, b"\xff", b'"\\ud800"'], ids=str
)
def test_a_hostile_result_is_a_failure_by_name(result: bytes) -> None:
    answer = conclude(BLANK, ended(result), REDACTOR, fits)
    assert answer.state is State.FAILED
    assert answer.error is not None
    assert answer.error.reason is Reason.INVALID_RESULT


def test_a_cut_result_is_never_parsed() -> None:
    answer = conclude(BLANK, ended(b"1", result_truncated=True), REDACTOR, fits)
    assert answer.error is not None
    assert answer.error.reason is Reason.INVALID_RESULT


def test_a_misfit_names_the_place_and_neither_value_nor_secret() -> None:
    def misfits(result: Json) -> Sequence[Violation]:
        return [Violation(f"/{SECRET}\x1b/x", "type", "must be a string")]

    answer = conclude(BLANK, ended(json.dumps({SECRET: 4711}).encode()), REDACTOR, misfits)
    assert answer.error is not None
    assert "[REDACTED:key]" in answer.error.message
    assert SECRET not in answer.error.message
    assert "\x1b" not in answer.error.message
    assert "4711" not in answer.error.message


@pytest.mark.parametrize("secret", ["wJalrXUtnFEMI/K7MDENG/bPxRfiCY", "~tilde~0and/slash~1key", "ab?ab?ab?ab?"])
@pytest.mark.parametrize("encode", [str, lambda text: base64.b64encode(text.encode()).decode()])
@pytest.mark.parametrize("at", [(), ("files", 0, "a/b")])
def test_a_secret_in_a_key_is_redacted_before_it_is_escaped_for_the_place_of_a_misfit(
    secret: str, encode: Callable[[str], str], at: tuple[str | int, ...]
) -> None:
    shape: dict[str, Json] = {"properties": {"n": {}}, "additionalProperties": False}
    result: Json = {encode(secret): 1}
    for part in reversed(at):
        inner = shape
        shape = {"items": inner} if isinstance(part, int) else {"properties": {part: inner}}
        result = [result] if isinstance(part, int) else {part: result}
    declared = tool(output=shape)
    check = partial(CompiledSchemas.of(Catalog.of(declared)).output_violations, declared)
    answer = conclude(BLANK, ended(json.dumps(result).encode()), Redactor({"key": Sealed(secret.encode())}), check)
    assert answer.error is not None
    where = "/files/0/a~1b/[REDACTED:key]" if at else "/[REDACTED:key]"
    assert answer.error.message.endswith(f" at {where} (additionalProperties).")


def test_what_was_printed_when_nobody_saw_the_end_is_redacted_as_if_it_were_cut_there() -> None:
    """The head of an output ends where its half of the room does, which may be within a secret."""
    collector = Collector(Limits(output_kb=1), lambda stream, data: None)
    collector.add(Frame(FrameType.SEAL, bytes(32)))
    head = b"x" * (512 - len(SECRET) + 1) + SECRET[:-1].encode()
    collector.add(Frame(FrameType.STDOUT, head))
    answer = conclude(BLANK, collector.outcome(Cause.LOST, "It was lost."), REDACTOR, fits)
    assert answer.stdout.text.endswith("xx[REDACTED:key]")
    assert SECRET[:4] not in answer.stdout.text


def test_everything_that_is_given_back_is_redacted() -> None:
    raw = SECRET.encode()
    outcome = ended(
        json.dumps({"k": [SECRET]}).encode(),
        stdout=Captured(raw, b"", len(raw)),
        stderr=Captured(raw, b"", len(raw)),
        artifacts=(CapturedArtifact(SECRET, len(raw), raw),),
    )
    answer = conclude(BLANK, outcome, REDACTOR, fits)
    assert answer.result == {"k": ["[REDACTED:key]"]}
    assert SECRET not in repr(answer)
    assert answer.artifacts[0].data == b"[REDACTED:key]"


@pytest.mark.parametrize(
    ("cause", "state", "reason"),
    [
        (Cause.TIMED_OUT, State.TIMED_OUT, Reason.TIMED_OUT),
        (Cause.OUT_OF_MEMORY, State.FAILED, Reason.OUT_OF_MEMORY),
        (Cause.OUTPUT_FLOOD, State.FAILED, Reason.OUTPUT_FLOOD),
        (Cause.CANCELLED, State.CANCELLED, Reason.CANCELLED),
        (Cause.LOST, State.LOST, Reason.SANDBOX_LOST),
    ],
)
def test_each_other_end_has_its_state_and_keeps_the_output(cause: Cause, state: State, reason: Reason) -> None:
    outcome = RunOutcome(cause, "What happened.", stdout=Captured(b"partial", b"", 7), result_json=b'"x"')
    answer = conclude(BLANK, outcome, REDACTOR, fits)
    assert answer.state is state
    assert answer.error is not None
    assert (answer.error.reason, answer.error.message) == (reason, "What happened.")
    assert answer.stdout.text == "partial"
    assert answer.result is None


@pytest.mark.parametrize(("number", "name"), [(11, "SIGSEGV"), (64, "SIGRTMAX"), (99, "unknown")])
def test_a_signal_is_named(number: int, name: str) -> None:
    answer = conclude(BLANK, RunOutcome(Cause.SIGNALLED, "", Exit(signal=number)), REDACTOR, fits)
    assert answer.error is not None
    assert answer.error.message == f"The tool was ended by signal {number} ({name})."


def test_every_answer_has_a_nonce_of_its_own_with_128_bits() -> None:
    nonces = {conclude(BLANK, ended(), REDACTOR, fits).nonce for _ in range(50)}
    assert len(nonces) == 50
    assert all(re.fullmatch("[0-9a-f]{32}", nonce) for nonce in nonces)
