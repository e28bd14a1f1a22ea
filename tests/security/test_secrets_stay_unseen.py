"""A canary secret is given to hostile code, and every sink is searched for it."""

import base64
import html
import json
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from callgate_server.backends.openbao_dev import DevServer
from support.gateway import Deployment, RunningGateway
from support.images import ENGINE
from support.secrecy import everything_written, hits

READ = "canary = open('/run/secrets/by_file').read()\n"


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory, store: DevServer) -> Iterator[RunningGateway]:
    """A gateway of its own at log level debug, so that its files are searched whole."""
    deployment = Deployment(tmp_path_factory.mktemp("leaky"), store)
    with deployment.start() as running:
        yield running
    deployment.wait_until_clean()


ECHOES = {
    "stdout": "print(canary)",
    "stderr": "import sys; sys.stderr.write(canary)",
    "result": "result = {'deep': [canary], canary: 1}",
    "exception": "raise RuntimeError(canary)",
    "slowly": "import sys, time\nfor c in canary: sys.stdout.write(c); sys.stdout.flush(); time.sleep(0.005)",
    "artifact": "open('/out/a.txt', 'w').write(canary)",
    "artifact name": "open('/out/' + canary, 'w').write('x')",
    "exit message": "raise SystemExit(canary)",
    "truncated": "print('x' * 131000 + canary * 20 + 'y' * 300000 + canary * 20)",
    "base64": "import base64; print(base64.b64encode(canary.encode()).decode(), base64.b64encode(b'ab' + canary.encode()))",
    "hex": "print(canary.encode().hex(), canary.encode().hex().upper())",
    "percent": "import urllib.parse; print(urllib.parse.quote(canary, safe=''), ''.join('%%%02X' % b for b in canary.encode()))",
    "json": "print(''.join('\\\\u%04x' % ord(c) for c in canary))",
    "html": "print(''.join('&#%d;' % ord(c) for c in canary))",
    "reversed": "print(canary[::-1])",
}


@pytest.mark.parametrize("way", ECHOES)
def test_a_secret_that_a_tool_gives_back_is_redacted_in_answer_stream_and_record(
    way: str, leaky: RunningGateway, secrets_of_acme: Any
) -> None:
    code = READ + ECHOES[way]
    response = leaky.post("probe.secret", {"code": code})
    with leaky.web() as web, web.stream(
        "POST", "/v1/tools/probe.secret/calls", json={"arguments": {"code": code}}, headers={"Accept": "text/event-stream"}
    ) as stream:  # fmt: skip
        streamed = stream.read()
    answer = response.json()
    decoded = b"".join(base64.b64decode(artifact["data"]) for artifact in answer["artifacts"])
    decoded += b"".join(base64.b64decode(answer[name]["data"] or "") for name in ("stdout", "stderr"))
    decoded += (answer["stdout"]["text"] + answer["stderr"]["text"]).encode()
    assert b"[REDACTED:by_file]" in response.content + decoded
    assert hits(secrets_of_acme.by_file, response.content + decoded + streamed) == []
    assert hits(secrets_of_acme.by_file, everything_written(leaky.deployment)) == []


def test_a_secret_by_standard_input_is_redacted_too(leaky: RunningGateway, secrets_of_acme: Any) -> None:
    answer = leaky.post("probe.secret", {"code": "print(secrets['by_stdin']); result = secrets"}).json()
    assert answer["stdout"]["text"] == "[REDACTED:by_stdin]\n"
    assert answer["result"] == {"by_stdin": "[REDACTED:by_stdin]"}


def test_inspect_environment_and_command_line_hold_no_secret_while_the_tool_runs(
    leaky: RunningGateway, secrets_of_acme: Any
) -> None:
    engine = docker.APIClient(base_url=ENGINE, version="auto")
    code = READ + "import time; print('ready', flush=True); time.sleep(8)"
    with leaky.web() as web, web.stream(
        "POST", "/v1/tools/probe.secret/calls",
        json={"arguments": {"code": code}, "on_disconnect": "cancel"}, headers={"Accept": "text/event-stream"},
    ) as stream:  # fmt: skip
        lines = stream.iter_lines()  # held: dropping it would close the stream, and with it the call
        for line in lines:
            if "ready" in line:
                break
            if "call_id" in line:
                call_id = json.loads(line.removeprefix("data: "))["call_id"]
        name = leaky.deployment.sandboxes()[call_id]
        inspected = engine.inspect_container(name)
        processes = engine.top(name)["Processes"]
        pids = [process[1] for process in processes]
        host = b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for pid in pids for name in ("environ", "cmdline"))
    engine.close()
    assert len(pids) >= 2
    shown = json.dumps(inspected).encode() + host
    for secret in (secrets_of_acme.by_file, secrets_of_acme.by_stdin):
        assert hits(secret, shown) == []
    # A name without "=" is one that is taken away.
    given = {variable.partition("=")[0] for variable in inspected["Config"]["Env"] if "=" in variable}
    assert given == {"PATH", "HOME", "LANG", "TMPDIR"}


def test_the_secret_file_is_readable_by_the_tool_alone_and_lies_in_memory(leaky: RunningGateway) -> None:
    code = (
        "import os\ns = os.stat('/run/secrets/by_file')\n"
        "mounts = [l.split() for l in open('/proc/self/mounts')]\n"
        "result = [oct(s.st_mode & 0o777), s.st_uid, [m[2] for m in mounts if m[1] == '/run/secrets']]"
    )
    assert leaky.post("probe.secret", {"code": code}).json()["result"] == ["0o400", 65532, ["tmpfs"]]


def test_arguments_stand_in_the_record_as_hashes_numbers_too(leaky: RunningGateway) -> None:
    marker = "an-argument-nobody-may-read-7319"
    leaky.post("text.diff", {"before": marker, "after": marker})
    leaky.post("python.run", {"code": f"x = 90210442  # {marker}"})
    leaky.post("probe.run", {"code": f"pass  # {marker}", "unknown": 55512347})
    written = everything_written(leaky.deployment)
    assert marker.encode() not in written
    assert b"90210442" not in written
    assert b"55512347" not in written


def test_a_credential_is_never_reflected(leaky: RunningGateway) -> None:
    token = leaky.deployment.tokens["acme"]
    wrong = token[:-4] + "AAAA"
    with leaky.web() as web:
        for response in (
            web.get("/v1/tools"),
            web.get("/v1/nowhere"),
            web.post("/v1/tools/text.diff/calls", content=b"{"),
            web.get("/v1/tools", headers={"Authorization": f"Bearer {wrong}"}),
            web.get(f"/v1/calls/{urllib.parse.quote(token)}"),
        ):
            assert token not in response.text + str(response.headers)
            assert wrong not in html.unescape(response.text) + str(response.headers)
    assert token.encode() not in everything_written(leaky.deployment)


def test_the_gateway_itself_leaves_no_core_and_cannot_be_read_by_its_user(leaky: RunningGateway) -> None:
    limits = Path(f"/proc/{leaky.process.pid}/limits").read_text()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4:6] == ["0", "0"]
    # Its own user, without a capability of root, does not get at its memory or environment.
    asked = subprocess.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "cat", f"/proc/{leaky.process.pid}/environ"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert asked.returncode != 0
