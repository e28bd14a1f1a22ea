"""Generates the Python code of the wire types, or with `--check` says whether the committed code is current.

It decides only where the files go: beside their `.proto`, so that the import path is the folder's.
"""

import filecmp
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
PACKAGE = Path("callgate_proto/v1")
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")


def generate(target: Path) -> None:
    """Write the code of every `.proto` below `target`.

    Raises:
        RuntimeError: protoc refused.
    """
    sources = [str(path.relative_to(ROOT)) for path in sorted((ROOT / PACKAGE).glob("*.proto"))]
    well_known = files("grpc_tools").joinpath("_proto")
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={ROOT}",
            f"--proto_path={well_known}",
            f"--python_out={target}",
            f"--pyi_out={target}",
            f"--grpc_python_out={target}",
            *sources,
        ]
    )
    if status:
        raise RuntimeError(f"protoc ended with status {status}")


def stale() -> list[str]:
    """Return the names of generated files that are missing, left over or differ from what would be generated."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh, committed = Path(folder) / PACKAGE, ROOT / PACKAGE
        names = {path.name for parent in (fresh, committed) for glob in GENERATED for path in parent.glob(glob)}
        _, mismatched, missing = filecmp.cmpfiles(fresh, committed, names, shallow=False)
        return sorted(mismatched + missing)


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        names = stale()
        if names:
            sys.exit(f"generated code is stale, run `python proto/generate.py`: {', '.join(names)}")
    elif sys.argv[1:]:
        sys.exit("usage: generate.py [--check]")
    else:
        generate(ROOT)


if __name__ == "__main__":
    main()
