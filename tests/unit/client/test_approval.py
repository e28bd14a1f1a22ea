import json
from datetime import UTC, datetime

from callgate import Approval, approval
from support.examples import failed_doctests


def test_the_examples_of_the_module_hold() -> None:
    assert failed_doctests(approval) == 0


def test_a_document_has_moments_in_iso_8601_and_arguments_as_json() -> None:
    asked = Approval(
        "c1", "a.b", "1.0.0", "waiting", "d", arguments={"n": 2**70}, expires_at=datetime(2026, 1, 2, tzinfo=UTC)
    )
    document = json.loads(json.dumps(asked.to_json()))
    assert document["arguments"] == {"n": 2**70}
    assert (document["expires_at"], document["decided_at"]) == ("2026-01-02T00:00:00+00:00", None)


def test_arguments_are_not_in_the_representation() -> None:
    assert "hidden" not in repr(Approval("c1", "a.b", "1.0.0", "waiting", "d", arguments={"a": "hidden"}))
