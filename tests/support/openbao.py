"""A real OpenBao started from a configuration file, so that it can be sealed, stopped, restarted and audited.

The server of `openbao_dev` starts unsealed and takes no audit device; here a test holds the unseal key.
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from hvac.adapters import RawAdapter
from hvac.exceptions import VaultError
from requests import RequestException

from callgate_server.backends.openbao_dev import Operator, find_bao, free_port, launch, stop
from callgate_server.model.sealed import Sealed

_CONFIG = """
storage "raft" {{
  path                   = "{directory}/data"
  node_id                = "only"
  performance_multiplier = 1
}}
listener "tcp" {{
  address         = "127.0.0.1:{port}"
  cluster_address = "127.0.0.1:{cluster_port}"
  tls_disable     = true
}}
api_addr     = "http://127.0.0.1:{port}"
cluster_addr = "https://127.0.0.1:{cluster_port}"
{audit}
"""
_AUDIT = 'audit "file" "log" {{ options {{ file_path = "{directory}/audit.log" }} }}'


class ConfiguredServer:
    """One server with one unseal key; unsealed once `__enter__` returns."""

    def __init__(self, directory: Path, *, audited: bool = False) -> None:
        self._directory = directory
        self._audit = _AUDIT.format(directory=directory) if audited else ""
        self._port, self._cluster_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._key = ""
        self.address = f"http://127.0.0.1:{self._port}"
        self.root_token = Sealed(b"")

    def __enter__(self) -> Self:
        try:
            self.start()
            keys = self._anonymous("put", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
            self._key, self.root_token = keys["keys"][0], Sealed(keys["root_token"].encode())
            self.unseal()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def operator(self) -> Operator:
        return Operator(self.address, self.root_token)

    def start(self) -> None:
        """Start the process; it is sealed afterwards."""
        config = self._directory / "server.hcl"
        (self._directory / "data").mkdir(exist_ok=True)
        config.write_text(
            _CONFIG.format(
                directory=self._directory, port=self._port, cluster_port=self._cluster_port, audit=self._audit
            )
        )
        command = [str(find_bao(os.defpath)), "server", f"-config={config}"]
        self._process = launch(command, environment={}, state_dir=self._directory)
        eventually(lambda: self._anonymous("get", "sys/seal-status"))

    def stop(self) -> None:
        if self._process is not None:
            stop(self._process)
            self._process = None

    def seal(self) -> None:
        self.operator.request("put", "sys/seal")

    def unseal(self) -> None:
        self._anonymous("put", "sys/unseal", {"key": self._key})
        eventually(lambda: self._anonymous("get", "sys/health"))

    def break_audit(self) -> None:
        """Let the audit device write to a full disk from now on."""
        log = self._directory / "audit.log"
        log.rename(self._directory / "audit.log.before")
        log.symlink_to("/dev/full")
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)
        eventually(self._operator_is_refused)

    def mend_audit(self) -> None:
        log = self._directory / "audit.log"
        log.unlink()
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)
        eventually(lambda: self.operator.request("get", "auth/token/lookup-self"))

    def _operator_is_refused(self) -> None:
        try:
            self.operator.request("get", "auth/token/lookup-self")
        except VaultError:
            return
        raise AssertionError("the audit device still works")

    def _anonymous(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        response = RawAdapter(base_uri=self.address, timeout=10).request(method, f"/v1/{path}", json=body)
        return dict(response.json()) if response.content else {}


def eventually(attempt: Any, *, within_s: float = 30.0) -> Any:
    """Call `attempt` until it does not fail, and return what it returns."""
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            return attempt()
        except (VaultError, RequestException, AssertionError, OSError):
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
