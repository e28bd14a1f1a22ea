from dataclasses import replace
from typing import Any

import pytest

from support.edge import BREAKER, STOP, edge, in_memory

PAGES = [
    ("GET", "/v1/stops"),
    ("POST", "/v1/stops"),
    ("POST", "/v1/stops/resume"),
    ("GET", "/v1/breakers"),
    ("POST", "/v1/breakers"),
]


@pytest.mark.parametrize(("method", "path"), PAGES)
async def test_every_page_needs_a_credential(method: str, path: str) -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.request(method, path, json={}, headers={"authorization": "Bearer wrong"})
        strict = await client.request(method, path + "?surplus=1", json={})
    assert (reply.status_code, reply.json()["reason"]) == (401, "unauthenticated")
    assert strict.status_code == 400


async def test_an_agent_is_stopped_and_goes_on() -> None:
    async with edge() as world, in_memory(world) as client:
        stopped = await client.post("/v1/stops", json={"agent": "other", "reason": "it loops"})
        listed = await client.get("/v1/stops")
        resumed = await client.post("/v1/stops/resume", json={"agent": "other"})
        asked = world.gate.stops.asked  # type: ignore[union-attr]
    assert (stopped.status_code, stopped.json()) == (200, {"stopped": STOP, "cancelled": 2})
    assert (listed.json(), resumed.json()) == ({"stops": [STOP]}, {"resumed": "other"})
    assert asked == [("stop", "other", "it loops"), ("resume", "other")]


async def test_what_is_refused_is_refused() -> None:
    async with edge() as world, in_memory(world) as client:
        denied = await client.post("/v1/stops", json={"agent": ""})
        nobody = await client.post("/v1/stops/resume", json={"agent": "nobody"})
    assert (denied.status_code, denied.json()["reason"]) == (403, "policy_denied")
    assert (nobody.status_code, nobody.json()["reason"]) == (409, "not_possible")


async def test_a_breaker_is_set_by_its_name() -> None:
    async with edge() as world, in_memory(world) as client:
        listed = await client.get("/v1/breakers")
        opened = await client.post("/v1/breakers", json={"name": "engine", "open": True})
        closed = await client.post("/v1/breakers", json={"name": "engine", "open": False})
    assert listed.json() == {"breakers": [BREAKER]}
    assert (opened.json()["state"], closed.json()["state"]) == ("forced_open", "closed")
    assert opened.json()["retry_after_ms"] is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/stops", {}),  # nobody stops a whole tenant by forgetting a key
        ("/v1/stops", {"reason": "x"}),
        ("/v1/stops", {"agent": None}),
        ("/v1/stops", {"agent": "a", "reason": 5}),
        ("/v1/stops", {"agent": "a", "surplus": 1}),
        ("/v1/stops/resume", {}),
        ("/v1/breakers", {"name": "engine"}),
        ("/v1/breakers", {"name": "engine", "open": "yes"}),
        ("/v1/breakers", {"name": 5, "open": True}),
    ],
)
async def test_a_body_that_says_something_else_is_refused(path: str, body: Any) -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.post(path, json=body)
        assert world.gate.stops.asked == []  # type: ignore[union-attr]
    assert (reply.status_code, reply.json()["reason"]) == (400, "invalid_request")


async def test_a_gate_without_them_has_no_such_pages() -> None:
    async with edge() as world:
        world.gate = replace(world.gate, stops=None, breakers=None)
        async with in_memory(world) as client:
            found = [(await client.get(path)).status_code for path in ("/v1/stops", "/v1/breakers")]
    assert found == [404, 404]
