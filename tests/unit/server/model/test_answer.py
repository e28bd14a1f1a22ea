import json
from base64 import b64decode

import pytest

from callgate_server.model.answer import (
    Answer,
    Artifact,
    Decision,
    Exit,
    Failure,
    Output,
    SandboxInfo,
    Usage,
    failure_document,
    from_stored,
    to_document,
)
from callgate_server.model.errors import REASONS, Reason
from callgate_server.model.lifecycle import State
from callgate_server.model.strict_json import MAX_DEPTH, decode, encode


def answer(**changes):
    known = {
        "call_id": "c",
        "tool": "a.b",
        "version": "1.0.0",
        "state": State.SUCCEEDED,
        "decision": Decision("d", ("p1", "p2")),
        "sandbox": SandboxInfo("docker", "runc", "container"),
    }
    return Answer(**(known | changes))


def test_an_answer_is_marked_as_untrusted_unless_somebody_says_otherwise():
    assert to_document(answer())["untrusted"] is True
    assert to_document(answer())["replayed"] is False


def test_the_document_has_every_public_field():
    document = to_document(answer(result={"x": 1}, exit=Exit(code=0), usage=Usage(1.5, 2.5, 3.5, 4, 5, {"run": 2.5})))
    assert document == {
        "call_id": "c",
        "tool": "a.b",
        "version": "1.0.0",
        "state": "succeeded",
        "result": {"x": 1},
        "error": None,
        "exit": {"code": 0, "signal": None},
        "stdout": {"text": "", "data": None, "total_bytes": 0, "truncated": False},
        "stderr": {"text": "", "data": None, "total_bytes": 0, "truncated": False},
        "artifacts": [],
        "untrusted": True,
        "content": {"nonce": "", "untrusted": True, "text": None},
        "replayed": False,
        "attempt": 1,
        "fallback": None,
        "usage": {
            "queue_ms": 1.5,
            "wall_ms": 2.5,
            "cpu_ms": 3.5,
            "max_rss_kb": 4,
            "egress_bytes": 5,
            "phases_ms": {"run": 2.5},
        },
        "sandbox": {"backend": "docker", "runtime": "runc", "isolation": "container"},
        "decision": {"id": "d", "policies": ["p1", "p2"]},
    }


def test_bytes_survive_the_document():
    document = to_document(
        answer(
            stdout=Output("?", b"\x00\xff", 2, truncated=True),
            artifacts=(Artifact("a.png", 3, "ab", b"\x89PN"), Artifact("big", 9, rejected="too large")),
        )
    )
    assert b64decode(document["stdout"]["data"]) == b"\x00\xff"
    assert b64decode(document["artifacts"][0]["data"]) == b"\x89PN"
    assert document["artifacts"][1]["rejected"] == "too large"


def test_the_document_is_json_and_reads_back_as_it_was_stored():
    document = to_document(answer(result=[1, "é", None]))
    assert from_stored(encode(document)) == document
    assert json.loads(json.dumps(document)) == document


def test_a_result_of_the_full_depth_can_be_stored_and_read_again():
    deepest = decode(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert from_stored(encode(to_document(answer(result=deepest))))["result"] == deepest


@pytest.mark.parametrize("stored", [b"[]", b"1", b"", b"{"])
def test_what_is_no_answer_is_refused(stored):
    with pytest.raises(ValueError, match="not"):
        from_stored(stored)


@pytest.mark.parametrize("reason", Reason)
def test_a_failure_says_what_its_reason_means(reason):
    document = failure_document(Failure(reason, "Text.", 250))
    assert document == {
        "reason": reason.value,
        "code": REASONS[reason].grpc,
        "message": "Text.",
        "retryable": REASONS[reason].retryable,
        "retry_after_ms": 250,
    }


def test_the_gateways_own_times_are_added_without_losing_the_tools():
    timed = answer(usage=Usage(cpu_ms=7, max_rss_kb=8)).timed(1.0, {"run": 2.0})
    assert (timed.usage.queue_ms, timed.usage.phases_ms) == (1.0, {"run": 2.0})
    assert (timed.usage.cpu_ms, timed.usage.max_rss_kb) == (7, 8)
