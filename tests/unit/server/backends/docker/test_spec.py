"""The container spec, whole, against a committed golden file; and the promises in it one by one."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from callgate_server.backends.docker.options import DockerOptions
from callgate_server.backends.docker.seccomp import profile_json
from callgate_server.backends.docker.spec import (
    anonymous_name,
    call_labels,
    confinement,
    container_name,
    create_arguments,
    lane_labels,
    pool_labels,
)
from callgate_server.execution.sandbox import LaneTerms, SandboxRequest
from callgate_server.model.call import Deadline
from callgate_server.model.manifest import Limits, Run

GOLDEN = Path(__file__).parent / "golden_spec.json"
OPTIONS = DockerOptions(instance="main", boot_id="boot-1")


def request(**fields: Any) -> SandboxRequest:
    values: dict[str, Any] = {
        "call_id": "01890a5d-ac96-774b-bcce-b302099a8057",
        "tenant": "acme",
        "tool": "webhooks.sign",
        "image_digest": "sha256:" + "ab" * 32,
        "runtime": None,
        "limits": Limits(artifacts=8, artifacts_kb=1024),
        "deadline": Deadline(1000.0),
        "deadline_at": datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
    }
    return SandboxRequest(**{**values, **fields})


def arguments_for(**fields: Any) -> dict[str, Any]:
    asked = request(**fields)
    return create_arguments(asked.shape, call_labels(asked, OPTIONS), OPTIONS)


def host_config(**fields: Any) -> dict[str, Any]:
    config: dict[str, Any] = arguments_for(**fields)["HostConfig"]
    return config


def mount_options(path: str, limits: Limits) -> dict[str, str]:
    words = host_config(limits=limits)["Tmpfs"][path].split(",")
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def test_the_whole_spec_is_the_committed_one() -> None:
    arguments = arguments_for()
    # The profile has a golden file of its own.
    options = arguments["HostConfig"]["SecurityOpt"]
    arguments["HostConfig"]["SecurityOpt"] = [o.replace(profile_json(), "<profile>") for o in options]
    assert arguments == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize(
    "image", ["python", "python:latest", "sha256:abc", "", "sha256:" + "AB" * 32, "x@sha256:" + "ab" * 32]
)
def test_an_image_is_named_by_its_digest_alone(image: str) -> None:
    with pytest.raises(ValueError, match="digest"):
        arguments_for(image_digest=image)


def test_a_spec_is_made_of_plain_json() -> None:
    arguments = arguments_for()
    assert json.loads(json.dumps(arguments)) == arguments


def test_the_name_is_made_of_instance_and_call() -> None:
    assert container_name("main", "c1") == "callgate-main-c1"


def test_what_is_started_for_nobody_carries_nobodys_name() -> None:
    asked = request()
    labels = pool_labels(asked.shape, OPTIONS)
    assert labels.keys() == {"callgate.instance", "callgate.boot", "callgate.pool"}
    text = json.dumps(create_arguments(asked.shape, labels, OPTIONS)) + anonymous_name("main", "c0ffee")
    assert not [word for word in (asked.call_id, asked.tenant, asked.tool) if word in text]


def test_what_is_started_for_nobody_is_built_as_what_is_started_for_a_call() -> None:
    asked = request()
    anonymous = create_arguments(asked.shape, pool_labels(asked.shape, OPTIONS), OPTIONS)
    assert anonymous | {"Labels": {}} == arguments_for() | {"Labels": {}}


def test_our_own_profile_is_named_and_not_the_engines() -> None:
    assert f"seccomp={profile_json()}" in host_config()["SecurityOpt"]


@pytest.mark.parametrize("path", ["/tmp", "/out", "/run/secrets", "/dev/shm"])
def test_everything_writable_has_a_size_and_a_number_of_files(path: str) -> None:
    options = mount_options(path, Limits(artifacts=1))
    assert int(options["size"]) > 0
    assert int(options["nr_inodes"]) > 0
    assert {"nosuid", "nodev"} <= options.keys()


@pytest.mark.parametrize("path", ["/out", "/run/secrets", "/dev/shm"])
def test_nothing_is_executed_where_nothing_needs_to_be(path: str) -> None:
    assert "noexec" in mount_options(path, Limits())


def test_scratch_follows_the_manifest() -> None:
    options = mount_options("/tmp", Limits(scratch_mb=7, scratch_files=99))
    assert (options["size"], options["nr_inodes"]) == (str(7 << 20), "99")


def test_without_artifacts_no_file_fits_into_the_output_folder() -> None:
    # The folder itself takes the one inode.
    assert mount_options("/out", Limits(artifacts=0))["nr_inodes"] == "1"


def test_many_small_artifacts_fit_by_pages() -> None:
    options = mount_options("/out", Limits(artifacts=1000, artifacts_kb=1))
    assert int(options["size"]) >= 1000 * 4096
    assert int(options["nr_inodes"]) > 1000


def test_swap_adds_nothing_to_memory() -> None:
    config = host_config(limits=Limits(memory_mb=64))
    assert config["Memory"] == config["MemorySwap"] == 64 << 20


@pytest.mark.parametrize(("cpu", "quota"), [(1, 100_000), (0.5, 50_000), (64, 6_400_000), (0.0001, 1_000)])
def test_cores_become_a_quota_that_the_engine_takes(cpu: float, quota: int) -> None:
    config = host_config(limits=Limits(cpu=cpu))
    assert (config["CpuQuota"], config["CpuPeriod"]) == (quota, 100_000)


def test_a_shared_kernel_counts_processes_by_container() -> None:
    config = host_config(limits=Limits(pids=10))
    assert config["PidsLimit"] == 10
    # A limit per user would be shared by all sandboxes of the host.
    assert "nproc" not in {limit["Name"] for limit in config["Ulimits"]}


def test_a_guest_kernel_counts_processes_itself() -> None:
    config = host_config(limits=Limits(pids=10), runtime="runsc")
    assert config["Runtime"] == "runsc"
    assert {"Name": "nproc", "Soft": 10, "Hard": 10} in config["Ulimits"]
    assert config["PidsLimit"] > 10


def test_the_deadline_label_is_wall_time_with_its_zone() -> None:
    labels = arguments_for()["Labels"]
    assert datetime.fromisoformat(labels["callgate.deadline"]) == request().deadline_at


def test_the_runner_keeps_the_descriptors_it_needs_whatever_the_tool_may_have() -> None:
    description = json.loads((Path(__file__).parents[5] / "proto/callgate_proto/frames.json").read_text())
    needed = description["runner_open_files"]
    ulimits = host_config(limits=Limits(open_files=16))["Ulimits"]
    assert {"Name": "nofile", "Soft": needed, "Hard": needed} in ulimits


# --- lanes -----------------------------------------------------------------------------------------------------

LANE = LaneTerms("sha256:" + "cd" * 32, Run(python="own:run"), ())


def test_a_lanes_container_is_hardened_as_any_but_for_its_filter_its_room_two_processes_and_descriptors() -> None:
    call, lane = host_config(), host_config(lane=LANE)
    differing = {name for name in call if call[name] != lane[name]}
    assert differing == {"SecurityOpt", "Tmpfs", "PidsLimit", "Ulimits"}
    assert lane["SecurityOpt"] == ["no-new-privileges", f"seccomp={profile_json(lane=True)}"]
    # The zygote and the cell's process 1: the tool has as many left as in a container of its own.
    assert lane["PidsLimit"] == call["PidsLimit"] + 2
    assert lane["Tmpfs"].keys() == call["Tmpfs"].keys()
    # What all tools together have on their way over sockets, the kernel holds against the sender's own limit.
    files = {"Name": "nofile", "Soft": 16384, "Hard": 16384}
    assert files in lane["Ulimits"]
    assert len(lane["Ulimits"]) == len(call["Ulimits"])


def test_a_lane_is_labelled_for_whom_it_is_and_with_no_call() -> None:
    labels = lane_labels(request(lane=LANE), OPTIONS)
    assert labels == {
        "callgate.instance": "main",
        "callgate.boot": "boot-1",
        "callgate.lane": request().call_id,
        "callgate.tenant": "acme",
        "callgate.tool": "webhooks.sign",
    }


def test_a_call_in_a_lane_has_the_file_systems_that_it_would_have_in_a_container() -> None:
    made = confinement(request(lane=LANE).shape)
    mounts = {mount.path: mount for mount in made.mounts}
    alone: dict[str, str] = host_config()["Tmpfs"]
    assert set(mounts) == {*alone, "/proc", "/sys/fs/cgroup"}
    for path, options in alone.items():
        mount = mounts[path]
        words = set(options.split(",")) - {"rw", "nosuid", "nodev", "exec", "noexec"}
        assert set(mount.options.split(",")) == words
        assert mount.writable
        assert mount.execute == ("exec" in options.split(","))


def test_a_call_in_a_lane_sees_no_processes_and_no_figures_of_its_container() -> None:
    mounts = {mount.path: mount for mount in confinement(request(lane=LANE).shape).mounts}
    for path in ("/proc", "/sys/fs/cgroup"):
        assert (mounts[path].execute, mounts[path].writable) == (False, False)
        assert "nr_inodes=1" in mounts[path].options.split(",")


def test_every_machine_that_a_sandbox_may_run_on_has_its_filter() -> None:
    filters = confinement(request(lane=LANE).shape).filters
    assert set(filters) == {"x86_64", "aarch64"}
    assert all(filters.values())
