"""API keys: who holds which, in one file that holds no key.

A key is `cg_<id>_<secret>`; the file keeps the SHA-256 of the secret. A plain hash is enough, because the secret
is 256 random bits and not a password. Whoever can write the file can let anybody in, so it is read only while it
belongs to us and is closed to others. A file that is missing, broken or open refuses everybody until it is mended.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from callgate_server.backends.private_files import locked, read_private, replace_private
from callgate_server.execution.sandbox import Health
from callgate_server.model.call import Caller
from callgate_server.model.errors import CallError, Reason
from callgate_server.model.identifiers import PRINCIPAL_NAME
from callgate_server.model.sealed import Sealed
from callgate_server.model.strict_json import decode

Purpose = Literal["production", "dev"]
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
_PREFIX: Final = "cg_"
_KEY: Final = re.compile(r"cg_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
# Compared with where no key has the id, so that an unknown id costs what a known one does.
_NO_DIGEST: Final = "0" * 64

_log = logging.getLogger(__name__)


def _principal(value: str) -> str:
    if not PRINCIPAL_NAME.fullmatch(value):
        raise ValueError("tenants, agents and roles are named with a-z, 0-9, _ and -, at most 63 characters")
    return value


_Name = Annotated[str, AfterValidator(_principal)]


class KeyRecord(BaseModel):
    """What is kept of a key. Times are in UTC; `expires_at` None means that it does not expire."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    secret_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tenant: _Name
    agent: _Name
    roles: tuple[_Name, ...]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None
    revoked: bool


class KeyFile(BaseModel):
    """The whole file. A `dev` file was made for a gateway on somebody's own machine; `serve` refuses it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1]
    purpose: Purpose
    keys: tuple[KeyRecord, ...]


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made. `key` exists nowhere else."""

    id: str
    key: Sealed


def load(path: Path) -> KeyFile:
    """Read the file.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: it is a link, belongs to somebody else or is open to others.
        ValueError: it is not a key file.
        OSError: it cannot be read.
    """
    return _load(path)[0]


def create(
    path: Path,
    *,
    tenant: str,
    agent: str,
    roles: tuple[str, ...] = (),
    expires_at: datetime | None = None,
    purpose: Purpose,
    now: datetime,
) -> NewKey:
    """Add a key, making the file when there is none, and return the key: nobody can learn it later.

    Raises:
        ValueError: a name is not acceptable, `expires_at` has passed, or the file has another purpose.
        OSError: see `load`; or the file cannot be written.
    """
    if expires_at is not None and expires_at <= now:
        raise ValueError("the key would have expired already")
    for name in (tenant, agent, *roles):
        _principal(name)
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    record = KeyRecord(
        id=key_id,
        secret_sha256=_sha256(secret),
        tenant=tenant,
        agent=agent,
        roles=roles,
        created_at=now,
        expires_at=expires_at,
        revoked=False,
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(_lock_name(path)):
        file = load(path) if os.path.lexists(path) else KeyFile(version=1, purpose=purpose, keys=())
        if file.purpose != purpose:
            raise ValueError(f"{path} holds keys for {file.purpose}; keep keys for {purpose} in a file of their own")
        _replace(path, file.model_copy(update={"keys": (*file.keys, record)}))
    return NewKey(key_id, Sealed(f"{_PREFIX}{key_id}_{secret}".encode()))


def revoke(path: Path, key_id: str) -> None:
    """Mark a key as revoked. A running gateway refuses it, and the tasks made with it, from its next call on.

    Raises:
        LookupError: there is no such key.
        OSError, ValueError: see `load`.
    """
    with locked(_lock_name(path)):
        file = load(path)
        if key_id not in {key.id for key in file.keys}:
            raise LookupError("no key has this id; `callgated keys list` shows them")
        keys = tuple(key.model_copy(update={"revoked": True}) if key.id == key_id else key for key in file.keys)
        _replace(path, file.model_copy(update={"keys": keys}))


class _Version(NamedTuple):
    """Tells one state of the file from another."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    mode: int
    owner: int

    @classmethod
    def of(cls, status: os.stat_result) -> "_Version":
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode, status.st_uid)


class ApiKeys:
    """Implements `Authenticator`: recognises `cg_…`. Follows changes of the file."""

    def __init__(self, path: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path = path
        self._name = os.fspath(path)
        self._now = now
        self._version: _Version | None = None
        self._keys: dict[str, KeyRecord] = {}
        self._trouble = ""

    async def authenticate(self, token: str) -> Caller | None:
        """See `Authenticator`."""
        if not token.startswith(_PREFIX):
            return None
        found = _KEY.fullmatch(token)
        if found is None:
            raise _refused()
        self._follow()
        record = self._keys.get(found[1])
        given = _sha256(found[2])
        fits = hmac.compare_digest(given, _NO_DIGEST if record is None else record.secret_sha256)
        if record is None or not fits or self._is_over(record):
            raise _refused()
        return Caller(record.tenant, record.agent, record.roles, key=record.id)

    async def health(self) -> Mapping[str, Health]:
        """Whether keys can be told at all: nobody calls just now with one, and still somebody should know."""
        self._follow()
        return {"api_keys": Health(ok=not self._trouble, detail=self._trouble or "the file can be read")}

    def roles_left(self, caller: Caller) -> tuple[str, ...] | None:
        """See `admission.tasks.RolesLeft`."""
        self._follow()
        record = self._keys.get(caller.key or "")
        if record is None or self._is_over(record) or (record.tenant, record.agent) != (caller.tenant, caller.agent):
            return None
        return tuple(role for role in caller.roles if role in record.roles)

    def _is_over(self, record: KeyRecord) -> bool:
        return record.revoked or (record.expires_at is not None and record.expires_at <= self._now())

    def _follow(self) -> None:
        """Read the file again when it is another than last time. Whatever is wrong with it leaves no key valid."""
        seen: _Version | None = None
        try:
            seen = _Version.of(os.lstat(self._name))
            if seen != self._version:
                file, self._version = _load(self._path)
                self._keys, self._trouble = {key.id: key for key in file.keys}, ""
        except (OSError, ValueError) as error:
            self._keys, self._version = {}, seen
            if self._trouble != str(error):
                self._trouble = str(error)
                _log.error("every API key is refused until their file is mended: %s", error)


def _refused() -> CallError:
    return CallError(Reason.UNAUTHENTICATED, "The API key is not valid.")


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _load(path: Path) -> tuple[KeyFile, _Version]:
    document, status = read_private(path, MAX_FILE_BYTES)
    return _parse(path, document), _Version.of(status)


def _parse(path: Path, document: bytes) -> KeyFile:
    try:
        decode(document)  # refuses what pydantic lets pass, such as the same key twice
        file = KeyFile.model_validate_json(document)
    except ValidationError as error:
        where = ".".join(str(step) for step in error.errors()[0]["loc"])
        raise ValueError(f"{path} is not a key file: see {where or 'its beginning'}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a key file: {error}") from None
    if len({key.id for key in file.keys}) != len(file.keys):
        raise ValueError(f"{path} has two keys with the same id")
    return file


def _lock_name(path: Path) -> Path:
    # Not the key file itself: it is replaced, and a lock on the old one would keep nobody away.
    return path.with_name(path.name + ".lock")


def _replace(path: Path, file: KeyFile) -> None:
    replace_private(path, file.model_dump_json(indent=2).encode() + b"\n")
