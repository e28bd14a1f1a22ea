"""What carries a connection crashes in mid-transfer. Its call is told of a broken connection, and no other."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from support import crashing_gate
from support.gateway import Deployment
from support.upstreams import Upstream

# Has what it sends echoed so many times, slowly enough that others are under way meanwhile.
ASK = """
import time, urllib.request
for _ in range({times}):
    with urllib.request.urlopen(urllib.request.Request("{url}", data=b"{word}", method="POST"), timeout=10) as answer:
        answer.read()
    time.sleep(0.1)
result = "done"
"""


def test_a_crash_in_mid_transfer_is_one_calls_broken_connection_and_nobody_elses(tmp_path: Path) -> None:
    with Upstream() as upstream:
        rule = {"host": "localhost", "scheme": "http", "port": upstream.port}
        settings: dict[str, Any] = {
            "egress": {"authority_dir": "egress", "internal": [{"host": "localhost", "networks": ["127.0.0.0/8"]}]},
            "tools": {"python.run": {"egress": [rule]}},
        }
        deployment = Deployment(tmp_path / "gateway", settings=settings)
        url = f"http://localhost:{upstream.port}/echo"
        with deployment.start(program=[sys.executable, crashing_gate.__file__]) as gateway:
            with ThreadPoolExecutor(2) as clients:
                other = clients.submit(gateway.post, "python.run", {"code": ASK.format(times=20, url=url, word="x")})
                code = ASK.format(times=1, url=url, word=crashing_gate.WORD.decode())
                hit = clients.submit(gateway.post, "python.run", {"code": code}).result().json()
                assert (hit["state"], hit["error"]["reason"]) == ("failed", "tool_failed")
                assert other.result().json()["state"] == "succeeded"
            after = gateway.post("python.run", {"code": ASK.format(times=1, url=url, word="x")}).json()
            assert after["state"] == "succeeded"
            assert gateway.stop() == 0
        assert "the gate crashes" not in deployment.log_text()
        assert '"type": "RuntimeError"' in deployment.log_text()
        kinds = [event["kind"] for event in deployment.events(hit["call_id"])]
        assert kinds == ["intent", "egress_allowed", "egress_closed", "outcome"]
        deployment.wait_until_clean()
    assert deployment.verify().fault is None
