import asyncio
import json
from typing import Any

import pytest

from callgate_proto.envelope import render
from callgate_server.transports.limits import TransportLimits
from support.edge import CANARY, NONCE, REFUSALS, TOKEN, TOOL, authorized, edge, in_memory

CALL = "/v1/tools/{}/calls"
EMPTY: dict[str, Any] = {"arguments": {}}


def events(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return [(int(block["id"]), block["event"], json.loads(block["data"])) for block in blocks]


async def test_a_call_waits_for_its_answer() -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.post(
            CALL.format("text.echo"),
            json={"arguments": {"n": 2**53 + 1}, "deadline_ms": 700},
            headers={"idempotency-key": "k-1"},
        )
    assert (reply.status_code, reply.json()["state"], reply.json()["result"]) == (200, "succeeded", {"n": 2**53 + 1})
    [request] = world.played.requests
    assert (request.tool, request.deadline_ms, request.idempotency_key) == ("text.echo", 700, "k-1")
    assert world.played.tokens == [TOKEN, TOKEN]


@pytest.mark.parametrize("headers", [{}, {"accept": "text/event-stream"}])
async def test_the_text_for_a_model_comes_to_who_asks_for_it(headers: dict[str, str]) -> None:
    async with edge() as world, in_memory(world) as client:
        without = await client.post(CALL.format("text.noisy"), json=EMPTY, headers=headers)
        asked = await client.post(CALL.format("text.noisy") + "?content=text", json=EMPTY, headers=headers)
        wrong = await client.post(CALL.format("text.noisy") + "?content=all", json=EMPTY)
    assert f"[callgate {NONCE}] end" not in without.text
    answer = events(asked.text)[-1][2] if headers else asked.json()
    assert answer["content"] == {"nonce": NONCE, "untrusted": True, "text": render(answer)}
    assert wrong.status_code == 400


async def test_a_call_shown_later_has_the_same_text() -> None:
    async with edge() as world, in_memory(world) as client:
        first = (await client.post(CALL.format("text.noisy") + "?content=text", json=EMPTY)).json()
        world.played.documents[first["call_id"]] = {**first, "content": {**first["content"], "text": None}}
        shown = [
            (await client.get(f"/v1/calls/{first['call_id']}?content=text")).json(),
            (await client.post(f"/v1/calls/{first['call_id']}/cancel?content=text")).json(),
        ]
    assert [answer["content"] for answer in shown] == [first["content"]] * 2


async def test_an_outcome_is_an_answer_with_status_200() -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.post(CALL.format("text.noisy"), json=EMPTY)
    document = reply.json()
    assert (reply.status_code, document["state"], document["error"]["reason"]) == (200, "failed", "tool_failed")
    assert document["stdout"]["text"] == "red"


@pytest.mark.parametrize(("tool", "status"), [("demo.denied", 403), ("demo.misfit", 422), ("demo.full", 503)])
async def test_a_refusal_is_a_problem_with_the_status_of_its_reason(tool: str, status: int) -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.post(CALL.format(tool), json=EMPTY)
    document = reply.json()
    assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")
    assert (document["reason"], document["call_id"]) == (REFUSALS[tool].reason.value, REFUSALS[tool].call_id)


async def test_a_tool_that_never_started_is_an_error() -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.post(CALL.format("demo.late"), json=EMPTY)
    assert (reply.status_code, reply.json()["reason"]) == (503, "sandbox_unavailable")
    assert reply.json()["call_id"] == world.played.calls_seen[0].call_id


async def test_events_are_streamed_to_who_asks_for_them() -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.post(
            CALL.format("text.noisy"), json=EMPTY, headers={"accept": "application/json, text/event-stream;q=0.9"}
        )
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    stream = events(reply.text)
    assert [(seq, name) for seq, name, _ in stream] == [(0, "accepted"), (1, "output"), (2, "output"), (3, "answer")]
    assert stream[2][2] == {"stream": "stderr", "text": "plain\nafter\r\nbreaks"}
    assert stream[3][2]["exit"] == {"code": 3, "signal": None}


async def test_a_refusal_before_the_stream_is_a_status_and_within_it_an_event() -> None:
    async with edge() as world, in_memory(world) as client:
        streaming = {"accept": "text/event-stream"}
        before = await client.post(CALL.format("demo.denied"), json=EMPTY, headers=streaming)
        within = await client.post(CALL.format("demo.late"), json=EMPTY, headers=streaming)
    assert before.status_code == 403
    assert within.status_code == 200
    assert [(name, data.get("reason")) for _, name, data in events(within.text)] == [
        ("accepted", None),
        ("error", "sandbox_unavailable"),
    ]


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/jsonp", 415),
        ("", 415),
    ],
)
async def test_a_body_must_be_json(content_type: str, status: int) -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.post(
            CALL.format("text.echo"), content=b'{"arguments":{}}', headers={"content-type": content_type}
        )
    assert reply.status_code == status


async def test_repeated_keys_are_refused() -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.post(
            CALL.format("text.echo"),
            content=b'{"arguments": {"tool": "a", "tool": "b"}}',
            headers={"content-type": "application/json"},
        )
    assert (reply.status_code, reply.json()["reason"]) == (400, "invalid_request")
    assert world.played.requests == []


async def test_a_body_without_a_length_is_cut_at_the_cap() -> None:
    sent = []

    async def endless() -> Any:
        while True:
            sent.append(1)
            yield b" " * 100

    async with edge(TransportLimits(body_bytes=1000)) as world, in_memory(world) as client:
        reply = await client.post(
            CALL.format("text.echo"), content=endless(), headers={"content-type": "application/json"}
        )
    assert (reply.status_code, reply.json()["reason"]) == (413, "request_too_large")
    assert len(sent) < 20


async def test_without_a_credential_the_body_is_not_read() -> None:
    async def body() -> Any:
        raise AssertionError("read")
        yield b""

    async with edge() as world, in_memory(world) as client:
        reply = await client.post(
            CALL.format("text.echo"), content=body(), headers={"authorization": "Bearer wrong", "content-type": "x/y"}
        )
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, 'Bearer realm="callgate"')


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/tools"),
        ("GET", "/v1/tools/text.echo"),
        ("GET", "/v1/calls"),
        ("GET", "/v1/calls/c1"),
        ("POST", "/v1/calls/c1/cancel"),
        ("POST", "/v1/tools/text.echo/calls"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
    ],
)
@pytest.mark.parametrize("credential", [None, "Bearer wrong", f"Basic {TOKEN}", TOKEN])
async def test_everything_but_the_probes_needs_a_credential(method: str, path: str, credential: str | None) -> None:
    async with edge() as world, in_memory(world) as client:
        del client.headers["authorization"]
        headers = {"authorization": credential} if credential else {}
        reply = await client.request(method, path, headers=headers)
    assert (reply.status_code, reply.json()["reason"]) == (401, "unauthenticated")
    assert TOKEN not in reply.text
    assert TOKEN not in str(reply.headers)


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/v1/tools/", "/v1/calls/a/b", "/", "/v1/tools/%2e%2e/calls/x"])
async def test_an_unknown_page_is_a_problem(path: str) -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.get(path)
    assert (reply.status_code, reply.headers["content-type"]) == (404, "application/problem+json")


async def test_a_method_that_a_page_does_not_have_is_a_problem() -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.delete("/v1/tools")
    assert (reply.status_code, reply.headers["allow"], reply.json()["status"]) == (405, "GET", 405)


async def test_calls_are_listed_shown_and_cancelled() -> None:
    async with edge() as world, in_memory(world) as client:
        waiting = asyncio.ensure_future(client.post(CALL.format("demo.wait"), json=EMPTY))
        await world.played.waiting.wait()
        [listed] = (await client.get("/v1/calls")).json()["calls"]
        running = await client.get(f"/v1/calls/{listed['call_id']}")
        cancelled = await client.post(f"/v1/calls/{listed['call_id']}/cancel")
        answered = await waiting
        absent = await client.get("/v1/calls/no-such-call")
    assert running.json()["state"] == "running"
    assert cancelled.json() == answered.json()
    assert answered.json()["state"] == "cancelled"
    assert (absent.status_code, absent.json()["reason"]) == (404, "unknown_call")


@pytest.mark.parametrize("limit", ["0", "201", "x", "", "1e2"])
async def test_a_limit_out_of_bounds_is_named_and_its_value_is_not_repeated(limit: str) -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.get("/v1/calls", params={"limit": limit})
    assert (reply.status_code, reply.json()["detail"]) == (400, "Not acceptable: limit.")


@pytest.mark.parametrize("query", ["limt=5", "limit=5&limit=6", "limit=5&x", "LIMIT=5"])
async def test_a_query_that_would_be_ignored_is_refused_and_not_repeated(query: str) -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.get(f"/v1/calls?{query}")
        probe = await client.get(f"/healthz?{query}")
    assert reply.json()["detail"] == "Unknown or repeated query parameters; this page takes: limit."
    assert (reply.status_code, probe.status_code) == (400, 200)


async def test_tools_are_listed_and_shown() -> None:
    async with edge() as world, in_memory(world) as client:
        assert (await client.get("/v1/tools")).json() == {"tools": [TOOL]}
        assert (await client.get("/v1/tools/text.echo")).json() == TOOL
        assert (await client.get("/v1/tools/no.tool")).status_code == 404


async def test_probes_are_open_and_tell_whether_the_gateway_can_serve() -> None:
    async with edge() as world, in_memory(world) as client:
        del client.headers["authorization"]
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        ready = await client.get("/readyz")
        world.played.ready = False
        unready = await client.get("/readyz")
    assert (ready.status_code, ready.json()) == (
        200,
        {"ready": True, "components": {"ledger": "ok", "secrets": "failing"}},
    )
    assert (unready.status_code, unready.json()["ready"]) == (503, False)


async def test_metrics_are_shown_to_who_may_see_them() -> None:
    async with edge() as world, in_memory(world) as client:
        denied = await client.get("/metrics")
        reply = await client.get("/metrics", headers=authorized("root"))
    assert (denied.status_code, denied.json()["reason"]) == (403, "policy_denied")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert reply.text.startswith("# HELP")


async def test_an_unexpected_error_shows_an_id_and_nothing_else() -> None:
    async with edge() as world, in_memory(world) as client:
        reply = await client.post(CALL.format("demo.broken"), json=EMPTY)
    [(error_id, error)] = world.unexpected
    assert CANARY in str(error)
    assert (reply.status_code, reply.headers["content-type"]) == (500, "application/problem+json")
    assert CANARY not in reply.text
    assert error_id in reply.json()["detail"]


async def test_the_access_log_names_routes_not_paths() -> None:
    async with edge() as world, in_memory(world) as client:
        await client.get(f"/v1/calls/{CANARY}?token={CANARY}")
    assert [(access.route, access.status) for access in world.accessed] == [("/v1/calls/{call_id}", "400")]
