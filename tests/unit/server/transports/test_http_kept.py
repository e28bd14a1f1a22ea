import json
from typing import Any

import httpx
import pytest

from support.edge import DIGEST, TOKEN, approval, dead_letter, edge, in_memory

HEADERS = {"Authorization": f"Bearer {TOKEN}"}
PAGES = [
    ("GET", "/v1/calls/c1/events"),
    ("POST", "/v1/calls/d1/settle"),
    ("GET", "/v1/approvals"),
    ("GET", "/v1/approvals/a1"),
    ("POST", "/v1/approvals/a1/decision"),
    ("GET", "/v1/dead-letters"),
    ("GET", "/v1/dead-letters/d1"),
    ("POST", "/v1/dead-letters/d1/redrive"),
    ("POST", "/v1/dead-letters/d1/discard"),
]


async def send(client: httpx.AsyncClient, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
    return await client.request(method, path, json=body, headers=HEADERS | headers)


@pytest.mark.parametrize(("method", "path"), PAGES)
async def test_every_page_needs_a_credential(method: str, path: str) -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.request(method, path, json={}, headers={"Authorization": "Bearer wrong"})
    assert (reply.status_code, reply.json()["reason"]) == (401, "unauthenticated")


async def test_an_asynchronous_call_is_answered_at_once_with_where_to_ask_for_it() -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await send(client, "POST", "/v1/tools/demo.wait/calls", {"arguments": {}, "async": True, "priority": 9})
        [wanted] = world.played.requests
    assert reply.status_code == 202
    assert reply.headers["location"] == f"/v1/calls/{reply.json()['call_id']}"
    assert (wanted.asynchronous, wanted.priority) == (True, 9)


async def test_a_call_that_waits_for_an_approval_says_so_at_once() -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await send(
            client, "POST", "/v1/tools/demo.asked/calls", {"arguments": {}, "purpose": "An invoice is due."}
        )
        [wanted] = world.played.requests
        for running in world.played.calls_seen:
            running.decided.set()
    assert reply.status_code == 202
    assert reply.json()["approval"]["group"] == "finance"
    assert wanted.purpose == "An invoice is due."


@pytest.mark.parametrize(
    "fields",
    [{"async": 1}, {"priority": 10}, {"priority": True}, {"task": ""}, {"purpose": ""}, {"purpose": "x" * 501}],
)
async def test_what_an_asynchronous_call_asks_for_is_checked(fields: dict[str, Any]) -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await send(client, "POST", "/v1/tools/text.echo/calls", {"arguments": {}, **fields})
    assert (reply.status_code, reply.json()["reason"]) == (400, "invalid_request")


def events_of(reply: httpx.Response) -> list[tuple[int, str]]:
    blocks = [block.split("\n") for block in reply.text.strip().split("\n\n")]
    return [(int(lines[0].removeprefix("id: ")), lines[1].removeprefix("event: ")) for lines in blocks]


@pytest.mark.parametrize(
    ("query", "header", "seen"),
    [
        ("", {}, ["accepted", "output", "answer"]),
        ("?after=0", {}, ["output", "answer"]),
        ("", {"Last-Event-ID": "1"}, ["answer"]),
        ("", {"Last-Event-ID": ""}, ["accepted", "output", "answer"]),
        ("?after=-1", {"Last-Event-ID": "1"}, ["accepted", "output", "answer"]),
    ],
)
async def test_a_call_is_followed_from_where_a_client_lost_it(
    query: str, header: dict[str, str], seen: list[str]
) -> None:
    async with edge() as world, in_memory(world) as client:
        made = await send(client, "POST", "/v1/tools/demo.wait/calls", {"arguments": {}, "async": True})
        await world.played.waiting.wait()
        world.played.release.set()
        path = f"/v1/calls/{made.json()['call_id']}/events{query}"
        reply = await send(client, "GET", path, None, **header)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert [name for _, name in events_of(reply)] == seen


@pytest.mark.parametrize("last", ["-1", "x", "1" * 17])
async def test_an_event_that_no_call_has_is_refused(last: str) -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await send(client, "GET", "/v1/calls/c1/events", None, **{"Last-Event-ID": last})
    assert reply.status_code == 400


async def test_approvals_are_listed_shown_and_decided() -> None:
    async with edge() as world, in_memory(world) as client:
        listed = (await send(client, "GET", "/v1/approvals")).json()["approvals"]
        shown = (await send(client, "GET", "/v1/approvals/a1")).json()
        decided = await send(client, "POST", "/v1/approvals/a1/decision", {"digest": DIGEST, "approve": True})
        denied = await send(client, "POST", "/v1/approvals/a1/decision", {"digest": DIGEST, "approve": False})
        void = await send(client, "POST", "/v1/approvals/a1/decision", {"digest": "", "approve": True})
        absent = await send(client, "GET", "/v1/approvals/a2")
    assert listed[0]["arguments"] is None
    assert shown == approval("a1")
    assert (decided.json()["state"], denied.json()["state"]) == ("approved", "denied")
    assert world.played.asked.decisions == [True, False]
    assert (void.status_code, void.json()["reason"]) == (409, "approval_void")
    assert (absent.status_code, absent.json()["reason"]) == (404, "unknown_call")


@pytest.mark.parametrize("body", [{}, {"digest": 1, "approve": True}, {"digest": "x", "approve": 1}, {"digest": "x"}])
async def test_a_decision_without_a_digest_or_a_word_is_none(body: dict[str, Any]) -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await send(client, "POST", "/v1/approvals/a1/decision", body)
    assert reply.status_code == 400
    assert world.played.asked.decisions == []


async def test_dead_letters_are_listed_shown_redriven_and_given_up() -> None:
    async with edge() as world, in_memory(world) as client:
        listed = (await send(client, "GET", "/v1/dead-letters?limit=3")).json()
        shown = (await send(client, "GET", "/v1/dead-letters/d1")).json()
        again = await send(client, "POST", "/v1/dead-letters/d1/redrive")
        gone = await send(client, "POST", "/v1/dead-letters/d1/discard")
    assert listed == {"dead_letters": [dead_letter("d1")], "total": 7}
    assert shown == dead_letter("d1")
    assert (again.status_code, again.headers["location"], again.json()["follows"]) == (202, "/v1/calls/d2", "d1")
    assert gone.status_code == 200
    assert (world.played.dead.limits, world.played.dead.buried) == ([3], ["d1"])


@pytest.mark.parametrize("happened", [True, False])
async def test_an_unknown_effect_is_settled(*, happened: bool) -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await send(client, "POST", "/v1/calls/d1/settle", {"happened": happened})
        misspelt = await send(client, "POST", "/v1/calls/d1/settle", {"happend": happened})
        vague = await send(client, "POST", "/v1/calls/d1/settle", {"happened": json.dumps(happened)})
    assert reply.status_code == 200
    assert (misspelt.status_code, vague.status_code) == (400, 400)
    assert world.played.dead.settled == [happened]
