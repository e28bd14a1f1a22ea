"""Deadlines and clean-up around calls to an engine that answers, hangs, or answers too late."""

import asyncio
import socketserver
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from docker import APIClient
from docker.errors import InvalidVersion

from callgate_server.backends.docker.engine import API_VERSION, Engine, connect, spoken

VERSIONS = b'{"ApiVersion": "1.51", "MinAPIVersion": "1.44"}'


class _Handler(BaseHTTPRequestHandler):
    """Tells its versions; everything else is never answered."""

    def do_GET(self) -> None:
        if self.path == "/version":
            self.send_response(200)
            self.send_header("Content-Length", str(len(VERSIONS)))
            self.end_headers()
            self.wfile.write(VERSIONS)
        else:
            self.server.released.wait(30)  # type: ignore[attr-defined]

    do_POST = do_GET  # noqa: N815  # the name is the server's

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    released: threading.Event


@pytest.fixture
def socket_url() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, _Server(f"{folder}/s", _Handler) as server:
        server.released = threading.Event()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"unix://{folder}/s"
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def engine(socket_url: str) -> Iterator[Engine]:
    engine = Engine(socket_url, threads=2, timeout_s=1, name="test")
    yield engine
    engine.close()


async def test_a_job_gets_a_client_that_speaks_what_the_engine_takes(engine: Engine) -> None:
    assert await engine.run(lambda client: client.api_version, 5) == "1.44"


async def test_an_attach_that_is_never_answered_frees_its_thread(engine: Engine) -> None:
    def attach(client: APIClient) -> None:
        client.attach_socket("x")

    with pytest.raises(OSError, match="timed out"):
        await engine.run(attach, 20)
    assert await engine.run(lambda _: "free", 5) == "free"


async def test_waiting_ends_before_the_job_does_and_its_late_result_is_disposed_of(engine: Engine) -> None:
    go, disposed = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    results = []

    def late(_: APIClient, result: str) -> None:
        results.append(result)
        loop.call_soon_threadsafe(disposed.set)

    with pytest.raises(TimeoutError):
        await engine.run(lambda _: "made" if go.wait(30) else "", 0.05, late=late)
    go.set()
    async with asyncio.timeout(10):
        await disposed.wait()
    assert results == ["made"]


async def test_a_cancelled_wait_disposes_of_the_late_result_too(engine: Engine) -> None:
    go, running, disposed = threading.Event(), threading.Event(), threading.Event()

    def job(_: APIClient) -> None:
        running.set()
        go.wait(30)

    task = asyncio.create_task(engine.run(job, 30, late=lambda *_: disposed.set()))
    assert await asyncio.to_thread(running.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    assert await asyncio.to_thread(disposed.wait, 10)


async def test_a_clean_up_that_comes_due_in_the_event_loops_thread_does_not_block_it(engine: Engine) -> None:
    finished, disposed = threading.Event(), threading.Event()
    where = []

    def late(*_: object) -> None:
        where.append(threading.get_ident())
        disposed.set()

    task = asyncio.create_task(engine.run(lambda _: finished.set(), 30, late=late))
    await asyncio.sleep(0)
    # The loop is held on purpose, so that it has not yet heard of the end when the wait is cancelled.
    finished.wait(10)
    time.sleep(0.1)  # noqa: ASYNC251
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(disposed.wait, 10)
    assert where[0] != threading.get_ident()


async def test_time_in_the_queue_counts(engine: Engine) -> None:
    go = threading.Event()
    for _ in range(2):
        engine.start(lambda _: go.wait(30))
    with pytest.raises(TimeoutError):
        await engine.run(lambda _: None, 0.05)
    go.set()


async def test_a_failure_that_nobody_waits_for_has_no_effect(engine: Engine) -> None:
    engine.start(lambda client: client.kill(None))
    assert await engine.run(lambda _: "still here", 5) == "still here"


async def test_a_closed_engine_refuses_at_once(socket_url: str) -> None:
    engine = Engine(socket_url, threads=1, timeout_s=1, name="test")
    engine.close()
    with pytest.raises(ConnectionError):
        await engine.run(lambda _: None, 5)
    engine.start(lambda _: None)


def test_the_environment_has_no_say_in_how_the_engine_is_reached(tmp_path: Path) -> None:
    with connect(f"unix://{tmp_path}/s", 1) as client:
        assert not client.trust_env


@pytest.mark.parametrize(
    ("newest", "oldest", "version"),
    [
        ("1.41", "1.12", API_VERSION),
        ("1.51", "1.24", API_VERSION),
        ("1.52", "1.44", "1.44"),
        ("1.41", None, API_VERSION),
    ],
)
def test_our_version_is_spoken_or_the_oldest_that_is_still_taken(newest: str, oldest: str | None, version: str) -> None:
    assert spoken({"ApiVersion": newest, "MinAPIVersion": oldest}) == version


@pytest.mark.parametrize("versions", [{"ApiVersion": "1.40"}, {}])
def test_an_engine_that_is_too_old_or_does_not_say_is_refused(versions: dict[str, str]) -> None:
    with pytest.raises(InvalidVersion):
        spoken(versions)


async def test_reconnecting_serves_the_next_job_and_needs_no_connection_before(engine: Engine) -> None:
    engine.reconnect()
    first = await engine.run(lambda client: client, 5)
    assert await engine.run(lambda client: client.version(api_version=False)["ApiVersion"], 5) == "1.51"
    engine.reconnect()
    assert await engine.run(lambda client: client, 5) is first
    assert await engine.run(lambda client: client.version(api_version=False)["ApiVersion"], 5) == "1.51"
