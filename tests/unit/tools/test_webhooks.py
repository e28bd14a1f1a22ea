"""`webhooks.sign`: what a receiver needs to check a signature, and nothing of the key."""

import hashlib
import hmac
import time
from pathlib import Path

import pytest

from support.tools import Ended, call

KEY = b"0123456789abcdef0123456789abcdef"


def sign(folder: Path, payload: str, key: bytes = KEY) -> Ended:
    (folder / "key").write_bytes(key)
    return call("webhooks:sign", "python", folder, {"payload": payload}, webhooks__KEY_FILE=str(folder / "key"))


@pytest.mark.parametrize("payload", ["", '{"a": 1}', "zürich\n"])
def test_a_receiver_with_the_key_can_check_the_signature(tmp_path: Path, payload: str) -> None:
    before = int(time.time())
    result = sign(tmp_path, payload).result
    assert before <= result["timestamp"] <= time.time()
    expected = hmac.new(KEY, f"{result['timestamp']}.{payload}".encode(), hashlib.sha256).hexdigest()
    assert result == {"signature": expected, "timestamp": result["timestamp"], "algorithm": "hmac-sha256"}


def test_the_key_is_taken_byte_for_byte(tmp_path: Path) -> None:
    key = b"\x00\xff" * 20 + b"\n"
    result = sign(tmp_path, "x", key).result
    assert result["signature"] == hmac.new(key, f"{result['timestamp']}.x".encode(), hashlib.sha256).hexdigest()


@pytest.mark.parametrize("key", [b"", KEY[:31]])
def test_a_short_key_is_refused_and_not_shown(tmp_path: Path, key: bytes) -> None:
    ended = sign(tmp_path, "x", key)
    assert ended.status == 1
    assert ended.result is None
    assert ended.stderr == "The webhook key is shorter than 32 bytes; store a longer one.\n"


def test_without_a_key_nothing_is_signed(tmp_path: Path) -> None:
    ended = call("webhooks:sign", "python", tmp_path, {"payload": "x"}, webhooks__KEY_FILE=str(tmp_path / "none"))
    assert ended.status == 1
    assert ended.result is None


def test_a_caller_cannot_choose_the_time(tmp_path: Path) -> None:
    ended = call("webhooks:sign", "python", tmp_path, {"payload": "x", "timestamp": 1})
    assert ended.status == 1
