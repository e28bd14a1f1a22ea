"""Where the files are that come with Callgate: in an installed package under `_share`, in a checkout at its root."""

from pathlib import Path


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
