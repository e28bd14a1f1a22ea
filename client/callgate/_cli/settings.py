"""Where the gateway is and with which credential: the one place that reads the environment.

A credential never goes to a place that came from somewhere else: `.callgate/client.json` counts only where neither
target nor token is given, and then both come from it. That file may lie in a folder somebody else packed, so it
may only name this machine and a token file beside itself, and nobody else may be able to write either.
"""

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from callgate._target import parse_target

DEFAULT_TARGET: Final = "127.0.0.1:9090"
DEV_FILE: Final = Path(".callgate") / "client.json"
_MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """`assumed` says that nobody named the target."""

    target: str
    token: str | None = field(repr=False)
    assumed: bool = False


def load(*, target: str | None, token_file: Path | None) -> Settings:
    """Settle target and token from options, environment and dev server, in this order.

    Raises:
        ValueError: what is named cannot be used; the message says which and why, and never holds a token.
    """
    return resolve(os.environ, Path.cwd(), target=target, token_file=token_file)


def resolve(environment: Mapping[str, str], folder: Path, *, target: str | None, token_file: Path | None) -> Settings:
    """`load`, with everything it looks at passed in.

    Raises:
        ValueError: as `load`.
    """
    target = target or environment.get("CALLGATE_TARGET") or None
    token = _token(environment, token_file)
    if target is None and token is None:
        dev_file = _nearest(folder)
        if dev_file is not None:
            return _of_dev_server(dev_file)
    return Settings(target or DEFAULT_TARGET, token, assumed=target is None)


def _token(environment: Mapping[str, str], token_file: Path | None) -> str | None:
    named = environment.get("CALLGATE_TOKEN_FILE")
    if token_file is None and named:
        token_file = Path(named)
    if token_file is not None:
        return _read_token(token_file)
    return environment.get("CALLGATE_TOKEN", "").strip() or None


def _read_token(path: Path) -> str:
    # Symbolic links and pipes are fine here: whoever names the file chose it.
    try:
        with path.open("rb") as file:
            return _as_token(file.read(_MAX_BYTES), path)
    except OSError as error:
        raise ValueError(f"the token file {path} cannot be read: {error.strerror}") from None


def _as_token(data: bytes, path: Path) -> str:
    try:
        token = data.decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token:
        raise ValueError(f"the token file {path} holds no token")
    return token


def _nearest(folder: Path) -> Path | None:
    for parent in (folder, *folder.parents):
        candidate = parent / DEV_FILE
        if os.path.lexists(candidate):
            return candidate
    return None


def _of_dev_server(path: Path) -> Settings:
    try:
        document = json.loads(_read_own(path, private=False))
        target, token_file = document["target"], document["token_file"]
        if not isinstance(target, str) or not isinstance(token_file, str):
            raise TypeError
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{path} is not what `callgated dev` writes; remove it or give --target") from None
    if not parse_target(target).loopback:
        raise ValueError(f"{path} names another machine; give --target and --token-file if that is meant")
    token_path = path.parent / token_file
    if token_path.parent.resolve() != path.parent.resolve():
        raise ValueError(f"{path} names a token file outside its own folder")
    return Settings(target, _as_token(_read_own(token_path, private=True), token_path))


def _read_own(path: Path, *, private: bool) -> bytes:
    """Read a file that is ours alone to write, and if `private` ours alone to read.

    The checks are made on what was opened, not on what the name meant a moment ago.
    """
    refused = (stat.S_IRWXG | stat.S_IRWXO) if private else (stat.S_IWGRP | stat.S_IWOTH)
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check_own(os.fstat(folder), path.parent, stat.S_IWGRP | stat.S_IWOTH)
            file = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
        with os.fdopen(file, "rb") as opened:
            status = os.fstat(file)
            _check_own(status, path, refused)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is not a regular file")
            return opened.read(_MAX_BYTES)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _check_own(status: os.stat_result, path: Path, refused_bits: int) -> None:
    if status.st_uid != os.geteuid():
        raise ValueError(f"{path} belongs to somebody else; give --target and --token-file")
    if status.st_mode & refused_bits:
        raise ValueError(f"{path} is open to other users; close it with: chmod go-rwx {path}")
