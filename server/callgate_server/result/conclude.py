"""From the end of a run to the answer: what it is called, whether its result counts, and everything cleaned.

A success needs three things: exit status 0, a result within its size, and a result that fits the tool's output
schema. The result is parsed as hostile bytes, checked, then redacted, then cleaned.
"""

import secrets
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from callgate_server.model.answer import Answer, Failure, Usage
from callgate_server.model.errors import Reason, Violation
from callgate_server.model.json_pointer import escaped, unescaped
from callgate_server.model.lifecycle import State
from callgate_server.model.run import EXIT_UNAVAILABLE, Cause, RunOutcome, judge
from callgate_server.model.strict_json import Json, decode
from callgate_server.result.redact import Redactor
from callgate_server.result.render import render_artifact, render_output
from callgate_server.result.sanitize import clean, json_strings

# A guess is right once in 2^128.
_NONCE_BYTES: Final = 16
# Returns what does not fit the output schema of the call's tool.
Check = Callable[[Json], Sequence[Violation]]


def conclude(blank: Answer, outcome: RunOutcome, redactor: Redactor, check: Check) -> Answer:
    """Fill in the answer. `blank` is the answer as far as it was known before the run."""
    state, reason = judge(outcome)
    failure = None if reason is None else Failure(reason, _safe(_message(outcome), redactor))
    result: Json = None
    if state is State.SUCCEEDED:
        try:
            result = _result(outcome, redactor, check)
        except ValueError as error:
            state, failure = State.FAILED, Failure(Reason.INVALID_RESULT, _safe(str(error), redactor))
    return replace(
        blank,
        state=state,
        result=result,
        error=failure,
        exit=outcome.exit,
        stdout=render_output(outcome.stdout, redactor),
        stderr=render_output(outcome.stderr, redactor),
        artifacts=tuple(render_artifact(artifact, redactor) for artifact in outcome.artifacts),
        usage=Usage(
            wall_ms=outcome.wall_ms,
            cpu_ms=outcome.cpu_ms,
            max_rss_kb=outcome.max_rss_kb,
            egress_bytes=outcome.egress.bytes,
        ),
        nonce=new_nonce(),
    )


def new_nonce() -> str:
    """Return what marks the ends of an answer's text. To be drawn when the tool has ended, so that it cannot use it."""
    return secrets.token_hex(_NONCE_BYTES)


def _result(outcome: RunOutcome, redactor: Redactor, check: Check) -> Json:
    """Return the cleaned result.

    Raises:
        ValueError: it is too large, not JSON, or does not fit. The text never quotes the result.
    """
    if outcome.result_truncated:
        raise ValueError("The tool's result is larger than the manifest's `result_kb`.")
    try:
        result = None if outcome.result_json is None else decode(outcome.result_json)
    except ValueError as error:
        raise ValueError(f"The tool's result is not acceptable JSON: {error}.") from None
    violations = check(result)
    if violations:
        where = _place(violations[0].path, redactor) or "/"
        raise ValueError(f"The tool's result does not fit its output schema at {where} ({violations[0].rule}).")
    cleaned, _ = json_strings(redactor.json(result))
    return cleaned


def _place(pointer: str, redactor: Redactor) -> str:
    """Redact each key of a JSON Pointer as the tool wrote it: escaped, a secret in it is not recognised."""
    return "/".join(escaped(redactor.text(unescaped(part))) for part in pointer.split("/"))


def _safe(message: str, redactor: Redactor) -> str:
    """A path into a result is made of keys that the tool chose."""
    return clean(redactor.text(message))


def _message(outcome: RunOutcome) -> str:
    if outcome.cause is Cause.EXITED and outcome.exit.code == EXIT_UNAVAILABLE:
        return f"The tool could not do it for now (exit status {EXIT_UNAVAILABLE}); try again later."
    if outcome.cause is Cause.EXITED:
        return f"The tool exited with status {outcome.exit.code}."
    if outcome.cause is Cause.SIGNALLED and outcome.exit.signal is not None:
        return f"The tool was ended by signal {outcome.exit.signal} ({_signal_name(outcome.exit.signal)})."
    return outcome.detail


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
