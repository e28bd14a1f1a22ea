"""The evidence of an end. Everything else is in tests/contract/test_sandbox_contract.py, on real engines."""

import json
from typing import Any
from urllib.parse import parse_qs

import pytest

from callgate_server.backends.docker import sandbox


class Client:
    """An engine that knows one container's end, and what it noted of it."""

    def __init__(self, events: bytes, **state: object) -> None:
        self._events, self._known = events, state
        self.asked: list[dict[str, list[str]]] = []
        self.direct = self

    def ask(self, method: str, path: str) -> bytes:
        assert method == "GET"
        if path == "/containers/c1/json":
            return json.dumps({"State": self._known}).encode()
        where, _, query = path.partition("?")
        assert where == "/events"
        self.asked.append(json.loads(parse_qs(query)["filters"][0]))
        return self._events


@pytest.mark.parametrize(("events", "killed_for_memory"), [(b'{"Action":"oom"}\n', True), (b"", False)])
def test_a_kill_that_inspection_does_not_explain_is_looked_up(
    events: bytes,
    killed_for_memory: bool,  # a column of the table
) -> None:
    client = Client(events, ExitCode=137, OOMKilled=False)
    assert sandbox._state("c1", client)["OOMKilled"] is killed_for_memory  # type: ignore[arg-type]
    assert client.asked == [{"container": ["c1"], "event": ["oom"]}]


@pytest.mark.parametrize("state", [{"ExitCode": 137, "OOMKilled": True}, {"ExitCode": 1, "OOMKilled": False}])
def test_what_explains_itself_costs_no_second_question(state: dict[str, Any]) -> None:
    client = Client(b"", **state)
    assert sandbox._state("c1", client) == state  # type: ignore[arg-type]
    assert client.asked == []
