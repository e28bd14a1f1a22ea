"""`callgated catalog build`: from folders to a lock. The order: schemas, declarations, images, lock.

Nothing is built while a committed schema differs from its tool's code: schemas are declarations, and somebody has
to look at a change. The builder of images and the judge of schemas are given; this only says in which order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from callgate_server.backends.catalog.lock import Lock, write_lock
from callgate_server.backends.catalog.manifests import SIDES, Declaration, declarations, image_folders
from callgate_server.backends.catalog.schema import find_function, generate, text_of
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.egress import InternalService
from callgate_server.model.egress_checks import exposed
from callgate_server.model.manifest import JsonSchema, Manifest

Progress = Callable[[str], None]
SchemaCheck = Callable[[JsonSchema], None]
ConstantCheck = Callable[[Manifest], None]


class ImageBuilder(Protocol):
    def build(self, folders: Mapping[str, Path], progress: Progress) -> Mapping[str, str]:
        """Build images from folders and return the digest of each by name.

        Raises:
            RuntimeError, ValueError, OSError: with a message that says what to mend.
        """


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did. `drifted` schema files differ from their tools' code (`written` ones did, and are mended).

    With drift nothing is built: `catalog` is None and the lock is as it was.
    """

    catalog: Catalog | None
    images: Mapping[str, str]
    written: tuple[Path, ...]
    drifted: tuple[Path, ...]


def build(
    directories: Sequence[Path],
    lock_path: Path,
    *,
    images: ImageBuilder,
    check_schema: SchemaCheck,
    check_constant: ConstantCheck,
    write_schemas: bool,
    progress: Progress,
    internal: Sequence[InternalService] = (),
) -> BuildReport:
    """Generate schemas, check every manifest, build images and write the lock.

    `internal` are the operator's own services: to others no secret may travel in clear.

    Raises:
        ValueError: a folder, manifest, tool or schema is not acceptable; names the file.
        RuntimeError: an image cannot be built.
        OSError: a file cannot be read or written.
    """
    folders = image_folders(directories)
    declared = declarations(folders.values())
    stale = stale_schemas(declared)
    if stale and not write_schemas:
        return BuildReport(None, {}, (), tuple(stale))
    for path, text in stale.items():
        progress(f"writing {path.name}")
        path.write_text(text, encoding="utf-8")
    manifests = [_checked(declaration, check_schema, check_constant, internal) for declaration in declared]
    _refuse_doubles(declared)
    digests = images.build(folders, progress)
    catalog = Catalog.of(*(Tool.pin(manifest, digests[manifest.image]) for manifest in manifests))
    write_lock(lock_path, Lock.of(manifests, digests))
    progress(f"locked {len(manifests)} tools on {len(digests)} images")
    return BuildReport(catalog, digests, tuple(stale), ())


def stale_schemas(declared: Sequence[Declaration]) -> dict[Path, str]:
    """Return the schema files of Python tools that are missing or differ from the code, with what they should be.

    Raises:
        ValueError: a tool's code has no exact schema, or is not where its manifest says.
        OSError: a file cannot be read.
    """
    generated = {path: text for declaration in declared for path, text in _generated(declaration).items()}
    return {path: text for path, text in generated.items() if not path.is_file() or path.read_text("utf-8") != text}


def _generated(declaration: Declaration) -> dict[Path, str]:
    match declaration.document.get("run"):
        case {"python": str(target)}:
            module, _, function = target.partition(":")
        case _:
            return {}
    source = declaration.tools / f"{module}.py"
    if not source.is_file() or not module.isidentifier():
        raise declaration.fault(("run", "python"), f"there is no {module}.py beside the manifest")
    files = {side: declaration.schema_file(side) for side in SIDES}
    if not any(files.values()):
        # Declared by hand: that the function is there is all that can be said.
        find_function(source, function)
        return {}
    schemas = generate(source, function)
    texts = {"input": text_of(schemas.input), "output": text_of(schemas.output)}
    return {path: texts[side] for side, path in files.items() if path}


def _refuse_doubles(declared: Sequence[Declaration]) -> None:
    # A manifest's file is called like its tool.
    places: dict[str, Path] = {}
    for path in (declaration.path for declaration in declared):
        if path.name in places:
            raise ValueError(f"{places[path.name]} and {path} declare the same tool")
        places[path.name] = path


def _checked(
    declaration: Declaration,
    check_schema: SchemaCheck,
    check_constant: ConstantCheck,
    internal: Sequence[InternalService],
) -> Manifest:
    manifest = declaration.manifest()
    for fault in exposed(manifest.rules, internal):
        raise declaration.fault(fault.at, fault.text)
    for side, schema in (("input", manifest.input), ("output", manifest.output)):
        try:
            check_schema(schema)
        except ValueError as error:
            raise ValueError(f"{declaration.path}: the {side} schema: {error}") from None
    try:
        check_constant(manifest)
    except ValueError as error:
        raise declaration.fault(("fallback", "constant"), str(error)) from None
    return manifest
