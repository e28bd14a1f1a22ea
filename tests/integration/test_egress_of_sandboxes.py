"""The way out of real sandboxes, from a tool's sockets to the gate's streams: with runc, and with gVisor where it is.

The gate is played by the test: what is decided and dialled is no affair of these tests.
"""

import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from callgate_server.execution.cancellation import Cancellation
from callgate_server.execution.egress import Outlet
from callgate_server.execution.egress_streams import MOST_OPEN, WINDOW_BYTES, Stream
from callgate_server.execution.supervise import supervise
from callgate_server.model.call import Deadline
from callgate_server.model.egress import PROXY_PORT, EgressUsage
from callgate_server.model.manifest import Limits, Run
from callgate_server.model.run import Cause, EgressWire, Job, RunOutcome
from support.egress_session import Answer, PlayedSession, cut, echo, flood, http, ignore, swallow
from support.images import images
from support.lane_rig import lane_rig
from support.names import NAMES
from support.probe import request_for
from support.probe_image import runner_image
from support.sandboxes import RUNTIMES, Rig, rig
from support.upstreams import TestAuthority

pytestmark = pytest.mark.timeout(300)

PROBE = Run(python="probe:run")
LIMITS = Limits(open_files=256, pids=128)
MIB = 1 << 20
PORTS = {"echo": 5001, "swallow": 5002, "ignore": 5003, "flood": 5004, "cut": 5005}
ANSWERS: dict[int, Answer] = {
    PORTS["echo"]: echo,
    PORTS["swallow"]: swallow,
    PORTS["ignore"]: ignore,
    PORTS["flood"]: flood,
    PORTS["cut"]: cut,
}
PRELUDE = f"""
import errno, os, socket, struct, threading, time
PORTS = {PORTS!r}
def connect(name, timeout=60):
    return socket.create_connection(("127.0.0.1", PORTS[name]), timeout=timeout)
def attempt(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "OK"
def read_all(tool):
    pieces = []
    while piece := tool.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """One run, and the session that it had."""

    outcome: RunOutcome
    session: PlayedSession | None

    @property
    def result(self) -> Any:
        assert self.outcome.exit.code == 0, (self.outcome.detail, self.outcome.stderr.head.decode())
        assert self.outcome.result_json is not None
        return json.loads(self.outcome.result_json)

    @property
    def usage(self) -> EgressUsage:
        return self.outcome.egress


RunCode = Callable[..., Awaitable[Ended]]


@pytest.fixture(scope="module", params=RUNTIMES)
def box(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with rig(request.param, runner_image()) as made:
        yield made


@pytest.fixture(scope="module")
def shipped() -> Iterator[Rig]:
    """The shipped base image in place of the probe."""
    with rig("runc", images()["base"]) as made:
        yield made


async def run_on(
    box: Rig,
    code: str,
    *,
    answers: dict[int, Answer] | None = None,
    egress: bool = True,
    authority: bytes | None = None,
    seconds: float = 100,
    run: Run = PROBE,
    arguments: dict[str, Any] | None = None,
) -> Ended:
    """Run code in a sandbox of its own, which must leave nothing behind."""
    answers = {PROXY_PORT: ignore, **ANSWERS, **(answers or {})}
    sessions: list[PlayedSession] = []

    def open_session(outlet: Outlet) -> PlayedSession:
        sessions.append(PlayedSession(outlet, answers))
        return sessions[-1]

    request = request_for(box.image, limits=LIMITS, deadline_s=seconds)
    sandbox = await box.backend.open(request)
    try:
        way_out = EgressWire(proxy=True, ports=tuple(PORTS.values()), authority_pem=authority) if egress else None
        content = json.dumps({"code": PRELUDE + code} if arguments is None else arguments).encode()
        job = Job(run, content, (), LIMITS, Deadline(monotonic() + seconds), NAMES, way_out)
        outcome = await supervise(
            sandbox,
            job,
            on_output=lambda _name, _data: None,
            cancelled=Cancellation(),
            egress=open_session if egress else None,
        )
    finally:
        await sandbox.destroy()
    assert box.containers() == []
    assert all(session.closed and not session._tasks for session in sessions)
    return Ended(outcome, sessions[0] if sessions else None)


@pytest.fixture
def run_code(box: Rig) -> RunCode:
    async def run(code: str, **options: Any) -> Ended:
        return await run_on(box, code, **options)

    return run


async def test_a_library_finds_the_proxy_by_itself(run_code: RunCode) -> None:
    heads: list[bytes] = []
    code = """
import urllib.request
with urllib.request.urlopen("http://api.example.test/v1?q=1", timeout=30) as answer:
    result = [answer.status, answer.read().decode()]
"""
    ended = await run_code(code, answers={PROXY_PORT: http(heads)})
    status, body = ended.result
    assert status == 200
    assert heads == [body.encode()]
    assert body.startswith("GET http://api.example.test/v1?q=1 HTTP/1.1\r\n")
    assert ended.usage.connections == 1
    assert ended.usage.sent_bytes == len(body)
    assert ended.usage.received_bytes > len(body)


async def test_a_library_asks_the_proxy_for_a_tunnel(run_code: RunCode) -> None:
    heads: list[bytes] = []
    code = """
import urllib.request
try:
    urllib.request.urlopen("https://api.example.test/v1", timeout=30)
except OSError as error:
    result = str(error)
"""
    ended = await run_code(code, answers={PROXY_PORT: http(heads, "403 Forbidden")})
    assert "403 Forbidden" in ended.result
    assert heads[0].startswith(b"CONNECT api.example.test:443 HTTP/1.")


async def test_a_mebibyte_passes_both_ways_at_once(run_code: RunCode) -> None:
    code = """
import hashlib
content = os.urandom(1 << 20)
with connect("echo") as tool:
    def send():
        tool.sendall(content)
        tool.shutdown(socket.SHUT_WR)
    sender = threading.Thread(target=send)
    sender.start()
    result = read_all(tool) == content
    sender.join()
"""
    ended = await run_code(code)
    assert ended.result is True
    assert ended.usage == EgressUsage(connections=1, sent_bytes=MIB, received_bytes=MIB)


async def test_the_tool_may_end_its_side_first(run_code: RunCode) -> None:
    code = """
with connect("swallow") as tool:
    tool.sendall(b"x" * (3 << 20))
    tool.shutdown(socket.SHUT_WR)
    result = read_all(tool).decode()
"""
    assert (await run_code(code)).result == str(3 * MIB)


async def test_the_gate_may_end_its_side_first(run_code: RunCode) -> None:
    received = bytearray()

    async def answer(stream: Stream) -> None:
        await stream.write(b"y" * MIB)
        await stream.finish()
        while data := await stream.read():
            received.extend(data)

    code = """
with connect("echo") as tool:
    got = read_all(tool)
    tool.sendall(b"thanks for %d" % len(got))
    tool.shutdown(socket.SHUT_WR)
    time.sleep(0.2)
    result = len(got)
"""
    assert (await run_code(code, answers={PORTS["echo"]: answer})).result == MIB
    assert received == b"thanks for %d" % MIB


async def test_a_connection_that_the_gate_broke_is_reset_and_not_ended(run_code: RunCode) -> None:
    code = """
with connect("cut") as tool:
    tool.sendall(b"x")
    result = attempt(read_all, tool)
"""
    ended = await run_code(code)
    assert ended.result == "ECONNRESET"


async def test_a_connection_that_the_tool_broke_is_an_error_at_the_gate(run_code: RunCode) -> None:
    code = """
with connect("swallow") as tool:
    tool.sendall(b"half of it")
    tool.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
with connect("echo") as after:
    after.sendall(b"x")
    result = after.recv(1).decode()
    # Ended in order before the tool's own end could break it.
    after.shutdown(socket.SHUT_WR)
    assert after.recv(1) == b""
"""
    ended = await run_code(code)
    assert ended.result == "x"
    assert ended.session is not None
    assert ended.session.broken == [PORTS["swallow"]]


async def test_forty_connections_at_once_take_turns(run_code: RunCode) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
together = threading.Barrier(40)
def one(number):
    with connect("echo") as tool:
        together.wait(60)
        content = b"%d" % number * 5000
        tool.sendall(content)
        tool.shutdown(socket.SHUT_WR)
        return read_all(tool) == content
with ThreadPoolExecutor(40) as pool:
    result = list(pool.map(one, range(40)))
"""
    ended = await run_code(code)
    assert ended.result == [True] * 40
    assert ended.session is not None
    assert ended.usage.connections == 40
    assert ended.session.most_open <= MOST_OPEN


async def test_a_tool_that_never_reads_one_connection_goes_on_with_another(run_code: RunCode) -> None:
    code = """
idle = connect("flood")
time.sleep(0.3)
with connect("echo") as tool:
    for _ in range(16):
        tool.sendall(b"x" * 65536)
        left = 65536
        while left:
            left -= len(tool.recv(left))
result = len(idle.recv(1))
"""
    ended = await run_code(code)
    assert ended.result == 1
    assert ended.session is not None
    flooded, echoed = ended.session.accepted
    assert echoed.received_bytes == MIB
    # The window, and what the kernel's own buffers hold.
    assert WINDOW_BYTES <= flooded.received_bytes < 16 * MIB


async def test_a_connection_that_the_gate_never_reads_stops_no_other(run_code: RunCode) -> None:
    code = """
idle = connect("ignore")
blocked = threading.Thread(target=attempt, args=(idle.sendall, bytes(64 << 20)), daemon=True)
blocked.start()
with connect("swallow") as tool:
    tool.sendall(bytes(1 << 20))
    tool.shutdown(socket.SHUT_WR)
    result = [read_all(tool).decode(), blocked.is_alive()]
os.write(3, __import__("json").dumps(result).encode())
os._exit(0)
"""
    ended = await run_code(code)
    assert ended.result == [str(MIB), True]
    assert ended.session is not None
    ignored, _ = ended.session.accepted
    assert ignored.sent_bytes == WINDOW_BYTES


async def test_a_tool_killed_at_its_deadline_leaves_no_connection(run_code: RunCode) -> None:
    code = """
held = [connect(name) for name in ("echo", "swallow", "flood")]
print("connected", flush=True)
time.sleep(1000)
"""
    ended = await run_code(code, seconds=10)
    assert ended.outcome.cause is Cause.TIMED_OUT
    assert ended.outcome.exit.signal == 9
    assert ended.outcome.stdout.head == b"connected\n"
    assert ended.session is not None
    assert sorted(ended.session.broken) == sorted(PORTS[name] for name in ("echo", "swallow", "flood"))
    assert ended.usage.connections == 3


async def test_a_tool_that_ends_by_itself_leaves_no_connection(run_code: RunCode) -> None:
    ended = await run_code("held = connect('swallow')\nheld.sendall(b'x')\ntime.sleep(0.2)\nos._exit(3)")
    assert (ended.outcome.cause, ended.outcome.exit.code) == (Cause.EXITED, 3)
    assert ended.session is not None
    assert len(ended.session.accepted) == 1


async def test_without_egress_nothing_listens_and_nothing_is_announced(run_code: RunCode) -> None:
    code = """
ports = [3128, *PORTS.values()]
refused = {attempt(socket.create_connection, ("127.0.0.1", port), 5) for port in ports}
def is_listening(line):
    return line.split()[3] == "0A"
listening = [line for line in open("/proc/net/tcp").readlines()[1:] if is_listening(line)]
announced = [name for name in os.environ if "proxy" in name.lower() or "CERT" in name or "BUNDLE" in name]
result = [sorted(refused), listening, announced, os.listdir("/run/secrets")]
"""
    ended = await run_code(code, egress=False)
    assert ended.result == [["ECONNREFUSED"], [], [], []]
    assert ended.usage == EgressUsage()


async def test_with_egress_the_sandbox_has_still_no_network(run_code: RunCode) -> None:
    """With a way out: nothing but the declared local ports answers, and there is no other kind of socket."""
    code = """
def make(family, kind):
    socket.socket(family, kind).close()
made = [[f, k] for f in range(64) for k in range(1, 11) if attempt(make, f, k) == "OK"]
targets = [("172.17.0.1", 2375), ("172.17.0.1", 2376), ("169.254.169.254", 80), ("8.8.8.8", 53), ("127.0.0.1", 2375)]
reached = [attempt(socket.create_connection, target, 2) for target in targets]
sockets = [path for path in ("/var/run/docker.sock", "/run/containerd/containerd.sock") if os.path.exists(path)]
def resolve():
    try:
        socket.getaddrinfo("example.com", 443)
    except socket.gaierror:
        return False
    return True
result = [made, reached, sockets, resolve()]
"""
    made, reached, sockets, resolved = (await run_code(code)).result
    plain = {(1, 1), (1, 2), (1, 5), (2, 1), (2, 2), (10, 1), (10, 2)}
    # gVisor's own netlink, and a raw local socket, which is a datagram socket by another name.
    assert {tuple(pair) for pair in made} <= plain | {(16, 2), (16, 3), (1, 3)}
    assert set(reached) <= {"ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED"}
    assert sockets == []
    assert resolved is False


async def test_the_tool_holds_nothing_of_the_way_out(run_code: RunCode) -> None:
    code = """
taken = socket.socket()
taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
bound = attempt(taken.bind, ("127.0.0.1", 3128))
taken.close()
held = connect("echo")
held.sendall(b"x")
held.recv(1)
kinds = sorted(os.readlink(f"/proc/self/fd/{fd}").partition(":")[0] for fd in os.listdir("/proc/self/fd") if fd.isdigit() and os.path.exists(f"/proc/self/fd/{fd}"))
result = [bound, kinds.count("socket")]
"""
    assert (await run_code(code)).result == ["EADDRINUSE", 1]


async def test_many_short_connections_leave_nothing_behind(run_code: RunCode) -> None:
    """Many short connections, one after the other: numbers are never used twice."""
    code = """
for _ in range(300):
    with connect("echo") as tool:
        tool.sendall(b"x")
        tool.shutdown(socket.SHUT_WR)
        assert read_all(tool) == b"x"
result = True
"""
    ended = await run_code(code)
    assert ended.result is True
    assert ended.session is not None
    assert [stream.id for stream in ended.session.accepted] == list(range(1, 301))


async def test_a_lane_has_no_way_out() -> None:
    """Refused long before; were it not, the runner would rather end than serve the call without one."""
    sessions: list[PlayedSession] = []

    def open_session(outlet: Outlet) -> PlayedSession:
        sessions.append(PlayedSession(outlet, ANSWERS))
        return sessions[-1]

    async with lane_rig() as lanes:
        request = lanes.request()
        sandbox = await lanes.lanes.open(request)
        way_out = EgressWire(proxy=True, ports=(), authority_pem=None)
        job = Job(PROBE, b'{"code":"result = 1"}', (), request.limits, request.deadline, NAMES, way_out)
        outcome = await supervise(
            sandbox, job, on_output=lambda _name, _data: None, cancelled=Cancellation(), egress=open_session
        )
        await sandbox.destroy()
    assert outcome.cause is Cause.LOST
    assert sessions[0].closed
    assert sessions[0].accepted == []


async def test_libraries_trust_the_system_and_the_gates_authority(shipped: Rig, tmp_path: Path) -> None:
    program = """
import json, os, ssl, stat
trusted = ssl.create_default_context().get_ca_certs()
names = [dict(part[0] for part in one["subject"]).get("commonName") for one in trusted]
path = os.environ["SSL_CERT_FILE"]
mode = stat.S_IMODE(os.stat(path).st_mode)
same = {os.environ[name] for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")} == {path}
os.write(3, json.dumps([names.count("Upstreams of a test"), len(names) > 100, mode, same]).encode())
"""
    run = Run(command=("/usr/bin/python3", "-c", program))
    ended = await run_on(shipped, "", run=run, arguments={}, authority=TestAuthority(tmp_path).ca_file.read_bytes())
    assert ended.result == [1, True, 0o400, True]


async def test_without_an_authority_libraries_find_the_systems_certificates(shipped: Rig) -> None:
    program = """
import json, os, ssl
found = len(ssl.create_default_context().get_ca_certs())
os.write(3, json.dumps([found > 100, os.path.getsize("/etc/ssl/certs/ca-certificates.crt") > 100_000, "SSL_CERT_FILE" in os.environ]).encode())
"""
    run = Run(command=("/usr/bin/python3", "-c", program))
    ended = await run_on(shipped, "", run=run, arguments={})
    assert ended.result == [True, True, False]
