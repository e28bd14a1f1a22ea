"""Runs a test's code, with the secrets that the manifest names: the `file` ones in /run/secrets, the others in `secrets`."""


def run(code: str, secrets: dict[str, str] | None = None) -> object:
    """Execute code and return what it leaves in `result`."""
    scope: dict[str, object] = {"secrets": secrets, "result": None}
    exec(compile(code, "<probe>", "exec"), scope)  # noqa: S102  # it is what this tool is for
    return scope["result"]


def unavailable(code: str) -> None:
    """Say that it cannot be done for now, whatever the code."""
    raise SystemExit(75)


def conditional(code: str, version: str) -> object:
    """Run code that changes a version."""
    return run(code.replace("VERSION", repr(version)))
