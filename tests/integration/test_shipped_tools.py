"""The shipped tools as callers get them: their declared limits, in their image, in a real sandbox, over the wire."""

import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from callgate_server.backends.catalog.manifests import declarations, image_folders
from callgate_server.backends.docker.backend import DockerBackend
from callgate_server.backends.docker.options import DockerOptions
from callgate_server.backends.json_schema import CompiledSchemas
from callgate_server.execution.cancellation import Cancellation
from callgate_server.execution.sandbox import SandboxRequest
from callgate_server.execution.supervise import supervise
from callgate_server.model.call import Deadline
from callgate_server.model.catalog import Catalog, Tool
from callgate_server.model.identifiers import new_call_id
from callgate_server.model.run import Cause, DeliveredSecret, Job, RunOutcome
from callgate_server.model.sealed import Sealed
from callgate_server.model.strict_json import encode
from support.images import ENGINE, SANDBOX_IMAGES, images
from support.names import NAMES

pytestmark = pytest.mark.timeout(900)

KEY = b"0123456789abcdef0123456789abcdef"
Call = Callable[..., Awaitable[RunOutcome]]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    manifests = [found.manifest() for found in declarations(image_folders([SANDBOX_IMAGES]).values())]
    return Catalog.of(*(Tool.pin(manifest, images()[manifest.image]) for manifest in manifests))


@pytest.fixture
async def backend() -> AsyncIterator[DockerBackend]:
    name = f"test-{uuid.uuid4().hex[:12]}"
    backend = DockerBackend(DockerOptions(instance=name, boot_id="boot", socket_url=ENGINE))
    yield backend
    await backend.close()


@pytest.fixture
def call(catalog: Catalog, backend: DockerBackend) -> Call:
    schemas = CompiledSchemas.of(catalog)

    async def one(name: str, **arguments: Any) -> RunOutcome:
        tool = catalog.tools[name]
        assert not schemas.input_violations(tool, arguments)
        limits = tool.manifest.limits
        deadline = Deadline(time.monotonic() + limits.wall_s)
        deadline_at = datetime.now(UTC) + timedelta(seconds=limits.wall_s)
        sandbox = await backend.open(
            SandboxRequest(new_call_id(), "acme", name, tool.image_digest, None, limits, deadline, deadline_at)
        )
        try:
            secrets = tuple(DeliveredSecret(ref.name, ref.deliver, Sealed(KEY)) for ref in tool.manifest.secrets)
            job = Job(tool.manifest.run, encode(arguments), secrets, limits, deadline, NAMES)
            outcome = await supervise(
                sandbox, job, clock=time.monotonic, on_output=lambda _name, _data: None, cancelled=Cancellation()
            )
        finally:
            await sandbox.destroy()
        if outcome.exit.code == 0:
            assert not schemas.output_violations(tool, result(outcome))
        return outcome

    return one


def result(outcome: RunOutcome) -> Any:
    assert outcome.result_json is not None, outcome.stderr.head.decode()
    return json.loads(outcome.result_json)


async def test_python_run_computes_with_pandas_and_hands_back_files(call: Call) -> None:
    code = (
        "import sys, pandas as pd, numpy as np\n"
        "table = pd.read_csv('in.csv')\n"
        "print(table.n.sum(), int(np.linalg.det(np.eye(3))), sys.argv[1])\n"
        "table.describe().to_csv('/out/summary.csv')\n"
        "open('/out/blob', 'wb').write(open('in.bin', 'rb').read())\n"
    )
    files = [
        {"name": "in.csv", "content": "n\n1\n2\n"},
        {"name": "in.bin", "content_base64": base64.b64encode(bytes(range(256))).decode()},
    ]
    outcome = await call("python.run", code=code, files=files, args=["word"])
    assert result(outcome) == {"exit_code": 0, "files": ["blob", "summary.csv"]}
    assert outcome.stdout.head == b"3 1 word\n"
    found = {artifact.name: artifact.data for artifact in outcome.artifacts}
    assert found["blob"] == bytes(range(256))
    assert found["summary.csv"].startswith(b",n\ncount,2.0\n")


async def test_python_run_fails_with_the_programs_own_traceback(call: Call) -> None:
    outcome = await call("python.run", code="def f():\n    return {}['missing']\nf()\n")
    assert (outcome.cause, outcome.exit.code, outcome.result_json) == (Cause.EXITED, 1, None)
    assert outcome.stderr.head.decode() == (
        "Traceback (most recent call last):\n"
        '  File "/tmp/work/main.py", line 3, in <module>\n    f()\n'
        "  File \"/tmp/work/main.py\", line 2, in f\n    return {}['missing']\n           ~~^^^^^^^^^^^\n"
        "KeyError: 'missing'\n"
    )


async def test_python_run_uses_threads_and_processes_within_its_limits(call: Call) -> None:
    code = (
        "import concurrent.futures as cf, multiprocessing, threading\n"
        "def square(n): return n * n\n"
        "with cf.ThreadPoolExecutor(8) as pool: print(sum(pool.map(square, range(10))))\n"
        "with multiprocessing.Pool(2) as pool: print(sum(pool.map(square, range(10))))\n"
        "threading.Timer(0.1, print, ['late']).start()\n"
    )
    outcome = await call("python.run", code=code)
    assert outcome.stdout.head == b"285\n285\nlate\n", outcome.stderr.head.decode()
    assert outcome.exit.code == 0


@pytest.mark.parametrize(
    ("arguments", "stdout"),
    [
        ({"argv": ["jq", "-c", ".a"], "stdin": '{"a": [1, 2]}'}, b"[1,2]\n"),
        ({"script": "sort -r names.txt | head -n 1", "files": [{"name": "names.txt", "content": "a\nb\n"}]}, b"b\n"),
        ({"script": "echo one > /out/x; chmod +x $0; ls -A /out"}, b"x\n"),
    ],
)
async def test_shell_run_succeeds_truthfully(call: Call, arguments: dict[str, Any], stdout: bytes) -> None:
    outcome = await call("shell.run", **arguments)
    assert result(outcome) == {"exit_code": 0}
    assert outcome.stdout.head == stdout


async def test_shell_run_ends_as_its_command_ends(call: Call) -> None:
    failed = await call("shell.run", script="echo before; false; echo after")
    assert (failed.cause, failed.exit.code, failed.stdout.head) == (Cause.EXITED, 1, b"before\n")
    killed = await call("shell.run", argv=["sh", "-c", "kill -9 $$"])
    assert (killed.cause, killed.exit.signal) == (Cause.SIGNALLED, 9)
    assert failed.result_json is killed.result_json is None


async def test_webhooks_sign_signs_with_a_key_that_is_nowhere_else(call: Call) -> None:
    outcome = await call("webhooks.sign", payload='{"order": 7}')
    signed = result(outcome)
    expected = hmac.new(KEY, f'{signed["timestamp"]}.{{"order": 7}}'.encode(), hashlib.sha256).hexdigest()
    assert (signed["signature"], signed["algorithm"]) == (expected, "hmac-sha256")
    assert KEY not in (outcome.result_json or b"") + outcome.stdout.head + outcome.stderr.head


async def test_text_diff_compares(call: Call) -> None:
    found = result(await call("text.diff", before="a\n", after="b\n"))
    assert found == {"diff": "--- before\n+++ after\n@@ -1 +1 @@\n-a\n+b\n", "added": 1, "removed": 1, "equal": False}
