import asyncio
from typing import Any

import pytest

from callgate_server.execution.running import Running
from callgate_server.model.call import OnDisconnect
from callgate_server.transports.streaming import ClientGoneError, EventStream, while_connected


class Client:
    """The client's side of a connection."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.received: list[dict[str, Any]] = []
        self.chunks: asyncio.Queue[bytes] = asyncio.Queue()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.received.append(message)
        if message.get("body"):
            self.chunks.put_nowait(message["body"])

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.received).decode()


async def test_work_ends_before_the_client_leaves() -> None:
    async def work() -> str:
        return "done"

    assert await while_connected(Client().receive, work()) == "done"


async def test_an_error_of_the_work_is_passed_on() -> None:
    async def work() -> None:
        raise LookupError("no")

    with pytest.raises(LookupError):
        await while_connected(Client().receive, work())


async def test_work_is_given_up_when_the_client_leaves() -> None:
    client, given_up = Client(), asyncio.Event()

    async def work() -> None:
        client.gone.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    with pytest.raises(ClientGoneError):
        await while_connected(client.receive, work())
    assert given_up.is_set()


async def test_a_body_that_trickles_in_afterwards_is_not_a_leaving() -> None:
    client, trickled = Client(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        if trickled.is_set():
            return await client.receive()
        trickled.set()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def work() -> str:
        await trickled.wait()
        await asyncio.sleep(0)
        return "done"

    assert await while_connected(receive, work()) == "done"


async def stream(running: Running, client: Client, on_disconnect: OnDisconnect, heartbeat_s: float = 60) -> None:
    await EventStream(running, on_disconnect, heartbeat_s)({"type": "http"}, client.receive, client.send)


async def test_events_are_streamed_to_the_end() -> None:
    running, client = Running("c1"), Client()
    running.accept()
    running.output("stdout", "hi")
    running.answer({"state": "succeeded"})
    await stream(running, client, OnDisconnect.DETACH)
    start = client.received[0]
    assert (b"content-type", b"text/event-stream; charset=utf-8") in start["headers"]
    assert [line for line in client.text.splitlines() if line.startswith("event")] == [
        "event: accepted",
        "event: output",
        "event: answer",
    ]
    assert client.received[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_silence_is_filled_and_no_event_is_lost_by_it() -> None:
    running, client = Running("c1"), Client()
    running.accept()
    streaming = asyncio.ensure_future(stream(running, client, OnDisconnect.DETACH, heartbeat_s=0.005))
    assert b"accepted" in await client.chunks.get()
    assert await client.chunks.get() == b": waiting\n\n"
    running.output("stdout", "one")
    running.output("stdout", "two")
    running.answer({})
    await streaming
    ids = [line for line in client.text.splitlines() if line.startswith("id")]
    assert ids == ["id: 0", "id: 1", "id: 2", "id: 3"]


@pytest.mark.parametrize(("on_disconnect", "cancelled"), [(OnDisconnect.DETACH, False), (OnDisconnect.CANCEL, True)])
async def test_a_call_is_cancelled_by_leaving_only_if_it_asked_for_that(
    on_disconnect: OnDisconnect, *, cancelled: bool
) -> None:
    running, client = Running("c1"), Client()
    running.accept()
    streaming = asyncio.ensure_future(stream(running, client, on_disconnect))
    await client.chunks.get()
    client.gone.set()
    await streaming
    assert running.cancelled.is_set() is cancelled


@pytest.mark.parametrize("steps", range(8))
async def test_a_client_that_leaves_as_an_event_comes_is_noticed(steps: int) -> None:
    running, client = Running("c1"), Client()
    stream = asyncio.ensure_future(EventStream(running, OnDisconnect.DETACH, 60)({}, client.receive, client.send))
    running.accept()
    await client.chunks.get()
    client.gone.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    running.output("stdout", "more")
    async with asyncio.timeout(10):
        await stream
