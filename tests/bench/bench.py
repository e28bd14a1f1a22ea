"""`make bench`: what a call costs here, beside what it is compared with. Measures, and never fails for being slow.

The yardsticks are a bare `python3 -c 'print(1)'` without any isolation, `docker run --rm` of the same image, and
for sustained calls the engine's own cycle of create, start, wait and remove at the same concurrency. The product and
its yardsticks run interleaved (A B A B) in one process, so that a busy machine slows both; only ratios of one run
count. Prints a table, writes `bench.json`, and with `--record` RESULTS.md.

What is called the gate's own share of a call is its time at the client less the phases `acquire` and `run`: what
SDK, gRPC both ways, admission, ledger (intent and outcome), secrets and result take. In `run` the gateway also writes
and reads frames, which is therefore not in it. `everything but the tool's own run` is the time at the client less
what the runner measured of the tool: an upper bound, in which the engine's relaying of the wire is too. Below what an
empty call over gRPC and two durable writes take (`floor.py`) no share can come; they run interleaved with it.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "sandbox_images/base")]

import downloads  # noqa: E402  # after the path is set, as all of ours
import neighbours  # noqa: E402
import soak  # noqa: E402
from callgate import Answer, Callgate, CallRefused  # noqa: E402
from callgate_server.backends.openbao_dev import DevServer  # noqa: E402
from figures import Figure, rates, sizes, times  # noqa: E402
from floor import DurableWrites, empty_calls  # noqa: E402
from host import lane_memory, machine  # noqa: E402
from report import Phases, Report, document, results, show  # noqa: E402
from support.gateway import Deployment, RunningGateway, start_store  # noqa: E402
from timing import interleaved, sustained  # noqa: E402
from yardsticks import PROGRAM, EngineCycle, bare_python, docker_run  # noqa: E402

CODE = {"code": PROGRAM}
# Refuses one tool by name, so that a refusal goes the whole way through policy.
POLICIES = """
@id("developers") permit(principal in Role::"developer", action, resource);
@id("no-diffs") forbid(principal, action, resource == Tool::"text.diff");
"""
FORK = {"python.run": {"isolation": "fork"}}
POOL = {"execution": {"pool": {"enabled": True}}}
# One lane and no other, so that no page is shared with another's processes.
ALONE = {"tools": FORK, "execution": {"lanes": {"most": 1}}}
CONTAINER_CALLERS = 4
FORK_CALLERS = 8
IN_A_ROW = 10
PHASES = ("admission", "ledger", "secrets", "acquire", "run", "result")
RESULTS = Path(__file__).with_name("RESULTS.md")


@dataclass
class Caller:
    """Makes the same small call again and again, and keeps what each took at the client and what the gateway said."""

    client: Callgate
    ms: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def __call__(self) -> None:
        begin = time.perf_counter()
        answer = self.client.call("python.run", CODE).raise_for_state()
        self.ms.append((time.perf_counter() - begin) * 1000)
        self.answers.append(answer)

    def less(self, spent: Callable[[Answer], float]) -> list[float]:
        """What is left of each call's time without a part of it. The first, which met a cold gateway, is left out."""
        return [ms - spent(answer) for ms, answer in zip(self.ms[1:], self.answers[1:], strict=True)]

    def phases(self) -> dict[str, float]:
        counted = [answer.usage.phases_ms for answer in self.answers[1:]]
        return {name: round(statistics.median(phases.get(name, 0.0) for phases in counted), 3) for name in PHASES}


def refused(client: Callgate) -> None:
    try:
        client.call("text.diff", {"before": "a", "after": "b"})
    except CallRefused as refusal:
        if refusal.reason == "policy_denied":
            return
    raise RuntimeError("the call was not refused by policy")


def at_rest(gateway: RunningGateway) -> None:
    """Wait until no call runs, the pool is as full as it gets, and nothing is being started or removed."""
    names = ("callgate_running_calls ", "callgate_pool_starting ", "callgate_pool_held ")
    with gateway.web() as web:
        still = 0
        while still < 2:
            time.sleep(0.1)
            busy = [line for line in web.get("/metrics").text.splitlines() if line.startswith(names)]
            still = still + 1 if all(float(line.split()[1]) == 0 for line in busy) else 0


def idle_lane(gateway: RunningGateway, runs: int) -> list[Figure]:
    """What a lane's processes hold in memory while it waits, after its first call and after many."""
    readings = []
    with gateway.sdk() as client:
        for _ in range(runs):
            answer = client.call("python.run", CODE).raise_for_state()
            # Its next cell is made by the time that a look at the processes takes.
            time.sleep(0.2)
            readings.append(lane_memory(gateway.deployment.sandboxes()[answer.call_id]))
    return [
        sizes("idle lane, shared pages once", "MB", [reading.pss for reading in readings]),
        sizes("idle lane, sum of resident sets", "MB", [reading.rss for reading in readings]),
        sizes("idle lane, the engine's shim beside it", "MB", [reading.shim for reading in readings]),
    ]


def forks(client: Callgate, gateway: RunningGateway, runs: int) -> tuple[list[Figure], Caller]:
    """Isolation `fork` beside a bare process: one caller with a pause and without, and many without."""
    one, row = Caller(client), Caller(client)
    rest = partial(at_rest, gateway)
    with empty_calls() as empty, closing(DurableWrites(gateway.deployment.ledger.with_name("written"))) as disk:
        single = interleaved(runs * 10, {"bare": bare_python, "fork": one, "empty": empty, "disk": disk})
    in_a_row = interleaved(runs, {"bare": bare_python, "fork": row}, in_a_row=IN_A_ROW)
    many = sustained(
        _rounds(runs), FORK_CALLERS, {"bare": bare_python, "fork": Caller(client)}, rest, warm_up_s=2, counted_s=6
    )
    bare = times("bare python3", single["bare"])
    bare_in_a_row = times(f"bare python3, {IN_A_ROW} in a row", in_a_row["bare"])
    bare_many = rates(f"bare python3, sustained, {FORK_CALLERS} workers", many["bare"])
    share = one.less(_sandbox_ms)
    beyond = [
        ms - empty_ms - disk_ms for ms, empty_ms, disk_ms in zip(share, single["empty"], single["disk"], strict=True)
    ]
    return [
        bare,
        times("fork, one caller", single["fork"], bare),
        times("fork, the gate's own share", share, bare),
        times("an empty call over gRPC", single["empty"]),
        times("two durable writes", single["disk"]),
        times("fork, the gate's own share beyond both", beyond),
        times("fork, everything but the tool's own run", one.less(lambda answer: answer.usage.wall_ms)),
        bare_in_a_row,
        times(f"fork, {IN_A_ROW} in a row", in_a_row["fork"], bare_in_a_row),
        bare_many,
        rates(f"fork, sustained, {FORK_CALLERS} callers", many["fork"], bare_many),
    ], one


def containers(on_warm: Callgate, on_cold: Callgate, gateway: RunningGateway, runs: int) -> tuple[list[Figure], Phases]:
    """Isolation `container` beside the engine's own ways, and what a refusal takes."""
    warm, cold = Caller(on_warm), Caller(on_cold)
    rest = partial(at_rest, gateway)
    works = {"bare": bare_python, "docker": docker_run, "warm": warm, "cold": cold}
    samples = interleaved(runs, works, rest)
    refusals = interleaved(runs * 10, {"refused": partial(refused, on_warm)})
    many = sustained(
        _rounds(runs),
        CONTAINER_CALLERS,
        {"engine": EngineCycle(), "warm": Caller(on_warm)},
        rest,
        warm_up_s=3,
        counted_s=8,
    )
    bare, docker = times("bare python3, beside containers", samples["bare"]), times("docker run", samples["docker"])
    engine = rates(f"the engine's own cycle, {CONTAINER_CALLERS} at once", many["engine"])
    return [
        bare,
        docker,
        times("container, pool warm", samples["warm"], docker),
        times("container, pool warm, as a process", samples["warm"], bare),
        times("container, cold", samples["cold"], docker),
        engine,
        rates(f"container, sustained, {CONTAINER_CALLERS} callers", many["warm"], engine),
        times("refused by policy", refusals["refused"]),
    ], {"container, pool warm": warm.phases(), "container, cold": cold.phases()}


def _sandbox_ms(answer: Answer) -> float:
    phases = answer.usage.phases_ms
    return phases.get("acquire", 0.0) + phases.get("run", 0.0)


def _rounds(runs: int) -> int:
    return max(2, runs // 6)


@dataclass(frozen=True)
class Site:
    """Where gateways are set up: each on a folder of its own, all with one store."""

    folder: Path
    store: DevServer

    @contextmanager
    def gateway(self, name: str, settings: dict[str, Any], policies: str = POLICIES) -> Iterator[RunningGateway]:
        with Deployment(self.folder / name, self.store, policies, settings=settings).start() as running:
            yield running


def measure(site: Site, runs: int, calls: int) -> tuple[list[Figure], Phases]:
    """Everything; what looks at the host's books has the engine for itself."""
    with site.gateway("alone", ALONE) as alone:
        figures = idle_lane(alone, runs)
    with site.gateway("lanes", {"tools": FORK}) as lanes, lanes.sdk() as client:
        of_forks, one = forks(client, lanes, runs)
    with (
        site.gateway("warm", POOL) as warm,
        site.gateway("cold", {}) as cold,
        warm.sdk() as on_warm,
        cold.sdk() as on_cold,
    ):
        of_containers, phases = containers(on_warm, on_cold, warm, runs)
    with site.gateway("soak", soak.SETTINGS, soak.POLICIES) as lasting:
        left, *_ = soak.soak(lasting, calls)
    return [*of_forks, *of_containers, *figures, *left], {"fork, one caller": one.phases(), **phases}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what a call costs.")
    parser.add_argument("--runs", type=int, default=30, help="samples of each slow figure (default: 30)")
    parser.add_argument(
        "--calls", type=int, default=5000, help="calls after which to look what is left (default: 5000)"
    )
    parser.add_argument("--json", type=Path, default=ROOT / "bench.json", help="where to write the figures")
    parser.add_argument("--record", action="store_true", help="write RESULTS.md too, and keep the notes in it")
    options = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        store = start_store(Path(folder) / "openbao")
        try:
            figures, phases = measure(Site(Path(folder), store), options.runs, options.calls)
            figures += downloads.rows(Path(folder), store)
            figures += neighbours.rows()
        finally:
            store.stop()
    report = Report(datetime.now(UTC), about, figures, phases)
    show(report)
    options.json.write_text(document(report))
    if options.record:
        RESULTS.write_text(results(report, RESULTS.read_text() if RESULTS.exists() else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
