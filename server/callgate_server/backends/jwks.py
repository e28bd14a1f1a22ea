"""The published keys of an identity provider, from a file or from its URL.

Decides when to look again and what to do when nobody answers: the last good set stays in use, and without one
there is no key. A token with an unknown key id makes us look again, but not more often than the interval, so
that nobody can use us to flood the provider. Whether a key is fit for a token is decided elsewhere.
"""

import asyncio
import ipaddress
import logging
import os
import stat
import time
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from callgate_server.model.strict_json import Json, decode

MAX_BYTES: Final = 1024 * 1024
# A key that the provider withdrew is believed no longer than this, if the provider answers.
MAX_AGE_S: Final = 600.0

_log = logging.getLogger(__name__)
_Keys = Mapping[str, dict[str, Json]]


class JwksFile:
    """Implements `Jwks` with a file, which is read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._keys: _Keys = {}
        self._trouble = ""

    async def key(self, key_id: str) -> dict[str, Json] | None:
        """See `Jwks`."""
        try:
            self._follow()
        except (OSError, ValueError) as error:
            if self._trouble != str(error):
                _log.error("the key set cannot be read, the last good one stays: %s", error)
            self._trouble = str(error)
        return self._keys.get(key_id)

    def _follow(self) -> None:
        if _version(self._path.stat()) == self._seen:
            return
        with self._path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            self._seen = _version(status)
            if stat.S_IMODE(status.st_mode) & 0o022:
                raise PermissionError(f"{self._path} can be written by others, who could let anybody in: chmod go-w")
            self._keys = _parse(stream.read(MAX_BYTES + 1))
        self._trouble = ""


class JwksUrl:
    """Implements `Jwks` with a URL.

    Args:
        url: `https:`, or `http:` to this machine itself.
        interval_s: the least time between two looks.
        timeout_s: for one look, whole.
    """

    def __init__(
        self,
        url: str,
        *,
        interval_s: float = 30,
        timeout_s: float = 3,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        _refuse_unsafe(url)
        self._url = url
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._now = now
        self._keys: _Keys = {}
        self._looked_s: float | None = None
        self._fresh_s: float | None = None
        self._looking = asyncio.Lock()
        # One thread: a provider that does not answer can hold no more than this.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jwks")

    async def key(self, key_id: str) -> dict[str, Json] | None:
        """See `Jwks`. Waits for the provider only when the key is unknown or the set is old."""
        known = key_id in self._keys
        if not known or (self._is_old() and not self._looking.locked()):
            async with self._looking:
                if self._may_look() and (key_id not in self._keys or self._is_old()):
                    await self._look()
        return self._keys.get(key_id)

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _is_old(self) -> bool:
        return self._fresh_s is None or self._now() - self._fresh_s >= MAX_AGE_S

    def _may_look(self) -> bool:
        return self._looked_s is None or self._now() - self._looked_s >= self._interval_s

    async def _look(self) -> None:
        self._looked_s = self._now()
        try:
            async with asyncio.timeout(self._timeout_s):
                loop = asyncio.get_running_loop()
                document = await loop.run_in_executor(self._thread, _fetch, self._url, self._timeout_s)
            self._keys = _parse(document)
            self._fresh_s = self._now()
        except (OSError, HTTPException, ValueError, RuntimeError) as error:
            _log.error("the key set cannot be fetched, the last good one stays: %s", error)


def _opener() -> urllib.request.OpenerDirector:
    """A client without what the usual one brings along.

    Without redirects: keys come from where the operator said, and from nowhere that place points to. Without
    proxies: they would be taken from the environment, which only the configuration reads.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _fetch(url: str, timeout_s: float) -> bytes:
    """Get the document, in a thread.

    Raises:
        OSError: no answer, another answer than 200, or one that trickles past the time.
    """
    begin_s = time.monotonic()
    with _opener().open(url, timeout=timeout_s) as response:
        chunks: list[bytes] = []
        size = 0
        while size <= MAX_BYTES and (chunk := response.read1(65536)):
            chunks.append(chunk)
            size += len(chunk)
            if time.monotonic() - begin_s > timeout_s:
                raise TimeoutError("the key set arrives too slowly")
    return b"".join(chunks)


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _parse(document: bytes) -> _Keys:
    """Return the keys of a set that have an id, by id.

    Raises:
        ValueError: it is not a key set, or it names a key twice.
    """
    if len(document) > MAX_BYTES:
        raise ValueError(f"a key set has at most {MAX_BYTES} bytes")
    found = decode(document)
    listed = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        raise ValueError("a key set is an object with `keys`")
    keys: dict[str, dict[str, Json]] = {}
    for key in listed:
        key_id = key.get("kid") if isinstance(key, dict) else None
        if not isinstance(key, dict) or not isinstance(key_id, str):
            continue
        if key_id in keys:
            raise ValueError("two keys of the set have the same id")
        keys[key_id] = key
    return keys


def _refuse_unsafe(url: str) -> None:
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL of a key set holds no credentials")
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname))):
        raise ValueError("a key set is fetched by https, or by http from this machine itself")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
