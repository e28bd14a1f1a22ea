"""The OpenAPI description of the HTTP edge: what the framework cannot know by itself, and without what it assumes."""

from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel

from callgate_server.transports.documents import CallBody, DecisionBody, Problem, SettlementBody
from callgate_server.transports.documents_bounds import BreakerBody, ResumeBody, StopBody, TaskBody
from callgate_server.transports.replies import PROBLEM

_MEANINGS: Final = {
    400: "The request is malformed.",
    401: "No valid credential.",
    403: "Refused by policy, or sent by a browser page.",
    404: "There is no such thing, or not for this caller.",
    409: "The same call still runs and the time to wait for it is over, or its state does not allow this.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "The arguments do not fit the tool's schema, or the idempotency key was used with others.",
    424: "Something that the tool needs is missing or refused: a runtime, an image, a secret.",
    429: "Too many calls in this time, or a budget is used up.",
    431: "The head of the request is too large.",
    500: "An unexpected error; it has an id to quote.",
    503: "The gateway is full, shutting down, or a part that the call needs does not answer.",
    504: "The deadline passed before the tool started.",
}
# What any request may meet, whatever it asks for.
_ANYWHERE: Final = (400, 403, 413, 431, 500, 503)
BODIES: Final[tuple[type[BaseModel], ...]] = (
    *(CallBody, DecisionBody, SettlementBody),
    *(TaskBody, StopBody, ResumeBody, BreakerBody),
)
_OPEN: Final = frozenset({"/healthz", "/readyz"})
CALL_HEADERS: Final[list[dict[str, Any]]] = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "description": "The same key with the same arguments is not run twice: it gets the first call's answer, "
        "waiting for it where that still runs.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]{0,253}[!-~])?$"},
    }
]


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a page that may refuse with these, besides what any page may refuse with."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": _MEANINGS[status], "content": {PROBLEM: {"schema": schema}}}
        for status in sorted({*statuses, *_ANYWHERE})
    }


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a body, which the framework does not decode."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the finished description."""
    document = app.openapi()
    schemas = document["components"]["schemas"]
    models: tuple[type[BaseModel], ...] = (*BODIES, Problem)
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    # The framework's own validation error is never sent: it would quote the request.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["components"]["securitySchemes"] = {"credential": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            invalid = operation["responses"].get("422", {})
            if "application/json" in invalid.get("content", {}):
                del operation["responses"]["422"]
            operation["security"] = [] if path in _OPEN else [{"credential": []}]
    return document
