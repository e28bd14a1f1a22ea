"""A configuration with all that `serve` loads: one tool, pinned to an image that nobody has built. Needs no engine."""

from datetime import UTC, datetime
from pathlib import Path

import yaml
from typer.testing import CliRunner, Result

from callgate_server.backends import api_keys
from callgate_server.backends.catalog.lock import Lock, write_lock
from callgate_server.backends.catalog.manifests import declarations, image_folders
from callgate_server.cli.main import app

PLAIN = """\
tool: probe.reach
version: 1.0.0
summary: Reach something.
image: probe
run: {command: [/bin/true]}
input: {type: object, properties: {name: {type: string, maxLength: 3}}, additionalProperties: false}
output: {}
effect: read
"""
MANIFEST = f"""{PLAIN}egress:
  - {{host: api.example.com, methods: [GET]}}
  - {{host: db.example.com, scheme: tcp, port: 5432}}
"""


def prepare(folder: Path) -> None:
    """Write everything into an empty folder."""
    image = folder / "images/probe"
    (image / "tools").mkdir(parents=True)
    (image / "Dockerfile").write_text("FROM scratch\n")
    (image / "tools/probe.reach.yaml").write_text(MANIFEST)
    (folder / "policies").mkdir()
    write_policy(folder, '@id("all") permit(principal in Role::"user", action, resource);')
    api_keys.create(folder / "keys.json", tenant="acme", agent="bot", purpose="production", now=datetime.now(UTC))
    pin(folder)
    configure(folder)


def write_policy(folder: Path, text: str) -> None:
    (folder / "policies/all.cedar").write_text(text)


def pin(folder: Path) -> None:
    manifests = [each.manifest() for each in declarations(image_folders([folder / "images"]).values())]
    write_lock(folder / "catalog.lock", Lock.of(manifests, {"probe": "sha256:" + "0" * 64}))


def configure(folder: Path, **sections: object) -> None:
    document = {
        "auth": {"api_keys_file": "keys.json"},
        "policy": {"directory": "policies"},
        "catalog": {"directories": ["images"], "lock": "catalog.lock"},
        "egress": {"authority_dir": "egress"},
        "ledger": {"file": "ledger/calls.db", "key_file": "ledger/key"},
    }
    (folder / "callgate.yaml").write_text(yaml.safe_dump(document | sections))


def callgated(*arguments: object) -> Result:
    """Run the program in this process; nothing that it says is ever a traceback."""
    done = CliRunner().invoke(app, [*map(str, arguments)], prog_name="callgated", env={"NO_COLOR": "1"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done
