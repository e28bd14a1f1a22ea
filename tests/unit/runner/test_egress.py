"""The relay on real sockets of this machine's loopback, with the gateway played by the test."""

import json
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from callgate_runner import egress, wire
from callgate_runner.call import WayOut
from callgate_server.execution.egress_frames import (
    EgressClose,
    EgressCredit,
    EgressData,
    EgressMessage,
    EgressOpen,
    decode_egress,
    encode_credit,
    encode_data,
    encode_no_more,
    encode_over,
)
from callgate_server.execution.framing import FrameDecoder
from callgate_server.model.egress import PROXY_PORT

FRAMES = json.loads((Path(__file__).parents[3] / "proto/callgate_proto/frames.json").read_text())
PATIENCE_S = 10


def way_out(**change: object) -> WayOut:
    return WayOut({"proxy": False, "ports": [], "authority": None} | change)


class Rig:
    """An `Egress` in the place where the runner's loop has it, and what it told the gateway."""

    def __init__(self) -> None:
        source, self._to_runner = os.pipe()
        self._from_runner, sink = os.pipe()
        os.set_blocking(self._from_runner, False)
        self.link = wire.Wire(source, sink)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.egress = egress.Egress(self.link, way_out(ports=[self.port]))
        self.said: list[EgressMessage] = []
        self._decoder = FrameDecoder()
        self._tools: list[socket.socket] = []

    def connect(self) -> socket.socket:
        tool = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        self._tools.append(tool)
        return tool

    def turn(self, pause_ms: int = 20) -> int:
        """Go round the loop once; return how many descriptors were ready."""
        poll = select.poll()
        self.egress.register(poll)
        ready = poll.poll(pause_ms)
        for fd, event in ready:
            self.egress.handle(fd, event)
        self.link.pump()
        try:
            received = os.read(self._from_runner, 1 << 20)
        except BlockingIOError:
            return len(ready)
        self.said += [decode_egress(frame) for frame in self._decoder.feed(received)]
        return len(ready)

    def until(self, done: Callable[[], Any]) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < give_up, self.said
            self.turn()

    def rest(self) -> None:
        """Go on until nothing is ready any more."""
        while self.turn():
            pass

    def tell(self, *frames: bytes) -> None:
        for kind, payload in wire.Decoder().feed(b"".join(frames)):
            self.egress.on_frame(kind, payload)

    def opened(self) -> socket.socket:
        tool = self.connect()
        count = len(self.all(EgressOpen))
        self.until(lambda: len(self.all(EgressOpen)) > count)
        return tool

    def all(self, kind: type) -> list[Any]:
        return [message for message in self.said if isinstance(message, kind)]

    def data(self, number: int) -> bytes:
        return b"".join(message.data for message in self.all(EgressData) if message.id == number)

    def close(self) -> None:
        self.egress.close()
        for tool in self._tools:
            tool.close()
        for fd in (self._to_runner, self._from_runner, self.link.source, self.link.sink):
            os.close(fd)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def test_the_limits_are_those_of_the_description() -> None:
    limits = FRAMES["limits"]
    assert limits["egress_window_bytes"] == egress.WINDOW
    assert limits["egress_open"] == egress.MOST_OPEN
    assert limits["egress_connections"] == egress.MOST_CONNECTIONS
    assert FRAMES["proxy_port"] == egress.PROXY_PORT == PROXY_PORT
    assert FRAMES["closings"] == {"no_more": egress.NO_MORE, "over": egress.OVER}
    # About twenty are the runner's without egress.
    assert egress.MOST_OPEN + limits["egress_ports"] + 1 + 24 <= FRAMES["runner_open_files"]


def test_bytes_pass_both_ways(rig: Rig) -> None:
    tool = rig.opened()
    tool.sendall(b"question")
    rig.until(lambda: rig.data(1) == b"question")
    rig.tell(encode_data(1, b"answer"))
    rig.rest()
    assert tool.recv(100) == b"answer"
    assert rig.all(EgressOpen) == [EgressOpen(1, rig.port)]


def test_connections_are_numbered_in_their_order(rig: Rig) -> None:
    for _ in range(3):
        rig.opened().close()
    assert [message.id for message in rig.all(EgressOpen)] == [1, 2, 3]


def test_half_an_end_leaves_the_other_direction_and_both_are_the_end(rig: Rig) -> None:
    tool = rig.opened()
    tool.shutdown(socket.SHUT_WR)
    rig.until(lambda: rig.all(EgressClose) == [EgressClose(1, over=False)])
    rig.tell(encode_data(1, b"late answer"), encode_no_more(1))
    rig.until(lambda: rig.all(EgressClose)[1:] == [EgressClose(1, over=True)])
    assert tool.recv(100) == b"late answer"
    assert tool.recv(100) == b""


def test_the_gates_half_end_follows_what_was_queued(rig: Rig) -> None:
    tool = rig.opened()
    rig.tell(encode_data(1, b"x" * 60_000), encode_no_more(1))
    rig.rest()
    received = b""
    while piece := tool.recv(65536):
        received += piece
    assert received == b"x" * 60_000
    tool.sendall(b"still here")
    rig.until(lambda: rig.data(1) == b"still here")
    tool.close()
    rig.until(lambda: rig.all(EgressClose) == [EgressClose(1, over=False), EgressClose(1, over=True)])


def test_an_abort_of_the_gate_resets_the_tool_and_is_answered_once(rig: Rig) -> None:
    tool = rig.opened()
    rig.tell(encode_over(1), encode_over(1), encode_data(1, b"late"), encode_no_more(1), encode_credit(1, 5))
    rig.rest()
    assert rig.all(EgressClose) == [EgressClose(1, over=True)]
    with pytest.raises(ConnectionResetError):
        tool.recv(1)


def test_a_reset_by_the_tool_is_the_end(rig: Rig) -> None:
    tool = rig.opened()
    tool.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tool.close()
    rig.until(lambda: rig.all(EgressClose) == [EgressClose(1, over=True)])


def test_writing_to_a_tool_that_left_is_the_end(rig: Rig) -> None:
    tool = rig.opened()
    tool.close()
    rig.until(lambda: rig.all(EgressClose) == [EgressClose(1, over=False)])
    give_up = time.monotonic() + PATIENCE_S
    while EgressClose(1, over=True) not in rig.said:
        assert time.monotonic() < give_up
        rig.tell(encode_data(1, b"x"))
        rig.turn()


def test_the_tool_is_not_read_beyond_the_window(rig: Rig) -> None:
    tool = rig.opened()
    tool.setblocking(False)
    sent = 0
    give_up = time.monotonic() + PATIENCE_S
    while len(rig.data(1)) < egress.WINDOW:
        assert time.monotonic() < give_up
        sent += _send_some(tool)
        rig.turn()
    _send_some(tool)
    rig.rest()
    assert len(rig.data(1)) == egress.WINDOW
    rig.tell(encode_credit(1, 10))
    rig.rest()
    assert len(rig.data(1)) == egress.WINDOW + 10
    assert max(len(message.data) for message in rig.all(EgressData)) <= wire.CHUNK


def _send_some(tool: socket.socket) -> int:
    try:
        return tool.send(b"x" * 65536)
    except BlockingIOError:
        return 0


def test_a_tool_that_does_not_read_gets_no_credit_and_stops_nobody(rig: Rig) -> None:
    idle, busy = rig.opened(), rig.opened()
    rig.tell(*[encode_data(1, b"x" * wire.CHUNK)] * 4)
    rig.rest()
    granted = sum(message.count for message in rig.all(EgressCredit) if message.id == 1)
    for _ in range(64):
        rig.tell(encode_data(2, b"y" * wire.CHUNK))
        left = wire.CHUNK
        while left:
            rig.turn(0)
            left -= len(busy.recv(left))
    rig.rest()
    assert sum(message.count for message in rig.all(EgressCredit) if message.id == 2) == 64 * wire.CHUNK
    assert sum(message.count for message in rig.all(EgressCredit) if message.id == 1) == granted
    idle.close()


def test_while_the_gateway_does_not_read_neither_is_the_tool(rig: Rig) -> None:
    tool = rig.opened()
    rig.link.queue(bytes(wire.HIGH_WATER))
    poll = select.poll()
    tool.sendall(b"x")
    rig.egress.register(poll)
    assert poll.poll(100) == []


def test_a_connection_that_waits_for_nothing_wakes_nobody(rig: Rig) -> None:
    """Both sides hung up, and the tool's last bytes wait for credit: `poll` would report the hang-up for ever."""
    tool = rig.opened()
    for _ in range(4):
        tool.sendall(b"x" * wire.CHUNK)
        rig.rest()
    rig.until(lambda: len(rig.data(1)) == egress.WINDOW)
    tool.sendall(b"rest")
    tool.shutdown(socket.SHUT_WR)
    rig.tell(encode_no_more(1))
    assert rig.turn(100) == 0
    rig.tell(encode_credit(1, 100))
    rig.until(lambda: rig.all(EgressClose) == [EgressClose(1, over=False), EgressClose(1, over=True)])
    assert rig.data(1).endswith(b"rest")


def test_more_connections_than_may_be_open_wait(rig: Rig) -> None:
    tools = [rig.connect() for _ in range(egress.MOST_OPEN + 8)]
    rig.rest()
    assert len(rig.all(EgressOpen)) == egress.MOST_OPEN
    rig.tell(encode_over(1))
    rig.rest()
    assert len(rig.all(EgressOpen)) == egress.MOST_OPEN + 1
    assert len(tools) == egress.MOST_OPEN + 8


def test_after_the_last_connection_that_a_call_may_have_nobody_listens(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress, "MOST_CONNECTIONS", 2)
    first = rig.opened()
    rig.opened()
    with pytest.raises(ConnectionRefusedError):
        rig.connect()
    first.sendall(b"goes on")
    rig.until(lambda: rig.data(1) == b"goes on")


@pytest.mark.parametrize("frame", [encode_data(1, b"x"), encode_over(0), encode_credit(2, 1)])
def test_a_frame_of_a_connection_that_never_was_is_a_fault(rig: Rig, frame: bytes) -> None:
    with pytest.raises(ValueError, match="unknown connection"):
        rig.tell(frame)


def test_closing_ends_everything(rig: Rig) -> None:
    tools = [rig.opened(), rig.opened()]
    rig.tell(encode_data(1, b"x"))
    rig.egress.close()
    rig.turn()
    assert rig.all(EgressClose) == [EgressClose(1, over=True), EgressClose(2, over=True)]
    for tool in tools:
        with pytest.raises(ConnectionResetError):
            tool.recv(1)
    with pytest.raises(ConnectionRefusedError):
        rig.connect()


def test_libraries_are_told_of_the_proxy() -> None:
    proxy = "http://127.0.0.1:3128"
    assert egress.environment(way_out(proxy=True)) == {
        "HTTP_PROXY": proxy,
        "HTTPS_PROXY": proxy,
        "http_proxy": proxy,
        "https_proxy": proxy,
        "NO_PROXY": "",
        "no_proxy": "",
        "NODE_USE_ENV_PROXY": "1",
    }
    assert egress.environment(way_out(ports=[5432], mark="m")) == {}


def test_the_tool_is_told_the_mark_of_the_gates_words() -> None:
    assert egress.environment(way_out(proxy=True, mark="m"))["CALLGATE_EGRESS_MARK"] == "m"


def test_libraries_are_told_of_the_authority() -> None:
    names = {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"}
    assert egress.environment(way_out(authority="PEM")) == dict.fromkeys(names, "/run/secrets/ca-certificates.crt")


@pytest.mark.parametrize("system", [None, b"SYSTEM", b"SYSTEM\n\n"])
def test_the_tool_trusts_the_system_and_the_authority(
    system: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress, "CERTIFICATES", str(tmp_path / "ours"))
    monkeypatch.setattr(egress, "SYSTEM_CERTIFICATES", str(tmp_path / "system"))
    if system is not None:
        (tmp_path / "system").write_bytes(system)
    egress.write_certificates("PEM\n")
    assert (tmp_path / "ours").read_bytes() == (b"PEM\n" if system is None else b"SYSTEM\nPEM\n")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o400
    with pytest.raises(FileExistsError):
        egress.write_certificates("PEM\n")
