"""`callgated dev`: the embedded default. One command makes everything a gateway needs, on loopback, in one folder.

It builds missing images, starts an OpenBao development server, seeds it, makes an API key and serves. Nothing of
it is for production: its keys are marked as such, and `callgated serve` refuses them.
"""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import yaml

from callgate_server.app import Gateway
from callgate_server.backends import api_keys
from callgate_server.backends.catalog.build import build
from callgate_server.backends.catalog.manifests import load_yaml
from callgate_server.backends.docker.images import DockerImages
from callgate_server.backends.json_schema import check_constant, check_schema
from callgate_server.backends.openbao_dev import DevServer
from callgate_server.backends.private_files import replace_private, take_lock
from callgate_server.cli import places
from callgate_server.cli.output import Progress
from callgate_server.cli.serving import serve
from callgate_server.config import Settings, environment, settings_from

TENANT: Final = "dev"
# Agents that get a key, with their roles: one that works, one that operates.
AGENTS: Final = {"developer": ("developer",), "operator": ("operator",)}
SEEDS: Final = "dev-secrets.yaml"
REACH: Final = "dev-egress.yaml"
_FIRST_REACH: Final = """\
# What tools of this development gateway may reach; by default nothing. Restart it after a change. For example:
#   egress: {internal: [{host: localhost, port: 8000, networks: [127.0.0.0/8]}]} # a service on this machine
#   tools:
#     python.run: {egress: [{host: api.example.com, methods: [GET], paths: [/v1/*]}]}
egress: {internal: []}
tools: {}
"""


def run(state: Path, *, http: str, grpc: str, images: Path | None, engine: str, log_level: str, say: Progress) -> None:
    """Make what is missing in `state`, then serve until stopped.

    Raises:
        ValueError, OSError, RuntimeError: a step failed; the text says what to do.
    """
    state = state.absolute()
    folders = [places.sandbox_images()] + ([images.absolute()] if images else [])
    with _alone(state), _store(state, say) as store:
        seeds = _seeds(state)
        store.operator.enable_kv()
        for path, fields in seeds.items():
            store.operator.write(path, fields)
        login = store.operator.create_approle(state)
        tokens = _keys(state)
        document = {
            "instance": f"dev-{_instance(state)}",
            "http": {"listen": http},
            "grpc": {"listen": grpc},
            "auth": {"api_keys_file": "keys.json"},
            "policy": {"directory": str(places.dev_policies())},
            "catalog": {"directories": [str(folder) for folder in folders], "lock": "catalog.lock"},
            "secrets": {
                "address": store.address,
                "auth": {"role_id_file": str(login.role_id_file), "secret_id_file": str(login.secret_id_file)},
            },
            "engine": {"socket": engine},
            "ledger": {"file": "ledger/calls.db", "key_file": "ledger/key"},
            "log": {"level": log_level},
            **_reach(state),
        }
        # Written down, so that `callgated audit`, `policy` and `check-config` work on a development gateway too.
        replace_private(state / "callgate.yaml", yaml.safe_dump(document, sort_keys=False).encode())
        settings = settings_from(document, folder=state, name="callgated dev")
        say("images: building what has changed (the first time takes a few minutes)")
        _build(settings, state, say)
        serve(settings, "dev", lambda gateway: _announce(gateway, state, tokens, say))


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Hold the folder: what another gateway there has written is its own until it ends.

    Raises:
        BlockingIOError: another one holds it.
    """
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        lock = take_lock(state / "dev.lock", wait=False)
    except BlockingIOError:
        raise BlockingIOError(f"a gateway already runs here ({state}); stop it, or give another --state") from None
    try:
        yield
    finally:
        os.close(lock)


def _store(state: Path, say: Progress) -> DevServer:
    say("secrets: starting an OpenBao development server")
    return DevServer.start(state, search_path=environment().get("PATH", ""))


def _build(settings: Settings, state: Path, say: Progress) -> None:
    report = build(
        settings.catalog.directories,
        settings.catalog.lock,
        images=DockerImages(settings.engine.socket, state),
        check_schema=check_schema,
        check_constant=check_constant,
        write_schemas=False,
        progress=say,
        internal=settings.internal_services,
    )
    if report.catalog is None:
        names = ", ".join(str(path) for path in report.drifted)
        command = f"callgated catalog build -c {state / 'callgate.yaml'} --write-schemas"
        raise ValueError(f"schemas differ from their tools' type hints: {names}; look, then run `{command}`")


def _seeds(state: Path) -> Mapping[str, Mapping[str, str]]:
    """The secrets to start with, by path. The file is made once and may be edited."""
    path = state / SEEDS
    if not path.exists():
        first = {f"kv/data/{TENANT}/webhooks": {"key": secrets.token_hex(32)}}
        replace_private(path, yaml.safe_dump(first).encode())
    document = load_yaml(path)
    if not isinstance(document, dict) or not all(isinstance(fields, dict) for fields in document.values()):
        raise ValueError(f"{path}: write paths like kv/data/{TENANT}/name, each with its fields")
    return {path: {key: str(value) for key, value in fields.items()} for path, fields in document.items()}


def _reach(state: Path) -> Mapping[str, object]:
    """What tools may reach, as sections of the configuration. The file is made once and may be edited."""
    path = state / REACH
    if not path.exists():
        replace_private(path, _FIRST_REACH.encode())
    document = load_yaml(path)
    if not isinstance(document, dict) or not set(document) <= {"egress", "tools"}:
        raise ValueError(f"{path}: write the sections `egress` and `tools`, as in a gateway's configuration")
    egress = document.get("egress") or {}
    if not isinstance(egress, dict):
        raise ValueError(f"{path}: `egress` has keys like `internal`")
    return {"egress": {"authority_dir": "egress", **egress}, "tools": document.get("tools") or {}}


def _keys(state: Path) -> Mapping[str, Path]:
    """The file that holds each agent's key. Keys are made anew where one of the files is missing."""
    store = state / "keys.json"
    tokens = {agent: state / f"{agent}.token" for agent in AGENTS}
    for agent, token in tokens.items():
        if store.exists() and token.exists():
            continue
        made = api_keys.create(
            store, tenant=TENANT, agent=agent, roles=AGENTS[agent], purpose="dev", now=datetime.now(UTC)
        )
        replace_private(token, made.key.reveal())
    return tokens


def _instance(state: Path) -> str:
    """A name of its own for each state folder, so that two of them never remove each other's containers."""
    path = state / "instance"
    if not path.exists():
        replace_private(path, secrets.token_hex(4).encode())
    return path.read_text().strip()


def _announce(gateway: Gateway, state: Path, tokens: Mapping[str, Path], say: Progress) -> None:
    client = {
        "target": gateway.endpoints.grpc,
        "http": gateway.endpoints.http,
        "token_file": str(tokens["developer"]),
    }
    replace_private(state / "client.json", json.dumps(client, indent=2).encode())
    say(f"tools: {', '.join(sorted(gateway.catalog.tools))}")
    say(f"ready: gRPC on {gateway.endpoints.grpc}, HTTP on http://{gateway.endpoints.http}")
    say("try: callgate call python.run --arg code='print(6 * 7)'   (stop the gateway with Ctrl-C)")
