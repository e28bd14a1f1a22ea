"""`make soak`: thousands of calls on one gateway while somebody kills, and what is left of them.

Callers never pause. They make ordinary calls in lanes and in containers, with and without secrets, calls that are
refused, that fail, that are killed by a signal or by their deadline, and that are cancelled; some clients leave in the
middle of a call. Meanwhile containers (waiting ones, lanes, those of calls) and processes in them are killed from
outside at random. Every call must end with an answer or a refusal; afterwards nothing may be left of any of them, and
the gateway must be hardly larger than it was after its first thousand.

Its pools of threads and of connections have all they may ever have soon after the start, so that nothing of them may
come late: each descriptor that is more than there were is one too many, and the last line says what it is of.

The choice of calls and of victims follows a seed; what they meet does not.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "sandbox_images/base")]

import docker  # noqa: E402  # after the path is set, as all of ours

from callgate import Accepted, Callgate, CallRefused, GatewayUnreachable  # noqa: E402
from figures import Figure, sizes  # noqa: E402
from host import Holdings, holdings, machine, processes_in  # noqa: E402
from report import Report, show  # noqa: E402
from support.gateway import Deployment, RunningGateway, canary, start_store  # noqa: E402
from support.images import ENGINE  # noqa: E402
from support.live import eventually  # noqa: E402

CALLERS = 4
# Before the count begins: what a gateway builds up once, such as modules, caches and what its allocator keeps. After
# so many its memory goes up and down by 2 MB with what was freed last at the top of its heap, and grows no more.
WARM_UP_CALLS = 1000
SEED = 5000
# How long until all lanes have ended, and nothing is under way any more.
_IDLE_S = 2
_SETTLE_S = 60.0
_BETWEEN_KILLS_S = 0.5
SETTINGS = {
    "tools": {"python.run": {"isolation": "fork"}},
    "execution": {"lanes": {"idle_s": _IDLE_S}, "pool": {"enabled": True, "spare": 0, "idle_s": _IDLE_S}},
}
POLICIES = """
@id("developers") permit(principal in Role::"developer", action, resource);
@id("no-shells") forbid(principal, action, resource == Tool::"shell.run");
"""
HOOKS = "kv/data/acme/webhooks"

_SMALL = {"code": "print(1)"}
_ENDLESS = {"code": "print('ready', flush=True)\nwhile True: pass"}


def _fork(client: Callgate) -> str:
    return client.call("python.run", _SMALL).state


def _container(client: Callgate) -> str:
    return client.call("text.diff", {"before": "a", "after": "b"}).state


def _with_secret(client: Callgate) -> str:
    return client.call("webhooks.sign", {"payload": "{}"}).state


def _refused(client: Callgate) -> str:
    return client.call("shell.run", {"argv": ["/bin/true"]}).state


def _failing(client: Callgate) -> str:
    return client.call("python.run", {"code": "raise SystemExit(3)"}).state


def _killed(client: Callgate) -> str:
    return client.call("python.run", {"code": "import os; os.kill(os.getpid(), 9)"}).state


def _late(client: Callgate) -> str:
    return client.call("python.run", _ENDLESS, deadline_s=0.7).state


def _cancelled(client: Callgate) -> str:
    for event in client.stream("python.run", _ENDLESS):
        if isinstance(event, Accepted):
            client.cancel(event.call_id)
    return "cancelled"


def _left(client: Callgate) -> str:
    for event in client.stream("python.run", _ENDLESS, on_disconnect="cancel"):
        if isinstance(event, Accepted):
            break
    return "left"


# How often each kind of call is made, in a thousand.
_KINDS: dict[Callable[[Callgate], str], int] = {
    _fork: 750, _container: 60, _with_secret: 20, _refused: 100, _failing: 40, _killed: 10, _late: 4, _cancelled: 8, _left: 8,
}  # fmt: skip


@dataclass
class Soak:
    """One gateway, those who call it and the one who kills. `ends` counts how calls ended, `kills` who was killed."""

    gateway: RunningGateway
    random: Random = field(default_factory=lambda: Random(SEED))
    ends: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    # Ids of all containers that there were, as far as the killer came to know of them.
    seen: set[str] = field(default_factory=set)

    def make_calls(self, calls: int) -> None:
        """Make so many calls while the killer is about."""
        kinds = iter(self.random.choices(list(_KINDS), list(_KINDS.values()), k=calls))
        over = threading.Event()
        with ThreadPoolExecutor(CALLERS + 1) as threads:
            killer = threads.submit(self._kill_until, over)
            callers = [threads.submit(self._caller, kinds) for _ in range(CALLERS)]
            try:
                for caller in callers:
                    caller.result()
            finally:
                over.set()
            killer.result()

    def at_rest(self, before: Holdings | None = None) -> Holdings:
        """What is held when all lanes have ended; given `before`, as soon as no more is left than there was.

        A thread more does not end: gRPC's pool keeps what it starts, and nothing is waited for on its account.
        """
        until = time.monotonic() + _SETTLE_S
        time.sleep(2 * _IDLE_S)
        while True:
            now = holdings(self.gateway, self.seen | set(self.gateway.deployment.sandboxes().values()))
            if before is None:
                settled = not now.containers | now.tasks
            else:
                settled = not any({**now.more_than(before), "threads left": 0}.values())
            if settled or time.monotonic() > until:
                return now
            time.sleep(0.5)

    def _caller(self, kinds: Iterator[Callable[[Callgate], str]]) -> None:
        with self.gateway.sdk() as client:
            for kind in kinds:
                self.ends[self._end_of(kind, client)] += 1

    def _end_of(self, kind: Callable[[Callgate], str], client: Callgate) -> str:
        try:
            return kind(client)
        except CallRefused as refusal:
            return refusal.reason
        except GatewayUnreachable:
            return "no answer"

    def _kill_until(self, over: threading.Event) -> None:
        engine = docker.APIClient(base_url=ENGINE, version="auto")
        try:
            while not over.wait(self.random.uniform(0.5, 1.5) * _BETWEEN_KILLS_S):
                self._kill_one(engine)
        finally:
            engine.close()

    def _kill_one(self, engine: docker.APIClient) -> None:
        found = sorted(self.gateway.deployment.found().items())
        if not found:
            return
        self.seen |= {container for container, _ in found}
        container, name = self.random.choice(found)
        # Already gone, or not started yet: the next one, then.
        with contextlib.suppress(docker.errors.APIError, ProcessLookupError):
            processes = processes_in(container)
            if processes and self.random.random() < 0.7:
                os.kill(self.random.choice(processes), signal.SIGKILL)
                self.kills["process of a sandbox"] += 1
            else:
                engine.kill(container, "SIGKILL")
                self.kills["container of the pool" if "-pool-" in name else "lane or container of a call"] += 1


def soak(gateway: RunningGateway, calls: int, warm_up: int = WARM_UP_CALLS) -> tuple[list[Figure], Soak, Counter[str]]:
    """Rows after that many calls, and what the descriptors left are of.

    `gateway` has `SETTINGS`, `POLICIES` and a store, and the engine for itself.
    """
    store = gateway.deployment.store
    if store is None:
        raise ValueError("the soak needs a store for its secrets")
    store.operator.write(HOOKS, {"key": canary()})
    warm = Soak(gateway)
    warm.make_calls(warm_up)
    before = warm.at_rest()
    counted = Soak(gateway)
    counted.make_calls(calls)
    after = counted.at_rest(before)
    growth = 100 * (after.memory_kb - before.memory_kb) / before.memory_kb
    left = [sizes(name, "", [count]) for name, count in after.more_than(before).items()]
    unanswered = sizes("calls without an answer", "", [counted.ends["no answer"] + counted.ends["internal"]])
    return (
        [sizes("gateway memory, growth", "%", [growth]), *left, unanswered],
        counted,
        after.descriptors_beyond(before),
    )


def still_serves(gateway: RunningGateway) -> None:
    """See that a call succeeds when all is over, and that the record of everything holds."""

    def look() -> None:
        with gateway.sdk() as client:
            assert client.call("python.run", _SMALL).state == "succeeded"

    eventually(look)
    assert gateway.deployment.verify().fault is None


def _merged(path: Path, rows: list[Figure]) -> str:
    """`bench.json` with these rows in place of earlier ones of their names."""
    known = json.loads(path.read_text()) if path.exists() else {"figures": []}
    names = {row.figure for row in rows}
    kept = [row for row in known["figures"] if row["figure"] not in names]
    known["figures"] = [*kept, *({**asdict(row), "verdict": row.verdict} for row in rows)]
    return json.dumps(known, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Make thousands of calls among kills, and look what is left.")
    parser.add_argument("--calls", type=int, default=5000, help="calls that count (default: 5000)")
    parser.add_argument("--warm-up", type=int, default=WARM_UP_CALLS, help=f"calls before (default: {WARM_UP_CALLS})")
    parser.add_argument("--json", type=Path, default=ROOT / "bench.json", help="where to add the rows")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        store = start_store(Path(folder) / "openbao")
        try:
            with Deployment(Path(folder) / "soak", store, POLICIES, settings=SETTINGS).start() as gateway:
                rows, counted, descriptors = soak(gateway, options.calls, options.warm_up)
                still_serves(gateway)
        finally:
            store.stop()
    show(Report(datetime.now(UTC), machine(), rows, {}))
    sys.stdout.write(
        f"in {time.monotonic() - began:.0f} s\ncalls: {dict(counted.ends)}\nkilled: {dict(counted.kills)}\n"
        f"descriptors left: {dict(descriptors)}\n"
    )
    options.json.write_text(_merged(options.json, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
