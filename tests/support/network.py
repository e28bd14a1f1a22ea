"""A network of the test's own: only `lo`, with whatever addresses the test gives it, and a resolver it can answer for.

Network and mount namespaces are a thread's on Linux: `in_own_network` runs a coroutine in a thread that left those of
the process, and every thread that is started from there, and every program, is in it too. Nothing remains after.
"""

import asyncio
import ctypes
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from dnslib import AAAA, QTYPE, RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSServer

T = TypeVar("T")
_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
RESOLVER = "127.0.0.53"


def in_own_network(
    work: Callable[[], Awaitable[T]], *, addresses: Sequence[str] = (), hosts: Mapping[str, str] | None = None
) -> T:
    """Run `work` where `lo` has these addresses besides its own, and names come from `hosts` or from `RESOLVER`."""

    def inside() -> T:
        _leave()
        _address(addresses)
        with tempfile.TemporaryDirectory() as folder:
            _bind(Path(folder), "/etc/resolv.conf", f"nameserver {RESOLVER}\noptions timeout:1 attempts:1\n")
            lines = "".join(f"{address} {name}\n" for name, address in (hosts or {}).items())
            _bind(Path(folder), "/etc/hosts", lines)
            # The loop that the gateway runs on.
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_awaited(work))

    # A thread of its own, which ends with the call: its namespaces go with it.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(inside).result()


class Resolver(BaseResolver):
    """Answers each question for a name with the next of its answers, the last one for ever; TTL 0."""

    def __init__(self, answers: Mapping[str, Sequence[Sequence[str]]]) -> None:
        self._answers = {name: list(turns) for name, turns in answers.items()}
        self.asked: list[tuple[str, str]] = []
        self._server: DNSServer | None = None

    def __enter__(self) -> "Resolver":
        self._server = DNSServer(self, address=RESOLVER, port=53, logger=_Silent())
        self._server.start_thread()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.stop()
        self._server.server.server_close()

    def resolve(self, request: DNSRecord, handler: Any) -> DNSRecord:
        name, kind = str(request.q.qname).rstrip("."), QTYPE[request.q.qtype]
        turn = sum(asked == (name, kind) for asked in self.asked)
        self.asked.append((name, kind))
        reply = request.reply()
        turns = self._answers.get(name, [[]])
        for address in turns[min(turn, len(turns) - 1)]:
            if (":" in address) == (kind == "AAAA"):
                data = AAAA(tuple(IPv6Address(address).packed)) if kind == "AAAA" else A(address)
                reply.add_answer(RR(request.q.qname, request.q.qtype, rdata=data, ttl=0))
        return reply


class _Silent:
    """What `dnslib` tells about each packet is for nobody."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda *_: None


async def _awaited(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


def _leave() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "these tests need root, for a network of their own")
    # What is mounted here must not appear outside.
    subprocess.run(("mount", "--make-rprivate", "/"), check=True)


def _address(addresses: Sequence[str]) -> None:
    subprocess.run(("ip", "link", "set", "lo", "up"), check=True)
    for address in addresses:
        length = "128" if ":" in address else "32"
        # Without `nodad`, an IPv6 address could not be bound for a second.
        flags = ("nodad",) if ":" in address else ()
        subprocess.run(("ip", "address", "add", f"{address}/{length}", "dev", "lo", *flags), check=True)


def _bind(folder: Path, target: str, content: str) -> None:
    source = folder / Path(target).name
    source.write_text(content)
    subprocess.run(("mount", "--bind", str(source), str(Path(target).resolve())), check=True)
