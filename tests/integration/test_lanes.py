"""Lanes on a real engine: command tools in them, lanes that die at a bad moment, room, and what neighbours notice."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from callgate_server.backends.docker.engine import connect
from callgate_server.backends.openbao_dev import DevServer
from callgate_server.execution.cancellation import Cancellation
from callgate_server.execution.reach import reach
from callgate_server.execution.sandbox import Sandbox
from callgate_server.execution.supervise import supervise
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.manifest import Limits, Run, SecretRef
from callgate_server.model.run import Cause, DeliveredSecret, Job, RunOutcome
from callgate_server.model.sealed import Sealed
from neighbours import KILLED, killed_again_and_again
from support.gateway import Deployment, RunningGateway
from support.lane_rig import LIMITS, LaneRig, lane_rig
from support.names import NAMES

FORK = {"isolation": "fork"}


@pytest.fixture
async def lane() -> AsyncIterator[LaneRig]:
    async with lane_rig(per_key=1) as made:
        yield made


# --- commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory, store: DevServer) -> Iterator[RunningGateway]:
    settings = {"tools": {"probe.command": FORK}, "execution": {"lanes": {"per_tool": 1}}}
    deployment = Deployment(tmp_path_factory.mktemp("commands"), store, settings=settings)
    with deployment.start() as running:
        yield running
    assert deployment.found() == {}


def command(gateway: RunningGateway, code: str, **extra: Any) -> dict[str, Any]:
    response = gateway.post("probe.command", {"code": code}, **extra)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert (answer["sandbox"]["isolation"], answer["untrusted"]) == ("fork", True)
    return answer


def test_a_command_tool_in_a_lane_gets_what_one_in_a_container_gets(
    commands: RunningGateway, gateway: RunningGateway
) -> None:
    """The same code at both levels; what differs is what a lane hides."""
    code = (
        "import os, resource, signal, sys\n"
        "result = {'argv': sys.argv, 'environment': dict(os.environ), 'place': os.getcwd(), 'mask': os.umask(0),\n"
        "  'ids': [os.getresuid(), os.getresgid(), os.getgroups()], 'host': os.uname()[1],\n"
        "  'files': [resource.getrlimit(n) for n in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)],\n"
        "  'signals': [str(signal.getsignal(n)) for n in (1, 2, 13, 15, 17)],\n"
        "  'open': [fd for fd in range(256) if os.path.exists(f'/dev/fd/{fd}')] if os.path.exists('/proc/self') else None,\n"
        "  'room': {place: sorted(os.listdir(place)) for place in ('/tmp', '/out', '/run/secrets', '/dev/shm')}}\n"
    )
    in_lane = command(commands, code)
    alone = gateway.post("probe.command", {"code": code}).json()
    assert (alone["sandbox"]["isolation"], alone["state"], in_lane["state"]) == ("container", "succeeded", "succeeded")
    # Descriptors are counted otherwise where there is no /proc.
    assert alone["result"].pop("open") is not None
    assert in_lane["result"].pop("open") is None
    # Each call's own names, the same ones at both levels.
    for names in ("CALLGATE_CALL_ID", "CALLGATE_IDEMPOTENCY_KEY"):
        assert in_lane["result"]["environment"].pop(names) != alone["result"]["environment"].pop(names)
    assert in_lane["result"] == alone["result"]
    assert in_lane["result"]["argv"][1:] == ["$HOME; a word"]
    assert in_lane["result"]["room"]["/run/secrets"] == ["by_file"]


def test_a_command_has_its_secrets_and_nobody_sees_them(commands: RunningGateway, secrets_of_acme: Any) -> None:
    code = (
        "print(open('/run/secrets/by_file').read())\n"
        "result = [len(open('/run/secrets/by_file').read()), secrets['by_stdin'], sorted(secrets)]"
    )
    answer = command(commands, code)
    assert answer["stdout"]["text"] == "[REDACTED:by_file]\n"
    assert answer["result"] == [len(secrets_of_acme.by_file), "[REDACTED:by_stdin]", ["by_stdin"]]


def test_calls_of_a_command_share_a_lane_and_nothing_else(commands: RunningGateway) -> None:
    code = (
        "import os\n"
        "found = [os.listdir(place) for place in ('/tmp', '/dev/shm', '/out', '/proc')] + [os.getpid(), os.getppid()]\n"
        "for place in ('/tmp', '/dev/shm', '/out'):\n    open(place + '/trace', 'w').write('x')\n"
        "result = found\n"
    )
    answers = [command(commands, code) for _ in range(4)]
    assert [answer["result"] for answer in answers] == [[[], [], [], [], 2, 1]] * 4
    assert [[one["name"] for one in answer["artifacts"]] for answer in answers] == [["trace"]] * 4
    used = commands.deployment.sandboxes()
    assert len({used[answer["call_id"]] for answer in answers}) == 1


ENDS: dict[str, tuple[str, tuple[str, str | None], bool]] = {
    "by itself": ("result = 1", ("succeeded", None), True),
    "with a status": ("raise SystemExit(3)", ("failed", "tool_failed"), True),
    "by a signal": ("import os; os.kill(os.getpid(), 11)", ("failed", "tool_failed"), False),
    "by its memory": ("x = bytearray(1 << 30)", ("failed", "out_of_memory"), False),
    "at its deadline": ("while True: pass", ("timed_out", "timed_out"), False),
    "with somebody left": ("import subprocess; subprocess.Popen(['/bin/sleep', '60'])", ("succeeded", None), False),
}


@pytest.mark.parametrize("how", ENDS)
def test_how_a_command_ends_decides_whether_its_lane_goes_on(how: str, commands: RunningGateway) -> None:
    code, expected, goes_on = ENDS[how]
    # The lane that is there.
    command(commands, "result = 1")
    ended = command(commands, code, deadline_ms=5000 if "deadline" in how else 20_000)
    assert (ended["state"], ended["error"] and ended["error"]["reason"]) == expected
    after = command(commands, "result = 1")
    used = commands.deployment.sandboxes()
    assert (used[ended["call_id"]] == used[after["call_id"]]) == goes_on


async def test_what_a_command_prints_can_be_its_result(lane: LaneRig) -> None:
    run = Run(command=("/bin/sh", "-c", 'read -r line; printf "%s" "$line"; ls /run/secrets >&2'), result="stdout")
    ref = SecretRef.model_validate({"name": "pin", "from": "kv/data/{tenant}/a#b", "deliver": "file"})
    for number in range(3):
        outcome = await lane.call(
            {"n": number},
            request=lane.request(run=run, secrets=(ref,)),
            secrets=(DeliveredSecret("pin", "file", Sealed(b"1234")),),
        )
        assert (outcome.cause, outcome.exit.code) == (Cause.EXITED, 0)
        assert json.loads(outcome.result_json or b"") == {"n": number}
        assert outcome.stderr.head == b"pin\n"


async def test_a_program_that_is_not_there_is_a_failure_of_the_tool(lane: LaneRig) -> None:
    outcome = await lane.call({}, request=lane.request(run=Run(command=("/nonexistent/program",), result="stdout")))
    assert (outcome.cause, outcome.exit.code) == (Cause.EXITED, 126)
    assert b"FileNotFoundError" in outcome.stderr.head


# --- warmth --------------------------------------------------------------------------------------------------------


def test_the_shipped_tools_are_kept_warm(tmp_path: Path, store: DevServer) -> None:
    calls: dict[str, dict[str, Any]] = {
        "python.run": {"code": "result = 1"},
        "shell.run": {"script": "true"},
        "text.diff": {"before": "a", "after": "b"},
        "webhooks.sign": {"payload": "x"},
        "probe.command": {"code": "result = 1"},
    }
    deployment = Deployment(tmp_path / "gateway", store, settings={"tools": {tool: dict(FORK) for tool in calls}})
    with deployment.start() as serving:
        for tool, arguments in calls.items():
            answer = serving.post(tool, arguments).json()
            assert (answer["state"], answer["sandbox"]["isolation"]) == ("succeeded", "fork"), answer
        assert "imports its tool anew" not in deployment.log_text()


async def test_a_tool_whose_imports_cannot_be_kept_warm_works_and_is_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = (
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\ndef run(): return 1\n"
    )
    async with lane_rig(own=own) as lane:
        outcome = await lane.call({}, request=lane.request(run=Run(python="own:run")))
    assert outcome.result_json == b"1"
    assert [one.getMessage() for one in caplog.records if "anew" in one.getMessage()] == [
        "every call of probe.run imports its tool anew; the imports leave: threads"
    ]


# --- a bad moment --------------------------------------------------------------------------------------------------


async def test_a_lane_that_dies_between_claim_and_call_costs_another_lane_and_not_the_call(lane: LaneRig) -> None:
    request = lane.request()
    await lane.result("result = 1")
    first, taken = lane.last, []

    async def acquire() -> Sandbox:
        sandbox = await lane.lanes.open(request)
        taken.append(sandbox.id)
        if len(taken) == 1:
            await dies(lane, sandbox)
        return sandbox

    async def run(sandbox: Sandbox) -> RunOutcome:
        job = Job(Run(python="probe:run"), b'{"code": "result = 7"}', (), LIMITS, request.deadline, NAMES)
        return await supervise(sandbox, job, on_output=lambda _name, _data: None, cancelled=Cancellation())

    reached = await reach(acquire, run)
    assert reached is not None
    sandbox, outcome = reached
    await sandbox.destroy()
    assert (outcome.cause, outcome.result_json) == (Cause.EXITED, b"7")
    assert taken[0] == first != taken[1] == sandbox.id
    assert first not in lane.containers()


async def dies(lane: LaneRig, sandbox: Sandbox) -> None:
    """Kill a lane from outside, and wait until the gateway's end of its wire shows it."""
    with connect(lane.options.socket_url, 10) as client:
        client.kill(sandbox.id, "SIGKILL")
    until = time.monotonic() + 20
    while sandbox.alive:  # there is no event to wait for
        assert time.monotonic() < until
        await asyncio.sleep(0.005)


async def test_a_lane_that_dies_with_a_call_in_it_is_a_loss_and_never_run_again(lane: LaneRig) -> None:
    request = lane.request()
    sandbox = await lane.lanes.open(request)
    said = asyncio.Event()
    job = Job(
        Run(python="probe:run"),
        b'{"code": "print(1, flush=True); import time; time.sleep(60)"}',
        (),
        LIMITS,
        request.deadline,
        NAMES,
    )
    call = asyncio.ensure_future(
        supervise(sandbox, job, on_output=lambda _name, _data: said.set(), cancelled=Cancellation())
    )
    await said.wait()
    await dies(lane, sandbox)
    outcome = await call
    await sandbox.destroy()
    assert outcome.cause is Cause.LOST


# --- room ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def watched(lane: LaneRig) -> AsyncIterator[list[int]]:
    """How many containers there were, looked at again and again."""
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(len(await asyncio.to_thread(lane.containers)))
            await asyncio.sleep(0.02)

    watcher = asyncio.ensure_future(look())
    try:
        yield seen
    finally:
        watcher.cancel()


@pytest.mark.parametrize("rules", [{"lanes": 2}, {"memory_mb": 2 * 64 + 63}], ids=["by number", "by memory"])
async def test_there_are_never_more_lanes_than_the_operator_allows(rules: dict[str, int]) -> None:
    """Eight tenants want one each, some of their lanes die, and every call is served in its turn."""
    limits = Limits(memory_mb=64, pids=16, scratch_mb=4)
    async with lane_rig(per_key=2, **rules) as lane, watched(lane) as seen:

        async def tenant(number: int) -> list[Any]:
            requests = [lane.request(tenant=f"tenant{number}", limits=limits, deadline_s=90) for _ in range(3)]
            code = "import os; os.kill(os.getpid(), 9)" if number % 3 == 0 else "result = 1"
            return [(await lane.run(code, request=one)).cause for one in requests]

        served = await asyncio.gather(*(tenant(number) for number in range(8)))
    for number, causes in enumerate(served):
        assert causes == [Cause.SIGNALLED if number % 3 == 0 else Cause.EXITED] * 3
    assert 0 < max(seen) <= 2


async def test_who_cannot_be_served_in_time_is_told_so_and_takes_no_room(lane: LaneRig) -> None:
    held = await lane.lanes.open(lane.request())
    with pytest.raises(CallError) as refused:
        await lane.lanes.open(lane.request(deadline_s=0.5))
    assert refused.value.reason is Reason.DEADLINE_EXCEEDED
    await held.destroy()
    assert await lane.result("result = 1") == 1
    assert len(lane.containers()) == 1


def test_lanes_and_containers_together_stay_within_what_the_operator_configured(tmp_path: Path) -> None:
    """`sandboxes` for calls in containers, the pool's memory for what is ready, `lanes` for lanes: each by its own."""
    settings = {
        "tools": {"probe.run": FORK},
        "execution": {
            "sandboxes": 2,
            "pool": {"enabled": True, "per_shape": 1, "spare": 0, "memory_mb": 256},
            "lanes": {"most": 2, "per_tool": 2, "memory_mb": 512},
        },
    }
    deployment = Deployment(tmp_path / "gateway", settings=settings)
    most = 2 + 1 + 2
    with deployment.start() as serving:

        async def calls() -> list[dict[str, Any]]:
            async with serving.async_sdk() as sdk:
                lanes = [sdk.call("probe.run", {"code": "import time; time.sleep(0.5)"}) for _ in range(8)]
                alone = [sdk.call("python.run", {"code": "import time; time.sleep(0.5)"}) for _ in range(8)]
                return await asyncio.gather(*lanes, *alone)

        async def counted() -> tuple[list[Any], int]:
            made = asyncio.ensure_future(calls())
            seen = 0
            while not made.done():
                seen = max(seen, len(await asyncio.to_thread(deployment.found)))
            return await made, seen

        answers, seen = asyncio.run(counted())
    assert [answer.state for answer in answers] == ["succeeded"] * 16
    assert 2 <= seen <= most
    assert deployment.found() == {}


# --- neighbours ----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
async def test_a_lane_that_is_killed_again_and_again_costs_its_neighbour_neither_a_call_nor_its_lane() -> None:
    """What it costs in time is measured by `make bench`."""
    causes: list[Cause] = []
    async with lane_rig(per_key=1, calls=100_000) as lane:
        await lane.result("result = 1")
        neighbour = lane.last
        killed = asyncio.ensure_future(killed_again_and_again(lane, causes))
        while len(causes) < len(KILLED) or not {cause for _, cause in KILLED.values()} <= set(causes):
            assert not killed.done(), killed.exception()
            await lane.result("result = 1")
        killed.cancel()
        await asyncio.wait({killed})
        await lane.result("result = 1")
        assert lane.last == neighbour
