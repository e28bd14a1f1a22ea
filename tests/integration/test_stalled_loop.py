"""Something holds the event loop. It is seen, readiness shows it, and deadlines hold inside the sandbox."""

import signal
import sys
from pathlib import Path

from support import stalling_gateway
from support.gateway import Deployment, RunningGateway
from support.live import eventually, live


def loop_of(gateway: RunningGateway) -> str:
    with gateway.web() as web:
        return str(web.get("/readyz").json()["components"]["loop"])


def holds(gateway: RunningGateway, state: str) -> None:
    assert loop_of(gateway) == state


def test_a_stall_is_seen_and_no_deadline_waits_for_it(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway")
    with deployment.start(program=[sys.executable, stalling_gateway.__file__]) as gateway:
        eventually(lambda: holds(gateway, "ok"), within_s=40)
        with live(gateway, "probe.run", "print('ready', flush=True)\nwhile True: pass", deadline_ms=5000) as call:
            call.until_printed("ready")
            gateway.process.send_signal(signal.SIGUSR1)
            answer = call.answer()
        # The runner ended it at its deadline, while nobody outside could have: its own clock says so.
        assert (answer["state"], answer["error"]["reason"]) == ("timed_out", "timed_out")
        assert answer["usage"]["wall_ms"] < 1000 * stalling_gateway.STALL_S
        assert loop_of(gateway) == "failing"
        with gateway.web() as web:
            metrics = web.get("/metrics").text
        stalls = next(line.split()[1] for line in metrics.splitlines() if line.startswith("callgate_loop_stalls "))
        assert float(stalls) >= 1
        assert "the event loop was held" in deployment.log_text()
