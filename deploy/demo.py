"""`make demo`: the main job, end to end, on the embedded default. Each scene says what it does and what came of it.

Starts `callgated dev` on free loopback ports with a folder of its own, plays the scenes through the SDK, checks
what it claims, stops the gateway and looks for anything left behind. Exits 1 if a scene does not go as told.
"""

import base64
import hashlib
import hmac
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
import yaml
from rich.console import Console

from callgate import Callgate, CallRefused
from callgate.types import Answer

ROOT = Path(__file__).parent.parent
STATE = ROOT / ".callgate" / "demo"
START_TIMEOUT_S = 1200
SHOWN = 14  # lines of one text
TENTHS_BELOW = 100  # milliseconds
PHASES = ("admission", "ledger", "secrets", "acquire", "run", "result")
# Exit statuses of the command line, and the events of a call that waits for an approval.
REFUSED, WAITS = 3, 75
DIGEST_CHARS = 64
CARRIED = ("intent", "approved", "began", "outcome")
console = Console(highlight=False, width=min(100, Console().width))


class StoryError(Exception):
    """A scene did not go as told."""


def expect(holds: bool, what: str) -> None:  # noqa: FBT001  # reads like an assertion
    if not holds:
        raise StoryError(what)
    console.print(f"  ✔ {what}", style="green", markup=False)


def scene(number: int, title: str) -> None:
    console.print()
    console.print(f"── {number}. {title}", style="bold cyan", markup=False)


def show(label: str, text: str) -> None:
    folds = textwrap.TextWrapper(console.width - len(f"  {label} │ "), break_on_hyphens=False)
    for line in text.rstrip().splitlines()[:SHOWN]:
        pieces = folds.wrap(line) or [""]
        for name, piece in zip([label, *[" " * len(label)] * len(pieces)], pieces, strict=False):
            console.print(f"  {name} │ {piece}", markup=False, soft_wrap=True)


def told(answer: Answer) -> None:
    known = answer.usage.phases_ms
    phases = ", ".join(
        f"{name} {known[name]:.{1 if known[name] < TENTHS_BELOW else 0}f}" for name in PHASES if name in known
    )
    console.print(f"  {answer.state}  call {answer.call_id}", style="bold", markup=False)
    console.print(f"  allowed by {', '.join(answer.decision.policies)}", style="dim", markup=False)
    console.print(f"  ms: {phases}", style="dim", markup=False)


class Upstream(ThreadingHTTPServer):
    """A service on loopback that gives its orders to who has the key. `seen` are the credentials that came."""

    daemon_threads = True

    def __init__(self, key: str) -> None:
        super().__init__(("127.0.0.1", 0), _Orders)
        self.key = key
        self.seen: list[str] = []


class _Orders(BaseHTTPRequestHandler):
    server: Upstream

    def do_GET(self) -> None:  # the library asks for this name
        credential = self.headers.get("Authorization", "none")
        self.server.seen.append(credential)
        allowed = hmac.compare_digest(credential, f"Bearer {self.server.key}")
        body = b'{"orders": [4711, 4712]}' if allowed else b"who are you?"
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """The scene tells what it saw."""


@contextmanager
def upstreams() -> Iterator[tuple[Upstream, Upstream]]:
    """Two services on this machine: ours, whose key the gateway's store holds, and a stranger's."""
    ours, strangers = Upstream(secrets.token_hex(16)), Upstream(secrets.token_hex(16))
    for server in (ours, strangers):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield ours, strangers
    finally:
        for server in (ours, strangers):
            server.shutdown()
            server.server_close()


def configure(ours: Upstream) -> None:
    """Write what the gateway is to know of our service: its key into the store, and who may reach it with it."""
    STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
    seeds_file = STATE / "dev-secrets.yaml"
    seeds = yaml.safe_load(seeds_file.read_text()) if seeds_file.exists() else {}
    seeds.setdefault("kv/data/dev/webhooks", {"key": secrets.token_hex(32)})
    seeds["kv/data/dev/orders"] = {"key": ours.key}
    port = ours.server_port
    rule = {"host": "localhost", "scheme": "http", "port": port, "methods": ["GET"], "paths": ["/orders"]}
    reach = {
        "egress": {"internal": [{"host": "localhost", "port": port, "networks": ["127.0.0.0/8"]}]},
        "tools": {
            "python.run": {
                "egress": [{**rule, "secret": "orders"}],
                "secrets": [{"name": "orders", "from": "kv/data/{tenant}/orders#key", "deliver": "egress"}],
            }
        },
    }
    for path, document in ((seeds_file, seeds), (STATE / "dev-egress.yaml", reach)):
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(document, sort_keys=False))


@contextmanager
def gateway() -> Iterator[Callgate]:
    """A development gateway of our own, stopped at the end."""
    client_file = STATE / "client.json"
    client_file.unlink(missing_ok=True)
    log = STATE / "gateway.log"
    command = [str(ROOT / ".venv/bin/callgated"), "dev", "--state", str(STATE)]
    with log.open("wb") as log_file:
        process = subprocess.Popen(  # noqa: S603  # our own program
            [*command, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"], stderr=log_file, stdout=log_file
        )
    try:
        client = _wait_for(client_file, process, log)
        with Callgate(client["target"], token=Path(client["token_file"]).read_text()) as connection:
            yield connection
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=60)
    expect(status == 0, "the gateway drained and stopped with exit status 0")


def _wait_for(client_file: Path, process: subprocess.Popen[bytes], log: Path) -> dict[str, str]:
    shown = 0
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        lines = log.read_text(errors="replace").splitlines()
        for line in lines[shown:]:
            if line.startswith("callgated dev:"):
                console.print(f"  {line}", style="dim", markup=False)
        shown = len(lines)
        if client_file.exists():
            return dict(json.loads(client_file.read_text()))
        if process.poll() is not None:
            raise StoryError(f"the gateway did not start; its last words:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)
    raise StoryError(f"the gateway was not ready in time; see {log}")


def python_run(client: Callgate) -> None:
    scene(1, "Code of an agent runs in a container of its own")
    code = (
        "import pandas as pd\n"
        "sales = pd.DataFrame({'city': ['Bern', 'Oslo', 'Bern'], 'eur': [120, 80, 45]})\n"
        "print(sales.groupby('city').eur.sum().to_string())\n"
        "sales.to_csv('/out/sales.csv', index=False)\n"
    )
    show("code", code)
    answer = client.call("python.run", {"code": code})
    told(answer)
    show("stdout", answer.stdout.text)
    expect(answer.ok and "Bern    165" in answer.stdout.text, "the program's own output came back")
    expect([a.name for a in answer.artifacts] == ["sales.csv"], "the file it wrote came back as an artifact")
    code = (
        "import socket\n"
        "print('interfaces:', [line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line])\n"
        "socket.create_connection(('192.0.2.1', 443), timeout=2)\n"
    )
    show("code", code)
    escape = client.call("python.run", {"code": code})
    told(escape)
    show("stdout", escape.stdout.text)
    show("stderr", escape.stderr.text.strip().splitlines()[-1])
    expect(escape.state == "failed" and "unreachable" in escape.stderr.text, "a sandbox has no way to any network")


def webhooks_sign(client: Callgate) -> None:
    scene(2, "A tool uses a key that its caller never sees")
    payload = '{"order": 4711}'
    answer = client.call("webhooks.sign", {"payload": payload})
    told(answer)
    show("result", json.dumps(answer.result))
    seeds = yaml.safe_load((STATE / "dev-secrets.yaml").read_text())
    key = seeds["kv/data/dev/webhooks"]["key"].encode()
    result = dict(answer.result)
    expected = hmac.new(key, f"{result['timestamp']}.{payload}".encode(), hashlib.sha256).hexdigest()
    expect(result["signature"].endswith(expected), "the signature is right, so the tool had the key from OpenBao")
    forms = {key, base64.b64encode(key), key.hex().encode(), key[::-1]}
    places = {"the answer": json.dumps(answer.to_json()).encode(), **_everything_written()}
    hits = [name for name, content in places.items() if any(form in content for form in forms)]
    expect(not hits, f"the key is nowhere in {', '.join(places)}")


def _everything_written() -> dict[str, bytes]:
    """What the gateway keeps on disk, but for the file that the development store is seeded from."""
    record = b"".join(path.read_bytes() for path in sorted((STATE / "ledger").iterdir()))
    logs = b"".join(path.read_bytes() for path in sorted(STATE.glob("*.log")))
    return {"the record": record, "the logs": logs}


def refused_by_policy(client: Callgate) -> None:
    scene(3, "Policy refuses, and says which rule decided")
    try:
        client.call("shell.run", {"script": "rm -rf / --no-preserve-root"})
    except CallRefused as refusal:
        show(refusal.reason, refusal.message)
        expect(refusal.reason == "policy_denied", "refused before anything ran")
        expect(bool(refusal.policies), f"the deciding policy is named: {', '.join(refusal.policies)}")
        return
    raise StoryError("policy let the call through")


def invalid_arguments(client: Callgate) -> None:
    scene(4, "Arguments that do not fit are refused with the path of the field")
    try:
        client.call("text.diff", {"before": "a", "after": 7})
    except CallRefused as refusal:
        show(refusal.reason, refusal.message)
        paths = [violation.path for violation in refusal.violations]
        expect(refusal.reason == "invalid_arguments" and "/after" in paths, f"the bad field is named: {paths}")
        return
    raise StoryError("the arguments were accepted")


def runaway(client: Callgate) -> None:
    scene(5, "A runaway is killed at its deadline, and what it said is kept")
    code = "import time\nprint('starting', flush=True)\nwhile True: time.sleep(0.1)\n"
    answer = client.call("python.run", {"code": code}, deadline_s=2)
    told(answer)
    show("stdout", answer.stdout.text)
    expect(answer.state == "timed_out", "it ended at its deadline of two seconds")
    expect("starting" in answer.stdout.text, "its output until then is kept")


def replay(client: Callgate) -> None:
    scene(6, "The same call again is answered, not run")
    key = "demo-" + os.urandom(8).hex()
    first = client.call("python.run", {"code": "import uuid; print(uuid.uuid4())"}, idempotency_key=key)
    again = client.call("python.run", {"code": "import uuid; print(uuid.uuid4())"}, idempotency_key=key)
    show("first", first.stdout.text)
    show("again", again.stdout.text)
    expect(again.replayed and again.stdout.text == first.stdout.text, "the second answer is the stored first one")


def approval(client: Callgate) -> None:
    scene(8, "A call waits until somebody else approves exactly that call")
    payload, purpose = '{"refund": 4711}', "Order 4711 was charged twice."
    asked = callgate("developer", "call", "webhooks.sign", "--arg", f"payload={payload}", "--purpose", purpose)
    expect(asked.returncode == WAITS, "policy lets developers sign refunds, with an operator's approval: it waits")
    call_id = client.calls(1)[0].call_id
    callgate("operator", "approvals", call_id)
    wrong = callgate("operator", "approve", call_id, "--digest", "0" * DIGEST_CHARS)
    expect(wrong.returncode == REFUSED, "an approval that does not name what was shown approves nothing")
    digest = _digest(call_id)
    callgate("operator", "approve", call_id, "--digest", digest)
    answer = client.wait(call_id, timeout_s=30)
    told(answer)
    kinds = [event["kind"] for event in _recorded(call_id)]
    show("record", " → ".join(kind for kind in kinds if kind in CARRIED))
    expect(answer.state == "succeeded" and kinds.count("began") == 1, "it was approved, and ran once")


def _digest(call_id: str) -> str:
    """What an approval of this call has to name, from the document that programs read."""
    document = callgate("operator", "approvals", call_id, "--json", quiet=True)
    return str(json.loads(document.stdout)["digest"])


def asynchronous(client: Callgate) -> None:
    scene(9, "A call that nobody waits for goes on by itself")
    code = "import time\nfor left in (3, 2, 1):\n    print(left, flush=True)\n    time.sleep(0.5)\nprint('done')\n"
    show("code", code)
    handed_over = callgate("developer", "call", "python.run", "--arg", f"code={code}", "--async")
    call_id = client.calls(1)[0].call_id
    waited = "done" in handed_over.stdout
    expect(handed_over.returncode == 0 and not waited, "handed over: the command ended without waiting for it")
    followed = callgate("developer", "follow", call_id)
    expect("done" in followed.stdout and followed.returncode == 0, "followed to its end by its id")


def task(client: Callgate) -> None:
    scene(10, "A task gets a credential that is good for one thing")
    token = STATE / "task.token"
    token.unlink(missing_ok=True)
    bounds = ("--tool", "text.diff", "--calls", "2", "--lifetime", "300")
    made = callgate("developer", "tasks", "create", "compare", *bounds, "--save-token", str(token))
    expect(made.returncode == 0, "a task with a grant of one tool and a budget of two calls")
    with Callgate(_client()["target"], token=token.read_text().strip()) as worker:
        told(worker.call("text.diff", {"before": "a\n", "after": "b\n"}))
        _refused(worker, "outside_grant", "python.run", {"code": "print(1)"})
        worker.call("text.diff", {"before": "a\n", "after": "c\n"})
        _refused(worker, "budget_exceeded", "text.diff", {"before": "a\n", "after": "d\n"})
    expect(client.call("python.run", {"code": "print(1)"}).state == "succeeded", "its agent is bound by none of that")


def _refused(worker: Callgate, reason: str, tool: str, arguments: dict[str, str]) -> None:
    try:
        worker.call(tool, arguments)
    except CallRefused as refusal:
        show(refusal.reason, refusal.message)
        expect(refusal.reason == reason, f"{tool} was refused with {reason}")
        return
    raise StoryError(f"{tool} was not refused")


def callgate(agent: str, *arguments: str, quiet: bool = False) -> subprocess.CompletedProcess[str]:
    """Run our command line as an agent, and show what it was told and what it said."""
    place = ["--target", _client()["target"], "--token-file", str(STATE / f"{agent}.token")]
    command = [str(ROOT / ".venv/bin/callgate"), *arguments, *place]
    environment = {**os.environ, "COLUMNS": str(console.width - len(f"  {agent} │ "))}
    done = subprocess.run(  # noqa: S603  # our own program
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False, env=environment
    )
    if not quiet:
        show(agent, "$ callgate " + " ".join(_short(each) for each in arguments))
        show(agent, done.stdout)
    return done


def _short(argument: str) -> str:
    """An argument as it is shown: a program by its name, a path by its last part, a digest by its beginning."""
    if argument.startswith("code="):
        return '"code=$CODE"'
    if argument.startswith(str(STATE)):
        return Path(argument).name
    return argument[:12] + "…" if len(argument) == DIGEST_CHARS else shlex.quote(argument)


def _client() -> dict[str, str]:
    return dict(json.loads((STATE / "client.json").read_text()))


# What the scene shows of an event; the record has more.
RECORDED = ("method", "scheme", "host", "port", "rule", "secret", "policies", "why", "sent_bytes", "received_bytes")
SCRIPT = """\
import os, urllib.error, urllib.request
own = ('CALLGATE_CALL_ID', 'CALLGATE_IDEMPOTENCY_KEY')  # the call's names, no secrets
print('keys in sight:', [n for n in os.environ if 'KEY' in n and n not in own], os.path.exists('/run/secrets/orders'))
try:
    print(urllib.request.urlopen(URL, timeout=10).read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


def reaches_out(client: Callgate, ours: Upstream, strangers: Upstream) -> None:
    scene(7, "A program uses a key that it does not hold, for one destination only")
    show("code", SCRIPT)
    answers = []
    for label, server, host in (("permitted", ours, "localhost"), ("stranger", strangers, "127.0.0.1")):
        url = f"http://{host}:{server.server_port}/orders"
        show(label, f"URL = {url!r}")
        answer = client.call("python.run", {"code": f"URL = {url!r}\n{SCRIPT}"})
        told(answer)
        show("stdout", answer.stdout.text)
        show("upstream", _seen_by(server))
        show("record", _egress_record(answer.call_id))
        answers.append(answer)
    permitted, refused = answers
    expect("4711" in permitted.stdout.text, "the permitted upstream demanded the key, and the gate added it on the way")
    expect("egress_refused" in refused.stdout.text, "the same script aimed at a stranger was told no")
    expect(strangers.seen == [], "the stranger's server saw nothing at all")
    written = {"the answers": json.dumps([answer.to_json() for answer in answers]).encode(), **_everything_written()}
    expect(
        not any(ours.key.encode() in text for text in written.values()), f"the key is nowhere in {', '.join(written)}"
    )


def _seen_by(server: Upstream) -> str:
    if not server.seen:
        return "saw nothing"
    with_key = "with its key" if server.seen == [f"Bearer {server.key}"] else "without its key"
    return f"saw {len(server.seen)} request(s), {with_key}"


def _egress_record(call_id: str) -> str:
    """What the record has of a call's connections, an event a line."""
    lines = [
        f"{event['kind']}: " + ", ".join(f"{key} {event['body'][key]}" for key in RECORDED if event["body"].get(key))
        for event in _recorded(call_id)
        if event["kind"].startswith("egress_")
    ]
    if not lines:
        raise StoryError("the record says nothing of what the call reached")
    return "\n".join(lines)


def _recorded(call_id: str) -> list[dict[str, Any]]:
    """A call's events."""
    config = str(STATE / "callgate.yaml")
    command = [str(ROOT / ".venv/bin/callgated"), "audit", "show", "--call", call_id, "--config", config]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout  # noqa: S603
    return [json.loads(line) for line in shown.splitlines()]


def verified() -> None:
    scene(11, "The record shows tampering")
    command = [str(ROOT / ".venv/bin/callgated"), "audit", "verify", "--config", str(STATE / "callgate.yaml")]
    report = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    show("audit", report.stdout + report.stderr)
    expect(report.returncode == 0, "every decision of this demo is in a chain that holds")


def nothing_left() -> None:
    engine = docker.from_env()
    instance = "dev-" + (STATE / "instance").read_text().strip()
    left = engine.containers.list(all=True, filters={"label": f"callgate.instance={instance}"})
    expect(not left, "no container is left behind")


def main() -> int:
    console.print("Callgate: typed tool calls of an agent, through policy, into single-use containers.", style="bold")
    try:
        with upstreams() as (ours, strangers):
            configure(ours)
            with gateway() as client:
                python_run(client)
                webhooks_sign(client)
                refused_by_policy(client)
                invalid_arguments(client)
                runaway(client)
                replay(client)
                reaches_out(client, ours, strangers)
                approval(client)
                asynchronous(client)
                task(client)
                verified()
                scene(12, "Stopping")
        nothing_left()
    except StoryError as error:
        console.print(f"\n  ✘ {error}", style="bold red", markup=False)
        return 1
    console.print(f"\nThat was it. State is in {STATE.relative_to(ROOT)}; next: .venv/bin/callgated dev", style="bold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
