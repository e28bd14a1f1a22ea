"""A call in progress, followed event by event over HTTP, so that a test can do something to it in mid-call."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx

from support.gateway import RunningGateway

T = TypeVar("T")
# What the metrics say of a circuit breaker.
CLOSED, OPEN = 0, 2
# A tool's code that says that it runs, and goes on for longer than any test waits.
READY_THEN_SLEEP = "import time\nprint('ready', flush=True)\ntime.sleep(18)\nresult = 'slept'"


class LiveCall:
    """The events of one call. `call_id` is known once it is accepted."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()
        name, document = self.next()
        assert name == "accepted", document
        self.call_id: str = document["call_id"]

    def next(self) -> tuple[str, dict[str, Any]]:
        """The next event: its name and its document."""
        name = ""
        for line in self._lines:
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if line.startswith("data: "):
                return name, json.loads(line.removeprefix("data: "))
        raise AssertionError("the stream ended without an answer")

    def until_printed(self, text: str) -> None:
        printed = ""
        while text not in printed:
            name, document = self.next()
            assert name == "output", document
            printed += document["text"]

    def end(self) -> tuple[str, dict[str, Any]]:
        """The last event: `answer` or `error`."""
        while True:
            name, document = self.next()
            if name in ("answer", "error"):
                return name, document

    def answer(self) -> dict[str, Any]:
        name, document = self.end()
        assert name == "answer", document
        return document


@contextlib.contextmanager
def live(
    gateway: RunningGateway, tool: str, code: str = READY_THEN_SLEEP, *, key: str | None = None, **body: Any
) -> Iterator[LiveCall]:
    """Start a call of `tool` with `code`. Leaving the context leaves the call alone."""
    headers = {"Accept": "text/event-stream"} | ({"Idempotency-Key": key} if key else {})
    with (
        gateway.web() as web,
        web.stream(
            "POST", f"/v1/tools/{tool}/calls", json={"arguments": {"code": code}, **body}, headers=headers
        ) as response,
    ):
        assert response.status_code == 200, response.read()
        yield LiveCall(response)


def eventually(attempt: Callable[[], T], *, within_s: float = 20) -> T:
    """Repeat `attempt` until its assertions hold, and return what it returns."""
    until = time.monotonic() + within_s
    while True:
        try:
            return attempt()
        except (AssertionError, httpx.TransportError):
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def breaker(gateway: RunningGateway, name: str) -> float:
    """The state of a circuit breaker, as the metrics have it."""
    with gateway.web() as web:
        lines = web.get("/metrics").text.splitlines()
    start = f'callgate_breaker_state{{breaker="{name}"}}'
    return next(float(line.split()[-1]) for line in lines if line.startswith(start))


def refusal(response: httpx.Response) -> tuple[int, str]:
    """Status and reason of a refused call."""
    return response.status_code, response.json()["reason"]
