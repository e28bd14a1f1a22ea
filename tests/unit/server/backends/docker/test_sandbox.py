"""The evidence of an end. Everything else is in tests/contract/test_sandbox_contract.py, on real engines."""

import json
from typing import Any

import pytest

from callgate_server.backends.docker import sandbox


class Client:
    """An engine that knows one container's end, and what it noted of it."""

    def __init__(self, events: list[dict[str, Any]], **state: object) -> None:
        self._events, self._known = events, state
        self.asked: list[dict[str, str]] = []

        self.direct = self

    def ask(self, _method: str, path: str) -> bytes:
        assert path == "/containers/c1/json"
        return json.dumps({"State": self._known}).encode()

    def events(self, *, filters: dict[str, str], **_when: object) -> list[dict[str, Any]]:
        self.asked.append(filters)
        return self._events


@pytest.mark.parametrize(("events", "killed_for_memory"), [([{"Action": "oom"}], True), ([], False)])
def test_a_kill_that_inspection_does_not_explain_is_looked_up(
    events: list[dict[str, Any]],
    killed_for_memory: bool,  # a column of the table
) -> None:
    client = Client(events, ExitCode=137, OOMKilled=False)
    assert sandbox._state("c1", client)["OOMKilled"] is killed_for_memory  # type: ignore[arg-type]
    assert client.asked == [{"container": "c1", "event": "oom"}]


@pytest.mark.parametrize("state", [{"ExitCode": 137, "OOMKilled": True}, {"ExitCode": 1, "OOMKilled": False}])
def test_what_explains_itself_costs_no_second_question(state: dict[str, Any]) -> None:
    client = Client([], **state)
    assert sandbox._state("c1", client) == state  # type: ignore[arg-type]
    assert client.asked == []
