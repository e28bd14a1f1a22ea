"""What a tool may reach, as declared, and what it asks for when it tries. Decides nothing: `execution/egress.py` does.

A declaration is refused when it says more than its author can have meant (a wildcard over half the world, a path
with dots) or less than the gate needs to know. What must hold between the rules of one tool and its secrets is in
`egress_checks.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Annotated, Final, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from callgate_server.model.identifiers import SECRET_NAME
from callgate_server.model.sealed import Sealed

Scheme = Literal["https", "http", "tcp"]
DEFAULT_PORTS: Final[dict[str, int]] = {"https": 443, "http": 80}
# Where the runner listens for HTTP clients.
PROXY_PORT: Final = 3128
# Below it only root can listen, and nobody in a sandbox is root.
FIRST_LOCAL_PORT: Final = 1024

_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*")
# At least two labels follow the star: `*.com` would be half the world.
_WILDCARD: Final = re.compile(rf"\*\.{_LABEL}(\.{_LABEL})+")
# What resolvers take for an address in one of its older spellings.
_NUMERIC: Final = re.compile(r"(.*\.)?(0x[0-9a-f]*|[0-9]+)")
_METHOD: Final = re.compile(r"[A-Z]{1,20}")
# A tunnel inside a request, and a request that sends back what the gate added to it.
_REFUSED_METHODS: Final = frozenset({"CONNECT", "TRACE"})
# Segments of unreserved characters; a star stands for one segment, or at the end for any rest.
_PATH: Final = re.compile(r"/[A-Za-z0-9._~/*-]{0,511}")
# Under these anybody can have a name: countries' registries, and hosts of many.
_REGISTRY_LABELS: Final = frozenset({"ac", "co", "com", "edu", "gov", "go", "ne", "net", "or", "org"})
_SHARED_DOMAINS: Final = frozenset(
    (
        *("amazonaws.com", "appspot.com", "azurewebsites.net", "blogspot.com", "cloudfront.net", "firebaseapp.com"),
        *("github.io", "gitlab.io", "herokuapp.com", "netlify.app", "ngrok.io", "onrender.com", "pages.dev"),
        *("vercel.app", "web.app", "workers.dev"),
    )
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a declaration: where, as its keys and indices, and what to change."""

    at: tuple[str | int, ...]
    text: str


def refuse(model: str, faults: Sequence[Fault]) -> NoReturn:
    """Raise what a validator of `model` raises when each fault is to be shown at its own key."""
    details = [
        InitErrorDetails(
            type=PydanticCustomError("declaration", "{text}", {"text": fault.text}), loc=fault.at, input=None
        )
        for fault in faults
    ]
    raise ValidationError.from_exception_data(model, details)


def named_host(value: str) -> str:
    """Return an exact host name, or an IPv4 address in its one usual spelling.

    Raises:
        ValueError: it is neither; says what to write.
    """
    if not _HOST.fullmatch(value) or len(value) > 253:
        raise ValueError("write a host as its name alone and in lower case, like api.example.com: no port, no path")
    if _NUMERIC.fullmatch(value):
        try:
            ip_address(value)
        except ValueError:
            raise ValueError("write an address as four decimal numbers, like 192.0.2.7") from None
    return value


class EgressRule(BaseModel):
    """One destination that a tool may reach, and under which conditions.

    `host` is an exact name, or `*.` and at least two labels. `methods` and `paths` are conditions on each request;
    empty means any. `secret` names the `deliver: egress` secret that the gate adds to every request this rule
    allows. A `tcp` rule opens `local_port` on 127.0.0.1 of the sandbox (default: `port`). The validated rule has
    its ports filled in.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    host: Annotated[str, Field(max_length=255)]
    scheme: Scheme = "https"
    port: Annotated[int, Field(ge=1, le=65535)] = 0
    methods: Annotated[tuple[str, ...], Field(max_length=16)] = ()
    paths: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    secret: str | None = None
    local_port: Annotated[int, Field(ge=FIRST_LOCAL_PORT, le=65535)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _usual_ports(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        filled = dict(value)
        scheme, port = value.get("scheme", "https"), value.get("port")
        if "port" not in value and scheme in DEFAULT_PORTS:
            filled["port"] = DEFAULT_PORTS[scheme]
        if scheme == "tcp" and value.get("local_port") is None and isinstance(port, int) and port >= FIRST_LOCAL_PORT:
            filled["local_port"] = port
        return filled

    @field_validator("methods", "paths", mode="before")
    @classmethod
    def _list_to_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("host")
    @classmethod
    def _host_is_exact_or_narrow(cls, value: str) -> str:
        if "*" not in value:
            return named_host(value)
        if not _WILDCARD.fullmatch(value) or len(value) > 253 or _NUMERIC.fullmatch(value):
            raise ValueError("a wildcard is `*.` and at least two labels, like *.api.example.com; narrow it")
        labels = value.split(".")[1:]
        registry = len(labels) == 2 and len(labels[1]) == 2 and labels[0] in _REGISTRY_LABELS
        if registry or ".".join(labels) in _SHARED_DOMAINS:
            raise ValueError("anybody can have a name under this wildcard; narrow it, or name the hosts")
        return value

    @field_validator("methods")
    @classmethod
    def _methods_are_plain(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for method in value:
            if not _METHOD.fullmatch(method) or method in _REFUSED_METHODS:
                raise ValueError("write methods in capitals, like GET; CONNECT and TRACE cannot be allowed")
        return value

    @field_validator("paths")
    @classmethod
    def _paths_are_plain(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for path in value:
            if not _PATH.fullmatch(path):
                raise ValueError(
                    "a path begins with / and has letters, digits and . _ ~ - *, no query; percent is decoded"
                )
            segments = path.split("/")[1:]
            if any(segment in (".", "..") for segment in segments) or "" in segments[:-1]:
                raise ValueError("a path has no empty segments, and none that are dots; write where it leads")
            if any("*" in segment and segment != "*" for segment in segments):
                raise ValueError("a star in a path stands for a whole segment, like /v1/*/items or /v1/*")
        return value

    @field_validator("secret")
    @classmethod
    def _secret_is_named(cls, value: str | None) -> str | None:
        if value is not None and not SECRET_NAME.fullmatch(value):
            raise ValueError("`secret` is the name of one of the tool's `secrets`, never the secret itself")
        return value

    @model_validator(mode="after")
    def _scheme_has_what_it_needs(self) -> Self:
        faults = list(_tcp_faults(self) if self.scheme == "tcp" else _http_faults(self))
        if faults:
            refuse("EgressRule", faults)
        return self

    @property
    def wildcard(self) -> bool:
        return self.host.startswith("*.")

    @property
    def destination(self) -> str:
        """The rule's name in the record and in messages."""
        return f"{self.host}:{self.port}"


def _tcp_faults(rule: EgressRule) -> list[Fault]:
    faults = []
    if rule.wildcard:
        faults.append(Fault(("host",), "a tcp rule leads to one host; write its name in full"))
    if rule.port == 0:
        faults.append(Fault(("port",), "a tcp rule needs its `port`"))
    elif rule.local_port is None:
        text = f"no sandbox can listen on port {rule.port}: give a `local_port` of {FIRST_LOCAL_PORT} or more"
        faults.append(Fault(("port",), text))
    if rule.local_port == PROXY_PORT:
        faults.append(Fault(("local_port",), f"{PROXY_PORT} is the port of the HTTP proxy; give another `local_port`"))
    blind = [key for key in ("methods", "paths", "secret") if getattr(rule, key)]
    return faults + [Fault((key,), f"the gate sees no requests on a tcp connection; remove `{key}`") for key in blind]


def _http_faults(rule: EgressRule) -> list[Fault]:
    if rule.local_port is None:
        return []
    return [Fault(("local_port",), "HTTP goes through the proxy's port; `local_port` is for `scheme: tcp`")]


@dataclass(frozen=True, slots=True)
class InternalService:
    """A host whose addresses may lie in `networks`, which are otherwise refused. `port` None means any."""

    host: str
    port: int | None
    networks: tuple[IPv4Network | IPv6Network, ...]

    def covers(self, host: str, port: int) -> bool:
        return self.host == host and self.port in (None, port)


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret as the gate adds it: `header: prefix + value`, replacing whatever the tool put there."""

    name: str
    header: str
    prefix: str
    value: Sealed


@dataclass(frozen=True, slots=True)
class EgressAsk:
    """What a tool asks for. `host` is normalised (lower case, no final dot); a literal address stands as itself.

    `method` and `path` are None where the gate does not see a request: in a tunnel and for `tcp`. `path` is the
    decoded, normalised path without its query.
    """

    scheme: Scheme
    host: str
    port: int
    method: str | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class EgressUsage:
    """What one call's connections added up to."""

    connections: int = 0
    refused: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0

    @property
    def bytes(self) -> int:
        return self.sent_bytes + self.received_bytes
