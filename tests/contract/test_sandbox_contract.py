"""What every sandbox backend must do, whatever it is made of: run against each that this machine has."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest

from callgate_server.execution.sandbox import Sandbox
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.manifest import Limits
from support.probe import Probe, probe, request_for
from support.sandboxes import RUNTIMES, Rig, pooled, rig

ECHO = """
import sys
while size := int.from_bytes(sys.stdin.buffer.read(4)):
    sys.stdout.buffer.write(sys.stdin.buffer.read(size))
    sys.stdout.buffer.flush()
"""


@pytest.fixture(scope="module", params=RUNTIMES)
def engine(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with rig(request.param) as made:
        yield made


@pytest.fixture(params=["alone", "pooled"])
async def box(engine: Rig, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """The backend as it is, and behind a pool that has two sandboxes of the usual shape ready."""
    if request.param == "alone":
        yield engine
    else:
        async with pooled(engine, request_for(engine.image).shape, ready=2) as made:
            yield made
        # The pool gave up what it was starting, and that cleans up after itself.
        await settled(engine)
    assert engine.containers() == []


async def drain(sandbox: Sandbox) -> bytes:
    """Read to the end of the wire, however it ends."""
    received = b""
    try:
        while data := await sandbox.receive():
            received += data
    except ConnectionError:
        pass
    return received


async def start(probe: Probe, program: str) -> None:
    """Hand over a program and do not wait for an answer."""
    await probe.sandbox.send(json.dumps(program).encode() + b"\n")


async def test_it_says_what_it_is(box: Rig) -> None:
    async with probe(box.backend, request_for(box.image)) as one:
        info = one.sandbox.info
        assert (info.backend, info.runtime, info.isolation) == ("docker", box.runtime, "container")
        assert one.sandbox.id


async def test_the_runner_is_process_one(box: Rig) -> None:
    async with probe(box.backend, request_for(box.image)) as one:
        assert await one.run("import os; answer(os.getpid())") == 1


async def test_every_byte_value_passes_both_ways_unchanged(box: Rig) -> None:
    message = bytes(range(256)) * 4096
    async with probe(box.backend, request_for(box.image)) as one:
        await start(one, ECHO)
        sending = asyncio.ensure_future(one.sandbox.send(len(message).to_bytes(4) + message + bytes(4)))
        received = b""
        async with asyncio.timeout(60):
            while len(received) < len(message):
                received += await one.sandbox.receive()
            await sending
        assert received == message


async def test_a_receive_is_bounded(box: Rig) -> None:
    async with probe(box.backend, request_for(box.image)) as one:
        await start(one, "import sys; sys.stdout.buffer.write(bytes(2 << 20)); sys.exit()")
        sizes = []
        async with asyncio.timeout(60):
            while data := await one.sandbox.receive():
                sizes.append(len(data))
        assert sum(sizes) == 2 << 20
        assert max(sizes) <= 256 * 1024


@pytest.mark.parametrize("code", [0, 7, 255])
async def test_its_end_is_the_end_of_the_wire_and_the_code_is_known(box: Rig, code: int) -> None:
    async with probe(box.backend, request_for(box.image)) as one:
        await start(one, f"import sys; sys.exit({code})")
        async with asyncio.timeout(30):
            assert await drain(one.sandbox) == b""
        report = await one.sandbox.wait_exit(10)
        assert (report.exit_code, report.oom_killed) == (code, False)


async def test_what_it_writes_before_its_end_arrives_before_the_end(box: Rig) -> None:
    async with probe(box.backend, request_for(box.image)) as one:
        await start(one, "import os; os.write(1, b'last words'); os._exit(3)")
        async with asyncio.timeout(30):
            assert await drain(one.sandbox) == b"last words"


async def test_diagnostics_are_evidence_and_not_on_the_wire(box: Rig) -> None:
    async with probe(box.backend, request_for(box.image)) as one:
        fault = "callgate_runner: ValueError at /opt/callgate/runner/callgate_runner/run.py:7"
        await start(one, f"import os; os.write(2, b'oops\\x1b[2J\\n{fault}\\n'); os.write(1, b'wire'); os._exit(1)")
        assert await drain(one.sandbox) == b"wire"
        evidence = (await one.sandbox.wait_exit(10)).evidence
        assert evidence.endswith(fault.removeprefix("callgate_runner: "))
        assert "oops" not in evidence


async def test_waiting_for_the_end_of_what_does_not_end_is_bounded(box: Rig) -> None:
    async with probe(box.backend, request_for(box.image)) as one:
        async with asyncio.timeout(10):
            report = await one.sandbox.wait_exit(0.2)
        assert report.exit_code is None
        assert not report.oom_killed


async def test_a_kill_ends_everything_and_can_be_repeated(box: Rig) -> None:
    async with probe(box.backend, request_for(box.image)) as one:
        program = (
            "import os, time\nfor _ in range(5): os.fork()\nos.setsid() if os.getpid() != 1 else None\ntime.sleep(600)"
        )
        await start(one, program)
        await one.sandbox.kill()
        async with asyncio.timeout(30):
            await drain(one.sandbox)
        assert (await one.sandbox.wait_exit(10)).exit_code == 137
        await one.sandbox.kill()


async def test_a_kill_reaches_a_sandbox_that_another_task_listens_to(box: Rig) -> None:
    async with probe(box.backend, request_for(box.image)) as one:
        listening = asyncio.ensure_future(drain(one.sandbox))
        await one.sandbox.kill()
        async with asyncio.timeout(30):
            assert await listening == b""


async def test_the_end_of_our_side_is_the_end_of_its_input(box: Rig) -> None:
    sandbox = await box.backend.open(request_for(box.image))
    await sandbox.destroy()
    with pytest.raises(ConnectionError):
        await sandbox.send(b"x")


async def test_destroying_what_runs_leaves_nothing_and_can_be_repeated(box: Rig) -> None:
    sandbox = await box.backend.open(request_for(box.image))
    await start(Probe(sandbox), "while True: pass")
    await sandbox.destroy()
    assert box.containers() == []
    await sandbox.destroy()
    await sandbox.kill()
    assert (await sandbox.wait_exit(1)).exit_code is None


async def test_writing_to_the_dead_is_a_broken_connection(box: Rig) -> None:
    async with probe(box.backend, request_for(box.image)) as one:
        await one.sandbox.kill()
        await drain(one.sandbox)
        with pytest.raises(ConnectionError):
            await one.sandbox.send(b"x")


async def test_a_writer_that_is_stuck_is_set_free_when_the_sandbox_dies(box: Rig) -> None:
    async with probe(box.backend, request_for(box.image)) as one:
        await start(one, "import time; time.sleep(600)")
        # More than every buffer on the way holds.
        sending = asyncio.ensure_future(one.sandbox.send(bytes(64 << 20)))
        listening = asyncio.ensure_future(drain(one.sandbox))
        await one.sandbox.kill()
        async with asyncio.timeout(30):
            assert await listening == b""
            with pytest.raises(ConnectionError):
                await sending


async def test_too_much_memory_is_told_apart_from_other_ends(box: Rig) -> None:
    async with probe(box.backend, request_for(box.image, limits=Limits(memory_mb=64))) as one:
        await start(one, "held = [b'x' * (1 << 20) for _ in range(512)]")
        async with asyncio.timeout(60):
            await drain(one.sandbox)
        report = await one.sandbox.wait_exit(10)
        assert report.oom_killed
        assert report.exit_code == 137


async def test_two_calls_share_nothing_they_can_write(box: Rig) -> None:
    write = "import pathlib\nfor d in ('/tmp', '/dev/shm', '/run/secrets'): pathlib.Path(d, 'mine').write_text('x')\nanswer(1)"
    read = "import os; answer([os.listdir(d) for d in ('/tmp', '/dev/shm', '/run/secrets', '/out')])"
    async with probe(box.backend, request_for(box.image)) as one, probe(box.backend, request_for(box.image)) as other:
        await one.run(write)
        assert await other.run(read) == [[], [], [], []]


async def test_an_image_that_is_not_here_is_refused_and_not_fetched(box: Rig) -> None:
    with pytest.raises(CallError) as refused:
        await box.backend.open(request_for("sha256:" + "0" * 64))
    assert refused.value.reason is Reason.IMAGE_MISSING


async def test_a_runtime_that_is_not_here_is_refused_and_not_replaced(box: Rig) -> None:
    with pytest.raises(CallError) as refused:
        await box.backend.open(request_for(box.image, runtime="kata"))
    assert refused.value.reason is Reason.RUNTIME_MISSING


async def test_a_call_whose_time_is_up_starts_nothing(box: Rig) -> None:
    with pytest.raises(CallError) as refused:
        await box.backend.open(request_for(box.image, deadline_s=-1))
    assert refused.value.reason is Reason.DEADLINE_EXCEEDED


async def test_a_deadline_in_the_middle_of_a_start_leaves_nothing(box: Rig) -> None:
    # Warm: what is remembered of image and runtime must not decide where the deadline strikes.
    async with probe(box.backend, request_for(box.image)):
        pass
    for milliseconds in (1, 5, 20, 40, 60):
        opening = box.backend.open(request_for(box.image, deadline_s=milliseconds / 1000))
        (result,) = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(result, BaseException):
            assert isinstance(result, CallError)
            assert result.reason is Reason.DEADLINE_EXCEEDED
        else:
            await result.destroy()
    await settled(box)


async def test_a_start_that_is_cancelled_leaves_nothing(box: Rig) -> None:
    for milliseconds in (1, 10, 30, 60):
        opening = asyncio.ensure_future(box.backend.open(request_for(box.image)))
        await asyncio.sleep(milliseconds / 1000)
        opening.cancel()
        with suppress(asyncio.CancelledError):
            await (await opening).destroy()
    await settled(box)


async def test_the_same_call_is_not_started_twice(box: Rig) -> None:
    request = request_for(box.image)
    async with probe(box.backend, request) as one:
        with pytest.raises(CallError) as refused:
            await box.backend.open(request)
        assert refused.value.reason is Reason.SANDBOX_UNAVAILABLE
        assert await one.run("answer('unharmed')") == "unharmed"


async def test_reaping_spares_the_living(box: Rig) -> None:
    async with probe(box.backend, request_for(box.image)) as one:
        assert await box.backend.reap() == 0
        assert await one.run("answer('alive')") == "alive"


async def test_everything_it_depends_on_is_reported_well(box: Rig) -> None:
    health = await box.backend.health()
    assert set(health) == {"engine", "runtime", "images"}
    assert all(one.ok for one in health.values())


async def settled(box: Rig) -> None:
    """Wait until abandoned starts have cleaned up after themselves: without `reap`."""
    async with asyncio.timeout(30):
        while box.containers():  # noqa: ASYNC110  # another process's state: there is no event to wait for
            await asyncio.sleep(0.05)
