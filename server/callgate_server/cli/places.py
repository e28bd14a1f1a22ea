"""Where files are: those that come with Callgate (in an installed package under `_share`, in a checkout at its root),
and the gateway's configuration."""

from pathlib import Path
from typing import Annotated, Final

import typer

# The last but one is what `callgated dev` writes, the last what README has in production.
CONFIGS: Final = (Path("callgate.yaml"), Path(".callgate/callgate.yaml"), Path("/etc/callgate/callgate.yaml"))
_LOOKED_FOR: Final = ", ".join(map(str, CONFIGS))

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help=f"The gateway's configuration; without it the first that exists of {_LOOKED_FOR}."
    ),
]


def config_file(given: Path | None) -> Path:
    """The configuration that a command is about.

    Raises:
        ValueError: none is given, and none is where one usually is.
    """
    if given is not None:
        return given
    for path in CONFIGS:
        if path.exists():
            return path
    raise ValueError(f"no configuration: there is none of {_LOOKED_FOR}; say with --config where it is")


def _shared(name: str, in_checkout: str) -> Path:
    package = Path(__file__).parent.parent
    installed = package / "_share" / name
    return installed if installed.is_dir() else package.parent.parent / in_checkout


def sandbox_images() -> Path:
    """The folder of images with their tools."""
    return _shared("sandbox_images", "sandbox_images")


def dev_policies() -> Path:
    """The policies of `callgated dev`."""
    return _shared("policies-dev", "deploy/policies-dev")
