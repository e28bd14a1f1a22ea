"""Calls to the engine: in a bounded pool of threads, and none without a deadline.

The library's own defaults are met here: some of its requests have no time limit, and every other waits a minute. It
decides nothing about what a failure means.
"""

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, TypeVar

from docker import APIClient
from docker.errors import InvalidVersion
from docker.utils.utils import version_gte
from requests import PreparedRequest, Response

from callgate_server.backends.docker.direct import Direct
from callgate_server.backends.threads import full_pool

# What engines since December 2020 speak, and what this code is written against.
API_VERSION: Final = "1.41"
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class EngineClient(APIClient):
    """A client whose every request has a time limit, also where the library passes none.

    `direct` is for the requests that a gateway makes all the time.
    """

    def __init__(self, socket_url: str, timeout_s: float, *, version: str, connections: int) -> None:
        super().__init__(socket_url, version=version, timeout=math.ceil(timeout_s), max_pool_size=connections)
        # Proxies and credentials of the environment are not for the engine.
        self.trust_env = False
        self.direct = Direct(socket_url.removeprefix("unix://"), version, timeout_s, connections)

    def close(self) -> None:
        self.direct.close()
        super().close()

    def reconnect(self) -> None:
        """Use no connection any more that is open now. What is under way ends on its own."""
        self.direct.renew()
        for adapter in self.adapters.values():
            # Closes what is idle; what is in use is closed when it comes back.
            adapter.close()

    def send(self, request: PreparedRequest, **kwargs: Any) -> Response:  # noqa: ANN401  # the library's signature
        kwargs["timeout"] = kwargs.get("timeout") or self.timeout
        return super().send(request, **kwargs)


def connect(socket_url: str, timeout_s: float, *, version: str = API_VERSION, connections: int = 1) -> EngineClient:
    """Return a client of the engine; nothing is sent yet. The caller closes it."""
    return EngineClient(socket_url, timeout_s, version=version, connections=connections)


def spoken(versions: Mapping[str, Any]) -> str:
    """Choose from the engine's own account of its versions: ours, or the oldest that it still takes.

    Raises:
        docker.errors.InvalidVersion: the engine is too old.
    """
    newest = str(versions.get("ApiVersion") or "0")
    oldest = str(versions.get("MinAPIVersion") or API_VERSION)
    if not version_gte(newest, API_VERSION):
        raise InvalidVersion(f"the engine speaks {newest}, {API_VERSION} is needed")
    return oldest if version_gte(oldest, API_VERSION) else API_VERSION


class Engine:
    """One engine, `threads` at a time.

    A job blocks its thread for at most `timeout_s` a request, whatever the engine does, so that a hung
    engine cannot keep the pool for ever.
    """

    def __init__(self, socket_url: str, *, threads: int, timeout_s: float, name: str) -> None:
        self._socket_url = socket_url
        self._threads = threads
        self._timeout_s = timeout_s
        self._connecting = threading.Lock()
        self._shared: EngineClient | None = None
        self._pool = full_pool(threads, name)

    async def run(
        self,
        job: Callable[[EngineClient], _T],
        timeout_s: float,
        *,
        late: Callable[[EngineClient, _T], object] | None = None,
    ) -> _T:
        """Run a job and wait for it, at most `timeout_s` with its time in the queue.

        A job that is abandoned while it runs still ends; `late` is then given what it returned, in its thread.

        Raises:
            TimeoutError: nothing came in time.
            docker.errors.DockerException, requests.exceptions.RequestException: as the job raised them.
            ConnectionError: the pool is closed.
        """
        future = self._submit(job)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.wrap_future(future)
        except (TimeoutError, asyncio.CancelledError):
            if late is not None:
                future.add_done_callback(partial(self._give_late, late, threading.get_ident()))
            raise

    def start(self, job: Callable[[EngineClient], object]) -> None:
        """Run a job that nobody waits for. Its failure is logged and has no other effect."""
        try:
            future = self._submit(job)
        except ConnectionError:
            return
        future.add_done_callback(_log_failure)

    def reconnect(self) -> None:
        """See `EngineClient`. Never blocks."""
        if self._shared is not None:
            self._shared.reconnect()

    def close(self) -> None:
        """Drop what is queued, wait for what runs, release connections. Blocks for at most one job's time."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._shared is not None:
            self._shared.close()

    def _submit(self, job: Callable[[EngineClient], _T]) -> "Future[_T]":
        try:
            return self._pool.submit(lambda: job(self._client()))
        except RuntimeError as error:
            raise ConnectionError("the connection to the engine is closed") from error

    def _client(self) -> EngineClient:
        """Connect at first use: newer engines refuse old versions of their interface, and say which they take."""
        if self._shared is not None:
            return self._shared
        with connect(self._socket_url, self._timeout_s) as client:
            version = spoken(client.version(api_version=False))
        with self._connecting:
            if self._shared is None:
                client = connect(self._socket_url, self._timeout_s, version=version, connections=self._threads)
                client.direct.open()
                self._shared = client
        return self._shared

    def _give_late(self, late: Callable[[EngineClient, _T], object], waiter: int, future: "Future[_T]") -> None:
        if future.cancelled() or future.exception() is not None:
            return
        result = future.result()
        if threading.get_ident() == waiter:
            # It ended in the moment it was abandoned: this is the event loop's thread, which must not block.
            self.start(lambda client: late(client, result))
            return
        try:
            late(self._client(), result)
        except Exception as error:  # nobody is left to tell
            _log.warning("clean-up after an abandoned request failed: %s", type(error).__name__)


def _log_failure(future: "Future[object]") -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _log.warning("a request to the engine failed: %s", type(error).__name__)
