"""The set of tools a server runs with: frozen, and named by the digest of its content."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from callgate_server.model.manifest import Isolation, Manifest
from callgate_server.model.strict_json import encode


@dataclass(frozen=True, slots=True)
class Tool:
    """A manifest pinned to an image. `image_digest` is `sha256:…`; `digest` covers manifest and image."""

    manifest: Manifest
    image_digest: str
    digest: str

    @classmethod
    def pin(cls, manifest: Manifest, image_digest: str) -> "Tool":
        document = {"manifest": manifest.model_dump(mode="json", by_alias=True), "image": image_digest}
        return cls(manifest, image_digest, "sha256:" + hashlib.sha256(encode(document)).hexdigest())

    def isolated(self, level: Isolation) -> "Tool":
        """The same tool at another isolation level; its digest says so."""
        return Tool.pin(self.manifest.model_copy(update={"isolation": level}), self.image_digest)

    @property
    def name(self) -> str:
        return self.manifest.tool


@dataclass(frozen=True, slots=True)
class Catalog:
    tools: Mapping[str, Tool]
    digest: str

    @classmethod
    def of(cls, *tools: Tool) -> "Catalog":
        """Collect tools.

        Raises:
            ValueError: two tools have the same name.
        """
        by_name = {tool.name: tool for tool in sorted(tools, key=lambda tool: tool.name)}
        if len(by_name) != len(tools):
            raise ValueError("two manifests declare the same tool")
        joined = "\n".join(tool.digest for tool in by_name.values())
        return cls(by_name, "sha256:" + hashlib.sha256(joined.encode()).hexdigest())

    def isolated(self, levels: Mapping[str, Isolation]) -> "Catalog":
        """The same tools, with the isolation level that `levels` gives to some of them by name.

        Raises:
            ValueError: it names a tool that is not here.
        """
        if unknown := sorted(set(levels) - set(self.tools)):
            raise ValueError(
                f"`tools` sets an isolation level for {unknown[0]}, which no manifest of the catalog declares"
            )
        return Catalog.of(*(tool.isolated(levels[tool.name]) if tool.name in levels else tool for tool in self))

    def __iter__(self) -> Iterator[Tool]:
        return iter(self.tools.values())
