"""The wall clock jumps by an hour, ahead and back, in the middle of calls. Deadlines, breakers, leases and
queues go by the monotonic clock; the record has the wall's time, and its order by its own numbers."""

import signal
import sys
from pathlib import Path

import pytest

from support import jumping_gateway
from support.gateway import Deployment
from support.live import eventually, live

SLOW = "print('ready', flush=True)\nimport time; time.sleep(4)\nresult = 'done'"
ENDLESS = "print('ready', flush=True)\nwhile True: pass"


@pytest.mark.parametrize("jump", [signal.SIGUSR1, signal.SIGUSR2], ids=["ahead", "back"])
def test_no_call_ends_sooner_or_later_for_it(jump: signal.Signals, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "gateway", settings={"queue": {"running": 1}})
    with deployment.start(program=[sys.executable, jumping_gateway.__file__]) as gateway:
        with (
            live(gateway, "probe.run", SLOW) as slow,
            live(gateway, "probe.run", ENDLESS, deadline_ms=10_000) as endless,
        ):
            slow.until_printed("ready")
            endless.until_printed("ready")
            waiting = gateway.post("probe.run", {"code": SLOW}, **{"async": True}).json()
            gateway.process.send_signal(jump)
            assert slow.answer()["state"] == "succeeded"
            ended = endless.answer()
        assert (ended["state"], ended["error"]["reason"]) == ("timed_out", "timed_out")
        assert 1000 < ended["usage"]["wall_ms"] < 19_000
        with gateway.web() as web:
            eventually(lambda: has_succeeded(web.get(f"/v1/calls/{waiting['call_id']}").json()))
            assert web.get("/readyz").status_code == 200
        assert gateway.post("probe.run", {"code": "result = 1"}).json()["state"] == "succeeded"
        assert gateway.stop() == 0
    assert deployment.verify().fault is None


def has_succeeded(call: dict[str, object]) -> None:
    assert call["state"] == "succeeded"
