"""Puts the gateway together: the only place that names concrete classes, and the order in which they start and stop.

Starting: what must be right before the first call is checked first (catalog, schemas, policy, ledger), then what
an earlier life left behind is settled (calls, leases, containers), then the edges open. Stopping goes the other
way: admit nothing, let calls finish within the grace, cancel the rest, close the edges, give back what is held.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address
from typing import Final, Self, TypeVar

from callgate_server.admission.authenticate import Authentication, Authenticator
from callgate_server.admission.limits import Ceilings, Concurrency, DeadlineRule
from callgate_server.backends import api_keys
from callgate_server.backends.api_keys import ApiKeys
from callgate_server.backends.catalog.lock import load_catalog
from callgate_server.backends.cedar.directory import PolicyDirectory, Refreshed
from callgate_server.backends.docker.backend import DockerBackend
from callgate_server.backends.docker.options import DockerOptions
from callgate_server.backends.json_schema import CompiledSchemas
from callgate_server.backends.json_web_tokens import ClaimNames, JsonWebTokens, TokenRules
from callgate_server.backends.jwks import JwksFile, JwksUrl
from callgate_server.backends.openbao import AppRole, OpenBao, TokenFile
from callgate_server.backends.sqlite.files import load_or_create_key
from callgate_server.backends.sqlite.ledger import SqliteLedger
from callgate_server.backends.telemetry import Reading, Telemetry
from callgate_server.config import Auth, ExecutionSettings, Grpc, Http, Jwt, SecretStoreSettings, Settings, Tls
from callgate_server.execution.lane_board import LaneRules
from callgate_server.execution.lanes import Lanes, cores
from callgate_server.execution.levels import Levels
from callgate_server.execution.pool import WarmPool
from callgate_server.execution.pool_policy import Bounds
from callgate_server.execution.running import RunningCalls
from callgate_server.execution.sandbox import Health, SandboxBackend, Shape
from callgate_server.execution.trial import ForkTrial
from callgate_server.model.catalog import Catalog
from callgate_server.model.errors import CallError, Reason
from callgate_server.pipeline import Pipeline
from callgate_server.queries import Queries
from callgate_server.secrets.broker import Broker
from callgate_server.transports.gate import Gate, Readiness
from callgate_server.transports.http import http_app
from callgate_server.transports.limits import TransportLimits
from callgate_server.transports.server import GrpcServer, HttpServer, TlsFiles

# How long calls may take to end after the grace of a drain, before the process goes anyway.
SETTLE_S: Final = 10.0
HEALTH_EVERY_S: Final = 2.0
LANES_EVERY_S: Final = 1.0
TRIAL_EVERY_S: Final = 30.0
REVOKE_TIMEOUT_S: Final = 2.0
# How long answers may take to reach their clients when the edges close.
CLOSE_GRACE_S: Final = 2.0
# The names by which a loopback listener may be addressed, so that a web page cannot reach it under its own name.
LOOPBACK_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
# Without these the gateway cannot serve any call; others fail only the calls that need them.
ESSENTIAL: Final = ("engine", "runtime", "ledger")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the edges listen, as bound; port 0 in the configuration gives a free one."""

    http: str | None
    grpc: str | None


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway."""

    endpoints: Endpoints
    catalog: Catalog
    running: RunningCalls


def catalog_of(settings: Settings) -> Catalog:
    """Return the tools as this gateway serves them: as pinned, each at the isolation level that the operator chose.

    Raises:
        ValueError: what is pinned does not fit what is there, or `tools` names a tool that is not.
    """
    levels = {name: tool.isolation for name, tool in settings.tools.items()}
    return load_catalog(settings.catalog.directories, settings.catalog.lock).isolated(levels)


@asynccontextmanager
async def gateway(settings: Settings, *, purpose: api_keys.Purpose) -> AsyncIterator[Gateway]:
    """Start everything, yield while it serves, stop everything.

    `purpose` is what the API keys must be for: `production` for `serve`, `dev` for `dev`.

    Raises:
        ValueError: something that must be right before the first call is not; the text says what to do.
        OSError: an address is taken, or a file cannot be used.
    """
    telemetry = Telemetry(settings.log.level)
    telemetry.take_over_logging()
    catalog = catalog_of(settings)
    options = _docker_options(settings, catalog)
    rules = _lane_rules(settings.execution, catalog, options)
    schemas = CompiledSchemas.of(catalog)
    authentication = Authentication(
        *_authenticators(settings.auth, purpose), on_refusal=partial(telemetry.refused, "", Reason.UNAUTHENTICATED, {})
    )
    policy = PolicyDirectory(settings.policy.directory, catalog, telemetry.policy_alarm, _utc_now)
    async with AsyncExitStack() as held:
        ledger = await _ledger(settings, held)
        store = _secret_store(settings.secrets)
        docker = DockerBackend(options)
        held.push_async_callback(docker.close)
        if store is not None:
            held.push_async_callback(store.close)
        await _settle(ledger, store, docker, telemetry)
        container: SandboxBackend = docker
        if settings.execution.pool.enabled:
            container = pool = await held.enter_async_context(_pool(settings, catalog, docker, telemetry))
            telemetry.readings(partial(_pool_readings, pool))
        lanes = await held.enter_async_context(Lanes(docker, rules, telemetry.unexpected))
        sandboxes = Levels(container=container, fork=lanes)
        rounds = await held.enter_async_context(_Rounds(telemetry))
        running = await held.enter_async_context(RunningCalls(telemetry.unexpected))
        pipeline = Pipeline(
            authentication=authentication,
            catalog=catalog,
            schemas=schemas,
            policy=policy,
            concurrency=Concurrency(_ceilings(settings)),
            deadlines=DeadlineRule(settings.limits.deadline_s),
            ledger=ledger,
            broker=Broker(store),
            sandboxes=sandboxes,
            running=running,
            watch=telemetry,
        )
        health = _HealthBoard(ledger, store, sandboxes, running, telemetry)
        await health.look()
        rounds.carry("health", health.look, pause_s=HEALTH_EVERY_S)
        rounds.carry("policy", partial(_refresh, policy, telemetry), pause_s=settings.policy.reload_s)
        rounds.carry("reap", partial(_reap, sandboxes, telemetry), pause_s=settings.engine.reap_every_s)
        rounds.carry("lanes", lanes.tend, pause_s=LANES_EVERY_S)
        if forks := [tool for tool in catalog if tool.manifest.isolation == "fork"]:
            rounds.carry("fork", ForkTrial(lanes, forks[0]).look, pause_s=TRIAL_EVERY_S)
        if store is not None:
            rounds.carry("secrets", store.run, pause_s=1)
        gate = Gate(
            calls=pipeline,
            queries=Queries(authentication, catalog, policy, ledger, running),
            ready=health.readiness,
            metrics=telemetry.metrics,
            unexpected=telemetry.unexpected,
        )
        telemetry.gauge("running_calls", "Calls in progress", lambda: len(running))
        edges = _Edges(settings, gate)
        held.push_async_callback(edges.close)
        endpoints = await edges.open()
        telemetry.info("serving", http=endpoints.http, grpc=endpoints.grpc, policy=policy.live.version)
        yield Gateway(endpoints, catalog, running)
        edges.refuse()
        telemetry.info("draining", running=len(running))
        cancelled = await running.drain(settings.limits.drain_s, SETTLE_S)
        telemetry.info("drained", cancelled=cancelled)


class _Rounds:
    """Background work: each piece is a task of one group, and a piece that fails is reported and goes on."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._tasks = asyncio.TaskGroup()
        self._started: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self._started:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    def carry(self, name: str, work: Callable[[], Awaitable[object]], *, pause_s: float) -> None:
        """Do `work` again and again, with a pause after each time."""
        self._started.append(self._tasks.create_task(self._repeat(name, work, pause_s), name=name))

    async def _repeat(self, name: str, work: Callable[[], Awaitable[object]], pause_s: float) -> None:
        while True:
            try:
                await work()
            except Exception as error:  # a round must not end the gateway
                self._telemetry.unexpected(name, error)
            await asyncio.sleep(pause_s)


class _HealthBoard:
    """What `/readyz` shows, looked up in the background so that asking costs nothing.

    Anybody may read that, so that it is names only; why something fails and what to do is in the log.
    """

    def __init__(
        self,
        ledger: SqliteLedger,
        store: OpenBao | None,
        sandboxes: SandboxBackend,
        running: RunningCalls,
        telemetry: Telemetry,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._sandboxes = sandboxes
        self._running = running
        self._telemetry = telemetry
        self._components: dict[str, Health] = {}

    async def look(self) -> None:
        components = dict(await self._sandboxes.health())
        if self._store is not None:
            components |= await self._store.health()
        components["ledger"] = await self._ledger_health()
        for name, health in components.items():
            known = self._components.get(name)
            if not health.ok and (known is None or known.ok):
                self._telemetry.warning("a component does not work", component=name, detail=health.detail)
        self._components = components

    async def readiness(self) -> Readiness:
        draining = self._running.draining
        components = {name: health.ok for name, health in self._components.items()} | {"accepting": not draining}
        essential = all(components.get(name, False) for name in ESSENTIAL)
        return Readiness(essential and not draining, components)

    async def _ledger_health(self) -> Health:
        try:
            await self._ledger.probe()
        except CallError as error:
            return Health(ok=False, detail=error.message)
        return Health(ok=True, detail="writes work")


async def _ledger(settings: Settings, held: AsyncExitStack) -> SqliteLedger:
    key = load_or_create_key(settings.ledger.key_file)
    ledger = await asyncio.to_thread(SqliteLedger.open, settings.ledger.file, key)
    held.push_async_callback(ledger.close)
    return ledger


async def _settle(ledger: SqliteLedger, store: OpenBao | None, sandboxes: SandboxBackend, telemetry: Telemetry) -> None:
    """Clear up after an earlier life: its calls, its leases, its containers. What cannot be reached now is retried."""
    for lease in await ledger.settle_orphans():
        if store is None:
            telemetry.warning("a lease of an earlier life is left to expire: no secret store", call_id=lease.call_id)
            continue
        try:
            await store.revoke(lease.lease_id, timeout_s=REVOKE_TIMEOUT_S)
        except CallError:
            telemetry.warning("a lease of an earlier life is not revoked yet", call_id=lease.call_id)
        else:
            await ledger.note(lease.call_id, "secret_revoked", {"lease_id": lease.lease_id})
    try:
        await _reap(sandboxes, telemetry)
    except CallError as error:
        telemetry.warning("containers of an earlier life are not removed yet", detail=error.message)


async def _reap(sandboxes: SandboxBackend, telemetry: Telemetry) -> None:
    removed = await sandboxes.reap()
    if removed:
        telemetry.warning("removed containers that no call owned", removed=removed)


async def _refresh(policy: PolicyDirectory, telemetry: Telemetry) -> None:
    report = await asyncio.to_thread(policy.refresh)
    if report.outcome is Refreshed.LOADED:
        telemetry.info("policy reloaded", version=report.version, policies=report.policies)


class _Edges:
    """The listening ends, HTTP and gRPC."""

    def __init__(self, settings: Settings, gate: Gate) -> None:
        limits = TransportLimits(
            body_bytes=settings.limits.body_kb * 1024,
            receive_s=settings.limits.receive_s,
            concurrent_requests=settings.limits.concurrent_requests,
        )
        self._http = _http_server(settings.http, gate, limits) if settings.http else None
        self._grpc = _grpc_server(settings.grpc, gate, limits) if settings.grpc else None
        self._hosts = (settings.http.host if settings.http else "", settings.grpc.host if settings.grpc else "")

    async def open(self) -> Endpoints:
        for server in (self._http, self._grpc):
            if server is not None:
                await server.start()
        if self._grpc is not None:
            self._grpc.set_serving(serving=True)
        return Endpoints(
            None if self._http is None else f"{self._hosts[0]}:{self._http.port}",
            None if self._grpc is None else f"{self._hosts[1]}:{self._grpc.port}",
        )

    def refuse(self) -> None:
        """Tell load balancers to look elsewhere; `/readyz` says the same by itself."""
        if self._grpc is not None:
            self._grpc.set_serving(serving=False)

    async def close(self) -> None:
        await asyncio.gather(*(server.stop(CLOSE_GRACE_S) for server in (self._http, self._grpc) if server is not None))


def _http_server(http: Http, gate: Gate, limits: TransportLimits) -> HttpServer:
    hosts = frozenset(http.allowed_hosts)
    if not hosts and ip_address(http.host).is_loopback:
        hosts = LOOPBACK_NAMES | {http.host}
    app = http_app(gate, limits, hosts=hosts, origins=frozenset(http.allowed_origins))
    return HttpServer(app, http.host, http.port, limits, tls=_tls(http.tls))


def _grpc_server(grpc: Grpc, gate: Gate, limits: TransportLimits) -> GrpcServer:
    return GrpcServer(gate, grpc.host, grpc.port, limits, tls=_tls(grpc.tls), reflection=grpc.reflection)


def _tls(tls: Tls | None) -> TlsFiles | None:
    return None if tls is None else TlsFiles(tls.cert_file, tls.key_file)


def _authenticators(auth: Auth, purpose: api_keys.Purpose) -> list[Authenticator]:
    """Build what the configuration names.

    Raises:
        ValueError: the keys are for another purpose: a development key opens no production gateway.
    """
    authenticators: list[Authenticator] = []
    if auth.api_keys_file is not None:
        found = api_keys.load(auth.api_keys_file).purpose
        if found != purpose:
            raise ValueError(
                f"{auth.api_keys_file} holds keys for {found}, and this gateway is for {purpose}; "
                "make a file of its own with `callgated keys create`"
            )
        authenticators.append(ApiKeys(auth.api_keys_file))
    if auth.jwt is not None:
        authenticators.append(_json_web_tokens(auth.jwt))
    return authenticators


def _json_web_tokens(jwt: Jwt) -> JsonWebTokens:
    jwks = JwksFile(jwt.jwks_file) if jwt.jwks_file is not None else JwksUrl(_given(jwt.jwks_url))
    claims = ClaimNames(jwt.tenant_claim, jwt.agent_claim, jwt.roles_claim, jwt.task_claim)
    return JsonWebTokens(jwks, TokenRules(jwt.issuer, jwt.audience, claims=claims))


def _secret_store(settings: SecretStoreSettings | None) -> OpenBao | None:
    if settings is None:
        return None
    auth = settings.auth
    login: TokenFile | AppRole
    if auth.token_file is not None:
        login = TokenFile(auth.token_file)
    else:
        login = AppRole(_given(auth.role_id_file), _given(auth.secret_id_file))
    return OpenBao(
        settings.address, login, ca_file=settings.ca_file, namespace=settings.namespace, timeout_s=settings.timeout_s
    )


def _given(value: T | None) -> T:
    """What the configuration's own checks guarantee to be there."""
    if value is None:
        raise ValueError("the configuration is incomplete")
    return value


def _docker_options(settings: Settings, catalog: Catalog) -> DockerOptions:
    return DockerOptions(
        instance=settings.instance,
        boot_id=secrets.token_hex(8),
        socket_url=settings.engine.socket,
        default_runtime=settings.engine.runtime,
        images=tuple(sorted({tool.image_digest for tool in catalog})),
    )


def _lane_rules(execution: ExecutionSettings, catalog: Catalog, options: DockerOptions) -> LaneRules:
    """Return the rules of lanes.

    Raises:
        ValueError: a tool of isolation `fork` could never get one.
    """
    settings = execution.lanes
    for tool in catalog:
        if tool.manifest.isolation != "fork":
            continue
        runtime = tool.manifest.runtime or options.default_runtime
        if runtime in options.guest_kernels:
            raise ValueError(
                f"{tool.name} has isolation `fork` and the runtime {runtime}, in whose own kernel no lane can be made; "
                "give the tool isolation `container`, or another runtime"
            )
        if tool.manifest.limits.memory_mb > settings.memory_mb:
            raise ValueError(f"`execution.lanes.memory_mb` is less than {tool.name} needs; raise it")
    return LaneRules(
        calls=settings.calls,
        idle_s=settings.idle_s,
        lanes=settings.most,
        memory_mb=settings.memory_mb,
        per_key=settings.per_tool or cores(),
        starts=execution.starts,
        waiting=settings.waiting,
    )


def _ceilings(settings: Settings) -> Ceilings:
    """Without a pool nothing makes calls wait their turn: then no more are taken than may hold a sandbox."""
    calls = settings.limits.calls
    if not settings.execution.pool.enabled:
        calls = min(calls, settings.execution.sandboxes)
    return Ceilings(calls, min(calls, settings.limits.calls_per_tenant))


def _pool(settings: Settings, catalog: Catalog, docker: DockerBackend, telemetry: Telemetry) -> WarmPool:
    execution = settings.execution
    pool = execution.pool
    bounds = Bounds(
        sandboxes=execution.sandboxes,
        waiting=settings.limits.calls,
        starts=execution.starts,
        refills=pool.refill_concurrency,
        per_shape=pool.per_shape,
        spare=pool.spare,
        memory_mb=pool.memory_mb,
        cpus=pool.cpus,
        idle_s=pool.idle_s,
    )
    shapes = [
        Shape.of(tool.image_digest, tool.manifest.runtime, tool.manifest.limits)
        for tool in catalog
        if tool.manifest.isolation == "container"
    ]

    def warn(shape: Shape, error: CallError) -> None:
        telemetry.warning("no sandbox could be started ahead", shape=str(shape), detail=error.message)

    return WarmPool(docker, bounds, shapes, telemetry.unexpected, warn)


def _pool_readings(pool: WarmPool) -> Iterable[Reading]:
    figures = pool.figures()
    yield Reading("gauge", "pool_ready", "Sandboxes that wait for a call", figures.ready, "shape")
    yield Reading("gauge", "pool_starting", "Sandboxes in the making", {"": figures.starting})
    yield Reading("gauge", "pool_held", "Sandboxes that calls hold", {"": figures.held})
    yield Reading("gauge", "pool_waiting", "Calls that wait for a sandbox", {"": figures.waiting})
    claims = {"warm": figures.warm, "waited": figures.waited}
    yield Reading("counter", "pool_claims", "Calls that got a sandbox at once, or had to wait", claims, "how")
    yield Reading("counter", "pool_failed_starts", "Sandboxes that did not start", {"": figures.failed_starts})
    yield Reading("counter", "pool_deaths", "Sandboxes that ended before they had a call", {"": figures.died})


def _utc_now() -> datetime:
    return datetime.now(UTC)
