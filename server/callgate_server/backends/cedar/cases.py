"""Tests that operators write for their policies: a caller, a tool, arguments or a destination, the ruling to expect."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from callgate_server.admission.authorize import OPERATIONS, Operation, Policy
from callgate_server.admission.validate import Schemas
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.egress import DEFAULT_PORTS, EgressAsk, Scheme, named_host
from callgate_server.model.verdict import Ruling, Verdict


class Connection(BaseModel):
    """What a tool wants to reach. `method` and `path` are for requests that the gate sees; `port` 0: the usual."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    host: str
    scheme: Scheme = "https"
    port: Annotated[int, Field(ge=1, le=65535)] = 0
    method: str | None = None
    path: Annotated[str, Field(pattern="^/")] | None = None

    @field_validator("host")
    @classmethod
    def _as_it_is_asked_for(cls, value: str) -> str:
        return named_host(value)

    @model_validator(mode="after")
    def _tcp_has_a_port_and_no_requests(self) -> Self:
        if self.scheme == "tcp" and (self.port == 0 or self.method is not None or self.path is not None):
            raise ValueError("a tcp connection has a `port`, and no `method` or `path`")
        return self

    @property
    def ask(self) -> EgressAsk:
        port = self.port or DEFAULT_PORTS[self.scheme]
        return EgressAsk(self.scheme, self.host, port, self.method, self.path)


class PolicyCase(BaseModel):
    """One case. `expect` is a ruling; `policies`, where given, are the policies that must have decided.

    With `connect` it is about what the running tool may reach, with `administer` (and no tool) about an act of an
    operator, otherwise about the call. `task` is what policies see as `context.task`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(min_length=1, max_length=200)]
    tenant: str
    agent: str
    roles: Annotated[tuple[str, ...], Field(strict=False)] = ()
    task: str | None = None
    tool: str = ""
    arguments: dict[str, Any] = {}
    connect: Connection | None = None
    administer: Operation | None = None
    expect: Annotated[Ruling, Field(strict=False)]
    policies: Annotated[tuple[str, ...], Field(strict=False)] | None = None

    @property
    def caller(self) -> Caller:
        return Caller(self.tenant, self.agent, self.roles, self.task)

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        if self.connect is not None and self.arguments:
            raise ValueError("a case about a connection has no `arguments`; write another one for the call")
        if (self.administer is None) == (not self.tool) or (self.administer and (self.arguments or self.connect)):
            raise ValueError(f"a case is about a `tool`, or it has `administer`, one of {', '.join(OPERATIONS)}")
        return self


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What came of a case: `fault` is empty when it is as expected."""

    name: str
    fault: str


def parse_cases(document: object) -> list[PolicyCase]:
    """Read cases from a decoded document: a list of them under the key `cases`.

    Raises:
        ValueError: names the case and the key that is wrong.
    """
    if not isinstance(document, Mapping) or set(document) != {"cases"} or not isinstance(document["cases"], list):
        raise ValueError("a file of policy cases has one key, `cases`, with a list")
    cases = []
    for number, case in enumerate(document["cases"], start=1):
        try:
            cases.append(PolicyCase.model_validate(case))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the case"
            raise ValueError(f"case {number}: {where}: {first['msg']}") from None
    return cases


def run_cases(cases: Sequence[PolicyCase], policy: Policy, schemas: Schemas, catalog: Catalog) -> Iterator[CaseResult]:
    """Judge each case as a call would be: arguments that do not fit the tool's schema are a fault of the case."""
    for case in cases:
        yield CaseResult(case.name, _fault(case, policy, schemas, catalog))


def _fault(case: PolicyCase, policy: Policy, schemas: Schemas, catalog: Catalog) -> str:
    if case.administer is not None:
        return _difference(case, policy.may_administer(case.caller, case.administer))
    tool = catalog.tools.get(case.tool)
    if tool is None:
        return f"there is no tool {case.tool}"
    violations = () if case.connect else schemas.input_violations(tool, case.arguments)
    if violations:
        return f"the arguments do not fit the tool: at {violations[0].path or '/'}: {violations[0].message}"
    return _difference(case, _verdict(case, policy, tool))


def _difference(case: PolicyCase, verdict: Verdict) -> str:
    """What is not as the case expects it; empty when all is."""
    decided = f" by {', '.join(verdict.policies)}" if verdict.policies else ""
    if verdict.ruling is not case.expect:
        return f"expected {case.expect}, got {verdict.ruling}{decided}"
    if case.policies is not None and set(case.policies) != set(verdict.policies):
        return f"expected {verdict.ruling} by {', '.join(case.policies) or 'no policy'}, got it{decided or ' by none'}"
    return ""


def _verdict(case: PolicyCase, policy: Policy, tool: Tool) -> Verdict:
    if case.connect is None:
        return policy.decide(case.caller, tool, case.arguments)
    return policy.consent(case.caller, tool, case.connect.ask)
