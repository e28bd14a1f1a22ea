"""A witness of what tools did, that no kill of the gateway reaches: a proxy on the way to the container engine.

A sandbox has one wire, its standard streams, which go through the engine's socket. So everything that a tool can do to
the world outside its sandbox passes here: the witness hears each order to run a tool on its way in, and each deed that
a tool tells of on its way out, also such as nobody is left to hear. It counts both by the token in the tool's code.

When the gateway dies its side closes, as it would without a witness: the container's standard input ends.
"""

import contextlib
import re
import secrets
import shutil
import socket
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Final, Self

_TOKEN: Final = rb"token-[0-9a-f]{16}"
_ORDER: Final = re.compile(_TOKEN)
_DEED: Final = re.compile(rb"did (" + _TOKEN + rb")")
_LONGEST: Final = 32


def token() -> str:
    return f"token-{secrets.token_hex(8)}"


def deed(name: str, *, seconds: float = 0.0) -> str:
    """Code of a tool that does its deed once, and then takes its time. Its result names the run and its keys."""
    return (
        f"import os, time, uuid\nprint('did', '{name}', flush=True)\ntime.sleep({seconds})\n"
        "result = [str(uuid.uuid4()), os.environ['CALLGATE_CALL_ID'], os.environ['CALLGATE_IDEMPOTENCY_KEY']]"
    )


class Witness:
    """`url` is the engine's socket as the gateway is to be told it. A context manager.

    `orders` counts by token how often a tool was told to run, `deeds` how often it did what it was told.
    """

    def __init__(self, engine: str) -> None:
        self._engine = engine.removeprefix("unix://")
        # Short: the path of a socket has 108 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="cg-"))
        self.url = f"unix://{self._folder}/engine.sock"
        self.orders: Counter[str] = Counter()
        self.deeds: Counter[str] = Counter()
        self._listener = socket.socket(socket.AF_UNIX)
        self._counting = threading.Lock()

    def __enter__(self) -> Self:
        self._listener.bind(self.url.removeprefix("unix://"))
        self._listener.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # A close alone does not wake who waits in accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        shutil.rmtree(self._folder)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                engine = socket.socket(socket.AF_UNIX)
                engine.connect(self._engine)
                inwards = threading.Thread(target=self._carry, args=(client, engine, _ORDER, self.orders), daemon=True)
                inwards.start()
                threading.Thread(target=self._carry_back, args=(engine, client, inwards), daemon=True).start()

    def _carry_back(self, engine: socket.socket, client: socket.socket, inwards: threading.Thread) -> None:
        self._carry(engine, client, _DEED, self.deeds)
        inwards.join()
        client.close()
        engine.close()

    def _carry(
        self, source: socket.socket, target: socket.socket, pattern: re.Pattern[bytes], found: "Counter[str]"
    ) -> None:
        """Pass on what comes, and count. Where nobody takes it any more, go on counting."""
        seen = b""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                seen = self._count(seen + data, pattern, found)
                with contextlib.suppress(OSError):
                    target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _count(self, data: bytes, pattern: re.Pattern[bytes], found: "Counter[str]") -> bytes:
        """Count what is complete, and return the end of the data, in which the next may have begun."""
        counted = 0
        for match in pattern.finditer(data):
            counted = match.end()
            with self._counting:
                found[match[match.re.groups].decode()] += 1
        return data[max(counted, len(data) - _LONGEST) :]
