"""The one place where configuration enters: a strict YAML file becomes a frozen `Settings` tree.

Unknown keys fail, secrets are only ever file paths, relative paths are relative to the file, and `os.environ`
is read here and nowhere else in the server. Defaults are the safe choice; what has no safe default must be given.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails

from callgate_server.admission.bounds import Bounds, BoundTable
from callgate_server.admission.fruitless import FRUITLESS
from callgate_server.admission.loops import LoopRule
from callgate_server.admission.rates import Rate
from callgate_server.backends.catalog.lock import load_catalog
from callgate_server.backends.catalog.manifests import load_yaml
from callgate_server.backends.json_schema import fits
from callgate_server.execution.breaker import BreakerRules
from callgate_server.model.catalog import Adjustment, Catalog
from callgate_server.model.egress import EgressRule, InternalService, named_host
from callgate_server.model.egress_checks import exposed
from callgate_server.model.identifiers import PRINCIPAL_NAME
from callgate_server.model.manifest import Effect, Isolation, SecretRef
from callgate_server.model.spending import Budget, millionths

# A network of fewer fixed bits is no network of one's own any more.
_WIDEST_PREFIX: Final = 8
# The longest window of a budget: what was spent before it is forgotten.
MAX_WINDOW_H: Final = 24 * 31
_TENANT_AND_AGENT: Final = 2
# Metadata services and every host's own: no service has such an address on purpose.
_LINK_LOCAL: Final = (ip_network("169.254.0.0/16"), ip_network("fe80::/10"))


def _relative_to_file(value: object, info: ValidationInfo) -> object:
    """Resolve a path against the folder of the configuration file, given as validation context."""
    if not isinstance(value, str):
        return value
    folder: Path = info.context["folder"] if info.context else Path()
    return folder / value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _paths(cls, value: object, info: ValidationInfo) -> object:
        """Fields called `…_file`, `directory` or `…_dir` hold paths."""
        name = info.field_name or ""
        if name.endswith(("_file", "_dir")) or name in ("directory", "file", "lock"):
            return _relative_to_file(value, info)
        if name == "directories" and isinstance(value, list):
            return tuple(_relative_to_file(item, info) for item in value)
        return tuple(value) if isinstance(value, list) else value


class Tls(_Strict):
    """A certificate chain and its key, PEM."""

    cert_file: Path
    key_file: Path


class Listen(_Strict):
    """Where an edge listens, `address:port`. Without TLS only loopback is allowed, unless a proxy in front ends TLS."""

    listen: str
    tls: Tls | None = None
    tls_ends_upstream: bool = False

    @field_validator("listen")
    @classmethod
    def _address_and_port(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        try:
            ip_address(host.strip("[]"))
            fits = port.isdigit() and int(port) <= 65535
        except ValueError:
            fits = False
        if not fits:
            raise ValueError("write address:port, like 127.0.0.1:8080")
        return value

    @model_validator(mode="after")
    def _credentials_travel_encrypted(self) -> Self:
        if self.tls is None and not self.tls_ends_upstream and not ip_address(self.host).is_loopback:
            raise ValueError(
                "credentials would travel in clear: give `tls`, listen on loopback, or say `tls_ends_upstream: true`"
            )
        return self

    @property
    def host(self) -> str:
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.listen.rpartition(":")[2])


class Http(Listen):
    listen: str = "127.0.0.1:8080"
    # Host names under which the gateway is reached; empty accepts any (loopback listeners should name theirs).
    allowed_hosts: tuple[str, ...] = ()
    # Browser origins that may call; a request with any other Origin header is refused.
    allowed_origins: tuple[str, ...] = ()


class Grpc(Listen):
    listen: str = "127.0.0.1:9090"
    reflection: bool = False


class Jwt(_Strict):
    """Tokens of an identity provider. Exactly one of `jwks_file` and `jwks_url`."""

    issuer: str
    audience: str
    jwks_file: Path | None = None
    jwks_url: str | None = None
    tenant_claim: str = "tenant"
    agent_claim: str = "sub"
    roles_claim: str = "roles"
    task_claim: str = "task"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.jwks_file is None) == (self.jwks_url is None):
            raise ValueError("give exactly one of `jwks_file` and `jwks_url`")
        return self


class Auth(_Strict):
    api_keys_file: Path | None = None
    jwt: Jwt | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.api_keys_file is None and self.jwt is None:
            raise ValueError("without `api_keys_file` or `jwt` nobody could call; the gateway does not start")
        return self


class PolicySettings(_Strict):
    directory: Path
    reload_s: Annotated[float, Field(gt=0)] = 2.0


class CatalogSettings(_Strict):
    """Folders of images with their tools, and the lock that pins both."""

    directories: tuple[Path, ...]
    lock: Path


class SecretStoreAuth(_Strict):
    token_file: Path | None = None
    role_id_file: Path | None = None
    secret_id_file: Path | None = None

    @model_validator(mode="after")
    def _token_or_approle(self) -> Self:
        approle = self.role_id_file is not None and self.secret_id_file is not None
        half = (self.role_id_file is None) != (self.secret_id_file is None)
        if half or approle == (self.token_file is not None):
            raise ValueError("give either `token_file`, or `role_id_file` and `secret_id_file`")
        return self


class SecretStoreSettings(_Strict):
    """OpenBao or Vault."""

    address: str
    auth: SecretStoreAuth
    ca_file: Path | None = None
    namespace: str | None = None
    timeout_s: Annotated[float, Field(gt=0, le=30)] = 2.0

    @field_validator("address")
    @classmethod
    def _encrypted_or_loopback(cls, value: str) -> str:
        url = urlsplit(value)
        if url.scheme == "https" and url.hostname:
            return value
        if url.scheme == "http" and url.hostname in ("127.0.0.1", "localhost", "::1"):
            return value
        raise ValueError("secrets travel over https, or over http to loopback")


class Engine(_Strict):
    # A socket of this host: requests for sandboxes and their wires go over it as they are.
    socket: Annotated[str, Field(pattern=r"^unix:///")] = "unix:///var/run/docker.sock"
    runtime: str = "runc"
    reap_every_s: Annotated[float, Field(gt=0)] = 30.0


class LaneSettings(_Strict):
    """Isolation `fork`: how many lanes there may be, and how long each lives. `per_tool` 0 means one for each core.

    A lane holds its place and its memory from its start until it is gone, whether it serves a call or waits for one:
    `most` and `memory_mb` bound all of them, by their tools' limits. `waiting` calls may wait for one, of one tenant
    half of them.
    """

    calls: Annotated[int, Field(ge=1, le=100_000)] = 500
    idle_s: Annotated[int, Field(ge=1, le=86_400)] = 300
    most: Annotated[int, Field(ge=1, le=1024)] = 16
    memory_mb: Annotated[int, Field(ge=64)] = 4096
    per_tool: Annotated[int, Field(ge=0, le=256)] = 0
    waiting: Annotated[int, Field(ge=0, le=10_000)] = 128


class PoolSettings(_Strict):
    """Sandboxes started ahead of the calls that use them: each serves one call and is destroyed.

    Of each shape (image, runtime and limits) there are as many as calls came in the busiest second of the last
    `idle_s`, at most `per_shape`; and `spare` of each shape of the catalog without any call. All of them together
    stay within `memory_mb` and `cpus`, counted by their tools' limits. Where it is off, every call starts its own,
    named and labelled after the call, and a full gateway refuses instead of letting calls wait.
    """

    enabled: bool = True
    per_shape: Annotated[int, Field(ge=1, le=256)] = 4
    spare: Annotated[int, Field(ge=0, le=256)] = 1
    memory_mb: Annotated[int, Field(ge=0)] = 3072
    cpus: Annotated[float, Field(ge=0)] = 12
    refill_concurrency: Annotated[int, Field(ge=1, le=64)] = 1
    idle_s: Annotated[float, Field(gt=0, le=86_400)] = 300.0


class ExecutionSettings(_Strict):
    """How many containers calls may hold at once, and how many may be in the making. Calls beyond wait their turn.

    What the pool keeps ready and lanes are beside these, each within bounds of its own: together there are at most
    `sandboxes` containers of calls, those that are ready within `pool.memory_mb`, and `lanes.most` lanes. `starts`
    holds for containers and for lanes, each for itself.
    """

    sandboxes: Annotated[int, Field(ge=1)] = 32
    starts: Annotated[int, Field(ge=1, le=64)] = 4
    pool: PoolSettings = PoolSettings()
    lanes: LaneSettings = LaneSettings()


class BreakerSettings(_Strict):
    """When circuit breakers of one kind open and close. Rates are shares of the last `window` calls.

    Without `slow_s` no call counts as slow.
    """

    window: Annotated[int, Field(ge=1, le=1000)] = 20
    min_calls: Annotated[int, Field(ge=1, le=1000)] = 5
    failure_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    slow_s: Annotated[float, Field(gt=0, le=3600)] | None = None
    slow_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    open_s: Annotated[float, Field(gt=0, le=3600)] = 15.0
    probes: Annotated[int, Field(ge=1, le=100)] = 2

    @model_validator(mode="after")
    def _can_open(self) -> Self:
        if self.min_calls > self.window:
            raise ValueError("`min_calls` is more than `window` holds: the breaker would never open")
        return self

    @property
    def rules(self) -> BreakerRules:
        slow_s = math.inf if self.slow_s is None else self.slow_s
        return BreakerRules(
            self.window, self.min_calls, self.failure_rate, slow_s, self.slow_rate, self.open_s, self.probes
        )


class EngineBreakerSettings(BreakerSettings):
    """Sooner back: every call needs the engine, and asking it costs nobody anything."""

    open_s: Annotated[float, Field(gt=0, le=3600)] = 5.0


class ToolBreakerSettings(BreakerSettings):
    """More calls are looked at: what a tool makes of its arguments is not always its own doing."""

    min_calls: Annotated[int, Field(ge=1, le=1000)] = 10


class BreakersSettings(_Strict):
    """Circuit breakers: for the engine, for the secret store, for each tool and each upstream of a tenant."""

    engine: EngineBreakerSettings = EngineBreakerSettings()
    secrets: BreakerSettings = BreakerSettings()
    tool: ToolBreakerSettings = ToolBreakerSettings()
    upstream: BreakerSettings = BreakerSettings()


class InternalHost(_Strict):
    """A host of the operator's own: `networks` are those in which its addresses may lie, which are refused otherwise.

    Without `port`, any port.
    """

    host: str
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    networks: Annotated[tuple[IPv4Network | IPv6Network, ...], Field(min_length=1)]

    @field_validator("host")
    @classmethod
    def _one_host(cls, value: str) -> str:
        return named_host(value)

    @field_validator("networks", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        if not isinstance(value, list | tuple):
            return value
        try:
            return tuple(ip_network(network) for network in value)
        except ValueError:
            raise ValueError("write networks like 10.1.0.0/16, with no bit set behind the prefix") from None

    @field_validator("networks")
    @classmethod
    def _own_networks(cls, value: tuple[IPv4Network | IPv6Network, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
        for network in value:
            if network.prefixlen < _WIDEST_PREFIX:
                raise ValueError(f"a network of fewer than {_WIDEST_PREFIX} bits is everybody's; name your own")
            if any(network.version == other.version and network.overlaps(other) for other in _LINK_LOCAL):
                raise ValueError("link-local addresses cannot be allowed: metadata services live there")
        return value


class EgressSettings(_Strict):
    """The one way out. `authority_dir` keeps the gate's own certificate authority, made at the first start.

    `ca_file` holds roots to trust for upstreams beside the system's.
    """

    authority_dir: Path
    ca_file: Path | None = None
    internal: tuple[InternalHost, ...] = ()
    dns_timeout_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    connect_timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0
    idle_s: Annotated[float, Field(gt=0, le=3600)] = 60.0

    @property
    def services(self) -> tuple[InternalService, ...]:
        return tuple(InternalService(host.host, host.port, host.networks) for host in self.internal)


class ToolSettings(_Strict):
    """What the operator decides for one tool, over its manifest.

    `egress` and `secrets` are for a manifest that says `egress: configured`. A tool that runs any program has the
    `effect` of what it may reach. `fixed` gives arguments that callers cannot give any more.
    """

    isolation: Isolation | None = None
    effect: Effect | None = None
    egress: tuple[EgressRule, ...] | None = None
    secrets: tuple[SecretRef, ...] = ()
    fixed: dict[str, Any] = {}

    @property
    def adjustment(self) -> Adjustment:
        return Adjustment(self.isolation, self.effect, self.egress, self.secrets, self.fixed)


class LedgerSettings(_Strict):
    """`keep_h`: how long an answer is kept from its call's end, and the idempotency key that gives it again.

    `dead_letters_h`: how long a dead letter waits for somebody, but for one whose effect is unknown, which waits on.
    """

    file: Path
    key_file: Path
    keep_h: Annotated[float, Field(ge=24, le=24 * 366)] = 72.0
    dead_letters_h: Annotated[float, Field(ge=24, le=24 * 3660)] = 720.0


class RateSettings(_Strict):
    """`calls` in `per_s` seconds. They may come at once, and then one by one."""

    calls: Annotated[int, Field(ge=1, le=1_000_000)]
    per_s: Annotated[float, Field(gt=0, le=86_400)]

    @property
    def rate(self) -> Rate:
        return Rate(self.calls, self.per_s)


class BudgetSettings(_Strict):
    """What may be spent in a window of `window_h` hours, counted from the epoch: 24 are a day in UTC.

    Calls and cost (`cost` of the manifests) are exact; processor time and egress are counted when a call has ended, so
    that calls which run at once may go over these.
    """

    window_h: Annotated[int, Field(ge=1, le=MAX_WINDOW_H)] = 24
    calls: Annotated[int, Field(ge=0)] | None = None
    cpu_s: Annotated[float, Field(ge=0, le=1e9)] | None = None
    egress_mb: Annotated[float, Field(ge=0, le=1e9)] | None = None
    cost: Annotated[float, Field(ge=0, le=1e9)] | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.calls is self.cpu_s is self.egress_mb is self.cost is None:
            raise ValueError("a budget bounds at least one of `calls`, `cpu_s`, `egress_mb` and `cost`")
        return self

    @property
    def budget(self) -> Budget:
        return Budget(
            self.calls,
            None if self.cpu_s is None else millionths(self.cpu_s),
            None if self.egress_mb is None else round(self.egress_mb * 1024 * 1024),
            None if self.cost is None else millionths(self.cost),
            self.window_h,
        )


class TaskBoundSettings(_Strict):
    """Bounds of each task, beside the budget that it was made with."""

    rate: RateSettings | None = None
    concurrent: Annotated[int, Field(ge=1)] | None = None

    @property
    def bounds(self) -> Bounds:
        return Bounds(None if self.rate is None else self.rate.rate, self.concurrent)


class BoundSettings(TaskBoundSettings):
    """Bounds of a tenant or an agent. What is left out is not bounded by itself."""

    budget: BudgetSettings | None = None

    @property
    def bounds(self) -> Bounds:
        return replace(super().bounds, budget=None if self.budget is None else self.budget.budget)


class LoopSettings(_Strict):
    """The same call of an agent, with the same arguments, is stopped after so many failures within so many seconds."""

    failures: Annotated[int, Field(ge=1, le=1000)] = 5
    within_s: Annotated[float, Field(gt=0, le=86_400)] = 300.0


class LimitSettings(_Strict):
    """The server's ceilings. What a caller or a manifest asks for is cut to these.

    `per_tenant`, `per_agent` and `per_task` hold for each; `tenants` and `agents` (`tenant/agent`) say otherwise for
    some by name, as far as they say something. `tasks_per_agent` may be alive at once. Of each agent's requests that
    are refused or repeat a call, so many as `fruitless` says are recorded each; beyond them all it asks for is refused.

    `concurrent_requests` may be open at each edge. Of one agent `requests_per_agent` may be at both together, half of
    an edge's where it is left out, and `streams_per_agent` of these event streams, a quarter where that is left out.
    """

    calls: Annotated[int, Field(ge=1)] = 256
    calls_per_tenant: Annotated[int, Field(ge=1)] = 128
    deadline_s: Annotated[float, Field(gt=0)] = 300.0
    body_kb: Annotated[int, Field(ge=1, le=65536)] = 1024
    concurrent_requests: Annotated[int, Field(ge=1)] = 256
    requests_per_agent: Annotated[int, Field(ge=1)] | None = None
    streams_per_agent: Annotated[int, Field(ge=1)] | None = None
    receive_s: Annotated[float, Field(gt=0)] = 15.0
    drain_s: Annotated[float, Field(ge=0)] = 20.0
    per_tenant: BoundSettings = BoundSettings()
    per_agent: BoundSettings = BoundSettings()
    per_task: TaskBoundSettings = TaskBoundSettings()
    tenants: dict[str, BoundSettings] = {}
    agents: dict[str, BoundSettings] = {}
    loop: LoopSettings | None = None
    tasks_per_agent: Annotated[int, Field(ge=0, le=10_000)] = 64
    fruitless: RateSettings = RateSettings(calls=FRUITLESS.calls, per_s=FRUITLESS.per_s)

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        requests = self.requests_per_agent
        if requests is not None and self.streams_per_agent is not None and self.streams_per_agent > requests:
            raise ValueError("`streams_per_agent` is more than `requests_per_agent`, of which they are a part")
        if requests is not None and requests > 2 * self.concurrent_requests:
            raise ValueError("`requests_per_agent` is more than both edges have places: see `concurrent_requests`")
        return self

    @model_validator(mode="after")
    def _names_can_exist(self) -> Self:
        for name in self.tenants:
            if not PRINCIPAL_NAME.fullmatch(name):
                raise ValueError(f"tenants: no tenant can be called {name}")
        for name in self.agents:
            parts = name.split("/")
            if len(parts) != _TENANT_AND_AGENT or not all(map(PRINCIPAL_NAME.fullmatch, parts)):
                raise ValueError(f"agents: write tenant/agent, like acme/bot, and not {name}")
        return self

    @property
    def bounds(self) -> BoundTable:
        return BoundTable(
            self.per_tenant.bounds,
            self.per_agent.bounds,
            self.per_task.bounds,
            {name: settings.bounds for name, settings in self.tenants.items()},
            {name: settings.bounds for name, settings in self.agents.items()},
        )

    @property
    def loop_rule(self) -> LoopRule | None:
        return None if self.loop is None else LoopRule(self.loop.failures, self.loop.within_s)


class QueueSettings(_Strict):
    """Calls that the gateway carries on by itself: asynchronous ones, and those that wait for an approval.

    `running` of them run at once, beside the calls that somebody waits for; `waiting` are kept, of which one tenant and
    one agent may have their shares. `turn_s` and `approval_s` are how long they wait.
    """

    running: Annotated[int, Field(ge=1, le=1024)] = 8
    running_per_tenant: Annotated[int, Field(ge=1, le=1024)] = 4
    waiting: Annotated[int, Field(ge=1, le=100_000)] = 2000
    waiting_per_tenant: Annotated[int, Field(ge=1, le=100_000)] = 1000
    waiting_per_agent: Annotated[int, Field(ge=1, le=100_000)] = 250
    turn_s: Annotated[float, Field(gt=0, le=30 * 86_400)] = 3600.0
    approval_s: Annotated[float, Field(gt=0, le=30 * 86_400)] = 86_400.0


class Log(_Strict):
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(_Strict):
    instance: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")] = "default"
    http: Http | None = Http()
    grpc: Grpc | None = Grpc()
    auth: Auth
    policy: PolicySettings
    catalog: CatalogSettings
    secrets: SecretStoreSettings | None = None
    engine: Engine = Engine()
    execution: ExecutionSettings = ExecutionSettings()
    breakers: BreakersSettings = BreakersSettings()
    egress: EgressSettings | None = None
    tools: dict[str, ToolSettings] = {}
    ledger: LedgerSettings
    limits: LimitSettings = LimitSettings()
    queue: QueueSettings = QueueSettings()
    log: Log = Log()

    @model_validator(mode="after")
    def _some_edge(self) -> Self:
        if self.http is None and self.grpc is None:
            raise ValueError("both `http` and `grpc` are off: nobody could call")
        return self

    @property
    def internal_services(self) -> tuple[InternalService, ...]:
        return () if self.egress is None else self.egress.services


def deployed_catalog(settings: Settings) -> Catalog:
    """The locked catalog with this configuration's own decisions: what the gateway serves and policy is checked with.

    Raises:
        ValueError: it is not acceptable, or the configuration does not fit it; says what to change.
        OSError: a file cannot be read.
    """
    return as_decided(settings, load_catalog(settings.catalog.directories, settings.catalog.lock))


def as_decided(settings: Settings, locked: Catalog) -> Catalog:
    """A catalog with this configuration's own decisions.

    Raises:
        ValueError: the configuration does not fit it; says what to change.
    """
    catalog = locked.adjusted({name: tool.adjustment for name, tool in settings.tools.items()})
    for name, decided in settings.tools.items():
        for argument, value in decided.fixed.items():
            if not fits(locked.tools[name].manifest.input["properties"][argument], value):
                raise ValueError(f"tools.{name}.fixed.{argument}: does not fit what the tool's manifest says of it")
    for tool in catalog:
        if tool.manifest.rules and settings.egress is None:
            raise ValueError(
                f"{tool.name} may reach {tool.manifest.rules[0].destination}, and the configuration says nothing of "
                "egress: add a section `egress: {authority_dir: egress}`, or take the tool out of the catalog"
            )
        for fault in exposed(tool.manifest.rules, settings.internal_services):
            raise ValueError(f"tools.{tool.name}.{'.'.join(map(str, fault.at))}: {fault.text}")
    return catalog


def load(path: Path) -> Settings:
    """Read a configuration file.

    Raises:
        ValueError: the file is missing, not YAML, has unknown or repeated keys, or does not fit; the text
            names the file and each key with what is wrong and never shows a value.
    """
    try:
        document = load_yaml(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    return settings_from(document, folder=path.parent, name=str(path))


def settings_from(document: Any, *, folder: Path, name: str) -> Settings:  # noqa: ANN401  # it is what validates
    """Validate a decoded document; relative paths in it are relative to `folder`.

    Raises:
        ValueError: as for `load`.
    """
    if not isinstance(document, dict):
        what = "is empty" if document is None else "is no configuration"
        raise ValueError(f"{name} {what}: write at least the sections `auth`, `policy`, `catalog` and `ledger`")
    try:
        return Settings.model_validate(document, context={"folder": folder.absolute()})
    except ValidationError as error:
        faults = "\n".join(f"  {'.'.join(map(str, e['loc'])) or '(file)'}: {_said(e)}" for e in error.errors())
        raise ValueError(f"{name} is not a valid configuration:\n{faults}") from None


def _said(fault: ErrorDetails) -> str:
    """What is wrong with a key; for one that is not known, the name that was probably meant."""
    if fault["type"] != "extra_forbidden":
        return fault["msg"].removeprefix("Value error, ")
    *path, key = map(str, fault["loc"])
    near = get_close_matches(key, _settings_at(path), 1)
    return f"no such setting; did you mean `{near[0]}`?" if near else "no such setting"


def _settings_at(path: Sequence[str]) -> list[str]:
    """The names of settings at a place. Steps that are no settings are keys and indices, and lead no deeper."""
    model: type[BaseModel] = Settings
    for step in path:
        if step in model.model_fields:
            model = _model_in(model.model_fields[step].annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def environment() -> dict[str, str]:
    """The few variables that a child process of ours (the development secret store) may see."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ") if name in os.environ}
