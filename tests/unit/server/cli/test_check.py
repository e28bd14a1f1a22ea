import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from callgate_server.backends import api_keys
from callgate_server.backends.private_files import replace_private
from support.unbuilt import callgated, configure, prepare, write_policy


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    return tmp_path


def test_what_serve_would_load_is_valid_and_nothing_is_made(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    done = callgated("check-config")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "callgate.yaml is valid: instance default\n", "")
    assert sorted(folder.rglob("*")) == before


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a tool that nobody declares": (lambda at: configure(at, tools={"probe.raech": {}}), "no manifest declares"),
    "a fixed argument that no tool has": (
        lambda at: configure(at, tools={"probe.reach": {"fixed": {"nmae": "x"}}}),
        "nmae",
    ),
    "no such policies": (lambda at: configure(at, policy={"directory": "nopolicies"}), "nopolicies: cannot be read"),
    "a policy that is none": (lambda at: write_policy(at, '@id("x") permit(principal'), "all.cedar:1"),
    "a policy about another catalog": (
        lambda at: write_policy(at, '@id("x") permit(principal, action == Action::"call:no.such", resource);'),
        "no.such",
    ),
    "no such images": (
        lambda at: configure(at, catalog={"directories": ["/nope"], "lock": "catalog.lock"}),
        "/nope: No such file",
    ),
    "no keys": (lambda at: (at / "keys.json").unlink(), "keys.json: No such file"),
    "keys that others read": (lambda at: (at / "keys.json").chmod(0o644), "chmod 600"),
    "a manifest that changed": (
        lambda at: (at / "images/probe/tools/probe.reach.yaml").write_text(
            (at / "images/probe/tools/probe.reach.yaml").read_text().replace("1.0.0", "1.0.1")
        ),
        "review it and run `callgated catalog build`",
    ),
    "a record's key that is none": (
        lambda at: replace_private(at / "ledger/key", b"short"),
        "does not hold a ledger key",
    ),
    "no certificate": (
        lambda at: configure(at, http={"listen": "0.0.0.0:1", "tls": {"cert_file": "c.pem", "key_file": "k.pem"}}),
        "c.pem: No such file",
    ),
    "a certificate that is none": (
        lambda at: configure(
            at, grpc={"listen": "0.0.0.0:1", "tls": {"cert_file": "callgate.yaml", "key_file": "callgate.yaml"}}
        ),
        "are no certificate and its key",
    ),
    "roots for upstreams that are none": (
        lambda at: configure(at, egress={"authority_dir": "egress", "ca_file": "callgate.yaml"}),
        "holds no certificates in PEM form",
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_serve_would_refuse_is_said_before(folder: Path, what: str) -> None:
    spoil, says = FAULTS[what]
    spoil(folder)
    done = callgated("check-config")
    assert (done.exit_code, done.stdout) == (1, "")
    assert says in done.stderr


def test_what_serve_says_is_the_same(folder: Path) -> None:
    configure(folder, policy={"directory": "nopolicies"})
    assert callgated("serve").stderr.splitlines()[-1] == callgated("check-config").stderr.splitlines()[-1]


def test_before_anything_is_built_all_else_is_checked_and_that_is_said(folder: Path) -> None:
    (folder / "catalog.lock").unlink()
    done = callgated("check-config", "-c", folder / "callgate.yaml")
    assert done.exit_code == 0
    assert "not checked: " in done.stdout
    assert f"run `callgated catalog build -c {folder / 'callgate.yaml'}`" in done.stdout
    write_policy(folder, "permit(")
    assert callgated("check-config").exit_code == 1
    shutil.rmtree(folder / "images")
    assert "images: No such file" in callgated("check-config").stderr


def test_keys_for_development_are_named_as_such(folder: Path) -> None:
    (folder / "keys.json").unlink()
    api_keys.create(folder / "keys.json", tenant="acme", agent="bot", purpose="dev", now=datetime.now(UTC))
    done = callgated("check-config")
    assert done.exit_code == 0
    assert "`callgated serve` refuses them" in done.stdout
