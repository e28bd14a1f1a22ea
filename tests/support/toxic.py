"""A TCP proxy in front of a real server that can be slow, or go silent, at a word."""

import contextlib
import select
import socket
import threading
import time
from typing import Self


class ToxicProxy:
    """Forwards connections of loopback to `port`; each answer is held back for `latency_s`."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closed = threading.Event()
        self.port = self._listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.latency_s = 0.0
        self.connections = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            if not select.select([self._listener], [], [], 0.1)[0]:
                continue
            with contextlib.suppress(OSError):
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._target) as server:
            other = {client: server, server: client}
            while not self._closed.is_set():
                for source in select.select([client, server], [], [], 0.1)[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is server:
                        self._hold()
                    other[source].sendall(data)

    def _hold(self) -> None:
        until_s = time.monotonic() + self.latency_s
        while time.monotonic() < until_s and not self._closed.is_set():
            time.sleep(0.01)
