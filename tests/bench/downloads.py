"""What the way out costs: the same downloads through the gate, from sandboxes, and direct, from processes of this host.

Fifty at once are ten in each of five programs. A round of one follows a round of the other, so that a busy machine
slows both; upstream and programs are the same. What a download takes is measured by the program that makes it.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from callgate_server.backends.openbao_dev import DevServer
from figures import Figure, rates, sizes, times
from support.gateway import PERMIT_DEVELOPERS, Deployment, RunningGateway
from support.upstreams import Upstream

PROGRAMS = 5
AT_ONCE = 10
SIZE_BYTES = 1024 * 1024
ROUNDS = 5
IN_A_ROW = 50
_MIB = 1024 * 1024
# Prints when each download began, had its first byte and its last, by the host's clock. A sandbox has its own
# `localhost`, which is why no name but the proxy's is resolved there.
_CODE = """
import json, sys, time, urllib.request
from concurrent.futures import ThreadPoolExecutor
url, count, at_once, size = sys.argv[1], *map(int, sys.argv[2:])
def one(_):
    begin = time.time()
    with urllib.request.urlopen(f"{url}/bytes?n={size}", timeout=60) as answer:
        first = answer.read(1)
        begun = time.time()
        assert len(first + answer.read()) == size
    return [begin, begun, time.time()]
with ThreadPoolExecutor(at_once) as pool:
    print(json.dumps(list(pool.map(one, range(count)))))
"""

# Runs the program with these arguments and returns what it prints.
Program = Callable[[Sequence[str]], str]


@dataclass
class Way:
    """One way of downloading, and what was measured of it."""

    program: Program
    mib_per_s: list[float] = field(default_factory=list)
    last_byte_ms: list[float] = field(default_factory=list)
    one_ms: list[float] = field(default_factory=list)

    def fifty(self, url: str) -> None:
        """Fifty downloads at once."""
        arguments = [url, str(AT_ONCE), str(AT_ONCE), str(SIZE_BYTES)]
        with ThreadPoolExecutor(PROGRAMS) as callers:
            said = callers.map(self.program, [arguments] * PROGRAMS)
            spans = [span for text in said for span in json.loads(text)]
        took_s = max(end for _, _, end in spans) - min(begin for begin, _, _ in spans)
        self.mib_per_s.append(len(spans) * SIZE_BYTES / _MIB / took_s)
        self.last_byte_ms += [(end - begin) * 1000 for begin, _, end in spans]

    def one_after_another(self, url: str) -> None:
        """Small ones, each by a connection of its own."""
        spans = json.loads(self.program([url, str(IN_A_ROW), "1", "16"]))
        self.one_ms += [(end - begin) * 1000 for begin, _, end in spans]


def rows(folder: Path, store: DevServer) -> list[Figure]:
    """Measure, and return a row for each figure."""
    with Upstream() as upstream:
        url = f"http://localhost:{upstream.port}"
        deployment = Deployment(folder / "downloads", store, PERMIT_DEVELOPERS, settings=_settings(upstream.port))
        with deployment.start() as gateway:
            direct, gated = Way(_on_this_host), Way(_in_a_sandbox(gateway))
            for way in (direct, gated):
                way.program([url, "1", "1", "16"])
            before_kb = gateway.rss_kb()
            _forget_peak(gateway)
            for _ in range(ROUNDS):
                for way in (direct, gated):
                    way.fifty(url)
                    way.one_after_another(url)
            peak_mib = max(0, _peak_kb(gateway) - before_kb) / 1024
    together = rates(f"{PROGRAMS * AT_ONCE} downloads of 1 MiB at once, direct", direct.mib_per_s, unit="MiB/s")
    each = times("one of them, direct", direct.last_byte_ms)
    small = times("a small answer, direct", direct.one_ms)
    return [
        together,
        rates(f"{PROGRAMS * AT_ONCE} downloads of 1 MiB at once, by the gate", gated.mib_per_s, together, unit="MiB/s"),
        each,
        times("one of them, by the gate", gated.last_byte_ms, each),
        small,
        times("a small answer, by the gate", gated.one_ms, small),
        sizes("gateway memory, peak above rest with 50 downloads", "MiB", [peak_mib]),
    ]


def _settings(port: int) -> dict[str, Any]:
    return {
        "egress": {"authority_dir": "egress", "internal": [{"host": "localhost", "networks": ["127.0.0.0/8"]}]},
        "tools": {"python.run": {"egress": [{"host": "localhost", "scheme": "http", "port": port}]}},
    }


def _on_this_host(arguments: Sequence[str]) -> str:
    command = [sys.executable, "-I", "-c", _CODE, *arguments]
    return subprocess.run(command, capture_output=True, check=True, text=True, env={}).stdout


def _in_a_sandbox(gateway: RunningGateway) -> Program:
    def program(arguments: Sequence[str]) -> str:
        with gateway.sdk() as client:
            answer = client.call("python.run", {"code": _CODE, "args": list(arguments)}).raise_for_state()
        return answer.stdout.text

    return program


def _forget_peak(gateway: RunningGateway) -> None:
    Path(f"/proc/{gateway.process.pid}/clear_refs").write_text("5")


def _peak_kb(gateway: RunningGateway) -> int:
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
