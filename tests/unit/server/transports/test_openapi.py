import json
from typing import Any

import jsonschema_rs

from callgate_server.transports.documents import CallBody
from callgate_server.transports.openapi import body_of, refusals
from support.edge import edge, in_memory


async def description() -> dict[str, Any]:
    async with edge() as world, in_memory(world) as client:
        document: dict[str, Any] = (await client.get("/openapi.json")).json()
    return document


async def test_every_page_is_described_with_its_refusals() -> None:
    paths = (await description())["paths"]
    assert set(paths) == {
        "/v1/tools/{tool}/calls",
        "/v1/calls",
        "/v1/calls/{call_id}",
        "/v1/calls/{call_id}/cancel",
        "/v1/calls/{call_id}/events",
        "/v1/calls/{call_id}/settle",
        "/v1/approvals",
        "/v1/approvals/{call_id}",
        "/v1/approvals/{call_id}/decision",
        "/v1/dead-letters",
        "/v1/dead-letters/{call_id}",
        "/v1/dead-letters/{call_id}/redrive",
        "/v1/dead-letters/{call_id}/discard",
        "/v1/tasks",
        "/v1/tasks/{task_id}",
        "/v1/tasks/{task_id}/end",
        "/v1/stops",
        "/v1/stops/resume",
        "/v1/breakers",
        "/v1/tools",
        "/v1/tools/{tool}",
        "/healthz",
        "/readyz",
        "/metrics",
    }
    call = paths["/v1/tools/{tool}/calls"]["post"]
    assert {"200", "400", "401", "403", "404", "409", "413", "415", "422", "424", "500", "503", "504"} <= set(
        call["responses"]
    )
    assert set(call["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}


async def test_only_the_probes_are_described_as_open() -> None:
    paths = (await description())["paths"]
    opened = {path for path, operations in paths.items() for one in operations.values() if one["security"] == []}
    assert opened == {"/healthz", "/readyz"}


async def test_every_reference_leads_somewhere_and_the_frameworks_own_errors_are_gone() -> None:
    document = await description()
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    referred = {piece.split('"')[0] for piece in text.split('"#/components/schemas/')[1:]}
    assert referred == set(schemas)
    assert "ValidationError" not in text


async def test_the_described_body_takes_what_is_taken_and_refuses_what_is_refused() -> None:
    schemas = (await description())["components"]["schemas"]
    body = jsonschema_rs.Draft202012Validator(schemas["CallBody"])
    assert body.is_valid({"arguments": {"any": [1]}, "deadline_ms": 1, "on_disconnect": "cancel"})
    for wrong in ({}, {"arguments": []}, {"arguments": {}, "x": 1}, {"arguments": {}, "deadline_ms": 0}):
        assert not body.is_valid(wrong)


def test_refusals_are_problem_documents() -> None:
    described = refusals(404)
    assert {400, 403, 404, 413, 431, 500, 503} == set(described)
    assert list(described[404]["content"]) == ["application/problem+json"]
    assert body_of(CallBody)["requestBody"]["required"] is True
