"""A small catalog for tests of policy: a tool of each kind, with the arguments that conditions are about."""

from datetime import UTC, datetime
from typing import Any

from callgate_server.backends.cedar.policy import CedarPolicy
from callgate_server.backends.cedar.vocabulary import Vocabulary
from callgate_server.model.call import Caller
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.manifest import Manifest

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
DEVELOPER = Caller("acme", "bot", ("developer",))


def tool(name: str, properties: dict[str, Any], *, required: tuple[str, ...] = (), **fields: Any) -> Tool:
    manifest = Manifest.model_validate(
        {
            "tool": name,
            "version": "1.0.0",
            "summary": "A tool.",
            "image": name.partition(".")[0],
            "run": {"python": "tool:run"},
            "input": {
                "type": "object",
                "properties": properties,
                "required": list(required),
                "additionalProperties": False,
            },
            "output": {"type": "object"},
            "effect": "read",
        }
        | fields
    )
    return Tool.pin(manifest, "sha256:" + "0" * 64)


PYTHON = tool("python.run", {"code": {"type": "string"}, "seed": {"type": "integer"}}, required=("code",))
SHELL = tool(
    "shell.run",
    {"script": {"type": "string"}, "argv": {"type": "array", "items": {"type": "string"}}},
    effect="unsafe",
)
SIGN = tool(
    "webhooks.sign",
    {"payload": {"type": "string"}},
    required=("payload",),
    secrets=[{"name": "key", "from": "kv/data/{tenant}/webhooks#key", "deliver": "file"}],
)
FETCH = tool("web.fetch", {"url": {"type": "string"}}, required=("url",), egress=[{"host": "*.example.com"}])
CATALOG = Catalog.of(PYTHON, SHELL, SIGN, FETCH)
VOCABULARY = Vocabulary.of(CATALOG)


def policy(text: str, alarms: list[str] | None = None) -> CedarPolicy:
    return CedarPolicy({"test.cedar": text}, VOCABULARY, (alarms if alarms is not None else []).append, lambda: NOON)
