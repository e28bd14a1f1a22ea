from dataclasses import replace
from typing import Any

import pytest

from support.edge import TASK, edge, in_memory

WISH: dict[str, Any] = {"name": "x", "grant": {"tools": {"text.echo": {}}}, "lifetime_s": 60}
PAGES = [
    ("POST", "/v1/tasks"),
    ("GET", "/v1/tasks"),
    ("GET", f"/v1/tasks/{TASK['task_id']}"),
    ("POST", f"/v1/tasks/{TASK['task_id']}/end"),
]


@pytest.mark.parametrize(("method", "path"), PAGES)
async def test_every_page_needs_a_credential(method: str, path: str) -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.request(method, path, json=WISH, headers={"authorization": "Bearer wrong"})
        strict = await client.request(method, path + "?surplus=1", json=WISH)
    assert (reply.status_code, reply.json()["reason"]) == (401, "unauthenticated")
    assert strict.status_code == 400


async def test_a_new_task_comes_with_its_credential_and_nobody_keeps_the_page() -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.post("/v1/tasks", json=WISH | {"budget": {"calls": 2}})
        [wish] = world.gate.tasks.wishes  # type: ignore[union-attr]
    assert (reply.status_code, reply.json()) == (201, {"task": TASK, "token": "cgt_secret"})
    assert reply.headers["location"] == f"/v1/tasks/{TASK['task_id']}"
    assert reply.headers["cache-control"] == "no-store"
    assert (wish.name, wish.budget.calls) == ("x", 2)


async def test_tasks_are_listed_shown_and_ended_without_their_credential() -> None:
    async with edge() as world, in_memory(world) as client:
        listed = await client.get("/v1/tasks?limit=1")
        shown = await client.get(f"/v1/tasks/{TASK['task_id']}")
        ended = await client.post(f"/v1/tasks/{TASK['task_id']}/end")
        none = await client.get("/v1/tasks/other")
    assert (listed.json(), shown.json()) == ({"tasks": [TASK]}, TASK)
    assert ended.json()["ended_at"] is not None
    assert (none.status_code, none.json()["reason"]) == (404, "unknown_task")


@pytest.mark.parametrize("body", [{}, {"name": "x"}, WISH | {"surplus": 1}, WISH | {"budget": {"calls": "many"}}, []])
async def test_a_body_that_is_no_task_is_refused(body: Any) -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.post("/v1/tasks", json=body)
        assert world.gate.tasks.wishes == []  # type: ignore[union-attr]
    assert (reply.status_code, reply.json()["reason"]) == (400, "invalid_request")


async def test_a_gate_without_tasks_has_no_such_pages() -> None:
    async with edge() as world:
        world.gate = replace(world.gate, tasks=None)
        async with in_memory(world) as client:
            assert (await client.get("/v1/tasks")).status_code == 404
