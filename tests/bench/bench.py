"""`make bench`: what a call costs here, beside what it is compared with. Measures, and never fails for being slow.

The yardsticks are a bare `python3 -c 'print(1)'` without any isolation, `docker run --rm` of the same image, and
for sustained calls the engine's own cycle of create, start, wait and remove at the same concurrency.

The product and its yardsticks run interleaved (A B A B) in one process, so that a busy machine slows both. A
figure says its unit, how many runs, p50, p95 and p99, and what it was paired with; only ratios of one run count.
Writes `bench.json` and prints a table.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import docker
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "sandbox_images/base")]

import downloads  # noqa: E402  # after the path is set

from callgate import Answer, Callgate, CallRefused  # noqa: E402
from support.gateway import Deployment, RunningGateway, start_store  # noqa: E402  # after the path is set
from support.images import ENGINE, images  # noqa: E402

CODE = {"code": "print(1)"}
# Refuses one tool by name, so that a refusal goes the whole way through policy.
POLICIES = """
@id("developers") permit(principal in Role::"developer", action, resource);
@id("no-diffs") forbid(principal, action, resource == Tool::"text.diff");
"""
# Callers of the sustained figures.
AT_ONCE = 4
ROUNDS = 4
WARM_UP_S = 3.0
COUNTED_S = 8.0
PHASES = ("admission", "ledger", "secrets", "acquire", "run", "result")


@dataclass(frozen=True)
class Figure:
    figure: str
    unit: str
    value: float
    p95: float
    p99: float
    runs: int
    paired_with: str | None = None
    ratio: float | None = None


def figure(name: str, samples_ms: list[float], paired: "Figure | None" = None) -> Figure:
    ordered = sorted(samples_ms)
    p50 = statistics.median(ordered)
    ratio = None if paired is None else round(p50 / paired.value, 3)
    return Figure(
        name, "ms", round(p50, 3), round(_percentile(ordered, 95), 3), round(_percentile(ordered, 99), 3), len(ordered),
        paired.figure if paired else None, ratio,
    )  # fmt: skip


def rate(name: str, per_s: list[float], paired: "Figure | None" = None) -> Figure:
    """Calls a second, one sample a round; here the percentiles are of the slow rounds."""
    ordered = sorted(per_s)
    p50 = statistics.median(ordered)
    ratio = None if paired is None else round(p50 / paired.value, 3)
    return Figure(
        name, "calls/s", round(p50, 3), round(_percentile(ordered, 5), 3), round(_percentile(ordered, 1), 3),
        len(ordered), paired.figure if paired else None, ratio,
    )  # fmt: skip


def row(name: str, unit: str, samples: Sequence[float], percents: tuple[int, int], paired: "Figure | None") -> Figure:
    """Any other row, with the percentiles of its bad end."""
    ordered = sorted(samples)
    p50 = statistics.median(ordered)
    ratio = None if paired is None else round(p50 / paired.value, 3)
    ends = (round(_percentile(ordered, percent), 3) for percent in percents)
    return Figure(name, unit, round(p50, 3), *ends, len(ordered), paired.figure if paired else None, ratio)


def _percentile(ordered: list[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, round(len(ordered) * percent / 100))]


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000


def interleaved(
    runs: int, works: Mapping[str, Callable[[], object]], rest: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Samples in milliseconds by name, taken in turns after one round that does not count; `rest` follows each."""
    samples: dict[str, list[float]] = {name: [] for name in works}
    for number in range(runs + 1):
        for name, work in works.items():
            ms = timed(work)
            if number:
                samples[name].append(ms)
            rest()
    return samples


def bare_python() -> None:
    subprocess.run([sys.executable, "-c", "print(1)"], check=True, capture_output=True)


def docker_run() -> None:
    command = ["docker", "run", "--rm", "--network=none", "--entrypoint", "/usr/bin/python3", images()["python"]]
    subprocess.run([*command, "-c", "print(1)"], check=True, capture_output=True)


class EngineCycle:
    """What the engine itself takes for a container that runs the program once: create, start, wait, remove."""

    def __init__(self) -> None:
        self._engine = docker.APIClient(base_url=ENGINE, version="auto")
        self._image = images()["python"]

    def __call__(self) -> None:
        host = self._engine.create_host_config(network_mode="none")
        made = self._engine.create_container(
            self._image, ["-c", "print(1)"], entrypoint="/usr/bin/python3", host_config=host, network_disabled=True
        )
        self._engine.start(made)
        if self._engine.wait(made)["StatusCode"] != 0:
            raise RuntimeError("the engine's own container failed")
        self._engine.remove_container(made)


def sustained(
    rounds: int, at_once: int, works: Mapping[str, Callable[[], object]], rest: Callable[[], object]
) -> dict[str, list[float]]:
    """Calls a second of each work by callers that never pause, in rounds taken in turns.

    What was made ready before a round is used up before the count begins, and `rest` comes after each round, so
    that none lives on another's time.
    """
    rates: dict[str, list[float]] = {name: [] for name in works}
    with ThreadPoolExecutor(at_once) as callers:
        for _ in range(rounds):
            for name, work in works.items():
                begin = time.perf_counter() + WARM_UP_S
                ends = [callers.submit(_ends, work, begin + COUNTED_S) for _ in range(at_once)]
                counted = [end for done in ends for end in done.result() if begin <= end < begin + COUNTED_S]
                rates[name].append(len(counted) / COUNTED_S)
                rest()
    return rates


def _ends(work: Callable[[], object], until: float) -> list[float]:
    ends = []
    while time.perf_counter() < until:
        work()
        ends.append(time.perf_counter())
    return ends


def pool_at_rest(gateway: RunningGateway) -> None:
    """Wait until the pool is as full as it gets, and nothing is being started or removed."""
    with gateway.web() as web:
        still = 0
        while still < 2:
            time.sleep(0.1)
            lines = web.get("/metrics").text.splitlines()
            busy = [line for line in lines if line.startswith(("callgate_pool_starting ", "callgate_pool_held "))]
            still = still + 1 if all(float(line.split()[1]) == 0 for line in busy) else 0


def refused(client: Callgate) -> None:
    try:
        client.call("text.diff", {"before": "a", "after": "b"})
    except CallRefused as refusal:
        if refusal.reason == "policy_denied":
            return
    raise RuntimeError("the call was not refused by policy")


def measure(warm: RunningGateway, cold: RunningGateway, runs: int) -> tuple[list[Figure], dict[str, dict[str, float]]]:
    """`warm` keeps sandboxes ready, `cold` starts each when its call comes."""
    answers: dict[str, list[Answer]] = {"container, pool warm": [], "container, cold": []}

    def call(client: Callgate, name: str) -> Callable[[], None]:
        return lambda: answers[name].append(client.call("python.run", CODE).raise_for_state())

    rest = partial(pool_at_rest, warm)
    with warm.sdk() as on_warm, cold.sdk() as on_cold:
        works = {
            "bare": bare_python,
            "docker": docker_run,
            "container, pool warm": call(on_warm, "container, pool warm"),
            "container, cold": call(on_cold, "container, cold"),
        }
        samples = interleaved(runs, works, rest)
        refusals = interleaved(runs * 10, {"refused": lambda: refused(on_warm)})
        rates = sustained(
            max(3, runs // 6),
            AT_ONCE,
            {"engine": EngineCycle(), "sustained": lambda: on_warm.call("python.run", CODE)},
            rest,
        )
    bare = figure("bare python3", samples["bare"])
    docker = figure("docker run", samples["docker"])
    engine = rate(f"the engine's own cycle, {AT_ONCE} at once", rates["engine"])
    figures = [
        bare,
        docker,
        figure("container, pool warm", samples["container, pool warm"], docker),
        figure("container, pool warm", samples["container, pool warm"], bare),
        figure("container, cold", samples["container, cold"], docker),
        figure("refused by policy", refusals["refused"]),
        engine,
        rate(f"container, sustained, {AT_ONCE} at once", rates["sustained"], engine),
    ]
    return figures, {name: phases_of(counted[1 : runs + 1]) for name, counted in answers.items()}


def phases_of(answers: list[Answer]) -> dict[str, float]:
    return {
        name: round(statistics.median(answer.usage.phases_ms.get(name, 0.0) for answer in answers), 3)
        for name in PHASES
    }


def show(figures: list[Figure], phases: Mapping[str, Mapping[str, float]]) -> None:
    console = Console()
    table = Table(title="What a call costs, end to end over gRPC on loopback")
    for heading in ("figure", "unit", "p50", "p95", "p99", "runs", "ratio"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for row in figures:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} × {row.paired_with}"
        table.add_row(
            row.figure, row.unit, f"{row.value:.2f}", f"{row.p95:.2f}", f"{row.p99:.2f}", str(row.runs), ratio
        )
    console.print(table)
    for name, counted in phases.items():
        console.print(f"phases of `{name}` (p50 ms): " + ", ".join(f"{phase} {ms}" for phase, ms in counted.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what a call costs.")
    parser.add_argument("--runs", type=int, default=30, help="samples of each slow figure (default: 30)")
    parser.add_argument("--json", type=Path, default=ROOT / "bench.json", help="where to write the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = start_store(Path(folder) / "openbao")
        try:
            warm = Deployment(
                Path(folder) / "warm", store, POLICIES, settings={"execution": {"pool": {"enabled": True}}}
            )
            cold = Deployment(Path(folder) / "cold", store, POLICIES)
            with warm.start() as on_warm, cold.start() as on_cold:
                figures, phases = measure(on_warm, on_cold, options.runs)
            figures += downloads.rows(Path(folder), store, row)
        finally:
            store.stop()
    show(figures, phases)
    machine = {"python": platform.python_version(), "kernel": platform.release(), "machine": platform.machine()}
    report = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "figures": [asdict(row) for row in figures],
        "phases_ms": phases,
    }
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
