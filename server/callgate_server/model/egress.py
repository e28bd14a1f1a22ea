"""What a tool may reach, as declared, and what it asks for when it tries. Decides nothing: `execution/egress.py` does."""

import re
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from callgate_server.model.identifiers import SECRET_NAME

Scheme = Literal["https", "http", "tcp"]
DEFAULT_PORTS: Final[dict[Scheme, int]] = {"https": 443, "http": 80}
# Where the runner listens for HTTP clients.
PROXY_PORT: Final = 3128

_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_HOST: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*")
# At least two labels follow the star: `*.com` would be half the world.
_WILDCARD: Final = re.compile(rf"\*\.{_LABEL}(\.{_LABEL})+")
_METHOD: Final = re.compile(r"[A-Z]{1,20}")
# Segments of unreserved characters; a star stands for one segment, or at the end for any rest.
_PATH: Final = re.compile(r"/[A-Za-z0-9._~/*-]*")


class EgressRule(BaseModel):
    """One destination that a tool may reach, and under which conditions.

    `host` is an exact name, or `*.` and at least two labels. `methods` and `paths` are conditions on each request;
    empty means any. `secret` names the `deliver: egress` secret that the gate adds to every request this rule
    allows. A `tcp` rule opens `local_port` on 127.0.0.1 of the sandbox (default: `port`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    host: Annotated[str, Field(max_length=253)]
    scheme: Scheme = "https"
    port: Annotated[int, Field(ge=1, le=65535)] = 0
    methods: Annotated[tuple[str, ...], Field(max_length=16)] = ()
    paths: Annotated[tuple[str, ...], Field(max_length=64)] = ()
    secret: str | None = None
    local_port: Annotated[int, Field(ge=1024, le=65535)] | None = None


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
