"""Arenas for hostile tools: on the machine's engine, and on an engine of its own that knows gVisor."""

import json
from collections.abc import Iterator

import pytest

from callgate_server.backends.openbao_dev import DevServer
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


@pytest.fixture(scope="session")
def lane_gateway(tmp_path_factory: pytest.TempPathFactory, store: DevServer) -> Iterator[RunningGateway]:
    """A gateway that serves the probe's tools in lanes."""
    settings = {"tools": {name: {"isolation": "fork"} for name in ("probe.run", "probe.secret")}}
    with Deployment(tmp_path_factory.mktemp("lanes"), store, settings=settings).start() as running:
        yield running


@pytest.fixture(params=["container", "fork"])
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    """Hostile tools under runc, in a container of their own and in a lane."""
    fork = request.param == "fork"
    gateway = request.getfixturevalue("lane_gateway" if fork else "gateway")
    made = Arena(gateway, runtime="fork" if fork else "runc")
    with made.unchanged():
        yield made


@pytest.fixture(params=[*RUNTIMES, "fork"])
def any_arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    """Hostile tools under each runtime that this machine has, and in a lane."""
    match request.param:
        case "runsc":
            made = Arena(request.getfixturevalue("gvisor_gateway"), "probe.gvisor", "runsc")
        case "fork":
            made = Arena(request.getfixturevalue("lane_gateway"), runtime="fork")
        case _:
            made = Arena(request.getfixturevalue("gateway"))
    with made.unchanged():
        yield made
