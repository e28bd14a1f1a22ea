"""One set of policies, and what it says of a call. A decision is made by one set, whatever is reloaded meanwhile.

A call is ruled on as action `call:<tool>` on the tool and `use` on each of its secrets; all must be allowed. What a
running tool wants to reach is ruled on as `connect` on the host, what an operator does as `administer` on the tenant.
Forbid wins. Only Cedar's explicit Allow without any evaluation error is an allow: Cedar skips a policy whose evaluation
fails, which for a forbid would open the gate, so one failing policy refuses the call.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

import cedarpy

from callgate_server.admission.authorize import Operation
from callgate_server.backends.cedar.arguments import convert
from callgate_server.backends.cedar.relax import policy_set, scopes, without_context
from callgate_server.backends.cedar.sight import mentions, visible
from callgate_server.backends.cedar.source import Source, read_sources
from callgate_server.backends.cedar.vocabulary import (
    ADMINISTER,
    CONNECT,
    USE,
    Uid,
    Vocabulary,
    action_of,
    agent_uid,
    host_uid,
    schema_text,
    secret_uid,
    tenant_uid,
    uid,
)
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Tool
from callgate_server.model.egress import EgressAsk
from callgate_server.model.strict_json import Json, encode
from callgate_server.model.verdict import Ruling, Verdict

Alarm = Callable[[str], None]
Clock = Callable[[], datetime]

_FAILED: Final = re.compile(r"error while evaluating policy `([^`]*)`")
_CALLERS_KEPT: Final = 1024
_RULINGS_KEPT: Final = 4096
_CIRCUMSTANCES: Final = frozenset({"now", "task"})


@dataclass(frozen=True, slots=True)
class Part:
    """The ruling on one action. `errors` are Cedar's own words and may quote arguments: for operators only."""

    action: str
    resource: str
    ruling: Ruling
    policies: tuple[str, ...]
    groups: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExplainedPart:
    """A ruling with the policies that decided, and the permits whose scope fits but whose conditions do not."""

    part: Part
    deciding: tuple[Source, ...]
    nearly: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    verdict: Verdict
    parts: tuple[ExplainedPart, ...]


class CedarPolicy:
    """Implements `admission.authorize.Policy` with one immutable set of policies over one catalog.

    `files` are the texts of the policies by file name. `alarm` is told of every evaluation that fails, in words
    that hold no argument; `now` gives the time that policies see.

    Raises:
        ValueError: one line for each fault, with file, line and policy.
    """

    def __init__(self, files: Mapping[str, str], vocabulary: Vocabulary, alarm: Alarm, now: Clock) -> None:
        sources = read_sources(files, vocabulary)
        self._vocabulary = vocabulary
        self._alarm = alarm
        self._now = now
        self._sources = {source.id: source for source in sources}
        # What is evaluated is the text as it was validated, not a set rebuilt from its tree.
        self._set = cedarpy.PolicySet.from_str("\n".join(source.text for source in sources))
        written = self._set.to_pst().static_policies
        self._names = {positional: template.annotations["id"] for positional, template in written.items()}
        self._relaxed = policy_set(without_context(sources))
        self._scopes = policy_set(scopes(sources))
        self._permits = policy_set(source.template for source in sources if source.permits)
        self._visible = visible(vocabulary.arguments, sources)
        self._looks_at_circumstances = mentions(_CIRCUMSTANCES, sources)
        self._rulings: dict[tuple[Caller, str], list[Part]] = {}
        self._schema = cedarpy.Schema.from_str(schema_text(self._visible))
        self._entities = lru_cache(maxsize=_CALLERS_KEPT)(vocabulary.with_caller)
        self._around = lru_cache(maxsize=_CALLERS_KEPT)(vocabulary.around)
        self.version = digest(files)

    @property
    def size(self) -> int:
        return len(self._sources)

    def decide(self, caller: Caller, tool: Tool, arguments: dict[str, Json]) -> Verdict:
        """See `admission.authorize.Policy`."""
        return self._ruled(_about(caller, tool), lambda: self._parts(caller, tool, arguments))

    def consent(self, caller: Caller, tool: Tool, ask: EgressAsk) -> Verdict:
        """See `admission.authorize.Policy`."""
        return self._ruled(_about(caller, tool), lambda: self._ask(*self._connection(caller, tool, ask)))

    def may_administer(self, caller: Caller, operation: Operation) -> Verdict:
        """See `admission.authorize.Policy`."""

        return self._ruled(f"{operation} by {caller.name}", lambda: self._ask(*self._act(caller, operation)))

    def could_allow(self, caller: Caller, tool: Tool) -> bool:
        """See `admission.authorize.Policy`."""
        try:
            requests = [_request(caller, action, on, {}) for action, on in _actions(tool)]
            results = cedarpy.is_authorized_batch(requests, self._relaxed, self._entities_of(caller, tool))
        except Exception as error:
            self._alarm(f"policy could not be evaluated for {_about(caller, tool)}: {type(error).__name__}")
            return False
        return all(result.decision is cedarpy.Decision.Allow for result in results)

    def explain(self, caller: Caller, tool: Tool, arguments: dict[str, Json]) -> Explanation:
        """Say what `decide` would, and why.

        Raises:
            ValueError: arguments that policies look at do not fit the tool's schema, or caller or tool
                cannot be judged.
        """
        return self._explained(self._requests(caller, tool, arguments), self._entities_of(caller, tool))

    def explain_consent(self, caller: Caller, tool: Tool, ask: EgressAsk) -> Explanation:
        """Say what `consent` would, and why.

        Raises:
            ValueError: caller or tool cannot be judged.
        """
        return self._explained(*self._connection(caller, tool, ask))

    def explain_administration(self, caller: Caller, operation: Operation) -> Explanation:
        """Say what `may_administer` would, and why.

        Raises:
            ValueError: the caller cannot be judged.
        """
        return self._explained(*self._act(caller, operation))

    def _ruled(self, about: str, ask: Callable[[], list[Part]]) -> Verdict:
        try:
            verdict = _combine(ask(), self.version)
        except Exception as error:
            # Whatever went wrong, nothing gets past. The error's text may hold arguments, its type does not.
            self._alarm(f"policy could not be evaluated for {about}: {type(error).__name__}")
            return Verdict(Ruling.ERROR, (), self.version)
        if verdict.ruling is Ruling.ERROR:
            failed = ", ".join(verdict.policies) or "the request itself"
            self._alarm(f"policy could not be evaluated for {about}: {failed}")
        return verdict

    def _explained(self, requests: list[dict[str, Any]], entities: cedarpy.Entities) -> Explanation:
        parts = self._ask(requests, entities)
        in_scope = cedarpy.is_authorized_batch(requests, self._scopes, entities, self._schema)
        applying = cedarpy.is_authorized_batch(requests, self._permits, entities, self._schema)
        explained = []
        for part, scope, permits in zip(parts, in_scope, applying, strict=True):
            nearly = sorted(set(scope.diagnostics.reasons) - set(permits.diagnostics.reasons))
            explained.append(ExplainedPart(part, self._named(part.policies), self._named(nearly)))
        return Explanation(_combine(parts, self.version), tuple(explained))

    def _parts(self, caller: Caller, tool: Tool, arguments: dict[str, Json]) -> list[Part]:
        """Ask, or remember: where no policy looks at arguments, time or task, the same caller and tool get the same."""
        entities = self._entities_of(caller, tool)
        if self._looks_at_circumstances or self._visible[tool.name].attributes:
            return self._ask(self._requests(caller, tool, arguments), entities)
        same = (_without_task(caller), tool.name)
        parts = self._rulings.get(same)
        if parts is None:
            parts = self._ask(self._requests(caller, tool, arguments), entities)
            if all(part.ruling is not Ruling.ERROR for part in parts):
                if len(self._rulings) >= _RULINGS_KEPT:
                    self._rulings.pop(next(iter(self._rulings)))
                self._rulings[same] = parts
        return parts

    def _requests(self, caller: Caller, tool: Tool, arguments: dict[str, Json]) -> list[dict[str, Any]]:
        context = self._circumstances(caller)
        shown = convert(arguments, self._visible[tool.name])
        return [
            _request(caller, action, on, context if action == USE else context | {"arguments": shown})
            for action, on in _actions(tool)
        ]

    def _connection(self, caller: Caller, tool: Tool, ask: EgressAsk) -> tuple[list[dict[str, Any]], cedarpy.Entities]:
        context = self._circumstances(caller) | {"tool": {"__entity": uid("Tool", tool.name)}}
        context |= {key: value for key, value in (("method", ask.method), ("path", ask.path)) if value is not None}
        self._refuse_foreign(tool)
        entities = self._vocabulary.with_host(self._around(_without_task(caller), tool.name), ask)
        return [_request(caller, CONNECT, host_uid(ask), context)], entities

    def _act(self, caller: Caller, operation: Operation) -> tuple[list[dict[str, Any]], cedarpy.Entities]:
        context = self._circumstances(caller) | {"operation": operation}
        request = _request(caller, ADMINISTER, tenant_uid(caller), context)
        return [request], self._entities(_without_task(caller))

    def _circumstances(self, caller: Caller) -> dict[str, Any]:
        moment = self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        context: dict[str, Any] = {"now": {"__extn": {"fn": "datetime", "arg": moment}}}
        return context if caller.task is None else context | {"task": caller.task}

    def _ask(self, requests: list[dict[str, Any]], entities: cedarpy.Entities) -> list[Part]:
        results = cedarpy.is_authorized_batch(requests, self._set, entities, self._schema)
        return [self._part(request, result) for request, result in zip(requests, results, strict=True)]

    def _entities_of(self, caller: Caller, tool: Tool) -> cedarpy.Entities:
        self._refuse_foreign(tool)
        return self._entities(_without_task(caller))

    def _refuse_foreign(self, tool: Tool) -> None:
        known = self._vocabulary.catalog.tools.get(tool.name)
        if known is None or known.digest != tool.digest:
            raise ValueError("the tool is not of the catalog that these policies were loaded for")

    def _part(self, request: dict[str, Any], result: cedarpy.AuthzResult) -> Part:
        action, resource = request["action"]["id"], request["resource"]["id"]
        errors = tuple(result.diagnostics.errors)
        names = tuple(sorted(self._names[reason] for reason in result.diagnostics.reasons))
        deciding = self._named(names)
        if errors or result.decision is cedarpy.Decision.NoDecision:
            failed = sorted({self._names[match[1]] for error in errors if (match := _FAILED.match(error))})
            return Part(action, resource, Ruling.ERROR, tuple(failed), errors=errors)
        if result.decision is not cedarpy.Decision.Allow:
            return Part(action, resource, Ruling.DENY, names)
        plain = tuple(source.id for source in deciding if source.approval is None)
        if plain:
            return Part(action, resource, Ruling.ALLOW, plain)
        groups = tuple(sorted({source.approval for source in deciding if source.approval is not None}))
        # An allow that no policy gave is not one.
        return Part(action, resource, Ruling.NEEDS_APPROVAL if groups else Ruling.ERROR, names, groups)

    def _named(self, names: tuple[str, ...] | list[str]) -> tuple[Source, ...]:
        return tuple(self._sources[name] for name in names)


def digest(files: Mapping[str, str]) -> str:
    """Name a set of policy files by its content."""
    return "sha256:" + sha256(encode(dict(files))).hexdigest()


def _combine(parts: list[Part], version: str) -> Verdict:
    """The worst ruling counts, and the policies that led to it."""
    for ruling in (Ruling.ERROR, Ruling.DENY, Ruling.NEEDS_APPROVAL, Ruling.ALLOW):
        chosen = [part for part in parts if part.ruling is ruling]
        if chosen:
            break
    policies = tuple(sorted({name for part in chosen for name in part.policies}))
    groups = sorted({group for part in chosen for group in part.groups})
    # One verdict names one group of approvers. Asking only some of those that policies ask for would be too few.
    if len(groups) > 1:
        return Verdict(Ruling.ERROR, policies, version)
    return Verdict(ruling, policies, version, groups[0] if groups else None)


def _actions(tool: Tool) -> list[tuple[str, Uid]]:
    call = (action_of(tool.name), uid("Tool", tool.name))
    return [call, *((USE, secret_uid(tool, secret)) for secret in tool.manifest.secrets)]


def _request(caller: Caller, action: str, resource: Uid, context: dict[str, Any]) -> dict[str, Any]:
    return {
        "principal": agent_uid(caller),
        "action": uid("Action", action),
        "resource": resource,
        "context": context,
    }


def _without_task(caller: Caller) -> Caller:
    """The task is context, not identity: it must not fill the caches."""
    return caller if caller.task is None else Caller(caller.tenant, caller.agent, caller.roles)


def _about(caller: Caller, tool: Tool) -> str:
    return f"{tool.name} called by {caller.name}"
