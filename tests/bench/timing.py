"""How samples are taken: in turns, so that a machine that is busy with something else slows all of them alike."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

Work = Callable[[], object]


def timed(work: Work) -> float:
    """Milliseconds that `work` took."""
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000


def interleaved(
    runs: int, works: Mapping[str, Work], rest: Work = lambda: None, *, in_a_row: int = 1
) -> dict[str, list[float]]:
    """Samples in milliseconds by name, taken in turns after one round that does not count.

    `rest` follows each turn; a turn is `in_a_row` samples without a pause between them.
    """
    samples: dict[str, list[float]] = {name: [] for name in works}
    for number in range(runs + 1):
        for name, work in works.items():
            taken = [timed(work) for _ in range(in_a_row)]
            if number:
                samples[name] += taken
            rest()
    return samples


def sustained(
    rounds: int, callers: int, works: Mapping[str, Work], rest: Work, *, warm_up_s: float, counted_s: float
) -> dict[str, list[float]]:
    """Calls a second of each work by callers that never pause, in rounds taken in turns.

    What was made ready before a round is used up before the count begins, and `rest` comes after each round, so
    that none lives on another's time.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    with ThreadPoolExecutor(callers) as threads:
        for _ in range(rounds):
            for name, work in works.items():
                begin = time.perf_counter() + warm_up_s
                ends = [threads.submit(_ends, work, begin + counted_s) for _ in range(callers)]
                counted = [end for done in ends for end in done.result() if begin <= end < begin + counted_s]
                found[name].append(len(counted) / counted_s)
                rest()
    return found


def _ends(work: Work, until: float) -> list[float]:
    ends = []
    while time.perf_counter() < until:
        work()
        ends.append(time.perf_counter())
    return ends
