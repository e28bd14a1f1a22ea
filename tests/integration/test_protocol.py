"""Requests that are malformed, huge, repeated, cut off or too many, on a real gateway. What the edges
do by themselves is shown, with fewer parts, in test_edges.py."""

import asyncio
import contextlib
import hashlib
import json
import socket
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import positive_data_acceptance
from schemathesis.specs.openapi.schemas import OpenApiSchema

from callgate_proto.v1 import gateway_pb2 as pb
from callgate_proto.v1 import gateway_pb2_grpc
from support.gateway import Deployment, RunningGateway
from support.live import eventually, live, refusal

SLOW = "import time\nprint('ready', flush=True)\ntime.sleep(3)\nresult = 'done'"
LONG = SLOW.replace("sleep(3)", "sleep(18)")
DIFF = {"before": "a\n", "after": "b\n"}


@contextlib.contextmanager
def stub(gateway: RunningGateway) -> Iterator[gateway_pb2_grpc.GatewayStub]:
    with grpc.insecure_channel(gateway.grpc) as channel:
        yield gateway_pb2_grpc.GatewayStub(channel)


def credential(gateway: RunningGateway, tenant: str = "acme") -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {gateway.deployment.tokens[tenant]}")]


def post_raw(gateway: RunningGateway, body: bytes | Iterator[bytes], tool: str = "text.diff") -> httpx.Response:
    with gateway.web() as web:
        return web.post(f"/v1/tools/{tool}/calls", content=body, headers={"Content-Type": "application/json"})


def call_raw(gateway: RunningGateway, arguments_json: bytes, tool: str = "text.diff") -> grpc.StatusCode:
    with stub(gateway) as gate:
        try:
            request = pb.CallRequest(tool=tool, arguments_json=arguments_json)
            gate.Call(request, metadata=credential(gateway), timeout=30)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


# --- JSON that means two things, nothing, or too much ------------------------------------------------------------

ARGUMENTS = {
    "repeated key": b'{"before":"a","before":"b","after":"c"}',
    "repeated key, escaped": b'{"before":"a","befor\\u0065":"b","after":"c"}',
    "NaN": b'{"before":NaN,"after":"c"}',
    "Infinity": b'{"before":-Infinity,"after":"c"}',
    "1e400": b'{"before":1e400,"after":"c"}',
    "huge integer": b'{"before":' + b"9" * 5000 + b',"after":"c"}',
    "deep": b'{"before":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep and open": b'{"before":' + b'{"a":' * 60_000,
    "lone surrogate": b'{"before":"\\ud800","after":"c"}',
    "not UTF-8": b'{"before":"\xff","after":"c"}',
    "no object": b'["before"]',
    "empty": b"",
    "two documents": b"{}{}",
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_json_that_is_not_plain_is_refused_by_both_edges(name: str, gateway: RunningGateway) -> None:
    refused = post_raw(gateway, b'{"arguments":' + ARGUMENTS[name] + b"}")
    assert refusal(refused) == (400, "invalid_request")
    assert call_raw(gateway, ARGUMENTS[name]) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_repeated_key_of_the_body_is_refused(gateway: RunningGateway) -> None:
    arguments = json.dumps(DIFF).encode()
    body = b'{"arguments":' + arguments + b',"arguments":' + arguments + b"}"
    assert refusal(post_raw(gateway, body)) == (400, "invalid_request")


# --- too large ---------------------------------------------------------------------------------------------------


def test_fifty_megabytes_are_refused_without_being_kept(gateway: RunningGateway) -> None:
    before_kb = gateway.rss_kb()
    piece = b" " * 65536
    with contextlib.suppress(httpx.TransportError):  # the refusal may come, and the connection end, while we send
        refused = post_raw(gateway, iter([piece] * 800))
        assert refusal(refused) == (413, "request_too_large")
    assert post_raw(gateway, b"[" * (2 << 20)).status_code == 413
    assert call_raw(gateway, b'{"before":"' + b"x" * (2 << 20) + b'"}') is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert gateway.rss_kb() - before_kb < 30_000


def test_large_metadata_is_refused(gateway: RunningGateway) -> None:
    with stub(gateway) as gate, pytest.raises(grpc.RpcError) as refused:
        gate.ListTools(pb.ListToolsRequest(), metadata=[*credential(gateway), ("x-large", "x" * 20_000)], timeout=30)
    assert refused.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
    with gateway.web() as web, contextlib.suppress(httpx.TransportError):
        assert web.get("/v1/tools", headers={"X-Large": "x" * 20_000}).status_code == 431


def test_the_largest_answer_arrives_whole_over_both_edges(gateway: RunningGateway) -> None:
    code = "import os\nfor n in range(4): open(f'/out/{n}', 'wb').write(os.urandom(1000 * 1024))"
    by_http = gateway.post("python.run", {"code": code}).json()
    assert len(by_http["artifacts"]) == 4
    for artifact in by_http["artifacts"]:
        assert hashlib.sha256(b64decode(artifact["data"])).hexdigest() == artifact["sha256"]
    with gateway.sdk() as client:
        by_grpc = client.call("python.run", {"code": code})
    assert [len(artifact.data) for artifact in by_grpc.artifacts] == [1000 * 1024] * 4


# --- clients that leave ------------------------------------------------------------------------------------------


def the_call(gateway: RunningGateway, agent: str) -> dict[str, Any]:
    """The one call that this agent has made."""
    with gateway.web(agent) as web:
        found = web.get("/v1/calls").json()["calls"]
    assert len(found) == 1
    return dict(found[0])


def leave_http(gateway: RunningGateway, agent: str, on_disconnect: str) -> None:
    text = json.dumps({"arguments": {"code": SLOW}, "on_disconnect": on_disconnect})
    sent = {
        "Host": gateway.http, "Content-Type": "application/json", "Content-Length": str(len(text)),
        "Authorization": f"Bearer {gateway.deployment.tokens[agent]}",
    }  # fmt: skip
    head = "".join(f"{name}: {said}\r\n" for name, said in sent.items())
    host, _, port = gateway.http.rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST /v1/tools/probe.run/calls HTTP/1.1\r\n{head}\r\n{text}".encode())
        eventually(lambda: the_call(gateway, agent))


def leave_stream(gateway: RunningGateway, agent: str, on_disconnect: str) -> None:
    body = {"arguments": {"code": SLOW}, "on_disconnect": on_disconnect}
    headers = {"Accept": "text/event-stream"}
    with gateway.web(agent) as web, web.stream("POST", "/v1/tools/probe.run/calls", json=body, headers=headers):
        eventually(lambda: the_call(gateway, agent))


def _wish(on_disconnect: str) -> pb.CallRequest:
    value = {"detach": pb.ON_DISCONNECT_DETACH, "cancel": pb.ON_DISCONNECT_CANCEL}[on_disconnect]
    return pb.CallRequest(tool="probe.run", arguments_json=json.dumps({"code": SLOW}).encode(), on_disconnect=value)


def leave_grpc(gateway: RunningGateway, agent: str, on_disconnect: str) -> None:
    with stub(gateway) as gate:
        future = gate.Call.future(_wish(on_disconnect), metadata=credential(gateway, agent))
        eventually(lambda: the_call(gateway, agent))
        future.cancel()


def leave_grpc_stream(gateway: RunningGateway, agent: str, on_disconnect: str) -> None:
    with stub(gateway) as gate:
        wish = pb.StreamCallRequest(call=_wish(on_disconnect))
        events = gate.StreamCall(wish, metadata=credential(gateway, agent))
        assert next(events).accepted.call_id
        events.cancel()


@pytest.mark.parametrize("on_disconnect", ["detach", "cancel"])
@pytest.mark.parametrize("leave", [leave_http, leave_stream, leave_grpc, leave_grpc_stream])
def test_a_client_that_leaves_ends_its_call_only_if_it_said_so(
    leave: Callable[[RunningGateway, str, str], None], on_disconnect: str, gateway: RunningGateway
) -> None:
    agent = f"{leave.__name__.replace('_', '-')}-{on_disconnect}"
    gateway.deployment.tokens[agent] = gateway.deployment.key("acme", agent, "developer")
    leave(gateway, agent, on_disconnect)

    def ended() -> dict[str, Any]:
        call = the_call(gateway, agent)
        assert call["finished_at"] is not None
        with gateway.web(agent) as web:
            return dict(web.get(f"/v1/calls/{call['call_id']}").json())

    answer = eventually(ended)
    if on_disconnect == "detach":
        assert (answer["state"], answer["result"]) == ("succeeded", "done")
    else:
        assert (answer["state"], answer["error"]["reason"]) == ("cancelled", "cancelled")
    eventually(lambda: _no_container(gateway, answer["call_id"]))


def _no_container(gateway: RunningGateway, call_id: str) -> None:
    assert not any(call_id in name for name in gateway.deployment.containers())


# --- deadlines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deadline_s", [1.0, 3.0])
def test_the_deadline_of_an_rpc_ends_its_sandbox(deadline_s: float, gateway: RunningGateway) -> None:
    agent = f"hasty-{deadline_s:g}".replace(".", "-")
    gateway.deployment.tokens[agent] = gateway.deployment.key("acme", agent, "developer")
    request = pb.CallRequest(tool="probe.run", arguments_json=json.dumps({"code": LONG}).encode())
    with stub(gateway) as gate, pytest.raises(grpc.RpcError) as late:
        gate.Call(request, metadata=credential(gateway, agent), timeout=deadline_s)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    def ended() -> dict[str, Any]:
        call = the_call(gateway, agent)
        assert call["finished_at"] is not None
        return call

    call = eventually(ended)
    assert call["state"] == "timed_out"
    assert call["error"]["reason"] in ("timed_out", "deadline_exceeded")
    eventually(lambda: _no_container(gateway, call["call_id"]))


def test_the_deadline_of_a_body_keeps_what_was_written_until_then(gateway: RunningGateway) -> None:
    answer = gateway.post("probe.run", {"code": LONG}, deadline_ms=8000).json()
    assert (answer["state"], answer["error"]["reason"]) == ("timed_out", "timed_out")
    assert answer["stdout"]["text"] == "ready\n"
    assert answer["usage"]["wall_ms"] < 12_000
    assert refusal(gateway.post("probe.run", {"code": SLOW}, deadline_ms=1)) == (504, "deadline_exceeded")


# --- too many ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A small gateway, full: its places are taken by two calls that last."""
    limits = {"calls": 2, "calls_per_tenant": 2, "concurrent_requests": 32, "drain_s": 0}
    deployment = Deployment(tmp_path_factory.mktemp("full"), settings={"limits": limits})
    code = "import time\nprint('ready', flush=True)\ntime.sleep(55)"
    with deployment.start() as running:
        with live(running, "python.run", code) as one, live(running, "python.run", code) as other:
            one.until_printed("ready")
            other.until_printed("ready")
            yield running
        assert running.stop() == 0
    intents = [event["call_id"] for event in deployment.events() if event["kind"] == "intent"]
    assert intents == [one.call_id, other.call_id]
    assert deployment.containers() == []
    assert deployment.verify().fault is None


async def test_a_thousand_rpcs_on_a_full_gateway_are_refused_and_none_hangs(full: RunningGateway) -> None:
    request = pb.CallRequest(tool="text.diff", arguments_json=json.dumps(DIFF).encode())
    async with grpc.aio.insecure_channel(full.grpc) as channel:
        gate = gateway_pb2_grpc.GatewayStub(channel)

        async def refused() -> str:
            with pytest.raises(grpc.RpcError) as error:
                await gate.Call(request, metadata=credential(full), timeout=60)
            # Streams beyond what was agreed are refused by the protocol itself: REFUSED_STREAM, nothing was looked at.
            by_protocol = "error code 7" in (error.value.details() or "")
            return "REFUSED_STREAM" if by_protocol else error.value.code().name

        async with asyncio.timeout(60):
            codes = Counter(await asyncio.gather(*(refused() for _ in range(1000))))
    assert set(codes) <= {"RESOURCE_EXHAUSTED", "REFUSED_STREAM"}, codes
    assert codes["RESOURCE_EXHAUSTED"] >= 32


async def test_three_hundred_requests_on_a_full_gateway_are_refused_and_probes_are_answered(
    full: RunningGateway,
) -> None:
    headers = {"Authorization": f"Bearer {full.deployment.tokens['acme']}"}
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=f"http://{full.http}", headers=headers, limits=limits, timeout=60, trust_env=False) as web:  # fmt: skip
        posts = [web.post("/v1/tools/text.diff/calls", json={"arguments": DIFF}) for _ in range(300)]
        *refused, health = await asyncio.gather(*posts, web.get("/healthz"))
    assert health.status_code == 200
    assert Counter(map(refusal, refused)) == {(503, "overloaded"): 300}
    assert all(int(response.headers["retry-after"]) >= 1 for response in refused)


# --- calls that are repeated -------------------------------------------------------------------------------------


def keyed(gateway: RunningGateway, key: str, arguments: dict[str, Any]) -> httpx.Response:
    return gateway.post("probe.run", arguments, headers={"Idempotency-Key": key})


def test_a_key_runs_once_whatever_edge_it_comes_through(gateway: RunningGateway) -> None:
    arguments = {"code": "import os\nprint(os.urandom(8).hex())\nresult = os.urandom(8).hex()"}
    first = keyed(gateway, "across", arguments)
    again = keyed(gateway, "across", {**arguments})
    assert again.content.replace(b'"replayed":true', b'"replayed":false') == first.content
    with gateway.sdk() as client:
        by_grpc = client.call("probe.run", arguments, idempotency_key="across")
    assert (by_grpc.replayed, by_grpc.result) == (True, first.json()["result"])
    other = keyed(gateway, "across", {"code": "1"})
    assert refusal(other) == (422, "idempotency_conflict")
    kinds = Counter(
        event["kind"] for event in gateway.deployment.events() if event.get("original") == first.json()["call_id"]
    )
    assert kinds == {"replayed": 2}


def test_a_failed_answer_is_replayed_too_and_a_refusal_is_not_kept(gateway: RunningGateway) -> None:
    failing = {"code": "import os; raise SystemExit(os.urandom(1)[0] // 4 + 1)"}
    answers = [keyed(gateway, "failing", failing).json() for _ in range(2)]
    assert answers[0]["state"] == "failed"
    assert answers[1] == {**answers[0], "replayed": True}
    assert refusal(keyed(gateway, "mended", {"code": 1})) == (422, "invalid_arguments")
    assert keyed(gateway, "mended", {"code": "result = 1"}).json()["result"] == 1


def test_of_calls_with_one_key_at_once_exactly_one_runs(gateway: RunningGateway) -> None:
    arguments = {"code": SLOW + "\nimport os; result = os.urandom(8).hex()"}
    with ThreadPoolExecutor(12) as crowd:
        responses = list(crowd.map(lambda _: keyed(gateway, "crowd", arguments), range(12)))
    ran = [response.json() for response in responses if response.status_code == 200]
    assert len({answer["result"] for answer in ran}) == 1
    assert [answer["replayed"] for answer in ran].count(False) == 1
    assert {refusal(response) for response in responses if response.status_code != 200} <= {(409, "call_in_flight")}


# --- browsers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "evil.example:8080"}, {"Origin": "https://evil.example"}, {"Origin": "null"}],
)
def test_a_page_of_a_browser_does_not_reach_a_gateway_on_its_machine(
    headers: dict[str, str], gateway: RunningGateway
) -> None:
    with gateway.web() as web:
        for method, path in (("GET", "/v1/tools"), ("POST", "/v1/tools/text.diff/calls"), ("OPTIONS", "/v1/tools")):
            refused = web.request(method, path, headers=headers, json={"arguments": DIFF} if method == "POST" else None)
            assert refused.status_code == 403
            assert "access-control-allow-origin" not in refused.headers


# --- generated requests ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described(gateway: RunningGateway) -> OpenApiSchema:
    schema = schemathesis.openapi.from_url(f"http://{gateway.http}/openapi.json", headers=dict(bearer(gateway)))
    # Generated names are of no tool; every other one is made the name of a real one.
    schema.hook("map_path_parameters")(
        lambda _, found: {"tool": "text.diff"} if found and len(str(found.get("tool", ""))) % 2 else found
    )
    return schema


def bearer(gateway: RunningGateway) -> dict[str, str]:
    return {"Authorization": f"Bearer {gateway.deployment.tokens['acme']}"}


PAGES = [
    ("/v1/tools/{tool}/calls", "post"), ("/v1/calls", "get"), ("/v1/calls/{call_id}", "get"),
    ("/v1/calls/{call_id}/cancel", "post"), ("/v1/tools", "get"), ("/v1/tools/{tool}", "get"), ("/readyz", "get"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "method"), PAGES)
def test_generated_requests_get_an_answer_that_is_described(
    path: str, method: str, gateway: RunningGateway, described: OpenApiSchema
) -> None:
    @given(case=described[path][method].as_strategy())
    @settings(max_examples=20, suppress_health_check=list(HealthCheck))
    def answer_as_described(case: Case) -> None:
        # What a tool takes is in its own schema, and the answer to it is in `violations`.
        reply = case.call_and_validate(
            headers=bearer(gateway), timeout=30, excluded_checks=[positive_data_acceptance] if method == "post" else []
        )
        assert reply.status_code < 500 or reply.status_code in (503, 504)

    answer_as_described()
    assert '"event": "unexpected"' not in gateway.deployment.log_text()
