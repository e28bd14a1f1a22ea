"""Runs the command line `callgate` in this process, against the gateway that the environment names."""

import json
from typing import Any

from typer.testing import CliRunner, Result

from callgate import cli


def run(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli.app, arguments, input=text)


def document(*arguments: str) -> Any:
    """Run with `--json` and return the one document that was printed."""
    result = run(*arguments, "--json")
    assert result.stderr == ""
    return json.loads(result.stdout)
