import json

from starlette.exceptions import HTTPException

from callgate_server.model.errors import CallError, Reason
from callgate_server.transports.replies import http_reply, refusal_reply, unexpected_reply


def test_a_refusal_is_a_problem_document() -> None:
    reply = refusal_reply(CallError(Reason.UNKNOWN_TOOL, "No such tool."))
    assert (reply.status_code, reply.headers["content-type"]) == (404, "application/problem+json")
    assert json.loads(reply.body)["reason"] == "unknown_tool"
    assert "www-authenticate" not in reply.headers
    assert "retry-after" not in reply.headers


def test_a_missing_credential_is_asked_for() -> None:
    reply = refusal_reply(CallError(Reason.UNAUTHENTICATED, "Send one."))
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, 'Bearer realm="callgate"')


def test_the_wait_is_rounded_up_to_whole_seconds() -> None:
    waits = {
        ms: refusal_reply(CallError(Reason.OVERLOADED, "Full.", retry_after_ms=ms)).headers["retry-after"]
        for ms in (0, 1, 1000, 1001)
    }
    assert waits == {0: "1", 1: "1", 1000: "1", 1001: "2"}


def test_http_keeps_its_own_status_and_headers() -> None:
    reply = http_reply(HTTPException(405, "Method Not Allowed", {"allow": "GET"}))
    assert (reply.status_code, reply.headers["allow"]) == (405, "GET")
    assert json.loads(reply.body)["status"] == 405


def test_a_body_that_is_too_large_has_its_own_reason() -> None:
    assert json.loads(http_reply(HTTPException(413, "Too large.")).body)["reason"] == "request_too_large"


def test_a_defect_shows_an_id_and_nothing_else() -> None:
    reply = unexpected_reply("e1")
    document = json.loads(reply.body)
    assert (reply.status_code, document["reason"], document["call_id"]) == (500, "internal", None)
    assert "e1" in document["detail"]
