"""A tool's declaration. Strict: an unknown key is an error, and nothing has a default that weakens safety."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from callgate_server.model.egress import EgressRule, Fault, refuse
from callgate_server.model.egress_checks import rule_faults
from callgate_server.model.identifiers import SECRET_NAME, TOOL_NAME

JsonSchema = dict[str, Any]
# A container for each call, or a lane: a fork in fresh namespaces inside a container that serves one call at a time.
Isolation = Literal["container", "fork"]
# What running it twice would do, mildest first.
Effect = Literal["read", "idempotent", "unsafe"]
_SECRET_FROM = re.compile(r"(?P<path>[A-Za-z0-9_{}-]+(/[A-Za-z0-9_{}-]+)+)#(?P<field>[A-Za-z0-9_-]+)")
_PLACEHOLDER = "{tenant}"
_HEADER = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_PREFIX = re.compile(r"[!-~]{1,32} ?|")
# Headers that say where a request ends, which way it goes, or how its content is to be read: never a secret's place.
_REFUSED_HEADERS: Final = frozenset(
    (
        *("accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect"),
        *("forwarded", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "via"),
    )
)
_REFUSED_HEADER_FAMILIES: Final = ("proxy-", "x-forwarded-", "sec-", "access-control-")
# Parts of the places that validation reports, which stand for the two ways to write `egress` and for no key.
EGRESS_FORMS: Final = ("<rules>", "<configured>")


def _form_of_egress(value: object) -> str:
    return EGRESS_FORMS[isinstance(value, str)]


# Rules, or the word that leaves them to the gateway's configuration.
Egress = Annotated[
    Annotated[tuple[EgressRule, ...], Field(max_length=64), Tag(EGRESS_FORMS[0])]
    | Annotated[Literal["configured"], Tag(EGRESS_FORMS[1])],
    Discriminator(_form_of_egress),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Run(_Strict):
    """How the tool starts: a typed Python function of the image, or a command with its own argv.

    A command reads its arguments as JSON on standard input. Its result is what it writes to the result
    descriptor, or to standard output where `result: stdout` says so.
    """

    python: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*:[a-z][a-z0-9_]*$")] | None = None
    command: Annotated[tuple[str, ...], Field(max_length=256)] | None = None
    result: Literal["descriptor", "stdout"] = "descriptor"

    @field_validator("command", mode="before")
    @classmethod
    def _list_to_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.python is None) == (self.command is None):
            raise ValueError("give exactly one of `python` and `command`")
        if self.python is not None and self.result != "descriptor":
            raise ValueError("`result: stdout` is for a `command`; a Python function's result is what it returns")
        if self.command is not None:
            program = self.command[0] if self.command else ""
            path = PurePosixPath(program)
            if (
                not path.is_absolute()
                or not path.name
                or ".." in path.parts
                or path.parts[1:2] in (("proc",), ("dev",), ("sys",))
            ):
                raise ValueError("the program of `command` must be an absolute path outside /proc, /dev and /sys")
            if any("\0" in word or any("\ud800" <= char <= "\udfff" for char in word) for word in self.command):
                raise ValueError("`command` has a character that no argument can have")
        return self


class Limits(_Strict):
    """Ceilings of one call. Seconds of wall time, cores, MiB, processes, KiB kept of each output stream."""

    wall_s: Annotated[float, Field(gt=0, le=3600)] = 30
    cpu: Annotated[float, Field(gt=0, le=64)] = 1
    memory_mb: Annotated[int, Field(ge=32, le=65536)] = 256
    pids: Annotated[int, Field(ge=8, le=4096)] = 64
    output_kb: Annotated[int, Field(ge=1, le=16384)] = 256
    result_kb: Annotated[int, Field(ge=1, le=4096)] = 256
    scratch_mb: Annotated[int, Field(ge=1, le=4096)] = 64
    scratch_files: Annotated[int, Field(ge=16, le=1_000_000)] = 4096
    open_files: Annotated[int, Field(ge=16, le=65536)] = 256
    artifacts: Annotated[int, Field(ge=0, le=1000)] = 0
    artifacts_kb: Annotated[int, Field(ge=0, le=65536)] = 4096
    # Of all connections to the outside: bytes both ways, connections, and requests that the gate sees.
    egress_kb: Annotated[int, Field(ge=1, le=4_194_304)] = 16384
    egress_connections: Annotated[int, Field(ge=1, le=4096)] = 64
    egress_requests: Annotated[int, Field(ge=1, le=100_000)] = 256


class SecretRef(_Strict):
    """A secret by name, where it comes from (`path#field` of the secret store) and how the tool gets it.

    `{tenant}` in the path stands for the caller's tenant; no other placeholder exists.

    `deliver: egress` never enters the sandbox: the gate writes `header: prefix + value` into the requests of the
    rules that name the secret. `encode: basic` writes base64 of a value `user:password`. The prefix is by default
    `Bearer ` or `Basic ` in `Authorization`, and nothing in any other header.
    """

    name: str
    from_: Annotated[str, Field(alias="from")]
    deliver: Literal["file", "stdin", "egress"]
    header: str | None = None
    prefix: str | None = None
    encode: Literal["basic"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _usual_header(cls, value: object) -> object:
        if not isinstance(value, dict) or value.get("deliver") != "egress":
            return value
        header = "Authorization" if value.get("header") is None else value["header"]
        prefix = value.get("prefix")
        if prefix is None:
            usual = "Bearer " if value.get("encode") is None else "Basic "
            prefix = usual if str(header).lower() == "authorization" else ""
        return {**value, "header": header, "prefix": prefix}

    @field_validator("header")
    @classmethod
    def _header_is_only_the_secrets(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not _HEADER.fullmatch(value):
            raise ValueError("`header` is one header's name, like X-Api-Key")
        if value.lower() in _REFUSED_HEADERS or value.lower().startswith(_REFUSED_HEADER_FAMILIES):
            raise ValueError("this header decides how a request is read or where it goes; choose another `header`")
        return value

    @field_validator("prefix")
    @classmethod
    def _prefix_is_plain(cls, value: str | None) -> str | None:
        if value is not None and not _PREFIX.fullmatch(value):
            raise ValueError('`prefix` is one printable word, and a space where one belongs, like "Token "')
        return value

    @model_validator(mode="after")
    def _header_needs_egress(self) -> Self:
        given = [key for key in ("header", "prefix", "encode") if getattr(self, key) is not None]
        if self.deliver != "egress" and given:
            refuse("SecretRef", [Fault((given[0],), f"`{given[0]}` is for `deliver: egress`; remove it")])
        return self

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, value: str) -> str:
        if not SECRET_NAME.fullmatch(value):
            raise ValueError("a secret's name must match [a-z][a-z0-9_]{0,62}")
        return value

    @field_validator("from_")
    @classmethod
    def _path_and_field(cls, value: str) -> str:
        if not _SECRET_FROM.fullmatch(value):
            raise ValueError("`from` must look like kv/data/{tenant}/name#field")
        # A brace left over is a misspelt placeholder: taken as it stands, all tenants would share one path.
        if set("{}") & set(value.replace(_PLACEHOLDER, "")):
            raise ValueError("the only placeholder of `from` is {tenant}")
        return value

    @property
    def field(self) -> str:
        return self.from_.rpartition("#")[2]

    def path(self, tenant: str) -> str:
        return self.from_.rpartition("#")[0].replace(_PLACEHOLDER, tenant)


class Retry(_Strict):
    """How often a call is attempted, the first time included, and how long after the first failure (then longer).

    Only what failed in a way that another attempt can mend is tried again, and only where the tool's effect allows it.
    """

    attempts: Annotated[int, Field(ge=1, le=5)] = 1
    backoff_s: Annotated[float, Field(ge=0.01, le=60)] = 0.2


class Fallback(_Strict):
    """What a call is answered with when its tool could not do it, marked as such. Exactly one of the three.

    `tool` is called with the same arguments, `constant` is a result, `last_good_s` takes the newest success of the same
    caller with the same arguments that is not older.
    """

    tool: str | None = None
    constant: JsonSchema | None = None
    last_good_s: Annotated[float, Field(gt=0, le=366 * 86_400)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if [self.tool, self.constant, self.last_good_s].count(None) != 2:
            raise ValueError("give exactly one of `tool`, `constant` and `last_good_s`")
        return self


class Manifest(_Strict):
    """One tool. `input` and `output` are JSON Schema 2020-12 with every reference already resolved."""

    tool: str
    version: Annotated[
        str, Field(pattern=r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?$", max_length=64)
    ]
    summary: Annotated[str, Field(min_length=1, max_length=200)]
    image: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
    run: Run
    input: JsonSchema
    output: JsonSchema
    effect: Effect
    isolation: Isolation = "container"
    runtime: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")] | None = None
    limits: Limits = Limits()
    secrets: tuple[SecretRef, ...] = ()
    # Top-level arguments whose values may stand in the record in clear; all others are recorded as keyed hashes.
    record_clear: tuple[str, ...] = ()
    egress: Egress = ()
    retry: Retry = Retry()
    fallback: Fallback | None = None
    # Whether failures of this tool open its circuit breaker. Not for one that runs the caller's own program, or
    # whose upstream the caller names: that has a breaker of its own.
    breaker: bool = True
    # What a call costs, in units of the operator's choice; budgets count them.
    cost: Annotated[float, Field(ge=0, le=1_000_000)] = 1
    # The argument with the version that the tool changes only if it is still the current one. It makes the tool
    # idempotent: a second attempt finds another version and changes nothing.
    if_match: str | None = None
    # The tool that can tell whether a call of this one took effect, after a gateway died while it ran.
    verify: str | None = None
    # Arguments that the deployment gives, beside those of `input`.
    fixed: dict[str, Any] = {}

    @field_validator("secrets", "record_clear", "egress", mode="before")
    @classmethod
    def _list_to_tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("tool")
    @classmethod
    def _tool_name(cls, value: str) -> str:
        if not TOOL_NAME.fullmatch(value) or len(value) > 128:
            raise ValueError("a tool is named namespace.verb, like webhooks.sign")
        return value

    @field_validator("summary")
    @classmethod
    def _summary_is_plain(cls, value: str) -> str:
        # It is shown on terminals and read by models: nothing hidden, nothing that moves a cursor.
        if not value.isprintable():
            raise ValueError("`summary` must be one line of printable characters")
        return value

    @field_validator("input")
    @classmethod
    def _closed_object(cls, value: JsonSchema) -> JsonSchema:
        if value.get("type") != "object" or value.get("additionalProperties") is not False:
            raise ValueError("`input` must be `type: object` with `additionalProperties: false`")
        if "patternProperties" in value:
            raise ValueError("`input` names its arguments in `properties`; `patternProperties` would open it again")
        return value

    @model_validator(mode="after")
    def _secret_names_are_unique(self) -> Self:
        names = [secret.name for secret in self.secrets]
        if len(names) != len(set(names)):
            raise ValueError("two secrets have the same name")
        return self

    @model_validator(mode="after")
    def _egress_fits(self) -> Self:
        faults = []
        if self.egress and self.isolation == "fork":
            faults.append(
                Fault(("isolation",), "a tool with `egress` needs `isolation: container`; a fork has no way out")
            )
        if self.egress != "configured":
            faults += rule_faults(self.egress, {secret.name: secret.deliver for secret in self.secrets})
        if faults:
            refuse("Manifest", faults)
        return self

    @model_validator(mode="after")
    def _fixed_arguments_are_nobody_elses(self) -> Self:
        if taken := sorted(self.fixed.keys() & self.input.get("properties", {}).keys()):
            raise ValueError(f"`fixed` gives {taken[0]}, which `input` leaves to callers; take it out of one of them")
        return self

    @model_validator(mode="after")
    def _clear_arguments_exist(self) -> Self:
        properties = self.input.get("properties")
        known = set(properties) if isinstance(properties, dict) else set()
        unknown = sorted(set(self.record_clear) - known)
        if unknown:
            raise ValueError(f"`record_clear` names {unknown[0]}, which is no argument of the tool")
        return self

    @model_validator(mode="after")
    def _condition_is_always_given(self) -> Self:
        if self.if_match is None:
            return self
        argument = self.input.get("properties", {}).get(self.if_match)
        is_text = isinstance(argument, dict) and argument.get("type") == "string"
        if not is_text or self.if_match not in self.input.get("required", []):
            raise ValueError(
                "`if_match` names a required argument of `type: string`: without it a call has no condition"
            )
        if self.effect != "idempotent":
            raise ValueError("a tool with `if_match` is `effect: idempotent`: its condition is what makes it that")
        return self

    @model_validator(mode="after")
    def _verified_is_what_is_unsafe(self) -> Self:
        if self.verify is not None and self.effect != "unsafe":
            raise ValueError("`verify` is for `effect: unsafe`; what may run twice need not be asked about")
        return self

    @property
    def rules(self) -> tuple[EgressRule, ...]:
        """What may be reached. Nothing, where it is left to the configuration and not there."""
        return () if self.egress == "configured" else self.egress
