"""A production gateway on real parts: `callgated serve` as a process of its own, with a real engine and a real OpenBao.

`Deployment` is a folder with everything an operator would prepare; `start()` runs the gateway on it. Several
deployments live side by side: each has its own instance name, ledger, keys and policies.
"""

import json
import os
import secrets as random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import docker
import httpx
import yaml

from callgate import AsyncCallgate, Callgate
from callgate_server.backends import api_keys
from callgate_server.backends.catalog.build import build
from callgate_server.backends.docker.images import DockerImages
from callgate_server.backends.json_schema import check_constant, check_schema
from callgate_server.backends.openbao_dev import DevServer
from callgate_server.backends.sqlite import audit
from callgate_server.backends.sqlite.files import load_or_create_key
from callgate_server.ledger.store import ChainReport
from support.images import ENGINE, ROOT, SANDBOX_IMAGES

PROBE_IMAGES = Path(__file__).parent / "images"
CATALOG = (SANDBOX_IMAGES, PROBE_IMAGES)
PERMIT_DEVELOPERS = '@id("developers") permit(principal in Role::"developer", action, resource);\n'
# Two tenants with an agent each that may do everything, and one agent that may do nothing.
AGENTS = {"acme": ("bot", "developer"), "rival": ("bot", "developer"), "guest": ("bot", "visitor")}
START_TIMEOUT_S = 60
CALLGATED = [sys.executable, "-m", "callgate_server.cli"]


def canary() -> str:
    return "sk-test-" + random.token_urlsafe(30).replace("_", "A").replace("-", "B")


@cache
def catalog_lock() -> Path:
    """The lock of all images, the product's and the suite's; built once, quick when nothing changed."""
    lock = ROOT / ".callgate" / "tests.catalog.lock"
    images = DockerImages(ENGINE, ROOT / ".callgate")
    report = build(
        CATALOG, lock, images=images, check_schema=check_schema, check_constant=check_constant, write_schemas=False,
        progress=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    assert report.catalog is not None, f"schemas drifted: {report.drifted}"
    return lock


@dataclass
class Deployment:
    """The files of one gateway. Change `settings` before `start()` to configure it otherwise."""

    folder: Path
    store: DevServer | None = None
    policies: str = PERMIT_DEVELOPERS
    settings: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self.instance = f"test-{random.token_hex(4)}"
        for tenant, (agent, role) in AGENTS.items():
            self.tokens[tenant] = self.key(tenant, agent, role)
        self.write_policies(self.policies)

    def key(self, tenant: str, agent: str, *roles: str) -> str:
        """Make an API key."""
        made = api_keys.create(
            self.folder / "keys.json", tenant=tenant, agent=agent, roles=roles, purpose="production",
            now=datetime.now(UTC),
        )  # fmt: skip
        return made.key.reveal().decode()

    def write_policies(self, text: str, name: str = "policies.cedar") -> None:
        directory = self.folder / "policies"
        directory.mkdir(exist_ok=True)
        (directory / name).write_text(text)

    @property
    def config(self) -> Path:
        return self.folder / "callgate.yaml"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger" / "calls.db"

    def write_config(self) -> None:
        document: dict[str, Any] = {
            "instance": self.instance,
            "http": {"listen": "127.0.0.1:0"},
            "grpc": {"listen": "127.0.0.1:0"},
            "auth": {"api_keys_file": "keys.json"},
            "policy": {"directory": "policies", "reload_s": 0.2},
            "catalog": {"directories": [str(path) for path in CATALOG], "lock": str(catalog_lock())},
            "engine": {"socket": ENGINE, "reap_every_s": 2},
            "ledger": {"file": "ledger/calls.db", "key_file": "ledger/key"},
            # Off, so that a container is one call's and carries its name; the tests of the pool switch it on.
            "execution": {"pool": {"enabled": False}},
            "log": {"level": "debug"},
        }
        if self.store is not None:
            login = self.store.operator.create_approle(self.folder, name=self.instance)
            document["secrets"] = {
                "address": self.store.address,
                "auth": {"role_id_file": login.role_id_file.name, "secret_id_file": login.secret_id_file.name},
            }
        for section, values in self.settings.items():
            known = document.get(section)
            document[section] = {**known, **values} if isinstance(known, dict) and isinstance(values, dict) else values
        self.config.write_text(yaml.safe_dump(document))

    @contextmanager
    def start(self, *, program: Sequence[str] = CALLGATED) -> "Iterator[RunningGateway]":
        """Run the gateway; at the end it is told to stop, unless the test has already ended it."""
        self.write_config()
        log = (self.folder / "gateway.log").open("ab")
        begin = log.tell()
        process = subprocess.Popen([*program, "serve", "--config", str(self.config)], stdout=log, stderr=log)
        try:
            endpoints = self._endpoints(process, begin)
            yield RunningGateway(self, process, endpoints["http"], endpoints["grpc"])
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
            log.close()

    def log_text(self) -> str:
        return (self.folder / "gateway.log").read_text(errors="replace")

    def verify(self) -> ChainReport:
        return audit.verify_file(self.ledger, load_or_create_key(self.folder / "ledger" / "key"))

    def events(self, call_id: str | None = None) -> list[dict[str, Any]]:
        """Events of the record, oldest first: kind and body."""
        found = audit.events(self.ledger)
        return [
            {"kind": event.kind, "call_id": event.call_id, **json.loads(event.body)}
            for event in found
            if call_id in (None, event.call_id)
        ]

    def found(self) -> dict[str, str]:
        """All containers with this instance's label, in any state: names by id."""
        engine = docker.APIClient(base_url=self.settings.get("engine", {}).get("socket", ENGINE), version="auto")
        try:
            found = engine.containers(all=True, filters={"label": f"callgate.instance={self.instance}"})
        finally:
            engine.close()
        return {container["Id"]: container["Names"][0].removeprefix("/") for container in found}

    def sandboxes(self) -> dict[str, str]:
        """Ids of the containers that calls got, by call, as the log has them."""
        lines = (json.loads(line) for line in self.log_text().splitlines() if line.startswith("{"))
        return {line["call_id"]: line["sandbox"] for line in lines if line.get("event") == "started"}

    def containers(self) -> list[str]:
        """Names of the containers that a call has or had; those that wait for one are not among them."""
        used = set(self.sandboxes().values())
        return [name for container_id, name in self.found().items() if container_id in used]

    def waiting_containers(self) -> list[str]:
        """Ids of the containers that no call has had yet."""
        return sorted(self.found().keys() - set(self.sandboxes().values()))

    def wait_until_clean(self, timeout_s: float = 20) -> None:
        """Wait until no container of ours is left; a call's answer does not wait for its removal."""
        until = time.monotonic() + timeout_s
        while self.containers():
            assert time.monotonic() < until, f"left behind: {self.containers()}"
            time.sleep(0.05)

    def _endpoints(self, process: subprocess.Popen[bytes], begin: int) -> Mapping[str, str]:
        until = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until:
            with (self.folder / "gateway.log").open("rb") as log:
                log.seek(begin)
                lines = log.read().splitlines()
            for line in lines:
                if line.startswith(b"{") and json.loads(line).get("event") == "serving":
                    return dict(json.loads(line))
            assert process.poll() is None, f"the gateway did not start:\n{self.log_text()}"
            time.sleep(0.05)
        raise AssertionError(f"the gateway was not ready in time:\n{self.log_text()}")


@dataclass
class RunningGateway:
    deployment: Deployment
    process: "subprocess.Popen[bytes]"
    http: str
    grpc: str

    def sdk(self, tenant: str = "acme") -> Callgate:
        return Callgate(self.grpc, token=self.deployment.tokens[tenant])

    def async_sdk(self, tenant: str = "acme") -> AsyncCallgate:
        return AsyncCallgate(self.grpc, token=self.deployment.tokens[tenant])

    def web(self, tenant: str = "acme") -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.deployment.tokens[tenant]}"}
        return httpx.Client(base_url=f"http://{self.http}", headers=headers, timeout=60, trust_env=False)

    def post(self, tool: str, arguments: Mapping[str, Any], tenant: str = "acme", **extra: Any) -> httpx.Response:
        headers = extra.pop("headers", {})
        with self.web(tenant) as web:
            return web.post(f"/v1/tools/{tool}/calls", json={"arguments": dict(arguments), **extra}, headers=headers)

    def stop(self) -> int:
        """Ask it to stop and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)

    def rss_kb(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))

    def descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())


def start_store(folder: Path) -> DevServer:
    """A real OpenBao with a KV engine. `DevServer.stop()` ends it."""
    store = DevServer.start(folder, search_path=os.environ["PATH"])
    store.operator.enable_kv()
    return store
