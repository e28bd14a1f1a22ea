"""The one place where configuration enters: a strict YAML file becomes a frozen `Settings` tree.

Unknown keys fail, secrets are only ever file paths, relative paths are relative to the file, and `os.environ`
is read here and nowhere else in the server. Defaults are the safe choice; what has no safe default must be given.
"""

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from callgate_server.backends.catalog.manifests import load_yaml
from callgate_server.model.manifest import Isolation


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
        ip_address(host.strip("[]"))
        if not port.isdigit() or int(port) > 65535:
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
    socket: str = "unix:///var/run/docker.sock"
    runtime: str = "runc"
    reap_every_s: Annotated[float, Field(gt=0)] = 30.0


class LaneSettings(_Strict):
    """Isolation `fork`: how many lanes there may be, and how long each lives. `per_tool` 0 means one for each core.

    A lane holds its place and its memory from its start until it is gone, whether it serves a call or waits for one:
    `most` and `memory_mb` bound all of them, by their tools' limits. `waiting` calls may wait for one.
    """

    calls: Annotated[int, Field(ge=1, le=100_000)] = 500
    idle_s: Annotated[int, Field(ge=1, le=86_400)] = 300
    most: Annotated[int, Field(ge=1, le=1024)] = 16
    memory_mb: Annotated[int, Field(ge=64)] = 4096
    per_tool: Annotated[int, Field(ge=0, le=256)] = 0
    waiting: Annotated[int, Field(ge=0, le=10_000)] = 64


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


class ToolSettings(_Strict):
    """What the operator decides for one tool, over its manifest."""

    isolation: Isolation


class LedgerSettings(_Strict):
    file: Path
    key_file: Path


class LimitSettings(_Strict):
    """The server's ceilings. What a caller or a manifest asks for is cut to these."""

    calls: Annotated[int, Field(ge=1)] = 256
    calls_per_tenant: Annotated[int, Field(ge=1)] = 128
    deadline_s: Annotated[float, Field(gt=0)] = 300.0
    body_kb: Annotated[int, Field(ge=1, le=65536)] = 1024
    concurrent_requests: Annotated[int, Field(ge=1)] = 256
    receive_s: Annotated[float, Field(gt=0)] = 15.0
    drain_s: Annotated[float, Field(ge=0)] = 20.0


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
    tools: dict[str, ToolSettings] = {}
    ledger: LedgerSettings
    limits: LimitSettings = LimitSettings()
    log: Log = Log()

    @model_validator(mode="after")
    def _some_edge(self) -> Self:
        if self.http is None and self.grpc is None:
            raise ValueError("both `http` and `grpc` are off: nobody could call")
        return self


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
    try:
        return Settings.model_validate(document, context={"folder": folder.absolute()})
    except ValidationError as error:
        faults = "\n".join(f"  {'.'.join(map(str, e['loc'])) or '(file)'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{name} is not a valid configuration:\n{faults}") from None


def environment() -> dict[str, str]:
    """The few variables that a child process of ours (the development secret store) may see."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ") if name in os.environ}
