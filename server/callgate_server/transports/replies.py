"""How a refusal looks over HTTP: a problem document with the headers that go with its status."""

import math
from typing import Final

from starlette.exceptions import HTTPException
from starlette.responses import Response

from callgate_server.model.errors import CallError, Reason
from callgate_server.model.strict_json import encode
from callgate_server.transports.wire import problem

PROBLEM: Final = "application/problem+json"
# What HTTP itself refuses. The status is HTTP's own, more exact than the one of the reason.
_REASONS: Final = {413: Reason.REQUEST_TOO_LARGE, 503: Reason.OVERLOADED}
_MESSAGES: Final = {404: "There is no such page.", 405: "This page does not have that method."}


def refusal_reply(error: CallError, status: int | None = None) -> Response:
    document = problem(error, status)
    headers = {}
    if error.retry_after_ms is not None:
        # Whole seconds are all that the header can say; the document has the milliseconds.
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_ms / 1000)))
    if error.reason is Reason.UNAUTHENTICATED:
        headers["www-authenticate"] = 'Bearer realm="callgate"'
    return Response(encode(document), document["status"], headers, PROBLEM)


def http_reply(error: HTTPException) -> Response:
    """The reply to a request that HTTP itself refuses. `detail` is our own text, or the framework's for 404 and 405."""
    reason = _REASONS.get(error.status_code, Reason.INVALID_REQUEST)
    message = _MESSAGES.get(error.status_code, error.detail)
    reply = refusal_reply(CallError(reason, message), error.status_code)
    reply.headers.update(error.headers or {})
    return reply


def unexpected_reply(error_id: str) -> Response:
    """The reply to a defect of ours: an id to quote, and nothing else."""
    return refusal_reply(CallError(Reason.INTERNAL, f"Unexpected error; quote {error_id} to the operator."))
