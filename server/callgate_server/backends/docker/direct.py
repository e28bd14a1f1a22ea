"""The few small requests that every sandbox costs, without the library's sessions.

docker-py prepares, sends and takes apart a request with more work than the engine has with it, and opens a connection
for each container. Here they go over a fixed number of connections that are kept. What the engine refuses is raised as
the library does, so that nobody needs to know which way a request went.
"""

import http.client
import json
import queue
import select
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any, Final

from docker.errors import create_api_error_from_http_exception
from requests import HTTPError, Response

_REFUSED: Final = 400
_UPGRADED: Final = 101


class Direct:
    """One engine, over `connections`: as many threads may ask at the same time, and others wait for their turn.

    A connection is not waited for, and nothing on it, for longer than `timeout_s`. Each connects when it is first used,
    or with `open`.
    """

    def __init__(self, socket_path: str, version: str, timeout_s: float, connections: int = 1) -> None:
        self._socket_path = socket_path
        self._prefix = f"/v{version}"
        self._timeout_s = timeout_s
        # Connections of an earlier age are closed when they are next used.
        self._age = 0
        self._all = [_Connection(socket_path, timeout_s) for _ in range(connections)]
        # The one that was used last comes first: it is the likeliest to be whole.
        self._free: queue.LifoQueue[_Connection] = queue.LifoQueue()
        for connection in self._all:
            self._free.put(connection)

    def open(self) -> None:
        """Connect all, so that no burst of requests does later.

        Raises:
            OSError: the engine cannot be reached.
        """
        try:
            for connection in self._all:
                connection.connect()
        except OSError:
            self.close()
            raise

    def renew(self) -> None:
        """Use no connection any more that is open now. May be called while requests are under way."""
        self._age += 1

    def ask(
        self, method: str, path: str, document: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        """Send one request and return the body of its answer. `timeout_s` is for what may take another time.

        Raises:
            docker.errors.APIError: the engine refused.
            OSError: it cannot be reached, did not answer in time, or spoke no HTTP.
        """
        with self._kept() as connection:
            try:
                connection.limit(timeout_s or self._timeout_s)
                response = connection.exchange(method, self._prefix + path, document, {})
                body = response.read()
            except BaseException:
                # What is still to come on it would be taken for the answer to another request.
                connection.close()
                raise
        _raise_refusal(response, body, path)
        return body

    def upgrade(self, path: str) -> socket.socket:
        """Send a request that turns its connection into a stream of bytes, and return that.

        Raises:
            docker.errors.APIError, OSError: as for `ask`.
        """
        connection = _Connection(self._socket_path, self._timeout_s)
        try:
            response = connection.exchange(
                "POST", self._prefix + path, None, {"Connection": "Upgrade", "Upgrade": "tcp"}
            )
            if response.status != _UPGRADED:
                _raise_refusal(response, response.read(), path)
                raise ConnectionError("the engine does not give its stream")
            stream = connection.give_away()
        except BaseException:
            connection.close()
            raise
        response.close()
        return stream

    def close(self) -> None:
        """Close all connections. No request may be under way."""
        for connection in self._all:
            connection.close()

    @contextmanager
    def _kept(self) -> Iterator["_Connection"]:
        connection = self._free.get()
        try:
            if connection.age != self._age:
                connection.close()
                connection.age = self._age
            connection.drop_if_ended()
            yield connection
        finally:
            self._free.put(connection)


class _Connection(http.client.HTTPConnection):
    """HTTP over the engine's socket. Connects when it is used, and again after it was closed."""

    def __init__(self, socket_path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._socket_path = socket_path
        self.age = 0

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._socket_path)

    def exchange(
        self, method: str, target: str, document: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        body = None if document is None else json.dumps(document).encode()
        kind = {} if body is None else {"Content-Type": "application/json"}
        try:
            self.request(method, target, body, {**kind, **headers})
            return self.getresponse()
        except http.client.HTTPException as error:
            raise ConnectionError("the engine spoke no HTTP") from error

    def limit(self, timeout_s: float) -> None:
        """Wait no longer than this for what is asked next."""
        self.timeout = timeout_s
        if self.sock is not None:
            self.sock.settimeout(timeout_s)

    def drop_if_ended(self) -> None:
        """Close a connection on which something has come while nothing was asked: its end, as a rule."""
        if self.sock is None:
            return
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        if poll.poll(0):
            self.close()

    def give_away(self) -> socket.socket:
        stream, self.sock = self.sock, None
        return stream


def _raise_refusal(response: http.client.HTTPResponse, body: bytes, path: str) -> None:
    if response.status < _REFUSED:
        return
    refusal = Response()
    refusal.status_code, refusal.reason, refusal.url = response.status, response.reason, path
    refusal.raw = BytesIO(body)
    create_api_error_from_http_exception(HTTPError(f"status {response.status}", response=refusal))
