"""What a recorded call over gRPC costs at least: an empty call over the same libraries, and the disk's two waits.

The first is a server of one method in a process of its own, on the event loop and the gRPC library that the gateway
is on; it reads a request as large as a small call's and answers at once with as many bytes as a small answer has. The
second writes as much as the ledger writes for a call, and waits for the disk each time; the ledger's log is written
over again and again, and so is this.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import grpc
import uvloop

_METHOD: Final = "/callgate.bench.Floor/Call"
_REQUEST: Final = b"r" * 100
_ANSWER: Final = b"a" * 600
# What a claim, or an outcome, adds to the log of the ledger's file: four pages.
_WRITTEN: Final = b"w" * 16 * 1024
_FILE_BYTES: Final = 256 * len(_WRITTEN)
_TIMEOUT_S: Final = 30


class EmptyCall:
    """A call of a method that does nothing."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._call = channel.unary_unary(_METHOD)

    def __call__(self) -> None:
        answer = self._call(_REQUEST, timeout=_TIMEOUT_S, metadata=(("authorization", "Bearer none"),))
        if answer != _ANSWER:
            raise RuntimeError("the server of empty calls answers something else")


@contextmanager
def empty_calls() -> Iterator[EmptyCall]:
    """Run the server."""
    with subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            with grpc.insecure_channel(f"127.0.0.1:{int(server.stdout.readline())}") as channel:
                yield EmptyCall(channel)
        finally:
            server.terminate()


class DurableWrites:
    """Two writes, each on the disk before the next step, in a file that is as large as it gets from the start."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._file.write(b"\0" * _FILE_BYTES)
        os.fsync(self._file.fileno())
        self._at = 0

    def __call__(self) -> None:
        for _ in range(2):
            os.pwrite(self._file.fileno(), _WRITTEN, self._at)
            os.fdatasync(self._file.fileno())
            self._at = (self._at + len(_WRITTEN)) % _FILE_BYTES

    def close(self) -> None:
        self._file.close()


class _Handlers(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return grpc.stream_unary_rpc_method_handler(_answer) if details.method == _METHOD else None


async def _answer(_requests: object, context: grpc.aio.ServicerContext) -> bytes:
    # As the gateway does it: the message is read when the caller is known.
    await context.read()
    return _ANSWER


async def _serve() -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Handlers(),))
    sys.stdout.write(f"{server.add_insecure_port('127.0.0.1:0')}\n")
    await server.start()
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve())
