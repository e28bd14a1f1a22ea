"""The same call by curl, gRPC, the SDK in both forms and the command line: the same answer, and the same record."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from callgate_proto.v1 import gateway_pb2, gateway_pb2_grpc
from support.gateway import RunningGateway

CALLGATE = Path(sys.executable).parent / "callgate"
VOLATILE = {"call_id", "content", "decision", "usage"}
Way = Callable[[RunningGateway, str, dict[str, Any]], dict[str, Any]]


def by_curl(gateway: RunningGateway, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps({"arguments": arguments})
    command = [
        "curl", "--silent", "--show-error", "-H", f"Authorization: Bearer {gateway.deployment.tokens['acme']}",
        "-H", "Content-Type: application/json", "--data", body, f"http://{gateway.http}/v1/tools/{tool}/calls",
    ]  # fmt: skip
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


def by_grpc(gateway: RunningGateway, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    with grpc.insecure_channel(gateway.grpc) as channel:
        answer = (
            gateway_pb2_grpc.GatewayStub(channel)
            .Call(
                gateway_pb2.CallRequest(tool=tool, arguments_json=json.dumps(arguments).encode()),
                metadata=[("authorization", f"Bearer {gateway.deployment.tokens['acme']}")],
                timeout=60,
            )
            .answer
        )
    document = MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return {"call_id": answer.call_id, "result": json.loads(answer.result_json or b"null"), "grpc": document}


def by_sync_sdk(gateway: RunningGateway, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    with gateway.sdk() as client:
        return client.call(tool, arguments).to_json()


async def by_async_sdk(gateway: RunningGateway, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    async with gateway.async_sdk() as client:
        return (await client.call(tool, arguments)).to_json()


def by_command_line(gateway: RunningGateway, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    pairs = [word for name, value in arguments.items() for word in ("--arg", f"{name}={value}")]
    environment = os.environ | {"CALLGATE_TARGET": gateway.grpc, "CALLGATE_TOKEN": gateway.deployment.tokens["acme"]}
    done = subprocess.run(
        [CALLGATE, "call", tool, *pairs, "--json"], capture_output=True, env=environment, timeout=60, check=False
    )
    return json.loads(done.stdout)


WAYS: dict[str, Way] = {
    "curl": by_curl,
    "grpc": by_grpc,
    "sdk": by_sync_sdk,
    "async-sdk": by_async_sdk,  # type: ignore[dict-item]
    "command-line": by_command_line,
}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "success": ("text.diff", {"before": "a\nb\n", "after": "a\nc\n"}),
    "failure": ("python.run", {"code": "import sys; print('kept'); sys.exit(3)"}),
}


async def called(way: str, gateway: RunningGateway, call: str) -> dict[str, Any]:
    outcome = WAYS[way](gateway, *CALLS[call])
    return await outcome if hasattr(outcome, "__await__") else outcome  # type: ignore[misc]


@pytest.fixture(scope="module")
def reference(gateway: RunningGateway) -> dict[str, dict[str, Any]]:
    return {name: by_curl(gateway, *call) for name, call in CALLS.items()}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("way", WAYS)
async def test_every_way_gives_the_same_answer_and_the_same_record(
    way: str, call: str, gateway: RunningGateway, reference: dict[str, dict[str, Any]]
) -> None:
    answer = await called(way, gateway, call)
    expected = reference[call]
    if way == "grpc":
        shown = answer.pop("grpc")
        assert (shown["tool"], shown["version"]) == (expected["tool"], expected["version"])
        assert shown["stdout"]["text"] == expected["stdout"]["text"]
        assert shown["state"].lower().endswith(expected["state"])
        assert answer["result"] == expected["result"]
        if expected["error"]:
            assert shown["error"]["reason"] == expected["error"]["reason"]
            assert shown["exit"]["code"] == expected["exit"]["code"]
    else:
        assert {key: value for key, value in answer.items() if key not in VOLATILE} == {
            key: value for key, value in expected.items() if key not in VOLATILE
        }
    assert record(gateway, answer["call_id"]) == record(gateway, expected["call_id"])


def record(gateway: RunningGateway, call_id: str) -> list[dict[str, Any]]:
    """What the record says of a call, without what must differ from one call to the next."""
    differs = {
        "call_id",
        "row",
        "decision_id",
        "received_at",
        "deadline_at",
        "at",
        "transport",
        "answer",
        "answer_digest",
        "sandbox",
    }
    events = gateway.deployment.events(call_id)
    return [{key: value for key, value in event.items() if key not in differs} for event in events]


def test_the_record_compared_is_the_whole_story(gateway: RunningGateway) -> None:
    answer = by_curl(gateway, *CALLS["success"])
    kinds = [event["kind"] for event in gateway.deployment.events(answer["call_id"])]
    intent = record(gateway, answer["call_id"])[0]
    assert kinds == ["intent", "outcome"]
    assert {"arguments", "tool", "version", "policies", "tenant", "agent"} <= set(intent)
