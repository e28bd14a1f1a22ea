from pathlib import Path

import pytest

from callgate._dial import Dial, read_ca
from callgate._target import parse_target


def options(target: str, *, secure: bool) -> dict[str, int]:
    return dict(Dial(parse_target(target), secure, None, 1000).options())


def test_grpc_itself_retries_nothing() -> None:
    assert options("127.0.0.1:1", secure=False)["grpc.enable_retries"] == 0


def test_a_proxy_of_the_environment_sees_no_plaintext() -> None:
    assert options("127.0.0.1:1", secure=False)["grpc.enable_http_proxy"] == 0
    assert options("gateway.example:1", secure=True)["grpc.enable_http_proxy"] == 1


def test_the_size_of_an_answer_is_capped() -> None:
    assert options("127.0.0.1:1", secure=False)["grpc.max_receive_message_length"] == 1000


def test_roots_are_read_from_a_pem_file(tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    pem.write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    assert read_ca(pem) == b"-----BEGIN CERTIFICATE-----\n"
    assert read_ca(None) is None


def test_a_file_without_a_certificate_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.touch()
    with pytest.raises(ValueError, match="no PEM certificate"):
        read_ca(empty)
    with pytest.raises(FileNotFoundError):
        read_ca(tmp_path / "missing.pem")
