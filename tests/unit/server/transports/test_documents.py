from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from callgate_server.model.errors import CallError, Reason
from callgate_server.transports.documents import AnswerDocument, CallBody, CallDocument, Problem, ToolDocument
from callgate_server.transports.wire import problem
from support.edge import REFUSALS, TOOL, answer, noisy, summary


@pytest.mark.parametrize(
    ("model", "document"),
    [
        (AnswerDocument, answer("c1")),
        (AnswerDocument, noisy("c1")),
        (CallDocument, summary("c1")),
        (CallDocument, summary("c1", failed=True)),
        (ToolDocument, TOOL),
        (Problem, problem(REFUSALS["demo.misfit"])),
        (Problem, problem(CallError(Reason.OVERLOADED, "Full.", retry_after_ms=5))),
    ],
)
def test_what_is_sent_is_what_is_described(model: type[BaseModel], document: dict[str, Any]) -> None:
    model.model_validate(document)
    described = model.model_json_schema()
    assert set(document) == set(described["properties"]) == set(described["required"])


@pytest.mark.parametrize("document", [answer("c1"), summary("c1"), TOOL])
def test_an_answer_a_call_and_a_tool_are_not_taken_for_each_other(document: dict[str, Any]) -> None:
    fitting = []
    for model in (AnswerDocument, CallDocument, ToolDocument):
        try:
            model.model_validate(document)
        except ValidationError:
            continue
        fitting.append(model)
    assert len(fitting) == 1


def test_the_described_body_has_no_default_that_differs_from_leaving_it_out() -> None:
    schema = CallBody.model_json_schema()
    assert "default" not in schema["properties"]["deadline_ms"]
    assert schema["required"] == ["arguments"]
    assert schema["additionalProperties"] is False
