"""The set of tools a server runs with: frozen, and named by the digest of its content."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import get_args

from pydantic import ValidationError

from callgate_server.model.egress import EgressRule
from callgate_server.model.manifest import EGRESS_FORMS, Effect, Isolation, Manifest, SecretRef
from callgate_server.model.strict_json import Json, encode


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What an operator decides for one tool, over its manifest. None leaves it as it is declared.

    `egress` and `secrets` (of delivery `egress` alone, beside the declared ones) are for tools that leave their
    destinations to the deployment. Without them such a tool reaches nothing. `effect` is for those whose effect
    depends on what they may reach, and can only be a graver one. `fixed` are arguments that callers cannot give any
    more: the tool gets the operator's.
    """

    isolation: Isolation | None = None
    effect: Effect | None = None
    egress: tuple[EgressRule, ...] | None = None
    secrets: tuple[SecretRef, ...] = ()
    fixed: Mapping[str, Json] = field(default_factory=dict)


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

    def adjusted(self, adjustment: Adjustment) -> "Tool":
        """The same tool as the operator wants it; its digest says so.

        Raises:
            ValueError: the manifest leaves no choice, or does not fit together any more.
        """
        changes: dict[str, object] = {}
        if adjustment.isolation is not None:
            changes["isolation"] = adjustment.isolation
        if adjustment.effect is not None:
            changes["effect"] = self._graver(adjustment.effect)
        if adjustment.fixed:
            changes |= self._without(adjustment.fixed)
        if self.manifest.egress == "configured":
            changes |= self._reach(adjustment)
        elif adjustment.egress is not None or adjustment.secrets:
            raise ValueError(
                f"tools.{self.name}: its manifest does not say `egress: configured`, so what it may reach is fixed "
                "there; remove `egress` and `secrets`"
            )
        if not changes:
            return self
        try:
            manifest = Manifest.model_validate(self.manifest.model_dump(by_alias=True) | changes)
        except ValidationError as error:
            raise ValueError(
                "\n".join(_placed(self.name, fault["loc"], fault["msg"]) for fault in error.errors())
            ) from None
        return Tool.pin(manifest, self.image_digest)

    def _without(self, fixed: Mapping[str, Json]) -> dict[str, object]:
        """The declaration as callers see it when the operator gives these arguments."""
        known = self.manifest.input.get("properties", {})
        if unknown := sorted(fixed.keys() - known.keys()):
            raise ValueError(
                f"tools.{self.name}.fixed.{unknown[0]}: the tool has no such argument; correct the name or remove it"
            )
        properties = {name: schema for name, schema in known.items() if name not in fixed}
        required = [name for name in self.manifest.input.get("required", []) if name not in fixed]
        return {
            "input": {**self.manifest.input, "properties": properties, "required": required},
            "record_clear": tuple(name for name in self.manifest.record_clear if name not in fixed),
            "fixed": dict(fixed),
        }

    def _graver(self, effect: Effect) -> Effect:
        effects = get_args(Effect)
        if effects.index(effect) < effects.index(self.manifest.effect):
            raise ValueError(
                f"tools.{self.name}.effect: its manifest says {self.manifest.effect}, which is graver; remove this"
            )
        return effect

    def _reach(self, adjustment: Adjustment) -> dict[str, object]:
        """The operator's rules, and of the declared secrets those that they leave of use."""
        rules = adjustment.egress or ()
        if any(secret.deliver != "egress" for secret in adjustment.secrets):
            raise ValueError(
                f"tools.{self.name}.secrets: only secrets of `deliver: egress` can be added to a manifest's"
            )
        named = {rule.secret for rule in rules}
        declared = (each for each in self.manifest.secrets if each.deliver != "egress" or each.name in named)
        secrets = tuple(secret.model_dump(by_alias=True) for secret in (*declared, *adjustment.secrets))
        return {"egress": tuple(rule.model_dump() for rule in rules), "secrets": secrets}

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
            ValueError: two tools have the same name, or one names another that is not there or not fit.
        """
        by_name = {tool.name: tool for tool in sorted(tools, key=lambda tool: tool.name)}
        if len(by_name) != len(tools):
            raise ValueError("two manifests declare the same tool")
        for tool in by_name.values():
            _check_companions(tool, by_name)
        joined = "\n".join(tool.digest for tool in by_name.values())
        return cls(by_name, "sha256:" + hashlib.sha256(joined.encode()).hexdigest())

    def adjusted(self, adjustments: Mapping[str, Adjustment]) -> "Catalog":
        """The same tools, some of them as `adjustments` wants them, by name.

        Raises:
            ValueError: it names a tool that is not here, or does not fit it; says what to change.
        """
        if unknown := sorted(set(adjustments) - set(self.tools)):
            raise ValueError(f"tools.{unknown[0]}: no manifest declares this tool; correct the name or remove it")
        return Catalog.of(*(tool.adjusted(adjustments.get(tool.name, Adjustment())) for tool in self))

    def __iter__(self) -> Iterator[Tool]:
        return iter(self.tools.values())


def _check_companions(tool: Tool, tools: Mapping[str, Tool]) -> None:
    """See that the tools which another one names exist and can do what they are named for.

    Raises:
        ValueError: they do not, or cannot.
    """
    fallback = tool.manifest.fallback
    for key, name in (("fallback.tool", fallback.tool if fallback else None), ("verify", tool.manifest.verify)):
        if name is None:
            continue
        if name not in tools or name == tool.name:
            raise ValueError(f"{tool.name}: `{key}` names no other tool of this catalog; correct or remove it")
    if fallback and fallback.tool and tools[fallback.tool].manifest.fallback:
        raise ValueError(f"{tool.name}: the tool of its `fallback` has one itself; name that one")
    if tool.manifest.verify and tools[tool.manifest.verify].manifest.effect != "read":
        raise ValueError(f"{tool.name}: the tool of `verify` must be `effect: read`, since it only looks")


def _placed(tool: str, place: tuple[str | int, ...], text: str) -> str:
    key = ".".join(str(part) for part in place if part not in EGRESS_FORMS)
    return f"tools.{tool}.{key}: {text}"
