"""A private PostgreSQL cluster on loopback, started from Debian's packages as the user `postgres`."""

import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from callgate_server.backends.openbao_dev import Operator, free_port

_USER = "postgres"
_CREATION = "CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"


class Postgres:
    """One cluster in a folder of its own; gone when the context ends. Connect as `user` with `password`."""

    def __init__(self) -> None:
        self.host = "127.0.0.1"
        self.port = free_port()
        self.user = "callgate_root"
        self.password = secrets.token_hex(16)
        self._bin = _newest_bin()
        self._directory = Path(tempfile.mkdtemp(prefix="callgate-postgres-"))

    def __enter__(self) -> Self:
        password_file = self._directory / "password"
        password_file.write_text(self.password)
        for path in (self._directory, password_file):
            shutil.chown(path, _USER)
        initdb = ["initdb", "-U", self.user, "-A", "scram-sha-256", "--pwfile", str(password_file), "--no-sync"]
        self._run(*initdb, "-D", str(self._data))
        options = f"-p {self.port} -h {self.host} -c unix_socket_directories='' -c fsync=off"
        # Not the usual 0: whoever could prepare a transaction would see that here.
        options += " -c max_prepared_transactions=4"
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", str(self._directory / "log"), "-o", options, "start")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "stop")
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    def query(self, sql: str, *, user: str | None = None, password: str | None = None) -> str:
        """Run one statement, as the superuser or as somebody else.

        Raises:
            PermissionError: the server does not let this user in, or not do this.
        """
        connection = f"host={self.host} port={self.port} dbname=postgres user={user or self.user}"
        done = subprocess.run(
            [self._bin / "psql", "-X", "-A", "-t", "-w", "-c", sql, connection],
            env={"PGPASSWORD": password or self.password},
            capture_output=True,
            text=True,
            timeout=30,
        )
        if done.returncode:
            raise PermissionError(done.stderr)
        return done.stdout.strip()

    def lend_to(self, store: Operator, role: str, *grants: str) -> None:
        """Let a secret store make roles here, at `database/creds/{role}`, each with `grants` like `SELECT ON t`."""
        creation = [_CREATION, *(f'GRANT {grant} TO "{{{{name}}}}"' for grant in grants)]
        store.create_database_role(
            role, host=self.host, port=self.port, user=self.user, password=self.password, creation=creation
        )

    def leased_roles(self) -> set[str]:
        """The roles that secret stores have made and not yet removed."""
        return set(self.query("SELECT rolname FROM pg_roles WHERE rolname LIKE 'v-%'").split())

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / program, *arguments],
            user=_USER,
            group=_USER,
            extra_groups=[],
            cwd=self._directory,
            env={"LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program != "pg_ctl" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{program} failed: {done.stdout}"


def _newest_bin() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    assert found, "PostgreSQL is not installed; run: apt-get install postgresql"
    return found[-1].parent
