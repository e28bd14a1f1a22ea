import os
from pathlib import Path

import pytest

from callgate_runner import limits

MIB = 1024 * 1024


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(limits, "_MEMORY_LIMITS", (str(tmp_path / "v1"), str(tmp_path / "memory.max")))
    monkeypatch.setattr(limits, "_PIDS_LIMITS", (str(tmp_path / "pids.max"),))
    monkeypatch.setattr(limits, "_OOM_COUNTERS", (str(tmp_path / "memory.oom_control"), str(tmp_path / "events")))
    monkeypatch.setattr(limits, "_CPU_ACCOUNTS", (str(tmp_path / "cpuacct.usage"), str(tmp_path / "cpu.stat")))
    return tmp_path


def test_out_of_memory_kills_are_read_from_either_version(cgroup: Path) -> None:
    assert limits.oom_kills() is None
    (cgroup / "events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert limits.oom_kills() == 2
    (cgroup / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")
    assert limits.oom_kills() == 7


def test_a_counter_that_is_no_number_is_no_evidence(cgroup: Path) -> None:
    (cgroup / "events").write_text("oom_kill many\n")
    assert limits.oom_kills() is None


def test_processor_time_is_read_from_either_version(cgroup: Path) -> None:
    assert limits.cpu_ms() is None
    (cgroup / "cpu.stat").write_text("usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n")
    assert limits.cpu_ms() == 1.5
    (cgroup / "cpuacct.usage").write_text("2500000\n")
    assert limits.cpu_ms() == 2.5


@pytest.mark.parametrize(("memory", "pids"), [("67108864", "32"), ("100000000", "40")])
def test_no_watch_is_kept_where_a_cgroup_holds_both(cgroup: Path, memory: str, pids: str) -> None:
    (cgroup / "memory.max").write_text(memory + "\n")
    (cgroup / "pids.max").write_text(pids + "\n")
    watch = limits.Watch(64 * MIB, 32)
    assert not watch.needed
    assert watch.broken() is None


@pytest.mark.parametrize(
    ("memory", "pids"),
    [("max", "32"), ("67108864", "max"), ("9223372036854771712", "32"), ("67108864", ""), ("nonsense", "32")],
)
def test_a_ceiling_that_is_not_seen_in_force_is_watched(cgroup: Path, memory: str, pids: str) -> None:
    (cgroup / "memory.max").write_text(memory)
    (cgroup / "pids.max").write_text(pids)
    assert limits.Watch(64 * MIB, 32).needed


def test_more_tasks_than_allowed_break_the_limit(cgroup: Path) -> None:
    # This very process and its parents are more than none.
    assert limits.Watch(1 << 60, 0).broken() == "too_many_processes"
    assert limits.Watch(1 << 60, 1_000_000).broken() is None


def test_more_memory_than_allowed_breaks_the_limit(cgroup: Path) -> None:
    assert limits.Watch(1, 1_000_000).broken() == "out_of_memory"
    assert limits.Watch(1 << 60, 1_000_000).broken() is None


def test_files_in_memory_count_from_the_start_of_the_call(
    cgroup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = iter([5 * MIB, 9 * MIB])
    monkeypatch.setattr(limits, "_file_systems", lambda: next(used))
    monkeypatch.setattr(limits, "_memory", lambda _processes: MIB)
    assert limits.Watch(4 * MIB, 1_000_000).broken() == "out_of_memory"


def test_pages_shared_by_forks_are_not_counted_for_each_where_the_kernel_is_the_sandbox_s_own(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_memory", lambda _processes: 100 * MIB)
    monkeypatch.setattr(limits, "_used_in_kernel", lambda: 10 * MIB)
    assert limits.Watch(20 * MIB, 1_000_000).broken() is None
    assert limits.Watch(5 * MIB, 1_000_000).broken() == "out_of_memory"


def test_the_kernel_s_figure_is_read() -> None:
    assert 0 < limits._used_in_kernel() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_processes_that_vanish_do_not_matter() -> None:
    assert limits._memory(["999999999"]) == 0
    assert limits._tasks(["999999999", str(os.getpid())]) >= 1
