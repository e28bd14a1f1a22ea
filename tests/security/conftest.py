"""Arenas for hostile tools: on the machine's engine, and on an engine of its own that knows gVisor."""

import json
from collections.abc import Iterator

import pytest

from support.arena import Arena
from support.engine import RUNSC_RUNTIME, PrivateEngine
from support.gateway import Deployment, RunningGateway, catalog_lock
from support.sandboxes import RUNTIMES


@pytest.fixture(scope="session")
def gvisor_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway whose engine has the runtime that `probe.gvisor` demands."""
    probe = json.loads(catalog_lock().read_text())["images"]["probe"]
    with PrivateEngine({"runtimes": {"runsc": RUNSC_RUNTIME}}) as engine:
        engine.load_image(probe)
        settings = {"engine": {"socket": engine.url}}
        with Deployment(tmp_path_factory.mktemp("gvisor"), settings=settings).start() as running:
            yield running


@pytest.fixture
def arena(gateway: RunningGateway) -> Iterator[Arena]:
    """Hostile tools under runc."""
    made = Arena(gateway)
    with made.unchanged():
        yield made


@pytest.fixture(params=RUNTIMES)
def any_arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    """Hostile tools under each runtime that this machine has."""
    gvisor = request.param == "runsc"
    gateway = request.getfixturevalue("gvisor_gateway" if gvisor else "gateway")
    made = Arena(gateway, "probe.gvisor", "runsc") if gvisor else Arena(gateway)
    with made.unchanged():
        yield made
