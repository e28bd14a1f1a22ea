"""Findings from facts: what is weak is named, with a remedy, and nothing else is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from callgate_server.backends.docker.options import DockerOptions
from callgate_server.backends.docker.prerequisites import Facts, Level, assess, check, is_fixed, parse_version
from support.engine import tolerating_unclosed_sockets

OPTIONS = DockerOptions(instance="main", boot_id="b")
INFO: dict[str, Any] = {
    "Runtimes": {"runc": {"path": "runc"}},
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=default"],
    "KernelVersion": "6.1.0-28-amd64",
    "CgroupVersion": "2",
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
}
VERSIONS: dict[str, Any] = {
    "Version": "28.5.2",
    "ApiVersion": "1.51",
    "Components": [{"Name": "runc", "Version": "1.3.3"}],
}
SOUND = Facts(INFO, VERSIONS, trouble=None, user_namespaces=True, swap=True)


def levels(facts: Facts) -> dict[str, Level]:
    return {finding.name: finding.level for finding in assess(facts, OPTIONS)}


def with_info(**changes: Any) -> Facts:
    return replace(SOUND, info={**INFO, **changes})


def test_a_sound_host_has_nothing_to_mend() -> None:
    assert set(levels(SOUND).values()) == {Level.OK, Level.OFF}


def test_an_engine_that_does_not_answer_is_the_only_thing_said_of_it() -> None:
    facts = Facts({}, {}, trouble="cannot be reached", user_namespaces=False, swap=False)
    assert levels(facts) == {"engine": Level.FAIL}


@pytest.mark.parametrize(
    ("changes", "name", "level"),
    [
        ({"Runtimes": {}}, "runtime", Level.FAIL),
        ({"SecurityOptions": ["name=apparmor"]}, "seccomp", Level.FAIL),
        ({"MemoryLimit": False}, "cgroup memory", Level.FAIL),
        ({"PidsLimit": False}, "cgroup pids", Level.FAIL),
        ({"CpuCfsQuota": False}, "cgroup cpu", Level.FAIL),
        ({"SwapLimit": False}, "cgroup swap", Level.WARN),
        ({"CgroupVersion": "1"}, "cgroup sockets", Level.WARN),
        ({"SecurityOptions": ["name=seccomp,profile=builtin"]}, "mandatory access control", Level.WARN),
    ],
)
def test_what_is_missing_is_found(changes: dict[str, Any], name: str, level: Level) -> None:
    found = levels(with_info(**changes))
    assert found[name] is level
    assert {other for other, at in found.items() if at not in (Level.OK, Level.OFF)} == {name}


LANES = with_info(SecurityOptions=["name=seccomp,profile=default"])


def obstacles(facts: Facts, options: DockerOptions = OPTIONS) -> list[str]:
    found = [finding for finding in assess(facts, options) if finding.name == "isolation fork"]
    assert found
    assert all("isolation `container`" in finding.fix for finding in found if finding.level is Level.OFF)
    return [finding.detail for finding in found if finding.level is not Level.OK]


def test_nothing_is_in_the_way_of_lanes_where_nothing_is() -> None:
    assert obstacles(LANES) == []


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (replace(LANES, user_namespaces=False), "user namespaces"),
        (replace(LANES, info={**LANES.info, "KernelVersion": "5.10.0-28-amd64"}), "5.10.0-28-amd64"),
        (replace(LANES, info={**LANES.info, "KernelVersion": "4.19"}), "Linux 5.12"),
        (replace(LANES, info={**LANES.info, "KernelVersion": "?"}), "Linux 5.12"),
        (SOUND, "docker-default"),
        (with_info(SecurityOptions=["name=seccomp", "name=selinux"]), "SELinux"),
    ],
)
def test_what_is_in_the_way_of_lanes_is_named_with_what_to_do(facts: Facts, word: str) -> None:
    (detail,) = obstacles(facts)
    assert word in detail


def test_everything_in_the_way_of_lanes_is_named_at_once() -> None:
    facts = replace(SOUND, user_namespaces=False, info={**INFO, "KernelVersion": "5.4.0"})
    assert len(obstacles(facts)) == 3


@pytest.mark.parametrize("version", ["5.12.0", "5.15.0-91-generic", "6.1.0-rc1", "10.0"])
def test_lanes_need_a_kernel_of_a_certain_age_and_no_more(version: str) -> None:
    assert obstacles(replace(LANES, info={**LANES.info, "KernelVersion": version})) == []


def test_lanes_are_not_made_in_a_guest_kernel() -> None:
    (detail,) = obstacles(LANES, replace(OPTIONS, default_runtime="runsc"))
    assert "runsc" in detail


def test_swap_does_not_matter_where_there_is_none() -> None:
    assert "cgroup swap" not in levels(replace(with_info(SwapLimit=False), swap=False))


@pytest.mark.parametrize(
    ("words", "level"),
    [
        (["--network=none", "--platform=ptrace"], Level.OK),
        (["--network=none", "--ignore-cgroups"], Level.WARN),
        (["--platform=ptrace"], Level.WARN),
    ],
)
def test_how_gvisor_is_registered_matters(words: list[str], level: Level) -> None:
    runtimes = {"runc": {}, "runsc": {"path": "/usr/bin/runsc", "runtimeArgs": words}}
    assert levels(with_info(Runtimes=runtimes))["runsc"] is level


@pytest.mark.parametrize(
    ("version", "level"), [("1.1.5+ds1", Level.WARN), ("1.3.2", Level.WARN), ("1.3.3", Level.OK), ("", Level.WARN)]
)
def test_a_runtime_with_known_holes_is_named(version: str, level: Level) -> None:
    facts = replace(SOUND, versions={**VERSIONS, "Components": [{"Name": "runc", "Version": version}]})
    assert levels(facts)["runc"] is level


def test_everything_that_is_not_ok_comes_with_a_remedy() -> None:
    gone: dict[str, Any] = {"Runtimes": {}, "SecurityOptions": [], "MemoryLimit": False, "SwapLimit": False}
    bare = replace(SOUND, info={**INFO, **gone, "KernelVersion": ""}, versions={}, user_namespaces=False)
    assert all(finding.fix for finding in assess(bare, OPTIONS) if finding.level is not Level.OK)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.1.5+ds1-1+deb12u1", (1, 1, 5)),
        ("v1.4.0-rc.2", (1, 4, -1)),
        ("1.2.8~x", (1, 2, 8)),
        ("git-abc", None),
        ("", None),
    ],
)
def test_versions_are_read_as_distributions_write_them(text: str, version: tuple[int, int, int] | None) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize(
    ("version", "fixed"),
    [
        ((1, 1, 99), False),
        ((1, 2, 7), False),
        ((1, 2, 8), True),
        ((1, 3, 0), False),
        ((1, 3, 3), True),
        ((1, 4, -1), False),
        ((1, 4, 0), True),
        ((2, 0, 0), True),
    ],
)
def test_a_fix_counts_in_its_own_line(version: tuple[int, int, int], fixed: bool) -> None:
    assert is_fixed(version, ((1, 2, 8), (1, 3, 3), (1, 4, 0))) is fixed


def test_looking_at_a_host_without_an_engine_finds_just_that(tmp_path: Path) -> None:
    options = replace(OPTIONS, socket_url=f"unix://{tmp_path}/none.sock")
    with tolerating_unclosed_sockets():
        assert check(options)[0].level is Level.FAIL
