"""What policies of a deployment may speak of: the Cedar schema of its catalog, and who and what exists in it.

The fixed part of the schema is `schema.cedarschema`. Each tool adds an action `call:<tool>` in the group `call`,
whose context has the tool's own arguments with their types: a condition on an argument that no tool has cannot
be loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import cedarpy

from callgate_server.backends.cedar.arguments import Attribute, Record, Scalar, quote, render, type_of
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.egress import EgressAsk
from callgate_server.model.identifiers import PRINCIPAL_NAME
from callgate_server.model.manifest import SecretRef
from callgate_server.model.strict_json import encode

CALL: Final = "call"
USE: Final = "use"
CONNECT: Final = "connect"
ADMINISTER: Final = "administer"
# For the question whether a path exists any type will do in place of a datetime or an entity.
_COMMON: Final = {"now": Attribute(Scalar.STRING, required=True), "task": Attribute(Scalar.STRING, required=False)}
_CONNECTION: Final = {
    "tool": Attribute(Scalar.STRING, required=True),
    "method": Attribute(Scalar.STRING, required=False),
    "path": Attribute(Scalar.STRING, required=False),
}
_ADMINISTRATION: Final = {"operation": Attribute(Scalar.STRING, required=True)}

Uid = dict[str, str]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`contexts` are the context types by action, `names` the ids that exist of each closed entity type."""

    catalog: Catalog
    text: str
    schema: cedarpy.Schema
    entities: cedarpy.Entities
    arguments: dict[str, Record]
    contexts: dict[str, Record]
    names: dict[str, frozenset[str]]

    @classmethod
    def of(cls, catalog: Catalog) -> "Vocabulary":
        """Build the schema and the entities of a catalog.

        Raises:
            ValueError: Cedar refuses what was generated.
        """
        arguments = {tool.name: type_of(tool.manifest.input) for tool in catalog}
        text = schema_text(arguments)
        schema = cedarpy.Schema.from_str(text)
        entities = [entity for tool in catalog for entity in _tool_entities(tool)]
        unique = {(entity["uid"]["type"], entity["uid"]["id"]): entity for entity in entities}
        contexts = {
            USE: Record(_COMMON),
            CONNECT: Record(_COMMON | _CONNECTION),
            ADMINISTER: Record(_COMMON | _ADMINISTRATION),
        }
        for name, record in arguments.items():
            contexts[action_of(name)] = Record(_COMMON | {"arguments": Attribute(record, required=True)})
        return cls(
            catalog,
            text,
            schema,
            cedarpy.Entities.from_json_str(encode(list(unique.values())).decode(), schema),
            arguments,
            contexts,
            {
                kind: frozenset(name for other, name in unique if other == kind)
                for kind in ("Tool", "Namespace", "Secret")
            },
        )

    def with_caller(self, caller: Caller) -> cedarpy.Entities:
        """Return the entities of the catalog and this caller.

        Raises:
            ValueError: a name of the caller could be taken for another's.
        """
        return self.entities.with_added_json_str(encode(_caller_entities(caller)).decode(), self.schema)

    def around(self, caller: Caller, tool: str) -> cedarpy.Entities:
        """Return this caller and this tool alone: what a connection is judged among, however large the catalog is.

        Raises:
            ValueError: as for `with_caller`.
        """
        entities = _tool_entities(self.catalog.tools[tool]) + _caller_entities(caller)
        return cedarpy.Entities.from_json_str(encode(entities).decode(), self.schema)

    def with_host(self, entities: cedarpy.Entities, ask: EgressAsk) -> cedarpy.Entities:
        """Return these entities and the destination that is asked for."""
        host = _entity(host_uid(ask), {"name": ask.host, "port": ask.port, "scheme": ask.scheme})
        return entities.with_added_json_str(encode([host]).decode(), self.schema)


def schema_text(arguments: Mapping[str, Record]) -> str:
    """Write the Cedar schema of tools with these arguments."""
    fixed = files("callgate_server.backends.cedar").joinpath("schema.cedarschema").read_text("utf-8")
    return fixed + "".join(_action(name, record) for name, record in arguments.items())


def uid(kind: str, name: str) -> Uid:
    return {"type": kind, "id": name}


def agent_uid(caller: Caller) -> Uid:
    return uid("Agent", caller.name)


def tenant_uid(caller: Caller) -> Uid:
    return uid("Tenant", caller.tenant)


def secret_uid(tool: Tool, secret: SecretRef) -> Uid:
    return uid("Secret", f"{tool.name}/{secret.name}")


def host_uid(ask: EgressAsk) -> Uid:
    return uid("Host", ask.host)


def action_of(tool: str) -> str:
    return f"{CALL}:{tool}"


def _action(tool: str, arguments: Record) -> str:
    return (
        f"action {quote(action_of(tool))} in [Action::{quote(CALL)}] appliesTo {{\n"
        f"  principal: Agent,\n  resource: Tool,\n"
        f"  context: {{ task?: String, now: datetime, arguments: {render(arguments)} }},\n}};\n"
    )


def _caller_entities(caller: Caller) -> list[dict[str, Any]]:
    parents = [uid("Tenant", caller.tenant), *(uid("Role", role) for role in caller.roles)]
    for name in (caller.tenant, caller.agent, *caller.roles):
        if not PRINCIPAL_NAME.fullmatch(name):
            raise ValueError("a name of the caller has characters that names may not have")
    agent = _entity(
        agent_uid(caller), {"name": caller.agent, "tenant": {"__entity": uid("Tenant", caller.tenant)}}, *parents
    )
    # A credential may list a role twice.
    distinct = {(parent["type"], parent["id"]): _entity(parent, {}) for parent in parents}
    return [agent, *distinct.values()]


def _tool_entities(tool: Tool) -> list[dict[str, Any]]:
    manifest = tool.manifest
    namespaces = _namespaces(tool.name)
    entities = [
        _entity(
            uid("Tool", tool.name),
            {
                "name": tool.name,
                "version": manifest.version,
                "image": manifest.image,
                "runtime": manifest.runtime or "default",
                "effect": {"__entity": uid("Effect", manifest.effect)},
                "isolation": {"__entity": uid("Isolation", manifest.isolation)},
            },
            uid("Namespace", namespaces[-1]),
        )
    ]
    for above, name in zip([None, *namespaces], namespaces, strict=False):
        entities.append(_entity(uid("Namespace", name), {}, *([uid("Namespace", above)] if above else [])))
    for secret in manifest.secrets:
        attributes = {"name": secret.name, "path": secret.from_, "deliver": secret.deliver}
        entities.append(_entity(secret_uid(tool, secret), attributes, uid("Tool", tool.name)))
    return entities


def _namespaces(tool: str) -> list[str]:
    """`a.b.c` is in `a` and `a.b`, outermost first."""
    parts = tool.split(".")[:-1]
    return [".".join(parts[: length + 1]) for length in range(len(parts))]


def _entity(of: Uid, attributes: dict[str, Any], *parents: Uid) -> dict[str, Any]:
    return {"uid": of, "attrs": attributes, "parents": list(parents)}
