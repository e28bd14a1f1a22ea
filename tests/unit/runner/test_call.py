from pathlib import Path

import pytest

from callgate_runner import call as call_module
from callgate_runner import json_text, wire
from callgate_runner.call import Call, WayOut, accept_secret
from callgate_server.execution.framing import HEADER, encode_call, encode_secret
from callgate_server.model.manifest import Limits, Run
from callgate_server.model.run import EgressWire
from callgate_server.model.sealed import Sealed
from support.names import NAMES


def payload_of(frame: bytes) -> bytes:
    return frame[HEADER.size :]


def call_of(run: Run, limits: Limits | None = None, arguments: bytes = b"{}", deadline_ms: int = 1500) -> Call:
    return Call(payload_of(encode_call(run, arguments, limits or Limits(), deadline_ms, NAMES)))


def test_a_call_arrives_as_the_gateway_meant_it() -> None:
    limits = Limits(output_kb=2, result_kb=3, artifacts=4, artifacts_kb=5, memory_mb=64, pids=70, open_files=80)
    call = call_of(Run(python="tool:main"), limits, b'{"a":1}')
    assert (call.function, call.command, call.arguments) == ("tool:main", None, b'{"a":1}')
    assert call.deadline_s == 1.5
    assert call.names == {"CALLGATE_CALL_ID": "call-1", "CALLGATE_IDEMPOTENCY_KEY": "key-1", "CALLGATE_ATTEMPT": "3"}
    assert (call.output_bytes, call.result_bytes) == (2048, 3072)
    assert (call.artifacts, call.artifacts_bytes) == (4, 5120)
    assert (call.memory_bytes, call.pids, call.open_files) == (64 * 1024 * 1024, 70, 80)
    assert not call.result_from_stdout


def test_a_command_keeps_its_words() -> None:
    call = call_of(Run(command=("/bin/echo", "a b", ""), result="stdout"))
    assert (call.function, call.command) == (None, ["/bin/echo", "a b", ""])
    assert call.result_from_stdout


def test_a_call_has_no_way_out_unless_it_says_so() -> None:
    assert call_of(Run(python="tool:main")).egress is None
    given = EgressWire(proxy=True, ports=(5432, 6432), authority_pem=b"PEM", mark="m")
    way_out = Call(payload_of(encode_call(Run(python="a:b"), b"{}", Limits(), 1, NAMES, given))).egress
    assert way_out is not None
    assert (way_out.proxy, way_out.ports, way_out.authority, way_out.mark) == (True, [5432, 6432], "PEM", "m")


def test_a_gateway_that_knows_no_mark_sends_none() -> None:
    assert WayOut({"proxy": True, "ports": [], "authority": None}).mark is None


@pytest.mark.parametrize(
    "change",
    [
        {"python": "a:b"},
        {"command": None},
        {"command": []},
        {"command": ["/bin/true", 1]},
        {"deadline_ms": -1},
        {"pids": "many"},
        {"pids": True},
        {"call_id": None},
        {"idempotency_key": 7},
        {"attempt": "2"},
        {"egress": []},
        {"egress": {"proxy": True, "ports": None, "authority": None}},
        {"egress": {"proxy": True, "ports": ["22"], "authority": None}},
        {"egress": {"proxy": True, "ports": [], "authority": 1}},
        {"egress": {"proxy": True, "ports": [], "authority": None, "mark": 1}},
    ],
)
def test_a_malformed_call_is_refused(change: dict[str, object]) -> None:
    head, _ = wire.split_head(payload_of(encode_call(Run(command=("/bin/true",)), b"{}", Limits(), 1, NAMES)))
    encoded = json_text.encode({**head, **change})
    with pytest.raises((TypeError, ValueError)):
        Call(wire.HEAD.pack(len(encoded)) + encoded)


def test_standard_input_is_a_line_of_arguments_and_one_of_secrets() -> None:
    call = call_of(Run(python="tool:main"), arguments=b'{"a":1}')
    assert call.stdin({}) == b'{"a":1}\n'
    assert call.stdin({"pin": 'a"\n'}) == b'{"a":1}\n{"pin":"a\\"\\n"}\n'


@pytest.fixture
def secrets_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(call_module, "SECRETS_FOLDER", str(tmp_path))
    return tmp_path


def test_a_secret_for_a_file_is_only_there_and_only_for_its_owner(secrets_folder: Path) -> None:
    kept: dict[str, str] = {}
    accept_secret(payload_of(encode_secret("key", "file", Sealed(b"\x00\xff"))), kept)
    assert kept == {}
    assert (secrets_folder / "key").read_bytes() == b"\x00\xff"
    assert (secrets_folder / "key").stat().st_mode & 0o777 == 0o400


def test_a_secret_for_standard_input_is_in_no_file(secrets_folder: Path) -> None:
    kept: dict[str, str] = {}
    accept_secret(payload_of(encode_secret("pin", "stdin", Sealed("é".encode()))), kept)
    assert kept == {"pin": "é"}
    assert list(secrets_folder.iterdir()) == []


def test_a_secret_never_replaces_or_follows_what_is_there(secrets_folder: Path) -> None:
    (secrets_folder / "key").symlink_to(secrets_folder / "elsewhere")
    with pytest.raises(FileExistsError):
        accept_secret(payload_of(encode_secret("key", "file", Sealed(b"x"))), {})
    assert not (secrets_folder / "elsewhere").exists()


@pytest.mark.parametrize("name", ["../key", "", "a/b", "a\0b", "é"])
def test_a_secret_with_a_name_that_is_no_plain_word_is_refused(secrets_folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        accept_secret(payload_of(encode_secret(name, "file", Sealed(b"x"))), {})
    assert list(secrets_folder.iterdir()) == []


def test_an_unknown_way_of_delivery_is_refused(secrets_folder: Path) -> None:
    encoded = b'{"name":"key","deliver":"environment"}'
    with pytest.raises(ValueError, match="delivered"):
        accept_secret(wire.HEAD.pack(len(encoded)) + encoded + b"x", {})
