"""`make bench`: what a call costs here, beside what it is compared with. Measures, and never fails for being slow.

The yardsticks are a bare `python3 -c 'print(1)'` without any isolation, and `docker run --rm` of the same image.

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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "sandbox_images/base")]

from callgate import Answer, Callgate, CallRefused  # noqa: E402
from support.gateway import Deployment, RunningGateway, start_store  # noqa: E402  # after the path is set
from support.images import images  # noqa: E402

CODE = {"code": "print(1)"}
# Refuses one tool by name, so that a refusal goes the whole way through policy.
POLICIES = """
@id("developers") permit(principal in Role::"developer", action, resource);
@id("no-diffs") forbid(principal, action, resource == Tool::"text.diff");
"""
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


def _percentile(ordered: list[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, round(len(ordered) * percent / 100))]


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000


def interleaved(runs: int, works: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Samples in milliseconds by name, taken in turns after one round that does not count."""
    samples: dict[str, list[float]] = {name: [] for name in works}
    for number in range(runs + 1):
        for name, work in works.items():
            ms = timed(work)
            if number:
                samples[name].append(ms)
    return samples


def bare_python() -> None:
    subprocess.run([sys.executable, "-c", "print(1)"], check=True, capture_output=True)


def docker_run() -> None:
    command = ["docker", "run", "--rm", "--network=none", "--entrypoint", "/usr/bin/python3", images()["python"]]
    subprocess.run([*command, "-c", "print(1)"], check=True, capture_output=True)


def refused(client: Callgate) -> None:
    try:
        client.call("text.diff", {"before": "a", "after": "b"})
    except CallRefused as refusal:
        if refusal.reason == "policy_denied":
            return
    raise RuntimeError("the call was not refused by policy")


def measure(gateway: RunningGateway, runs: int) -> tuple[list[Figure], dict[str, float]]:
    answers: list[Answer] = []

    def container() -> None:
        answers.append(client.call("python.run", CODE).raise_for_state())

    with gateway.sdk() as client:
        samples = interleaved(runs, {"bare": bare_python, "docker": docker_run, "container": container})
        refusals = interleaved(runs * 10, {"refused": lambda: refused(client)})
    bare = figure("bare python3", samples["bare"])
    docker = figure("docker run", samples["docker"])
    figures = [
        bare,
        docker,
        figure("container, cold", samples["container"], docker),
        figure("container, cold", samples["container"], bare),
        figure("refused by policy", refusals["refused"]),
    ]
    counted = answers[1:]
    phases = {name: statistics.median(a.usage.phases_ms.get(name, 0.0) for a in counted) for name in PHASES}
    return figures, {name: round(ms, 3) for name, ms in phases.items()}


def show(figures: list[Figure], phases: Mapping[str, float]) -> None:
    console = Console()
    table = Table(title="What a call costs, end to end over gRPC on loopback")
    for heading in ("figure", "p50 ms", "p95", "p99", "runs", "ratio"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for row in figures:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} × {row.paired_with}"
        table.add_row(row.figure, f"{row.value:.2f}", f"{row.p95:.2f}", f"{row.p99:.2f}", str(row.runs), ratio)
    console.print(table)
    console.print("phases of `container, cold` (p50 ms): " + ", ".join(f"{name} {ms}" for name, ms in phases.items()))


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what a call costs.")
    parser.add_argument("--runs", type=int, default=30, help="samples of each slow figure (default: 30)")
    parser.add_argument("--json", type=Path, default=ROOT / "bench.json", help="where to write the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = start_store(Path(folder) / "openbao")
        try:
            deployment = Deployment(Path(folder) / "gateway", store, POLICIES)
            with deployment.start() as gateway:
                figures, phases = measure(gateway, options.runs)
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
