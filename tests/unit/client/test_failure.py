from callgate import failure
from callgate.failure import Failure, Violation
from support.examples import failed_doctests


def test_the_examples_of_the_module_hold() -> None:
    assert failed_doctests(failure) == 0


def test_documents_have_the_public_shape() -> None:
    assert Failure("overloaded", "RESOURCE_EXHAUSTED", "Full.", retryable=True, retry_after_ms=5).to_json() == {
        "reason": "overloaded",
        "code": "RESOURCE_EXHAUSTED",
        "message": "Full.",
        "retryable": True,
        "retry_after_ms": 5,
    }
    assert Violation("/a", "type", "must be text").to_json() == {
        "path": "/a",
        "rule": "type",
        "message": "must be text",
    }
