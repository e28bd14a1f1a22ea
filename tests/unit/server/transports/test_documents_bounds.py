from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from callgate_server.transports.documents_bounds import (
    AmountsDocument,
    BreakerDocument,
    StopDocument,
    TaskBody,
    TaskDocument,
)
from callgate_server.transports.wire_tasks import WISH_KEYS
from support.edge import BREAKER, STOP, TASK


@pytest.mark.parametrize(
    ("model", "document"),
    [(TaskDocument, TASK), (AmountsDocument, TASK["spent"]), (StopDocument, STOP), (BreakerDocument, BREAKER)],
)
def test_what_is_sent_is_what_is_described(model: type[BaseModel], document: dict[str, Any]) -> None:
    model.model_validate(document)
    described = model.model_json_schema()
    assert set(document) == set(described["properties"]) == set(described["required"])


def test_the_described_body_has_the_keys_that_are_decoded() -> None:
    assert set(TaskBody.model_fields) == WISH_KEYS
    with pytest.raises(ValidationError):
        TaskBody.model_validate({"name": "x", "grant": {"tools": {}}, "lifetime_s": 0})
