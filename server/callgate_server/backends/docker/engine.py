"""Calls to the engine: in a bounded pool of threads, and none without a deadline.

The library's own defaults are met here: `attach_socket` sends its request without any time limit, and every
other call waits a minute. It decides nothing about what a failure means.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from docker import APIClient
from requests import PreparedRequest, Response

# What engines since December 2020 speak; fixed, so that no request depends on a negotiation.
API_VERSION: Final = "1.41"
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class _BoundedClient(APIClient):
    """A client whose every request has a time limit, also where the library passes none."""

    def send(self, request: PreparedRequest, **kwargs: Any) -> Response:  # noqa: ANN401  # the library's own signature
        kwargs["timeout"] = kwargs.get("timeout") or self.timeout
        return super().send(request, **kwargs)


class Engine:
    """One engine, `threads` at a time.

    A job blocks its thread for at most `timeout_s` a request, whatever the engine does, so that a hung
    engine cannot keep the pool for ever.
    """

    def __init__(self, socket_url: str, *, threads: int, timeout_s: float, name: str) -> None:
        self._client = _BoundedClient(
            socket_url, version=API_VERSION, timeout=math.ceil(timeout_s), max_pool_size=threads
        )
        # Proxies and credentials of the environment are not for the engine.
        self._client.trust_env = False
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(
        self, job: Callable[[APIClient], _T], timeout_s: float, *, late: Callable[[APIClient, _T], object] | None = None
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
                future.add_done_callback(partial(self._give_late, late))
            raise

    def start(self, job: Callable[[APIClient], object]) -> None:
        """Run a job that nobody waits for. Its failure is logged and has no other effect."""
        try:
            future = self._submit(job)
        except ConnectionError:
            return
        future.add_done_callback(_log_failure)

    def close(self) -> None:
        """Drop what is queued, wait for what runs, release connections. Blocks for at most one job's time."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _submit(self, job: Callable[[APIClient], _T]) -> "Future[_T]":
        try:
            return self._pool.submit(job, self._client)
        except RuntimeError as error:
            raise ConnectionError("the connection to the engine is closed") from error

    def _give_late(self, late: Callable[[APIClient, _T], object], future: "Future[_T]") -> None:
        if future.cancelled() or future.exception() is not None:
            return
        try:
            late(self._client, future.result())
        except Exception as error:  # nobody is left to tell
            _log.warning("clean-up after an abandoned request failed: %s", type(error).__name__)


def _log_failure(future: "Future[object]") -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _log.warning("a request to the engine failed: %s", type(error).__name__)
