"""Where hostile tools are let loose: their calls go through a gateway, and `settle` asks whether all is as before.

Every call of an arena is recorded here, so that afterwards each can be held against the record, and each
sandbox against the engine, the control groups and the process table of the host.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docker import APIClient

from callgate_server.backends.docker.engine import connect
from support.gateway import RunningGateway
from support.images import ENGINE

TIMED_OUT = ("timed_out", "timed_out")
# Of an idle gateway, however many calls it has had: what it listens on, its files, and its pools of connections, 32 to
# the engine and at most 16 to the secret store. One kept of each call would soon be more.
_IDLE_DESCRIPTORS = 112
_KEPT_KB = 64 * 1024
_SETTLE_S = 30
# The runner, the zygote, and of the next call's cell process 1 and the tool that waits.
IDLE_LANE_PROCESSES = 4
# The zygote, and process 1 of the call's cell.
_LANE_PROCESSES = 2
_CGROUPS = Path("/sys/fs/cgroup")


class Held:
    """A call in progress whose tool has said that it is ready."""

    def __init__(self, arena: "Arena", call_id: str, lines: Iterator[str]) -> None:
        self._arena = arena
        self._lines = lines
        self.call_id = call_id
        self.container: dict[str, Any] = arena.inspect(call_id)

    def end(self) -> dict[str, Any]:
        """Wait for the call's end; return its answer."""
        return _until(self._lines, lambda event: "call_id" in event and "state" in event)

    def cancel(self) -> dict[str, Any]:
        """Cancel it the way a client does; return its answer."""
        with self._arena.gateway.web() as web:
            web.post(f"/v1/calls/{self.call_id}/cancel").raise_for_status()
        return self.end()

    def tasks(self) -> int:
        """Processes and threads on the host, our runner among them. What else of a lane is ours is not counted."""
        ours = _LANE_PROCESSES if self._arena.runtime == "fork" else 0
        return sum(_threads(pid) for pid in _processes_of(self.container["Id"])) - ours

    def memory_bytes(self) -> int:
        """What the host has charged to it."""
        return int(self._counter("memory.usage_in_bytes") or self._counter("memory.current"))

    def cpu_s(self) -> float:
        """The processor time that it has used, by the host's books."""
        if nanoseconds := self._counter("cpuacct.usage"):
            return int(nanoseconds) / 1e9
        return int(dict(line.split() for line in self._counter("cpu.stat").splitlines())["usage_usec"]) / 1e6

    def _counter(self, name: str) -> str:
        found = (_read(path / name) for path in _groups(self.container["Id"]))
        return next(filter(None, found), "")

    def disk_bytes(self) -> int:
        """What it occupies on the host's disk: its layer over the image, and the engine's files about it."""
        layer = Path(self.container["GraphDriver"]["Data"]["UpperDir"])
        about = Path(self.container["ResolvConfPath"]).parent if self.container["ResolvConfPath"] else None
        folders = [layer, *([about] if about else [])]
        return sum(path.lstat().st_blocks * 512 for folder in folders for path in folder.rglob("*"))


@dataclass
class Arena:
    """One gateway on one engine. `tool` runs code in the runtime that this arena is about; `fork` is runc in a lane."""

    gateway: RunningGateway
    tool: str = "probe.run"
    runtime: str = "runc"
    calls: list[str] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)

    @property
    def engine(self) -> str:
        settings: dict[str, str] = self.gateway.deployment.settings.get("engine", {})
        return settings.get("socket", ENGINE)

    def run(self, code: str, *, deadline_s: float = 20) -> dict[str, Any]:
        """Run code in a sandbox; return the answer."""
        return self.call(self.tool, {"code": code}, deadline_s=deadline_s)

    def call(self, tool: str, arguments: dict[str, Any], *, deadline_s: float = 20) -> dict[str, Any]:
        """Make a call and return its answer, which must be one: the tool was started."""
        response = self.gateway.post(tool, arguments, deadline_ms=int(deadline_s * 1000))
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        self.calls.append(answer["call_id"])
        assert answer["untrusted"] is True
        assert (answer["error"] is None) == (answer["state"] == "succeeded")
        return answer

    @contextmanager
    def holding(self, code: str, *, deadline_s: float = 20) -> Iterator[Held]:
        """Make a call whose tool prints a line `ready` at some time, and go on from there while it runs."""
        body = {"arguments": {"code": code}, "deadline_ms": int(deadline_s * 1000)}
        headers = {"Accept": "text/event-stream"}
        with (
            self.gateway.web() as web,
            web.stream("POST", f"/v1/tools/{self.tool}/calls", json=body, headers=headers) as stream,
        ):
            lines = stream.iter_lines()  # held: dropping it would close the stream
            call_id = _until(lines, lambda event: "call_id" in event)["call_id"]
            self.calls.append(call_id)
            _until(lines, lambda event: "ready" in event.get("text", ""))
            yield Held(self, call_id, lines)

    def harmless(self) -> None:
        """A call beside all that is served as ever."""
        response = self.gateway.post(self.tool, {"code": "print('hello'); result = 42"})
        assert response.status_code == 200, response.text
        answer = response.json()
        assert (answer["state"], answer["result"], answer["stdout"]["text"]) == ("succeeded", 42, "hello\n")

    def inspect(self, call_id: str) -> dict[str, Any]:
        """The container that serves a call, by the gateway's log: the engine does not know."""
        with self._client() as client:
            inspected: dict[str, Any] = client.inspect_container(self.sandbox_of(call_id))
        self.containers.append(inspected["Id"])
        return inspected

    def sandbox_of(self, call_id: str) -> str:
        """The container that serves or served a call, by the gateway's log; empty when it had none."""
        lines = (json.loads(line) for line in self.gateway.deployment.log_text().splitlines() if line.startswith("{"))
        return next((one["sandbox"] for one in lines if one.get("call_id") == call_id and "sandbox" in one), "")

    def _is_over(self, identity: str) -> bool:
        """Whether a container is gone, or is a lane in which nothing is left but what waits for the next call."""
        processes = _processes_of(identity)
        if self.runtime == "fork" and len(processes) == IDLE_LANE_PROCESSES:
            return True
        return not processes and not _groups(identity) and identity not in self._own_containers()

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Whatever happens inside, the same holds after it: the preamble of the table of cases."""
        rss_kb = self.gateway.rss_kb()
        yield
        self.harmless()
        used = {self.sandbox_of(call_id) for call_id in self.calls} | set(self.containers)
        for identity in filter(None, used):
            _await("a container is left, or something in it", lambda identity=identity: self._is_over(identity))
        for call_id in self.calls:
            kinds = [event["kind"] for event in self.gateway.deployment.events(call_id)]
            assert kinds == ["intent", "outcome"], (call_id, kinds)
        _await("the gateway keeps descriptors", lambda: self.gateway.descriptors() <= _IDLE_DESCRIPTORS)
        assert self.gateway.rss_kb() <= rss_kb + _KEPT_KB
        assert self.gateway.process.poll() is None

    def peak_kb(self, act: Callable[[], None]) -> int:
        """By how much the gateway's resident memory rose, at most, while `act` ran."""
        folder = Path(f"/proc/{self.gateway.process.pid}")
        (folder / "clear_refs").write_text("5")  # begins the high-water mark anew: proc(5)
        before = self.gateway.rss_kb()
        act()
        status = (folder / "status").read_text().splitlines()
        return int(next(line.split()[1] for line in status if line.startswith("VmHWM"))) - before

    def _own_containers(self) -> list[str]:
        label = f"callgate.instance={self.gateway.deployment.instance}"
        with self._client() as client:
            return [found["Id"] for found in client.containers(all=True, filters={"label": label})]

    def _client(self) -> APIClient:
        return connect(self.engine, 30)


def verdict(answer: dict[str, Any]) -> tuple[str, str | None]:
    """State and reason."""
    return answer["state"], answer["error"] and answer["error"]["reason"]


def _until(lines: Iterator[str], wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    for line in lines:
        if line.startswith("data: "):
            event: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if wanted(event):
                return event
            assert "state" not in event, f"it ended before: {event}"
    raise AssertionError("the stream ended before")


def _await(what: str, settled: Callable[[], bool]) -> None:
    until = time.monotonic() + _SETTLE_S
    while not settled():
        assert time.monotonic() < until, what
        time.sleep(0.02)


def _processes_of(container_id: str) -> list[int]:
    folders = [folder for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
    return [int(folder.name) for folder in folders if container_id in _read(folder / "cgroup")]


def _groups(container_id: str) -> list[Path]:
    """Its control groups, wherever the engine puts them: in a folder of each controller, or in the one hierarchy."""
    return [path for pattern in ("*/*", "*/*/*") for path in _CGROUPS.glob(f"{pattern}{container_id}*")]


def _threads(pid: int) -> int:
    line = next((line for line in _read(Path(f"/proc/{pid}/status")).splitlines() if line.startswith("Threads")), "")
    return int(line.split()[1]) if line else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
