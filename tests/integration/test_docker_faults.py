"""The engine dies, hangs, forgets images and runtimes: each has a name, an end in bounded time, and leaves nothing.

Everything is done to an engine of the test's own.
"""

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from callgate_server.backends.docker.backend import DockerBackend
from callgate_server.backends.docker.options import DockerOptions
from callgate_server.backends.docker.sandbox import DockerSandbox
from callgate_server.backends.docker.spec import INSTANCE_LABEL
from callgate_server.execution.sandbox import Sandbox
from callgate_server.model.errors import CallError, Reason
from support.engine import PrivateEngine, tolerating_unclosed_sockets
from support.probe import Probe, probe, request_for
from support.probe_image import image_without_interpreter, probe_image

# Nothing that the engine is asked may take longer than a few of these together.
BOUND_S = 20


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateEngine]:
    # A runtime whose program can be taken away.
    program = tmp_path_factory.mktemp("runtime") / "ghost"
    runc = shutil.which("runc")
    assert runc is not None
    shutil.copy(runc, program)
    with PrivateEngine({"runtimes": {"ghost": {"path": str(program)}}}) as made:
        made.load_image(probe_image())
        yield made


@pytest.fixture(autouse=True)
def healthy(engine: PrivateEngine) -> Iterator[None]:
    with tolerating_unclosed_sockets():
        yield
        if not engine.alive:
            engine.start()
        engine.thaw()
        assert engine.containers() == []


@pytest.fixture
def options(engine: PrivateEngine) -> DockerOptions:
    return DockerOptions(
        instance=f"test-{uuid.uuid4().hex[:12]}",
        boot_id="this",
        socket_url=engine.url,
        opening_threads=2,
        ending_threads=2,
        look_s=3,
        create_s=3,
        attach_s=3,
        start_s=5,
        end_s=3,
    )


@pytest.fixture
async def backend(options: DockerOptions) -> AsyncIterator[DockerBackend]:
    made = DockerBackend(options)
    yield made
    await made.close()


async def refusal(backend: DockerBackend, **fields: Any) -> Reason:
    async with asyncio.timeout(BOUND_S):
        with pytest.raises(CallError) as refused:
            await backend.open(request_for(fields.pop("image", probe_image()), **fields))
    return refused.value.reason


async def end_of_wire(sandbox: Sandbox) -> None:
    try:
        while await sandbox.receive():
            pass
    except ConnectionError:
        pass


async def warm(backend: DockerBackend) -> None:
    """Let it learn image and runtime, so that what fails is the step that is meant to."""
    async with probe(backend, request_for(probe_image())) as one:
        assert await one.run("answer(1)") == 1


# --- the engine dies -----------------------------------------------------------------------------------------


async def test_the_engine_dies_in_mid_call(engine: PrivateEngine, backend: DockerBackend) -> None:
    sandbox = await backend.open(request_for(probe_image()))
    assert await Probe(sandbox).run("answer('up')") == "up"
    engine.kill()
    async with asyncio.timeout(BOUND_S):
        await end_of_wire(sandbox)
    with pytest.raises(ConnectionError):
        await sandbox.send(b"x")
    async with asyncio.timeout(BOUND_S):
        report = await sandbox.wait_exit(2)
        await sandbox.kill()
        await sandbox.destroy()
    assert report.exit_code is None
    assert not report.oom_killed
    engine.start()
    await backend.reap()
    assert engine.containers() == []
    await warm(backend)


async def test_the_engine_is_away(engine: PrivateEngine, backend: DockerBackend) -> None:
    engine.kill()
    assert await refusal(backend) is Reason.SANDBOX_UNAVAILABLE
    assert not (await backend.health())["engine"].ok
    with pytest.raises(CallError) as refused:
        await backend.reap()
    assert refused.value.reason is Reason.SANDBOX_UNAVAILABLE
    engine.start()
    await warm(backend)
    assert (await backend.health())["engine"].ok


# --- the engine hangs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_warm", [False, True])
async def test_an_engine_that_hangs_refuses_in_bounded_time(
    engine: PrivateEngine, backend: DockerBackend, is_warm: bool
) -> None:
    if is_warm:
        await warm(backend)
    engine.freeze()
    assert await refusal(backend) is Reason.SANDBOX_UNAVAILABLE
    async with asyncio.timeout(BOUND_S):
        assert not (await backend.health())["engine"].ok
    engine.thaw()
    await cleaned(engine, backend)
    await warm(backend)
    assert await backend.reap() == 0


async def test_the_calls_own_deadline_is_kept_while_the_engine_hangs(
    engine: PrivateEngine, backend: DockerBackend
) -> None:
    await warm(backend)
    engine.freeze()
    async with asyncio.timeout(20):
        assert await refusal(backend, deadline_s=0.3) is Reason.DEADLINE_EXCEEDED
    engine.thaw()
    await cleaned(engine, backend)


async def test_a_hung_engine_does_not_use_up_the_threads_for_ever(
    engine: PrivateEngine, backend: DockerBackend
) -> None:
    await warm(backend)
    engine.freeze()
    reasons = await asyncio.gather(*(refusal(backend) for _ in range(8)))
    assert set(reasons) == {Reason.SANDBOX_UNAVAILABLE}
    engine.thaw()
    async with asyncio.timeout(BOUND_S):
        await warm(backend)
    await cleaned(engine, backend)


async def test_ending_a_sandbox_of_a_hung_engine_is_bounded_and_made_up_for(
    engine: PrivateEngine, backend: DockerBackend
) -> None:
    sandbox = await backend.open(request_for(probe_image()))
    engine.freeze()
    async with asyncio.timeout(BOUND_S):
        assert (await sandbox.wait_exit(1)).exit_code is None
        await sandbox.kill()
        await sandbox.destroy()
    engine.thaw()
    await cleaned(engine, backend)


async def test_a_sandbox_that_is_created_after_its_call_gave_up_is_removed_by_itself(
    engine: PrivateEngine, options: DockerOptions
) -> None:
    """The request is on its way when the call ends; its thread learns of the container and removes it."""
    backend = DockerBackend(replace(options, create_s=60))
    await warm(backend)
    engine.freeze()
    assert await refusal(backend, deadline_s=0.3) is Reason.DEADLINE_EXCEEDED
    engine.thaw()
    # Waits for the thread that holds the late answer.
    await backend.close()
    assert engine.containers() == []


async def test_a_sandbox_that_nobody_learnt_of_is_found_by_its_label(
    engine: PrivateEngine, backend: DockerBackend
) -> None:
    """Even the thread gave up before the engine created it."""
    await warm(backend)
    engine.freeze()
    assert await refusal(backend) is Reason.SANDBOX_UNAVAILABLE
    engine.thaw()
    await cleaned(engine, backend)


async def test_a_sandbox_that_nobody_learnt_of_is_gone_when_the_backend_closes(
    engine: PrivateEngine, options: DockerOptions
) -> None:
    backend = DockerBackend(options)
    await warm(backend)
    with engine.client as client:
        client.create_container(probe_image(), ["/bin/true"], labels={INSTANCE_LABEL: options.instance})
    await backend.close()
    assert engine.containers() == []


async def test_starts_that_are_given_up_while_the_backend_closes_leave_nothing(
    engine: PrivateEngine, options: DockerOptions
) -> None:
    """Whichever step each of them is at, and whatever waits for a thread."""
    for moment in range(10):
        backend = DockerBackend(options)
        await warm(backend)
        starts = [asyncio.create_task(backend.open(request_for(probe_image()))) for _ in range(4)]
        await asyncio.sleep(moment * 0.03)
        for start in starts:
            start.cancel()
        begun = await asyncio.gather(*starts, return_exceptions=True)
        await asyncio.gather(*(one.destroy() for one in begun if isinstance(one, DockerSandbox)))
        await backend.close()
        assert engine.containers() == []


# --- something is missing ------------------------------------------------------------------------------------


async def test_an_image_that_is_removed_while_we_run_is_missed_at_once(
    engine: PrivateEngine, backend: DockerBackend
) -> None:
    await warm(backend)
    with engine.client as client:
        client.remove_image(probe_image(), force=True)
    try:
        assert await refusal(backend) is Reason.IMAGE_MISSING
        assert await refusal(backend) is Reason.IMAGE_MISSING
    finally:
        engine.load_image(probe_image())
    await warm(backend)


async def test_health_names_the_image_that_is_missing(options: DockerOptions) -> None:
    missing = "sha256:" + "0" * 64
    backend = DockerBackend(replace(options, images=(probe_image(), missing)))
    images = (await backend.health())["images"]
    assert not images.ok
    assert missing in images.detail
    assert probe_image() not in images.detail
    await backend.close()


async def test_an_image_without_an_interpreter_is_unusable(engine: PrivateEngine, backend: DockerBackend) -> None:
    engine.load_image(image_without_interpreter())
    assert await refusal(backend, image=image_without_interpreter()) is Reason.IMAGE_MISSING
    await cleaned(engine, backend)


async def test_a_runtime_whose_program_is_gone_is_missing_and_not_replaced(
    engine: PrivateEngine, backend: DockerBackend
) -> None:
    with engine.client as client:
        program = Path(client.info()["Runtimes"]["ghost"]["path"])
    async with probe(backend, request_for(probe_image(), runtime="ghost")) as one:
        assert one.sandbox.info.runtime == "ghost"
    hidden = program.with_suffix(".away")
    shutil.move(program, hidden)
    try:
        assert await refusal(backend, runtime="ghost") is Reason.RUNTIME_MISSING
    finally:
        shutil.move(hidden, program)
    await cleaned(engine, backend)


async def test_a_runtime_that_is_no_longer_registered_is_missing_though_it_was_seen(
    engine: PrivateEngine, backend: DockerBackend
) -> None:
    with engine.client as client:
        registered = {"ghost": {"path": client.info()["Runtimes"]["ghost"]["path"]}}
    async with probe(backend, request_for(probe_image(), runtime="ghost")):
        pass
    engine.kill()
    engine.configure({"runtimes": {}})
    engine.start()
    try:
        assert await refusal(backend, runtime="ghost") is Reason.RUNTIME_MISSING
    finally:
        engine.kill()
        engine.configure({"runtimes": registered})
        engine.start()


# --- reaping -------------------------------------------------------------------------------------------------


async def test_what_a_dead_run_left_is_removed_and_nothing_else(
    engine: PrivateEngine, backend: DockerBackend, options: DockerOptions
) -> None:
    dead = DockerBackend(replace(options, boot_id="before"))
    neighbour = DockerBackend(replace(options, instance=options.instance + "-2"))
    left = [await dead.open(request_for(probe_image())) for _ in range(2)]
    alive = await backend.open(request_for(probe_image()))
    other = await neighbour.open(request_for(probe_image()))
    with engine.client as client:
        stranger = client.create_container(probe_image(), ["/bin/true"])["Id"]
        try:
            assert await backend.reap() == len(left)
            remaining = {found["Id"] for found in client.containers(all=True)}
        finally:
            client.remove_container(stranger)
    assert remaining == {alive.id, other.id, stranger}
    assert await Probe(alive).run("answer('alive')") == "alive"
    assert await backend.reap() == 0
    for sandbox in (alive, other, *left):
        await sandbox.destroy()
    await dead.close()
    await neighbour.close()


async def test_a_sandbox_killed_behind_our_back_ends_its_wire(engine: PrivateEngine, backend: DockerBackend) -> None:
    sandbox = await backend.open(request_for(probe_image()))
    with engine.client as client:
        client.remove_container(sandbox.id, force=True)
    async with asyncio.timeout(BOUND_S):
        await end_of_wire(sandbox)
    assert (await sandbox.wait_exit(2)).exit_code is None
    await sandbox.destroy()


async def cleaned(engine: PrivateEngine, backend: DockerBackend) -> None:
    """Rounds of `reap`, as the gateway makes them, until nothing is left.

    A request that reached the engine while it hung is carried out at some time after it goes on, whoever still
    waits for it: so nothing is left only when nothing has come for a while.
    """
    empty = 0
    async with asyncio.timeout(BOUND_S):
        while empty < 20:
            await backend.reap()
            empty = 0 if engine.containers() else empty + 1
            await asyncio.sleep(0.1)
