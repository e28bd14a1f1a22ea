"""`callgated doctor`: what is missing or weak on this host, and how to mend it."""

import sys
from typing import Final

import typer

from callgate_server.backends.docker.options import DockerOptions
from callgate_server.backends.docker.prerequisites import Finding, Level, check
from callgate_server.backends.openbao_dev import find_bao
from callgate_server.cli.output import document, out
from callgate_server.config import environment

_STYLES: Final = {Level.OK: "green", Level.OFF: "dim", Level.WARN: "yellow", Level.FAIL: "red"}
_MARKS: Final = {Level.OK: "ok", Level.OFF: "off", Level.WARN: "weak", Level.FAIL: "MISSING"}


def run(engine: str, *, as_json: bool) -> None:
    """Print the findings. Leaves with status 1 when one of them keeps Callgate from working."""
    findings = [_python(), *check(DockerOptions("doctor", "doctor", socket_url=engine)), _openbao()]
    if as_json:
        document([{"name": f.name, "level": f.level.value, "detail": f.detail, "fix": f.fix} for f in findings])
    else:
        for finding in findings:
            _show(finding)
    if any(finding.level is Level.FAIL for finding in findings):
        raise typer.Exit(1)


def _show(finding: Finding) -> None:
    out.print(f"{_MARKS[finding.level]:<8}", style=_STYLES[finding.level], end="")
    out.print(f"{finding.name}: {finding.detail}", markup=False)
    if finding.fix:
        out.print(f"        → {finding.fix}", markup=False)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", Level.OK, f"CPython {version}", "")


def _openbao() -> Finding:
    """The development secret store: only `callgated dev` and the tests need it."""
    try:
        path = find_bao(environment().get("PATH", ""))
    except FileNotFoundError as error:
        return Finding("openbao", Level.WARN, "no `bao` program: `callgated dev` cannot start", str(error))
    return Finding("openbao", Level.OK, f"{path.name} found, for `callgated dev`", "")
