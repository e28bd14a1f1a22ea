"""Makes each part of the gateway from its settings: which concrete class, with which options.

The order in which parts start and stop, and what happens between, is `app.py`.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address
from typing import Final, TypeVar

from callgate_server.admission.authenticate import Authenticator
from callgate_server.admission.fruitless import Fruitless
from callgate_server.admission.limits import Ceilings
from callgate_server.admission.loops import LoopGuard
from callgate_server.admission.queue import Queue, QueueRules
from callgate_server.admission.stops import StopList
from callgate_server.admission.tasks import LiveTasks
from callgate_server.backends import api_keys
from callgate_server.backends.api_keys import ApiKeys
from callgate_server.backends.cedar.directory import PolicyDirectory
from callgate_server.backends.cedar.policy import Alarm
from callgate_server.backends.docker.options import DockerOptions
from callgate_server.backends.egress import gate as egress
from callgate_server.backends.json_schema import CompiledSchemas
from callgate_server.backends.json_web_tokens import ClaimNames, JsonWebTokens, TokenRules
from callgate_server.backends.jwks import JwksFile, JwksUrl
from callgate_server.backends.openbao import AppRole, OpenBao, TokenFile
from callgate_server.backends.telemetry import Reading, Telemetry
from callgate_server.config import (
    Auth,
    BreakersSettings,
    EgressSettings,
    ExecutionSettings,
    Grpc,
    Http,
    Jwt,
    LimitSettings,
    QueueSettings,
    SecretStoreSettings,
    Settings,
    Tls,
)
from callgate_server.execution import faults
from callgate_server.execution.breaker import BreakerRules, State
from callgate_server.execution.breakers import KINDS, SECRETS, Breakers, Change, Kind
from callgate_server.execution.lane_board import LaneRules
from callgate_server.execution.lanes import Lanes, cores
from callgate_server.execution.pool import WarmPool
from callgate_server.execution.pool_policy import Bounds
from callgate_server.execution.sandbox import AnonymousStarts, Shape
from callgate_server.kept import Patience
from callgate_server.limits import Limits
from callgate_server.model.catalog import Catalog
from callgate_server.model.errors import CallError
from callgate_server.model.strict_json import Json
from callgate_server.observe.remarks import Remarks
from callgate_server.result.redact import Redactor
from callgate_server.secrets.broker import SecretStore
from callgate_server.secrets.guarded import GuardedStore
from callgate_server.transports.gate import Access, Gate
from callgate_server.transports.http import http_app
from callgate_server.transports.limits import TransportLimits
from callgate_server.transports.places import Places
from callgate_server.transports.server import GrpcServer, HttpServer, TlsFiles

# How long answers may take to reach their clients when the edges close.
CLOSE_GRACE_S: Final = 2.0
# The names by which a loopback listener may be addressed, so that a web page cannot reach it under its own name.
LOOPBACK_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
# What a metric says of a breaker's state.
BREAKER_LEVELS: Final = {State.CLOSED: 0.0, State.HALF_OPEN: 1.0, State.OPEN: 2.0, State.FORCED_OPEN: 3.0}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the edges listen, as bound; port 0 in the configuration gives a free one."""

    http: str | None
    grpc: str | None


@dataclass(frozen=True, slots=True)
class Basis:
    """What must be right before a gateway touches engine, secret store and record."""

    catalog: Catalog
    options: DockerOptions
    lanes: LaneRules
    schemas: CompiledSchemas
    authenticators: Sequence[Authenticator]
    policy: PolicyDirectory


def basis(settings: Settings, catalog: Catalog, purpose: api_keys.Purpose, alarm: Alarm) -> Basis:
    """Load it.

    Raises:
        ValueError, OSError: something is not right; the text says what to do.
    """
    options = docker_options(settings, catalog)
    return Basis(
        catalog,
        options,
        lane_rules(settings.execution, catalog, options),
        CompiledSchemas.of(catalog),
        authenticators(settings.auth, purpose),
        PolicyDirectory(settings.policy.directory, catalog, alarm, lambda: datetime.now(UTC)),
    )


class Edges:
    """The listening ends, HTTP and gRPC."""

    def __init__(self, settings: Settings, gate: Gate) -> None:
        limits = TransportLimits(
            body_bytes=settings.limits.body_kb * 1024,
            receive_s=settings.limits.receive_s,
            concurrent_requests=settings.limits.concurrent_requests,
            requests_per_agent=settings.limits.requests_per_agent,
            streams_per_agent=settings.limits.streams_per_agent,
        )
        places = Places(limits, gate.queries)
        self._http = _http_server(settings.http, gate, limits, places) if settings.http else None
        self._grpc = _grpc_server(settings.grpc, gate, limits, places) if settings.grpc else None
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


def _http_server(http: Http, gate: Gate, limits: TransportLimits, places: Places) -> HttpServer:
    hosts = frozenset(http.allowed_hosts)
    if not hosts and ip_address(http.host).is_loopback:
        hosts = LOOPBACK_NAMES | {http.host}
    app = http_app(gate, limits, places, hosts=hosts, origins=frozenset(http.allowed_origins))
    return HttpServer(app, http.host, http.port, limits, tls=_tls(http.tls))


def _grpc_server(grpc: Grpc, gate: Gate, limits: TransportLimits, places: Places) -> GrpcServer:
    return GrpcServer(gate, grpc.host, grpc.port, limits, places, tls=_tls(grpc.tls), reflection=grpc.reflection)


def _tls(tls: Tls | None) -> TlsFiles | None:
    return None if tls is None else TlsFiles(tls.cert_file, tls.key_file)


def authenticators(auth: Auth, purpose: api_keys.Purpose) -> list[Authenticator]:
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


def secret_store(settings: SecretStoreSettings | None) -> OpenBao | None:
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


def docker_options(settings: Settings, catalog: Catalog) -> DockerOptions:
    return DockerOptions(
        instance=settings.instance,
        boot_id=secrets.token_hex(8),
        socket_url=settings.engine.socket,
        default_runtime=settings.engine.runtime,
        images=tuple(sorted({tool.image_digest for tool in catalog})),
    )


def circuit_breakers(settings: BreakersSettings, telemetry: Telemetry, remarks: Remarks) -> Breakers:
    """Every change is in the log at once, and in the record as soon as that takes it."""

    def changed(change: Change) -> None:
        name = str(change.key)
        telemetry.breaker_changed(name, change.before, change.after, change.why)
        said: dict[str, Json] = {"breaker": name, "from": change.before, "to": change.after, "why": change.why}
        remarks.add("breaker_changed", said | ({"by": change.by} if change.by else {}))

    rules: dict[Kind, BreakerRules] = {kind: getattr(settings, kind).rules for kind in KINDS}
    return Breakers(rules, changed)


def access_log(telemetry: Telemetry) -> Callable[[Access], None]:
    def accessed(access: Access) -> None:
        telemetry.requested(access.transport, access.route, access.status, access.caller, access.duration_ms)

    return accessed


def breaker_readings(breakers: Breakers) -> Iterable[Reading]:
    states = {name: BREAKER_LEVELS[view.state] for name, view in breakers.list().items()}
    text = "Circuit breakers: 0 closed, 1 half open, 2 open, 3 opened by hand"
    yield Reading("gauge", "breaker_state", text, states, "breaker")
    refusals = {str(kind): float(count) for kind, count in breakers.refusals.items()}
    yield Reading("counter", "breaker_refusals", "What circuit breakers refused", refusals, "kind")


def guarded_store(store: OpenBao | None, breakers: Breakers) -> SecretStore | None:
    return None if store is None else GuardedStore(store, partial(breakers.guard, SECRETS, faults.SECRETS))


def egress_gate(settings: EgressSettings, breakers: Breakers, telemetry: Telemetry) -> egress.Gate:
    options = egress.GateOptions(
        authority_dir=settings.authority_dir,
        internal=settings.services,
        ca_file=settings.ca_file,
        dns_timeout_s=settings.dns_timeout_s,
        connect_timeout_s=settings.connect_timeout_s,
        idle_s=settings.idle_s,
    )
    return egress.Gate(options, make_stripper=Redactor, breakers=breakers, report=telemetry.unexpected)


def lane_rules(execution: ExecutionSettings, catalog: Catalog, options: DockerOptions) -> LaneRules:
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


def call_limits(settings: LimitSettings, catalog: Catalog, known: Sequence[Authenticator]) -> Limits:
    loops, fruitless = LoopGuard(settings.loop_rule), Fruitless(settings.fruitless.rate)
    keys = next((each for each in known if isinstance(each, ApiKeys)), None)
    tasks = LiveTasks() if keys is None else LiveTasks(roles_left=keys.roles_left)
    return Limits(settings.bounds, tasks, StopList(), loops, catalog, fruitless=fruitless)


def kept_queue(queue: QueueSettings) -> Queue:
    return Queue(
        QueueRules(
            queue.running, queue.running_per_tenant, queue.waiting, queue.waiting_per_tenant, queue.waiting_per_agent
        )
    )


def patience(queue: QueueSettings) -> Patience:
    return Patience(queue.turn_s, queue.approval_s)


def ceilings(settings: Settings) -> Ceilings:
    """Without a pool nothing makes calls wait their turn: then no more are taken than may hold a sandbox."""
    calls = settings.limits.calls
    if not settings.execution.pool.enabled:
        calls = min(calls, settings.execution.sandboxes)
    return Ceilings(calls, min(calls, settings.limits.calls_per_tenant))


def warm_pool(settings: Settings, catalog: Catalog, engine: AnonymousStarts, telemetry: Telemetry) -> WarmPool:
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

    return WarmPool(engine, bounds, shapes, telemetry.unexpected, warn)


def pool_readings(pool: WarmPool) -> Iterable[Reading]:
    figures = pool.figures()
    yield Reading("gauge", "pool_ready", "Sandboxes that wait for a call", figures.ready, "shape")
    yield Reading("gauge", "pool_starting", "Sandboxes in the making", {"": figures.starting})
    yield Reading("gauge", "pool_held", "Sandboxes that calls hold", {"": figures.held})
    yield Reading("gauge", "pool_waiting", "Calls that wait for a sandbox", {"": figures.waiting})
    claims = {"warm": figures.warm, "waited": figures.waited}
    yield Reading("counter", "pool_claims", "Calls that got a sandbox at once, or had to wait", claims, "how")
    yield Reading("counter", "pool_failed_starts", "Sandboxes that did not start", {"": figures.failed_starts})
    yield Reading("counter", "pool_deaths", "Sandboxes that ended before they had a call", {"": figures.died})


def lane_readings(lanes: Lanes) -> Iterable[Reading]:
    figures = lanes.figures()
    states = {name: getattr(figures, name) for name in ("idle", "busy", "between", "starting", "ending")}
    yield Reading("gauge", "lanes", "Lanes of isolation fork by state", states, "state")
    yield Reading("gauge", "lanes_waiting", "Calls that wait for a lane", {"": figures.waiting})
    claims = {"ready": figures.ready, "waited": figures.waited}
    yield Reading("counter", "lane_claims", "Calls that got a lane at once, or had to wait", claims, "how")
    yield Reading("counter", "lane_failed_starts", "Lanes that did not open", {"": figures.failed_starts})
    yield Reading("counter", "lanes_ended", "Lanes that ended, by cause; died: while idle", figures.ended, "cause")
