"""Fixtures on real parts, shared by the end-to-end, security and integration tests. They fail when a part is missing."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings

from callgate_server.backends.openbao_dev import DevServer
from support.gateway import Deployment, RunningGateway, canary, start_store
from support.postgres import Postgres

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@dataclass(frozen=True)
class Secrets:
    """What the store holds for tenant `acme`: random, so that finding one anywhere proves a leak."""

    webhook_key: str
    by_file: str
    by_stdin: str


@pytest.fixture(autouse=True)
def logging_for_all_tests() -> Iterator[None]:
    """A gateway, or its telemetry, takes over the logging of its process, which here is that of all tests."""
    handlers = logging.getLogger().handlers
    before = handlers.copy()
    yield
    handlers[:] = before


@pytest.fixture(scope="session")
def secrets_of_acme() -> Secrets:
    return Secrets(canary(), canary(), canary())


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, secrets_of_acme: Secrets) -> Iterator[DevServer]:
    """A real OpenBao with the secrets of two tenants."""
    server = start_store(tmp_path_factory.mktemp("openbao"))
    try:
        operator = server.operator
        operator.write("kv/data/acme/webhooks", {"key": secrets_of_acme.webhook_key})
        operator.write("kv/data/acme/probe", {"one": secrets_of_acme.by_file, "two": secrets_of_acme.by_stdin})
        operator.write("kv/data/rival/webhooks", {"key": canary()})
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def database() -> Iterator[Postgres]:
    """A real PostgreSQL, for credentials that exist for one call."""
    with Postgres() as postgres:
        yield postgres


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, store: DevServer) -> Iterator[RunningGateway]:
    """One gateway for all tests that leave it as they found it."""
    deployment = Deployment(tmp_path_factory.mktemp("gateway"), store)
    with deployment.start() as running:
        yield running
    deployment.wait_until_clean()
    report = deployment.verify()
    assert report.fault is None, report.fault
